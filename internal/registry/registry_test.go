package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/failure"
	"proa/internal/registry/store"
)

// world is a registry on a loopback address, and a client that sends what it is told.
type world struct {
	t   testing.TB
	dir string
	url string
	c   *http.Client
	st  *store.Store
}

func start(t testing.TB, cfg Config) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), c: http.DefaultClient}
	if cfg.Store == nil {
		var err error
		if cfg.Store, err = store.Open(w.dir, store.Config{MaxBlob: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cfg.Store.Close() })
	}
	w.st = cfg.Store
	srv := httptest.NewServer(New(cfg))
	t.Cleanup(srv.Close)
	w.url = srv.URL
	return w
}

// reply is an answer that was read.
type reply struct {
	status int
	header http.Header
	body   string
}

// code is the first error's code.
func (r reply) code() string {
	var v struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal([]byte(r.body), &v) != nil || len(v.Errors) == 0 || v.Errors[0].Message == "" {
		return ""
	}
	return v.Errors[0].Code
}

// do sends one request; headers are given as name, value, name, value.
func (w *world) do(method, path, body string, headers ...string) reply {
	w.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	if strings.HasPrefix(path, "/") {
		path = w.url + path
	}
	req, err := http.NewRequest(method, path, r)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.c.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

// want is do that fails the test on another status or error code.
func (w *world) want(status int, code, method, path, body string, headers ...string) reply {
	w.t.Helper()
	r := w.do(method, path, body, headers...)
	if r.status != status || r.code() != code && method != "HEAD" {
		w.t.Errorf("%s %s: %d %q, want %d %q\n%.500s", method, path, r.status, r.code(), status, code, r.body)
	}
	return r
}

func (w *world) push(repo, content string) digest.Digest {
	w.t.Helper()
	d := digest.FromString(content)
	w.want(201, "", "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), content)
	return d
}

func desc(mediaType, content string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(content), Size: int64(len(content))}
}

// image makes a manifest; its config and layers must be pushed.
func image(config string, layers ...string) ocispec.Manifest {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: desc(ocispec.MediaTypeImageConfig, config)}
	for _, l := range layers {
		m.Layers = append(m.Layers, desc(ocispec.MediaTypeImageLayer, l))
	}
	return m
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func (w *world) pushManifest(repo, ref string, m any) digest.Digest {
	w.t.Helper()
	body := jsonOf(m)
	d := digest.FromString(body)
	if ref == "" {
		ref = d.String()
	}
	if r := w.want(201, "", "PUT", "/v2/"+repo+"/manifests/"+ref, body); r.header.Get("Docker-Content-Digest") != d.String() {
		w.t.Errorf("pushed %s, was told %q", d, r.header.Get("Docker-Content-Digest"))
	}
	return d
}

func TestPaths(t *testing.T) {
	for path, want := range map[string][3]string{
		"/v2/":                        {"base", "", ""},
		"/v2":                         {"base", "", ""},
		"/v2/_catalog":                {"catalog", "", ""},
		"/v2/a/tags/list":             {"tags", "a", ""},
		"/v2/a/b/c/manifests/1.0":     {"manifest", "a/b/c", "1.0"},
		"/v2/a/blobs/sha256:x":        {"blob", "a", "sha256:x"},
		"/v2/a/blobs/uploads/":        {"uploads", "a", ""},
		"/v2/a/blobs/uploads":         {"uploads", "a", ""},
		"/v2/a/blobs/uploads/id":      {"upload", "a", "id"},
		"/v2/a/referrers/sha256:x":    {"referrers", "a", "sha256:x"},
		"/v2/manifests/manifests/x":   {"manifest", "manifests", "x"},
		"/v2/tags/list/tags/list":     {"tags", "tags/list", ""},
		"/v2/a/blobs/uploads/blobs/x": {"blob", "a/blobs/uploads", "x"},
		"/v2/a/manifests/tags/list":   {"tags", "a/manifests", ""},
	} {
		kind, repo, ref, ok := split(path)
		if got := [3]string{kind, repo, ref}; !ok || got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	for _, path := range []string{"", "/", "/v1/", "/v2x", "/v3/a/tags/list", "/v2/a", "/v2/a/b", "/v2/tags/list", "/v2//", "/v2/manifests/x"} {
		if kind, repo, ref, ok := split(path); ok {
			t.Errorf("%q is %s %q %q", path, kind, repo, ref)
		}
	}
}

func FuzzPaths(f *testing.F) {
	f.Add("/v2/a/blobs/uploads/id")
	f.Add("/v2/../../etc/passwd/manifests/x")
	f.Fuzz(func(t *testing.T, path string) {
		kind, repo, ref, ok := split(path)
		if ok && kind != "base" && kind != "catalog" && !strings.HasPrefix(path, "/v2/"+repo+"/") || ok && !strings.HasSuffix(path, ref) {
			t.Errorf("%q: %s %q %q", path, kind, repo, ref)
		}
	})
}

func TestBase(t *testing.T) {
	w := start(t, Config{})
	for _, method := range []string{"GET", "HEAD"} {
		if r := w.want(200, "", method, "/v2/", ""); r.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
			t.Errorf("headers: %v", r.header)
		}
	}
	w.want(404, codeUnsupported, "GET", "/", "")
	w.want(404, codeUnsupported, "GET", "/v1/_ping", "")
	if r := w.want(405, codeUnsupported, "PUT", "/v2/a/tags/list", ""); r.header.Get("Allow") != "GET" {
		t.Errorf("Allow: %q", r.header.Get("Allow"))
	}
	for _, bad := range []string{"A", "a//b", "a/../b", ".a", "a_-b", strings.Repeat("a", 256), "a%00b", "..", "a%2f..%2fb"} {
		w.want(400, codeNameInvalid, "GET", "/v2/"+bad+"/tags/list", "")
	}
}

func TestBlobs(t *testing.T) {
	w := start(t, Config{})
	content := "0123456789"
	d := digest.FromString(content)
	w.want(404, codeBlobUnknown, "GET", "/v2/a/blobs/"+d.String(), "")
	r := w.want(201, "", "POST", "/v2/a/blobs/uploads/?digest="+d.String(), content)
	if loc := r.header.Get("Location"); loc != "/v2/a/blobs/"+d.String() {
		t.Errorf("Location: %q", loc)
	}
	r = w.want(200, "", "GET", "/v2/a/blobs/"+d.String(), "")
	if r.body != content || r.header.Get("Docker-Content-Digest") != d.String() || r.header.Get("Content-Type") != "application/octet-stream" || r.header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("%q %v", r.body, r.header)
	}
	if r = w.want(200, "", "HEAD", "/v2/a/blobs/"+d.String(), ""); r.header.Get("Content-Length") != "10" || r.body != "" {
		t.Errorf("HEAD: %q %v", r.body, r.header)
	}
	if r = w.want(206, "", "GET", "/v2/a/blobs/"+d.String(), "", "Range", "bytes=3-5"); r.body != "345" || r.header.Get("Content-Range") != "bytes 3-5/10" {
		t.Errorf("range: %q %v", r.body, r.header)
	}
	if r = w.want(206, "", "GET", "/v2/a/blobs/"+d.String(), "", "Range", "bytes=7-", "If-Range", `"`+d.String()+`"`); r.body != "789" {
		t.Errorf("open range: %q", r.body)
	}
	w.want(416, "", "GET", "/v2/a/blobs/"+d.String(), "", "Range", "bytes=10-12")
	w.want(304, "", "GET", "/v2/a/blobs/"+d.String(), "", "If-None-Match", `"`+d.String()+`"`)
	w.want(404, codeBlobUnknown, "GET", "/v2/b/blobs/"+d.String(), "")
	for _, bad := range []string{"sha256:1", "md5:d41d8cd98f00b204e9800998ecf8427e", "..", "sha256:" + strings.Repeat("Z", 64)} {
		w.want(400, codeDigestInvalid, "GET", "/v2/a/blobs/"+bad, "")
		w.want(400, codeDigestInvalid, "POST", "/v2/a/blobs/uploads/?digest="+bad, "x")
		w.want(400, codeDigestInvalid, "GET", "/v2/a/referrers/"+bad, "")
	}
	w.want(400, codeDigestInvalid, "POST", "/v2/a/blobs/uploads/?digest="+digest.FromString("other").String(), content)
	w.want(413, codeSizeInvalid, "POST", "/v2/a/blobs/uploads/?digest="+d.String(), strings.Repeat("x", 1<<20+1))
	w.want(201, "", "POST", "/v2/a/blobs/uploads/?digest="+digest.FromString("").String(), "")
	if left, _ := os.ReadDir(filepath.Join(w.dir, "uploads")); len(left) != 0 {
		t.Errorf("%d uploads are left", len(left))
	}
}

