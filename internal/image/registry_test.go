package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/remote"
)

// testRegistry is a real registry in this process that counts what it is asked.
type testRegistry struct {
	t      testing.TB
	server *httptest.Server
	host   string

	mu       sync.Mutex
	requests []string
	wrap     func(http.Handler) http.Handler
}

func newRegistry(t testing.TB) *testRegistry {
	r := &testRegistry{t: t}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, q.Method+" "+q.URL.Path)
		h := http.Handler(inner)
		if r.wrap != nil {
			h = r.wrap(h)
		}
		r.mu.Unlock()
		h.ServeHTTP(w, q)
	}))
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

// wrapped changes how the registry answers from now on.
func (r *testRegistry) wrapped(wrap func(http.Handler) http.Handler) {
	r.mu.Lock()
	r.wrap = wrap
	r.mu.Unlock()
}

// asked counts the requests so far that begin with prefix and hold part.
func (r *testRegistry) asked(prefix, part string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if strings.HasPrefix(q, prefix) && strings.Contains(q, part) {
			n++
		}
	}
	return n
}

func (r *testRegistry) send(method, path, contentType string, body []byte) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.server.URL+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(resp.Body)
		r.t.Fatalf("%s %s: %s %s", method, path, resp.Status, b)
	}
}

func (r *testRegistry) blob(repo string, b []byte) {
	r.t.Helper()
	r.send("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b)
}

// put gives the registry an image and returns its manifest.
func (r *testRegistry) put(repo, tag string, kind compression, img sample) ocispec.Descriptor {
	r.t.Helper()
	blobs := map[string][]byte{}
	d := img.manifest(r.t, kind, blobs)
	raw := blobs[blobName(d.Digest)]
	delete(blobs, blobName(d.Digest))
	for _, b := range blobs {
		r.blob(repo, b)
	}
	r.send("PUT", "/v2/"+repo+"/manifests/"+d.Digest.String(), d.MediaType, raw)
	if tag != "" {
		r.send("PUT", "/v2/"+repo+"/manifests/"+tag, d.MediaType, raw)
	}
	return d
}

// index gives the registry an index of manifests that it has.
func (r *testRegistry) index(repo, tag string, kids ...ocispec.Descriptor) digest.Digest {
	r.t.Helper()
	raw := encode(r.t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: kids})
	r.send("PUT", "/v2/"+repo+"/manifests/"+tag, ocispec.MediaTypeImageIndex, raw)
	return digest.FromBytes(raw)
}

// impatient is a client that does not pause long.
func impatient() *remote.Client {
	return remote.New(remote.Config{
		CertsDir: "/nonexistent", Stall: 20 * time.Second, Pause: time.Millisecond, MaxPause: 10 * time.Millisecond,
	})
}

func openPuller(t testing.TB, dir string) *Store {
	return openAt(t, dir, func(c *Config) { c.Registries = impatient() })
}

func pull(t testing.TB, s *Store, ref string) PullResult {
	t.Helper()
	r, err := s.Pull(context.Background(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// verify is the auditor of a store: every record's blobs are here with their
// digests, every flat layer and index it needs is here, and nothing else is.
func verify(t testing.TB, s *Store) {
	t.Helper()
	if err := s.verify(context.Background()); err != nil {
		t.Errorf("the store is not in order: %v", err)
	}
}

func platformOf(d ocispec.Descriptor, arch string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

func ref(r *testRegistry, name string, args ...any) string {
	return r.host + "/" + fmt.Sprintf(name, args...)
}

var noAuth = remote.Credentials{}
