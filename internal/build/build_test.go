package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"proa/internal/build/tarfs"
)

// archive makes a tar of name, content pairs.
func archive(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), ModTime: time.Unix(1_700_000_000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// image reads the record called name and its config.
func (k *kit) image(name string) (images.Image, ocispec.Image) {
	k.t.Helper()
	ctx := in(context.Background())
	rec, err := metadata.NewImageStore(k.meta).Get(ctx, name)
	if err != nil {
		k.t.Fatal(err)
	}
	m, err := images.Manifest(ctx, k.meta.ContentStore(), rec.Target, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	raw, err := content.ReadBlob(ctx, k.meta.ContentStore(), m.Config)
	if err != nil {
		k.t.Fatal(err)
	}
	var conf ocispec.Image
	if err := json.Unmarshal(raw, &conf); err != nil {
		k.t.Fatal(err)
	}
	return rec, conf
}

func TestClassicBuild(t *testing.T) {
	k := newKit(t)
	q := url.Values{"t": {"x", "y/z:1"}, "buildargs": {`{"who":"me","unset":null}`}, "labels": {`{"l":"v"}`}}
	tar := archive(t, "Dockerfile", "FROM scratch AS one\nARG who\nCOPY a /b\nLABEL who=$who\nFROM one\nENV X=1\n", "a", "hello")
	status, body := k.post("/build?"+q.Encode(), tar)
	if status != http.StatusOK {
		t.Fatal(status, body)
	}
	id := regexp.MustCompile(`{"aux":{"ID":"(sha256:[0-9a-f]{64})"}}`).FindStringSubmatch(body)
	if id == nil {
		t.Fatalf("no id: %s", body)
	}
	for _, want := range []string{
		`{"stream":"Step 1/1 (one) : COPY a /b\n"}`, `{"stream":"Successfully built ` + id[1][7:19] + `\n"}`,
		`{"stream":"Successfully tagged x:latest\n"}`, `{"stream":"Successfully tagged y/z:1\n"}`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	for _, name := range []string{"docker.io/library/x:latest", "docker.io/y/z:1"} {
		rec, conf := k.image(name)
		if conf.Config.Labels["who"] != "me" || conf.Config.Labels["l"] != "v" || len(conf.RootFS.DiffIDs) != 1 {
			t.Errorf("%s: %+v", name, conf)
		}
		if !images.IsManifestType(rec.Target.MediaType) {
			t.Errorf("%s is a %s", name, rec.Target.MediaType)
		}
	}
	// Once more: nothing is done again, and the image is the same.
	_, again := k.post("/build?"+q.Encode(), tar)
	if !strings.Contains(again, id[1]) || !strings.Contains(again, "Using cache") {
		t.Errorf("not cached: %s", again)
	}
	// Quiet prints the id alone.
	q.Set("q", "1")
	if _, quiet := k.post("/build?"+q.Encode(), tar); quiet != `{"stream":"`+id[1]+`\n"}`+"\n" {
		t.Errorf("quiet: %q", quiet)
	}
}

func TestClassicBuildRefuses(t *testing.T) {
	k := newKit(t)
	good := archive(t, "Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
	for _, c := range []struct {
		name, query string
		body        []byte
		status      int
		want        string
	}{
		{"squash", "squash=1", good, 400, "squash is not supported"},
		{"memory", "memory=1000000", good, 400, "limit memory"},
		{"network", "networkmode=container:x", good, 400, "network mode"},
		{"platform", "platform=no/such/thing/at/all", good, 400, "invalid platform"},
		{"name", "t=UPPER:x", good, 400, "invalid tag"},
		{"outputs", "outputs=" + url.QueryEscape(`[{"Type":"local"}]`), good, 400, "needs a session"},
		{"args", "buildargs=[", good, 400, "cannot read buildargs"},
		{"version", "version=3", good, 400, "invalid version"},
		{"not an archive", "", []byte("FROM scratch\n"), 500, "cannot read the build context"},
		{"cut archive", "", good[:530], 500, "cannot read the build context"},
		{"no Dockerfile", "dockerfile=other", good, 500, "other"},
		{"unknown instruction", "", archive(t, "Dockerfile", "FROM scratch\nRUNN x\n"), 500, "RUNN"},
		{"missing file", "", archive(t, "Dockerfile", "FROM scratch\nCOPY nothing /\n"), 200, "Dockerfile:2"},
		{"missing stage", "target=nostage", archive(t, "Dockerfile", "FROM scratch as nostages\nCOPY Dockerfile /\n"), 200, "nostage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := k.post("/build?"+c.query, c.body)
			if status != c.status && !(c.status == 200 && status == 500) {
				t.Errorf("status %d, want %d", status, c.status)
			}
			if !strings.Contains(body, c.want) {
				t.Errorf("no %q in %s", c.want, body)
			}
		})
	}
}

// solve builds an image called name through BuildKit's own API.
func (k *kit) solve(tar []byte, name string, attrs map[string]string) map[string]string {
	k.t.Helper()
	files, err := tarfs.Read(context.Background(), bytes.NewReader(tar), "")
	if err != nil {
		k.t.Fatal(err)
	}
	defer files.Close()
	status := make(chan *client.SolveStatus)
	go func() {
		for range status {
		}
	}()
	resp, err := k.client().Solve(context.Background(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name}}},
	}, status)
	if err != nil {
		k.t.Fatal(err)
	}
	return resp.ExporterResponse
}