func TestChunkedUpload(t *testing.T) {
	w := start(t, Config{})
	d := digest.FromString("0123456789")
	r := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "")
	at := r.header.Get("Location")
	if !strings.HasPrefix(at, "/v2/a/blobs/uploads/") || r.header.Get("Range") != "0-0" || r.header.Get("Docker-Upload-UUID") == "" {
		t.Fatalf("%v", r.header)
	}
	r = w.want(202, "", "PATCH", at, "01234", "Content-Range", "0-4", "Content-Type", "application/octet-stream")
	if r.header.Get("Range") != "0-4" || r.header.Get("Location") == "" {
		t.Errorf("after the first chunk: %v", r.header)
	}
	r = w.want(416, codeUploadInvalid, "PATCH", at, "789", "Content-Range", "7-9")
	if r.header.Get("Range") != "0-4" || r.header.Get("Location") == "" {
		t.Errorf("a chunk out of order: %v", r.header)
	}
	w.want(416, codeUploadInvalid, "PATCH", at, "01234", "Content-Range", "0-4") // a second time
	w.want(400, codeSizeInvalid, "PATCH", at, "56", "Content-Range", "5-9")
	for _, bad := range []string{"x", "5-", "-5", "5-6-7", "99999999999999999999-99999999999999999999"} {
		w.want(400, codeUploadInvalid, "PATCH", at, "56", "Content-Range", bad)
	}
	if r = w.want(204, "", "GET", at, ""); r.header.Get("Range") != "0-4" {
		t.Errorf("status: %v", r.header)
	}
	w.want(416, codeUploadInvalid, "PUT", at+"?digest="+d.String(), "789", "Content-Range", "7-9")
	w.want(400, codeDigestInvalid, "PUT", at, "56789")
	if r = w.want(201, "", "PUT", at+"?digest="+d.String(), "56789", "Content-Range", "5-9"); r.header.Get("Docker-Content-Digest") != d.String() {
		t.Errorf("end: %v", r.header)
	}
	w.want(404, codeUploadUnknown, "GET", at, "")
	w.want(404, codeUploadUnknown, "PATCH", at, "x")
	w.want(404, codeUploadUnknown, "PUT", at+"?digest="+d.String(), "")
	w.want(404, codeUploadUnknown, "PATCH", "/v2/a/blobs/uploads/..", "x")
	w.want(404, codeUnsupported, "PATCH", "/v2/a/blobs/uploads/..%2f..%2findex.db", "x")
	if r = w.do("GET", "/v2/a/blobs/"+d.String(), ""); r.body != "0123456789" {
		t.Errorf("%q", r.body)
	}
	at = w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").header.Get("Location")
	w.want(404, codeUploadUnknown, "PATCH", strings.Replace(at, "/v2/a/", "/v2/b/", 1), "x")
	w.want(204, "", "DELETE", at, "")
	w.want(404, codeUploadUnknown, "DELETE", at, "")
}

