package build

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"proa/internal/build/tarfs"
)

// liar is a registry that has whatever it is given under whatever name.
func liar(t *testing.T, manifest string, blobs map[string]string) (host string, asked func(part string) bool) {
	t.Helper()
	var mu sync.Mutex
	var paths []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		paths = append(paths, r.Method+" "+r.URL.Path)
		mu.Unlock()
		body := manifest
		if i := strings.LastIndex(r.URL.Path, "/blobs/"); i >= 0 {
			var ok bool
			if body, ok = blobs[r.URL.Path[i+len("/blobs/"):]]; !ok {
				http.NotFound(w, r)
				return
			}
		} else if !strings.Contains(r.URL.Path, "/manifests/") {
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromString(manifest).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), func(part string) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range paths {
			if strings.Contains(p, part) {
				return true
			}
		}
		return false
	}
}

// What a registry says of a cache ends no build and no builder, least of all
// with a panic, which would end all of them.
func TestCacheOfALiar(t *testing.T) {
	manifest := func(config string, size int64, more string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d%s},"layers":[{"mediaType":%q,"digest":%q,"size":3}]}`,
			ocispec.MediaTypeImageManifest, config, size, more, ocispec.MediaTypeImageLayerGzip, digest.FromString("abc"))
	}
	noSteps := `{"rootfs":{"type":"layers","diff_ids":["` + digest.FromString("abc").String() + `"]},"moby.buildkit.cache.v0":"W10="}`
	of := func(s string) string { return digest.FromString(s).String() }
	for name, c := range map[string]struct {
		manifest string
		blobs    map[string]string
	}{
		"a size below zero":           {manifest(of("x"), -5, ""), map[string]string{of("x"): "x"}},
		"a size without measure":      {manifest(of("x"), 1<<62, ""), map[string]string{of("x"): "x"}},
		"fewer steps than layers":     {manifest(of(noSteps), int64(len(noSteps)), ""), map[string]string{of(noSteps): noSteps}},
		"the same within":             {manifest(of(noSteps), int64(len(noSteps)), `,"data":"`+base64.StdEncoding.EncodeToString([]byte(noSteps))+`"`), nil},
		"something else":              {manifest(of("x"), int64(len(noSteps)), ""), map[string]string{of("x"): noSteps}},
		"a digest that is none":       {manifest("x", 1, ""), nil},
		"of an algorithm of its own":  {manifest("sha0:00", 1, ""), nil},
		"a manifest that is no JSON":  {"nonsense", nil},
		"records of nobody's layers":  {manifest(of("{}"), 2, ""), map[string]string{of("{}"): "{}"}},
		"a config that is a document": {manifest(of("[]"), 2, ""), map[string]string{of("[]"): "[]"}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			host, asked := liar(t, c.manifest, c.blobs)
			files, err := tarfs.File("Dockerfile", []byte("FROM scratch\nCOPY Dockerfile /d\n"), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer files.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, err = k.client().Solve(ctx, nil, client.SolveOpt{
				Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
				CacheImports: []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": host + "/cache:1"}}},
			}, nil)
			if err != nil {
				t.Errorf("the build: %v", err)
			}
			if !asked("/manifests/") {
				t.Error("the cache was not asked for")
			}
		})
	}
}

func TestCacheDocument(t *testing.T) {
	for doc, ok := range map[string]bool{
		`{"rootfs":{"diff_ids":["a"]},"history":[{"empty_layer":true},{}],"moby.buildkit.cache.v0":"x"}`: true,
		`{"rootfs":{"diff_ids":["a"]},"history":[{"empty_layer":true}],"moby.buildkit.cache.v0":"x"}`:    false,
		`{"rootfs":{"diff_ids":["a"]}}`:                  true, // no cache in it
		`{"config":{"Cmd":["a"]},"history":[]}`:          true,
		`{"config":{"digest":"a","data":"eA=="}}`:        false,
		`{"manifests":[{"digest":"a"},{"Data":"eA=="}]}`: false,
		`{"manifests":[{"digest":"a"}]}`:                 true,
		`{"layers":[],"records":[]}`:                     true,
		`[]`:                                             false,
	} {
		if err := checkCacheDocument([]byte(doc)); (err == nil) != ok {
			t.Errorf("%s: %v", doc, err)
		}
	}
}