// With SOURCE_DATE_EPOCH the same digest comes out of another builder, of
// files with other times; without it the times of files are kept.
func TestReproducible(t *testing.T) {
	one := archive(t, "Dockerfile", "FROM scratch\nCOPY . /\n", "d/f", "content")
	two := archive(t, "Dockerfile", "FROM scratch\nCOPY . /\n", "d/f", "content")
	copy(two[136:147], "14500000000") // another time of the first header
	chksum(two[:512])
	attrs := func() map[string]string { return map[string]string{"build-arg:SOURCE_DATE_EPOCH": "1600000000"} }
	a := newKit(t).solve(one, "a", attrs())
	time.Sleep(time.Second) // another time of the build
	b := newKit(t).solve(two, "a", attrs())
	if d := a[exptypes.ExporterImageDigestKey]; d == "" || d != b[exptypes.ExporterImageDigestKey] {
		t.Errorf("digests %s and %s", d, b[exptypes.ExporterImageDigestKey])
	}
}

// chksum writes a tar header's checksum anew.
func chksum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	for i := 5; i >= 0; i-- {
		h[148+i] = '0' + byte(sum&7)
		sum >>= 3
	}
	h[154] = 0
}

// What buildx asks for without being asked is left away; what a person asks
// for is attached.
func TestProvenanceOnlyWhenAsked(t *testing.T) {
	k := newKit(t)
	tar := archive(t, "Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
	k.solve(tar, "without", map[string]string{"attest:provenance": buildxProvenance})
	if rec, _ := k.image("docker.io/library/without:latest"); !images.IsManifestType(rec.Target.MediaType) {
		t.Errorf("without: %s", rec.Target.MediaType)
	}
	k.solve(tar, "with", map[string]string{"attest:provenance": "mode=min"})
	if rec, _ := k.image("docker.io/library/with:latest"); !images.IsIndexType(rec.Target.MediaType) {
		t.Errorf("with: %s", rec.Target.MediaType)
	}
}

// The Dockerfile frontend that an image would bring is here already.
func TestSyntaxWithoutNetwork(t *testing.T) {
	k := newKit(t)
	resp := k.solve(archive(t, "Dockerfile", "# syntax=docker/dockerfile:1\nFROM scratch\nCOPY --link <<EOF /f\nx\nEOF\n"), "s", map[string]string{})
	if resp[exptypes.ExporterImageConfigDigestKey] == "" {
		t.Errorf("%v", resp)
	}
	for image, want := range map[string]bool{
		"docker/dockerfile": true, "docker/dockerfile:1": true, "docker.io/docker/dockerfile:1.4": true, "docker/dockerfile:1.4.2": true,
		"docker/dockerfile:1.999": false, "docker/dockerfile:1-labs": false, "docker/dockerfile:2": false, "docker/dockerfile-upstream:1": false,
		"registry.example/docker/dockerfile:1": false, "docker/dockerfile:master": false, "": false,
		"docker/dockerfile:1@sha256:" + strings.Repeat("a", 64): false,
	} {
		if isOwnSyntax(image) != want {
			t.Errorf("%q: %v", image, !want)
		}
	}
}

// An image without a name is handed over under one that nobody can type.
func TestImageWithoutName(t *testing.T) {
	k := newKit(t)
	resp := k.solve(archive(t, "Dockerfile", "FROM scratch\nCOPY Dockerfile /\n"), "", map[string]string{})
	if name, ok := resp[exptypes.ExporterImageNameKey]; ok {
		t.Errorf("it is called %q", name)
	}
	k.image(danglingPrefix + "@" + resp[exptypes.ExporterImageDigestKey])
}

func TestPruneAndUsage(t *testing.T) {
	k := newKit(t)
	k.solve(archive(t, "Dockerfile", "FROM scratch AS a\nCOPY big /big\nFROM scratch\nCOPY --from=a /big /kept\n", "big", strings.Repeat("x", 100_000)), "p", map[string]string{})
	var before []Record
	get := func(into any) {
		t.Helper()
		resp, err := http.Get(k.web.URL + "/usage")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			t.Fatalf("%v: %s", err, raw)
		}
	}
	get(&before)
	if len(before) < 3 {
		t.Fatalf("usage: %+v", before)
	}
	var out Pruned
	_, body := k.post("/build/prune?all=1", nil)
	if err := json.Unmarshal([]byte(body), &out); err != nil || len(out.CachesDeleted) == 0 {
		t.Fatalf("%v: %s", err, body)
	}
	var after []Record
	get(&after)
	if len(after) >= len(before) {
		t.Errorf("%d records before, %d after", len(before), len(after))
	}
	// Usage and prune count alike: not what the image has as well.
	own := func(all []Record) (sum int64) {
		for _, r := range all {
			if !r.Shared {
				sum += r.Size
			}
		}
		return sum
	}
	shared := slices.ContainsFunc(before, func(r Record) bool { return r.Shared && r.Size >= 100_000 && slices.Contains(out.CachesDeleted, r.ID) })
	if got, want := int64(out.SpaceReclaimed), own(before)-own(after); got != want || !shared {
		t.Errorf("prune says %d bytes, usage %d; a record of the image's layer among them: %v\n%+v", got, want, shared, before)
	}
	k.image("docker.io/library/p:latest") // images are not touched
	if status, body := k.post("/build/prune?filters="+url.QueryEscape(`{"nonsense":{"x":true}}`), nil); status != 400 {
		t.Error(status, body)
	}
}