func TestMount(t *testing.T) {
	w := start(t, Config{})
	d := w.push("a", "content")
	for path, status := range map[string]int{
		"/v2/b/blobs/uploads/?mount=" + d.String() + "&from=a":                      201,
		"/v2/c/blobs/uploads/?mount=" + d.String():                                  201,
		"/v2/d/blobs/uploads/?mount=" + d.String() + "&from=nothing":                202,
		"/v2/e/blobs/uploads/?mount=" + digest.FromString("x").String() + "&from=a": 202,
	} {
		r := w.want(status, "", "POST", path, "")
		if ok := strings.Contains(r.header.Get("Location"), "/uploads/"); ok != (status == 202) {
			t.Errorf("%s: Location %q", path, r.header.Get("Location"))
		}
	}
	w.want(200, "", "HEAD", "/v2/b/blobs/"+d.String(), "")
	w.want(200, "", "HEAD", "/v2/c/blobs/"+d.String(), "")
	w.want(404, "", "HEAD", "/v2/d/blobs/"+d.String(), "")
	w.want(400, codeNameInvalid, "POST", "/v2/b/blobs/uploads/?from=..&mount="+d.String(), "")
	w.want(400, codeDigestInvalid, "POST", "/v2/b/blobs/uploads/?from=a&mount=sha256:..", "")
}

func TestManifests(t *testing.T) {
	w := start(t, Config{AllowDelete: true})
	m := image("config", "layer")
	body := jsonOf(m)
	d := digest.FromString(body)
	w.want(404, codeManifestUnknown, "GET", "/v2/a/manifests/1", "")
	w.want(404, codeManifestBlobUnknown, "PUT", "/v2/a/manifests/1", body)
	w.push("a", "config")
	w.push("a", "layer")
	for ref, tag := range map[string]string{"1": "1", d.String() + "?tag=2&tag=3": "3"} {
		r := w.want(201, "", "PUT", "/v2/a/manifests/"+ref, body, "Content-Type", m.MediaType+"; charset=utf-8")
		if r.header.Get("Location") != "/v2/a/manifests/"+d.String() || r.header.Get("Docker-Content-Digest") != d.String() {
			t.Errorf("%s: %v", ref, r.header)
		}
		if r := w.want(200, "", "GET", "/v2/a/manifests/"+tag, ""); r.body != body || r.header.Get("Content-Type") != m.MediaType || r.header.Get("Docker-Content-Digest") != d.String() {
			t.Errorf("%q %v", r.body, r.header)
		}
	}
	if r := w.want(200, "", "HEAD", "/v2/a/manifests/"+d.String(), ""); r.header.Get("Content-Length") != strconv.Itoa(len(body)) {
		t.Errorf("HEAD: %v", r.header)
	}
	w.want(400, codeDigestInvalid, "PUT", "/v2/a/manifests/"+digest.FromString("x").String(), body)
	w.want(400, codeManifestInvalid, "PUT", "/v2/a/manifests/.bad", body)
	w.want(400, codeManifestInvalid, "GET", "/v2/a/manifests/"+strings.Repeat("x", 129), "")
	w.want(404, codeManifestUnknown, "GET", "/v2/b/manifests/"+d.String(), "")
	w.want(404, codeNameUnknown, "GET", "/v2/b/tags/list", "")

	wrongSize := m
	wrongSize.Layers = []ocispec.Descriptor{desc("x", "layer")}
	wrongSize.Layers[0].Size++
	noConfig := map[string]any{"schemaVersion": 2, "mediaType": m.MediaType, "layers": []int{}}
	mixed := map[string]any{"schemaVersion": 2, "mediaType": m.MediaType, "config": m.Config, "manifests": []int{}}
	badDigest := strings.Replace(body, d.Algorithm().String()+":", "sha256:../../", 1)
	for name, body := range map[string]string{
		"empty": " ", "no JSON": "{", "a list": "[]", "null": "null", "wrong size": jsonOf(wrongSize), "no config": jsonOf(noConfig), "mixed": jsonOf(mixed), "bad digest": badDigest,
		"no media type": `{"schemaVersion":2}`, "schema 1": `{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}`,
		"unknown type": `{"schemaVersion":2,"mediaType":"text/html"}`, "index with layers": `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[],"layers":[]}`,
	} {
		if r := w.do("PUT", "/v2/a/manifests/bad", body); r.status != 400 || r.code() != codeManifestInvalid {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
	w.want(400, codeManifestInvalid, "PUT", "/v2/a/manifests/bad", body, "Content-Type", dockerManifest)
	w.want(404, codeManifestUnknown, "GET", "/v2/a/manifests/bad", "")

	// Exactly 4 MiB are taken, one byte more is not.
	fat := image("config", "layer")
	fat.Annotations = map[string]string{"x": ""}
	fat.Annotations["x"] = strings.Repeat("x", manifestLimit-len(jsonOf(fat)))
	w.pushManifest("a", "fat", fat)
	fat.Annotations["x"] += "x"
	w.want(413, codeSizeInvalid, "PUT", "/v2/a/manifests/fatter", jsonOf(fat))

	// Docker's types, foreign layers, an index, and an index of a blob (a build cache).
	old := image("config", "layer", "elsewhere")
	old.MediaType = dockerManifest
	old.Layers[1].URLs = []string{"https://example.com/elsewhere"}
	child := w.pushManifest("a", "docker", old)
	w.pushManifest("a", "list", map[string]any{"schemaVersion": 2, "mediaType": dockerList, "manifests": []any{ocispec.Descriptor{MediaType: dockerManifest, Digest: child, Size: int64(len(jsonOf(old)))}}})
	w.pushManifest("a", "cache", ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc("layer", "layer")}})

	if r := w.want(200, "", "GET", "/v2/a/tags/list?n=2&last=1", ""); r.body != `{"name":"a","tags":["2","3"]}`+"\n" || r.header.Get("Link") != `</v2/a/tags/list?last=3&n=2>; rel="next"` {
		t.Errorf("%s %q", r.body, r.header.Get("Link"))
	}
	if r := w.want(200, "", "GET", "/v2/a/tags/list?n=0", ""); r.body != `{"name":"a","tags":[]}`+"\n" || r.header.Get("Link") != "" {
		t.Errorf("%s %q", r.body, r.header.Get("Link"))
	}
	w.want(400, "PAGINATION_NUMBER_INVALID", "GET", "/v2/a/tags/list?n=-1", "")
	w.want(400, "PAGINATION_NUMBER_INVALID", "GET", "/v2/_catalog?n=x", "")
	w.push("b/c", "config")
	w.pushManifest("b/c", "1", image("config"))
	if r := w.want(200, "", "GET", "/v2/_catalog?n=1", ""); r.body != `{"repositories":["a"]}`+"\n" || r.header.Get("Link") != `</v2/_catalog?last=a&n=1>; rel="next"` {
		t.Errorf("%s %q", r.body, r.header.Get("Link"))
	}

	w.want(405, codeUnsupported, "DELETE", "/v2/a/blobs/"+digest.FromString("layer").String(), "") // in use
	w.want(202, "", "DELETE", "/v2/a/manifests/1", "")
	w.want(404, codeManifestUnknown, "DELETE", "/v2/a/manifests/1", "")
	w.want(202, "", "DELETE", "/v2/a/manifests/"+d.String(), "")
	w.want(404, codeManifestUnknown, "GET", "/v2/a/manifests/2", "")
	w.want(404, codeManifestUnknown, "DELETE", "/v2/a/manifests/"+d.String(), "")
}

func TestNothingIsDeletedUnasked(t *testing.T) {
	w := start(t, Config{})
	d := w.push("a", "config")
	m := w.pushManifest("a", "1", image("config"))
	for _, path := range []string{"blobs/" + d.String(), "manifests/" + m.String(), "manifests/1"} {
		r := w.want(405, codeUnsupported, "DELETE", "/v2/a/"+path, "")
		if !strings.Contains(r.body, "--allow-delete") || strings.Contains(r.header.Get("Allow"), "DELETE") {
			t.Errorf("%s %v", r.body, r.header)
		}
		w.want(200, "", "HEAD", "/v2/a/"+path, "")
	}
}

func TestReferrers(t *testing.T) {
	w := start(t, Config{AllowDelete: true})
	w.push("a", "config")
	subject := desc(ocispec.MediaTypeImageManifest, "not there yet")
	list := func(query string) (got []string, r reply) {
		t.Helper()
		r = w.want(200, "", "GET", "/v2/a/referrers/"+subject.Digest.String()+query, "")
		var index ocispec.Index
		if err := json.Unmarshal([]byte(r.body), &index); err != nil || index.SchemaVersion != 2 || index.MediaType != ocispec.MediaTypeImageIndex || index.Manifests == nil || r.header.Get("Content-Type") != ocispec.MediaTypeImageIndex {
			t.Fatalf("%s %v %v", r.body, r.header, err)
		}
		for _, m := range index.Manifests {
			got = append(got, m.ArtifactType+" "+m.Annotations["n"])
		}
		slices.Sort(got)
		return got, r
	}
	if got, _ := list(""); len(got) != 0 {
		t.Errorf("of nothing: %q", got)
	}
	var last digest.Digest
	for i, kind := range []string{"sig", "sbom", "sbom", ""} {
		m := image("config")
		m.Subject, m.ArtifactType, m.Annotations = &subject, kind, map[string]string{"n": strconv.Itoa(i)}
		body := jsonOf(m)
		last = digest.FromString(body)
		if r := w.want(201, "", "PUT", "/v2/a/manifests/"+last.String(), body); r.header.Get("OCI-Subject") != subject.Digest.String() {
			t.Errorf("OCI-Subject: %v", r.header)
		}
	}
	if got, _ := list(""); !slices.Equal(got, []string{ocispec.MediaTypeImageConfig + " 3", "sbom 1", "sbom 2", "sig 0"}) {
		t.Errorf("%q", got)
	}
	if got, r := list("?artifactType=sbom"); !slices.Equal(got, []string{"sbom 1", "sbom 2"}) || r.header.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("%q %v", got, r.header)
	}
	one, r := list("?artifactType=sbom&n=1")
	link := strings.TrimSuffix(strings.TrimPrefix(r.header.Get("Link"), "<"), `>; rel="next"`)
	_, query, _ := strings.Cut(link, "?")
	two, r := list("?" + query)
	if both := append(one, two...); len(both) != 2 || both[0] == both[1] || r.header.Get("Link") != "" {
		t.Errorf("by one: %q, Link %q", both, link)
	}
	w.want(202, "", "DELETE", "/v2/a/manifests/"+last.String(), "")
	if got, _ := list(""); len(got) != 3 {
		t.Errorf("after one was deleted: %q", got)
	}
}

// A list of referrers is an index, and clients take 4 MiB of one.
func TestManyReferrersComeInPages(t *testing.T) {
	w := start(t, Config{})
	w.push("a", "config")
	subject := desc(ocispec.MediaTypeImageManifest, "x")
	for i := range 5 {
		m := image("config")
		m.Subject, m.Annotations = &subject, map[string]string{"fat": strings.Repeat(strconv.Itoa(i), 1_500_000)}
		w.pushManifest("a", "", m)
	}
	path, n, pages := "/v2/a/referrers/"+subject.Digest.String(), 0, 0
	for path != "" {
		r := w.want(200, "", "GET", path, "")
		if len(r.body) > manifestLimit {
			t.Fatalf("an answer of %d bytes", len(r.body))
		}
		n += strings.Count(r.body, `"fat"`)
		path = strings.TrimSuffix(strings.TrimPrefix(r.header.Get("Link"), "<"), `>; rel="next"`)
		if pages++; pages > 5 {
			t.Fatal("there is always a next page")
		}
	}
	if n != 5 || pages != 3 {
		t.Errorf("%d referrers in %d pages", n, pages)
	}
}

func TestWebPagesAreRefused(t *testing.T) {
	w := start(t, Config{OwnName: func(host string) bool { return means([]string{"reg.example"}, host) }})
	for _, h := range [][]string{{"Origin", "http://evil.example"}, {"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-origin"}, {"Host", "evil.example:5000"}, {"Host", "127.0.0.1.evil.example"}} {
		w.want(403, codeDenied, "GET", "/v2/_catalog", "", h...)
	}
	for _, host := range []string{"localhost:5000", "127.0.0.1", "127.8.9.1:80", "[::1]:5000", "Reg.Example:5000", "x.localhost"} {
		w.want(200, "", "GET", "/v2/", "", "Host", host)
	}
}

func TestPasswords(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	write := func(lines ...string) {
		t.Helper()
		// As an editor does it: another file takes the name.
		if err := os.WriteFile(file+"~", []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+"~", file); err != nil {
			t.Fatal(err)
		}
	}
	line := func(user, password string) string {
		t.Helper()
		l, err := PasswordLine(user, password)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	write("# people", "", line("anna", "secret"))
	p, err := OpenPasswords(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{Auth: p})
	with := func(status int, user, password string) {
		t.Helper()
		code := ""
		if status == 401 {
			code = codeUnauthorized
		}
		req, _ := http.NewRequest("GET", w.url, nil)
		req.SetBasicAuth(user, password)
		if r := w.want(status, code, "GET", "/v2/", "", "Authorization", req.Header.Get("Authorization")); status == 401 && !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Basic realm=") {
			t.Errorf("headers: %v", r.header)
		}
	}
	w.want(401, codeUnauthorized, "GET", "/v2/", "")
	w.want(401, codeUnauthorized, "PUT", "/v2/a/manifests/1", "{}")
	w.want(401, codeUnauthorized, "GET", "/v2/", "", "Authorization", "Bearer x")
	with(200, "anna", "secret")
	with(200, "anna", "secret") // remembered
	with(401, "anna", "Secret")
	with(401, "anna", "")
	with(401, "berta", "secret")
	with(401, "", "secret")
	write(line("anna", "new"), line("berta", "secret"))
	with(401, "anna", "secret")
	with(200, "anna", "new")
	with(200, "berta", "secret")
	write("anna:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=") // what cannot be read changes nothing
	with(200, "berta", "secret")
	if _, err := OpenPasswords(file, nil); err == nil || !strings.Contains(err.Error(), "line 1") || !strings.Contains(err.Error(), "htpasswd anna") {
		t.Errorf("a hash that is not bcrypt: %v", err)
	}
	for _, bad := range []string{"anna", ":x", "a:$2y$05$short", line("a", "b") + "\n" + line("a", "c")} {
		if h, err := parsePasswords(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was read: %v", bad, h)
		}
	}
	for _, bad := range [][2]string{{"", "x"}, {"a:b", "x"}, {"a", ""}, {"a\nb", "x"}, {"#a", "x"}, {"a", strings.Repeat("x", 73)}} {
		if l, err := PasswordLine(bad[0], bad[1]); err == nil {
			t.Errorf("%q is a line", l)
		}
	}
}

// A client that stops sending, or stops taking, is given up. What had arrived stays.
func TestStalledClients(t *testing.T) {
	w := start(t, Config{Stall: 300 * time.Millisecond})
	at := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").header.Get("Location")
	addr := strings.TrimPrefix(w.url, "http://")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhello", at)
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a silent client: %v, %v", resp, err)
	}
	if r := w.want(204, "", "GET", at, ""); r.header.Get("Range") != "0-4" {
		t.Errorf("what had arrived: %v", r.header)
	}
	w.want(201, "", "PUT", at+"?digest="+digest.FromString("hello, world").String(), ", world")
}

// end asks how many bytes of an upload have arrived.
func (w *world) end(at string) int {
	w.t.Helper()
	r := w.want(204, "", "GET", at, "")
	var last int
	if _, err := fmt.Sscanf(r.header.Get("Range"), "0-%d", &last); err != nil {
		w.t.Fatal(err)
	}
	if last == 0 {
		return 0
	}
	return last + 1
}

// arrived waits until the registry is in the middle of receiving an upload.
func (w *world) arrived(at string) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); w.end(at) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("nothing arrives")
		}
	}
}

// A second request for an upload whose first one hangs takes it over: a
// client whose connection died need not wait until the registry notices.
func TestResumeWhileTheOldConnectionHangs(t *testing.T) {
	w := start(t, Config{})
	content := strings.Repeat("0123456789", 50_000)
	at := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").header.Get("Location")
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", at, len(content), content[:200_000])
	w.arrived(at)
	for try := 0; ; try++ {
		n := w.end(at)
		r := w.do("PATCH", at, content[n:], "Content-Range", fmt.Sprintf("%d-%d", n, len(content)-1))
		if r.status == 202 {
			break
		}
		if r.status != 416 || try == 3 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	w.want(201, "", "PUT", at+"?digest="+digest.FromString(content).String(), "")
}

func TestTooManyAtOnce(t *testing.T) {
	w := start(t, Config{MaxReceive: 1})
	first := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").header.Get("Location")
	second := w.want(202, "", "POST", "/v2/a/blobs/uploads/", "").header.Get("Location")
	slow, feed := io.Pipe()
	done := make(chan int)
	go func() {
		req, _ := http.NewRequest("PATCH", w.url+first, slow)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			done <- 0
			return
		}
		resp.Body.Close()
		done <- resp.StatusCode
	}()
	// Half of what the registry gathers before it writes, and a bit.
	if _, err := feed.Write(bytes.Repeat([]byte("x"), 200<<10)); err != nil {
		t.Fatal(err)
	}
	w.arrived(first)
	if r := w.want(429, codeTooManyRequests, "PATCH", second, "x"); r.header.Get("Retry-After") == "" {
		t.Errorf("headers: %v", r.header)
	}
	feed.Close()
	if status := <-done; status != 202 {
		t.Errorf("the slow one: %d", status)
	}
	w.want(202, "", "PATCH", second, "x")
}

func TestAuthority(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	ca, err := openAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := openAuthority(dir)
	if err != nil || again.fingerprint() != ca.fingerprint() {
		t.Fatalf("another authority: %v", err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v, %v", fi.Mode(), err)
	}
	st, err := store.Open(t.TempDir(), store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	names := ownNames("", net.IPv6unspecified, []string{"reg.example"})
	if names[0] != "reg.example" || !slices.Contains(names, "localhost") || !slices.Contains(names, "127.0.0.1") {
		t.Errorf("names: %q", names)
	}
	srv := httptest.NewUnstartedServer(New(Config{Store: st}))
	srv.TLS = &tls.Config{GetCertificate: again.serve(names, slog.New(slog.DiscardHandler)), NextProtos: []string{"h2", "http/1.1"}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv.Listener.Close()
	srv.Listener = tls.NewListener(l, srv.TLS)
	srv.Config.TLSConfig = srv.TLS
	go func() { _ = srv.Config.ServeTLS(l, "", "") }()
	defer srv.Config.Close()

	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, name := range []string{"127.0.0.1", "localhost", "reg.example"} {
		c := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name}, ForceAttemptHTTP2: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
			},
		}}
		resp, err := c.Get("https://" + name + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s %s", name, resp.Proto, resp.Status)
		}
	}
	_, err = (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "other.example"}}}).Get("https://" + l.Addr().String() + "/v2/")
	if err == nil {
		t.Error("a name that is not ours was certified")
	}
}

func TestWhereItListens(t *testing.T) {
	for _, ok := range []serveFlags{
		{addr: "127.0.0.1:0"}, {addr: "localhost:0"}, {addr: "[::1]:0"}, {addr: ":0", selfSigned: true}, {addr: ":0", insecure: true}, {addr: ":0", cert: "c", key: "k"},
		{addr: ":0", insecure: true, htpasswd: "x"}, {addr: "127.0.0.1:0", htpasswd: "x"},
	} {
		if _, _, err := ok.resolve(); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	for _, bad := range []serveFlags{
		{addr: ":0"}, {addr: "0.0.0.0:0"}, {addr: "192.0.2.1:5000"}, {addr: ":0", htpasswd: "x"}, {addr: "127.0.0.1"}, {addr: "127.0.0.1:x"}, {addr: ""},
		{addr: ":0", cert: "c"}, {addr: ":0", key: "k"}, {addr: ":0", cert: "c", key: "k", selfSigned: true},
	} {
		if _, _, err := bad.resolve(); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// What keeps a registry from starting comes with what to do about it.
func TestServeSaysWhatNext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ready := serveFlags{addr: l.Addr().String(), maxBlob: "1g", maxUploads: 1, expiry: time.Hour, keepUnused: time.Hour, logLevel: "error"}
	taken, elsewhere, passwords := ready, ready, ready
	elsewhere.addr, elsewhere.insecure = "192.0.2.1:5000", true // TEST-NET-1: no host has it
	passwords.htpasswd = filepath.Join(t.TempDir(), "none")
	for name, c := range map[string]struct {
		f          serveFlags
		says, hint string
	}{
		"a port that is taken": {taken, "cannot listen at " + taken.addr + ": bind: address already in use", "--addr"},
		"an address elsewhere": {elsewhere, "cannot listen at 192.0.2.1:5000: bind: cannot assign requested address", "ip -brief address"},
		"no file of passwords": {passwords, "cannot read the passwords: open " + passwords.htpasswd + ": no such file or directory", "proa registry htpasswd NAME >>" + passwords.htpasswd},
	} {
		c.f.root = t.TempDir()
		err := serve(context.Background(), c.f)
		if err == nil || failure.Words(err) != c.says || !strings.Contains(failure.Next(err), c.hint) {
			t.Errorf("%s: %v; hint: %s", name, err, failure.Next(err))
		}
	}
}
