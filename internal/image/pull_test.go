package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/filters"
)

// What was pulled runs, and a push brings out the digest that came in.
func TestPullAndPush(t *testing.T) {
	r := newRegistry(t)
	for _, kind := range []compression{plain, gzipped, zstded} {
		t.Run("packed "+string(kind), func(t *testing.T) {
			s := openPuller(t, t.TempDir())
			repo := "team/app-" + string(kind) + "x"
			d := r.put(repo, "v1", kind, hello(t))
			var stages []Stage
			var found digest.Digest
			got, err := s.Pull(context.Background(), ref(r, "%s:v1", repo), PullOptions{
				Progress: func(p Progress) { stages = append(stages, p.Stage) },
				Found:    func(d digest.Digest) { found = d },
			})
			if err != nil {
				t.Fatal(err)
			}
			if got.Digest != d.Digest || found != d.Digest || got.Current {
				t.Errorf("pulled %+v, found %s, want %s", got, found, d.Digest)
			}
			for _, st := range []Stage{Announced, Verifying, Downloaded, Unpacking, Pulled} {
				if n := len(slices.DeleteFunc(slices.Clone(stages), func(o Stage) bool { return o != st })); n != 2 {
					t.Errorf("stage %d came %d times for two layers", st, n)
				}
			}
			img := get(t, s, ref(r, "%s:v1", repo))
			if !slices.Equal(img.Names, []string{ref(r, "%s:v1", repo)}) || !slices.Equal(img.Digests, []string{ref(r, "%s@%s", repo, d.Digest)}) {
				t.Errorf("names %q digests %q", img.Names, img.Digests)
			}
			m, err := s.Mount(context.Background(), img.ID.String())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if text, err := read(t, m, "etc/motd"); err != nil || text != "hello" {
				t.Errorf("etc/motd: %q %v", text, err)
			}
			verify(t, s)

			again, err := s.Pull(context.Background(), ref(r, "%s:v1", repo), PullOptions{})
			if err != nil || !again.Current || again.ID != img.ID {
				t.Errorf("pulled again: %+v %v", again, err)
			}

			to := newRegistry(t)
			if err := s.Tag(context.Background(), img.ID.String(), ref(to, "copy:v2")); err != nil {
				t.Fatal(err)
			}
			out, err := s.Push(context.Background(), ref(to, "copy:v2"), PushOptions{})
			if err != nil || out.Target.Digest != d.Digest || out.Part {
				t.Errorf("pushed %+v, %v; want %s", out, err, d.Digest)
			}
			fresh := openPuller(t, t.TempDir())
			if back := pull(t, fresh, ref(to, "copy:v2")); back.Digest != d.Digest || back.ID != img.ID {
				t.Errorf("came back as %+v", back)
			}
			verify(t, fresh)
		})
	}
}

func TestPullIndex(t *testing.T) {
	r := newRegistry(t)
	s := openPuller(t, t.TempDir())
	foreign := hello(t)
	foreign.arch = "s390x"
	attest := r.put("app", "", plain, other(t))
	attest.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	attest.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	mine, theirs := r.put("app", "", gzipped, hello(t)), r.put("app", "", gzipped, foreign)
	index := r.index("app", "multi", platformOf(theirs, "s390x"), attest, platformOf(mine, hostArch))

	got := pull(t, s, ref(r, "app:multi"))
	if got.Digest != index {
		t.Errorf("digest %s, want the index %s", got.Digest, index)
	}
	img := get(t, s, ref(r, "app:multi"))
	if img.Target.Digest != index || img.Config.Architecture != hostArch {
		t.Errorf("target %s for %s", img.Target.Digest, img.Config.Architecture)
	}
	if n := r.asked("GET", theirs.Digest.String()) + r.asked("GET", attest.Digest.String()); n != 0 {
		t.Errorf("manifests of other platforms were fetched %d times", n)
	}
	verify(t, s)

	// An index of which one platform is here cannot be pushed whole.
	to := newRegistry(t)
	if err := s.Tag(context.Background(), img.ID.String(), ref(to, "app:multi")); err != nil {
		t.Fatal(err)
	}
	out, err := s.Push(context.Background(), ref(to, "app:multi"), PushOptions{})
	if err != nil || !out.Part || out.Target.Digest != mine.Digest || out.Index.Digest != index {
		t.Errorf("pushed %+v, %v", out, err)
	}

	// The other platform takes the name; the image for this host has none now.
	two, err := s.Pull(context.Background(), ref(r, "app:multi"), PullOptions{Platform: "linux/s390x"})
	if err != nil || two.ID == got.ID {
		t.Fatalf("%+v %v", two, err)
	}
	if img := get(t, s, ref(r, "app:multi")); img.Config.Architecture != "s390x" {
		t.Errorf("the name leads to %s", img.Config.Architecture)
	}
	verify(t, s)
	if err := s.Save(context.Background(), io.Discard, []string{ref(r, "app:multi")}); err != nil {
		t.Error(err)
	}
	// Now all that is no attestation is here, which makes no difference.
	if out, err := s.Push(context.Background(), ref(r, "app:multi"), PushOptions{}); err != nil || !out.Part || out.Target.Digest != theirs.Digest {
		t.Errorf("pushed %+v, %v", out, err)
	}

	_, err = s.Pull(context.Background(), ref(r, "app:multi"), PullOptions{Platform: "linux/riscv64"})
	var p *PlatformError
	if !errors.As(err, &p) || !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/s390x") || !strings.Contains(err.Error(), "riscv64") {
		t.Errorf("without this platform: %v", err)
	}
	for _, ref := range []string{ref(r, "app:multi"), ref(to, "app:multi")} {
		if _, err := s.Remove(context.Background(), ref, true, true); err != nil {
			t.Error(err)
		}
	}
	verify(t, s)
	if left := tree(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A whole index comes out of a push with its digest.
func TestPushWholeIndex(t *testing.T) {
	r, to := newRegistry(t), newRegistry(t)
	s := openPuller(t, t.TempDir())
	mine := r.put("app", "", gzipped, hello(t))
	index := r.index("app", "one", platformOf(mine, hostArch))
	got := pull(t, s, ref(r, "app:one"))
	if err := s.Tag(context.Background(), got.ID.String(), ref(to, "a/b/c:one")); err != nil {
		t.Fatal(err)
	}
	out, err := s.Push(context.Background(), ref(to, "a/b/c:one"), PushOptions{})
	if err != nil || out.Part || out.Target.Digest != index {
		t.Errorf("pushed %+v, %v; want %s", out, err, index)
	}
	if back := pull(t, openPuller(t, t.TempDir()), ref(to, "a/b/c:one")); back.Digest != index {
		t.Errorf("came back as %s", back.Digest)
	}
}

func TestPullByDigest(t *testing.T) {
	r := newRegistry(t)
	s := openPuller(t, t.TempDir())
	d := r.put("app", "v1", gzipped, hello(t))
	name := ref(r, "app@%s", d.Digest)
	got := pull(t, s, ref(r, "app:v1@%s", d.Digest))
	if got.Name != name {
		t.Errorf("name %q, want %q", got.Name, name)
	}
	img := get(t, s, name)
	if len(img.Names) != 0 || !slices.Equal(img.Digests, []string{name}) {
		t.Errorf("names %q digests %q", img.Names, img.Digests)
	}
	if again := pull(t, s, name); !again.Current {
		t.Error("pulled again, it was not there")
	}
	// It is no dangling image, so a prune leaves it.
	if gone, _, err := s.Prune(context.Background(), nil); err != nil || len(gone) != 0 {
		t.Errorf("pruned %v %v", gone, err)
	}
	var archive bytes.Buffer
	if err := s.Save(context.Background(), &archive, []string{name}); err != nil {
		t.Fatal(err)
	}
	if names := load(t, openPuller(t, t.TempDir()), archive.Bytes()); !slices.Equal(names, []string{img.ID.String()}) {
		t.Errorf("loaded %q", names)
	}
	pull(t, s, ref(r, "app:v1"))
	gone, err := s.Remove(context.Background(), name, false, true)
	if err != nil || len(gone) != 3 {
		t.Errorf("removed %v %v", gone, err) // the tag goes with the digest (D39), and the image with it
	}
	if gone, _, err := s.Prune(context.Background(), filters.Of(map[string][]string{"dangling": {"false"}})); err != nil || len(gone) != 0 {
		t.Errorf("pruned %v %v", gone, err)
	}
	verify(t, s)

	_, err = s.Pull(context.Background(), ref(r, "app@%s", digest.FromString("nothing")), PullOptions{})
	if !errdefs.IsNotFound(err) {
		t.Errorf("a digest that is not there: %v", err)
	}
}

func TestUnknownTag(t *testing.T) {
	r := newRegistry(t)
	s := openPuller(t, t.TempDir())
	for _, tag := range []string{"1.36.0", "1.36.1", "latest", "edge", "stable", "1", "2", "3", "4", "5", "6"} {
		r.put("app", tag, plain, hello(t))
	}
	_, err := s.Pull(context.Background(), ref(r, "app:1.36"), PullOptions{})
	var e *TagError
	if !errors.As(err, &e) || !errdefs.IsNotFound(err) || e.Tags[0] != "1" && e.Tags[0] != "1.36.0" || !slices.Contains(e.Tags[:3], "1.36.1") || e.More != 3 {
		t.Errorf("%v %+v", err, e)
	}
	if _, err := s.Pull(context.Background(), ref(r, "nosuch:1"), PullOptions{}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `no repository "nosuch"`) {
		t.Errorf("unknown repository: %v", err)
	}
	if _, err := s.Push(context.Background(), ref(r, "nosuch:1"), PushOptions{}); !errdefs.IsNotFound(err) {
		t.Errorf("push of what is not here: %v", err)
	}
	tags, err := s.RemoteTags(context.Background(), ref(r, "app"), noAuth)
	if err != nil || len(tags) != 11 {
		t.Errorf("tags %q %v", tags, err)
	}
	verify(t, s)
}

// Layers that are here are not fetched, and what is known to be in another
// repository of the registry is mounted there.
func TestPullOfSharedLayers(t *testing.T) {
	r := newRegistry(t)
	s := openPuller(t, t.TempDir())
	r.put("one", "latest", gzipped, hello(t))
	r.put("two", "latest", gzipped, other(t))
	pull(t, s, ref(r, "one"))
	before := r.asked("GET", "/blobs/")
	pull(t, s, ref(r, "two"))
	if n := r.asked("GET", "/blobs/") - before; n != 2 {
		t.Errorf("%d blobs fetched for one new layer and one config", n)
	}
	if err := s.Tag(context.Background(), ref(r, "two"), ref(r, "three")); err != nil {
		t.Fatal(err)
	}
	mounted := 0
	// This registry has one store for all repositories and knows no mounting:
	// make it forget, and mount.
	r.wrapped(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method == "HEAD" && strings.Contains(q.URL.Path, "/blobs/") {
				w.WriteHeader(404)
				return
			}
			if from := q.URL.Query().Get("from"); q.Method == "POST" && (from == "one" || from == "two") && q.URL.Query().Get("mount") != "" {
				w.WriteHeader(201)
				return
			}
			h.ServeHTTP(w, q)
		})
	})
	if _, err := s.Push(context.Background(), ref(r, "three"), PushOptions{Progress: func(p Progress) {
		if p.Stage == Linked {
			mounted++
			if p.Note != "one" && p.Note != "two" {
				t.Errorf("mounted from %q", p.Note)
			}
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if mounted != 2 || r.asked("PUT", "/blobs/") != 0 {
		t.Errorf("%d of 2 layers were mounted, %d blobs sent", mounted, r.asked("PUT", "/blobs/"))
	}

	// A flat layer whose blob is gone is not made again, but the blob is
	// fetched: push and save need it.
	b := openPuller(t, t.TempDir())
	pull(t, b, ref(r, "one"))
	verify(t, b)
}

// The same image pulled twice at once is fetched once, and one that gives up
// does not take the other with it.
func TestPullTwiceAtOnce(t *testing.T) {
	r := newRegistry(t)
	r.put("big", "latest", gzipped, big(t))
	gate := make(chan struct{})
	r.wrapped(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method == "GET" && strings.Contains(q.URL.Path, "/blobs/") {
				<-gate
			}
			h.ServeHTTP(w, q)
		})
	})
	s := openAt(t, t.TempDir(), nil) // with patience
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		wg.Go(func() {
			c := context.Background()
			if i == 0 {
				c = ctx
			}
			_, errs[i] = s.Pull(c, ref(r, "big"), PullOptions{})
		})
		if i == 0 {
			for r.asked("GET", "/blobs/") == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	cancel()
	close(gate)
	wg.Wait()
	for i, err := range errs[1:] {
		if err != nil {
			t.Errorf("pull %d: %v", i+1, err)
		}
	}
	if errs[0] != nil && !errors.Is(errs[0], context.Canceled) {
		t.Errorf("the one that gave up: %v", errs[0])
	}
	verify(t, s)
	for _, l := range get(t, s, ref(r, "big")).Config.RootFS.DiffIDs {
		t.Logf("layer %s", l)
	}
	// 4 layers once; configs are small and not shared; the first layers may
	// have been given up by the first pull before anybody joined.
	if n := r.asked("GET", "/blobs/"); n > 4+4+4 {
		t.Errorf("%d blobs fetched", n)
	}
	checkBig(t, s, get(t, s, ref(r, "big")))
}

// Somebody stops the client of a pull (Ctrl-Z), which reads nothing any more: the
// pull ends all the same, and what is removed then gives its disk back.
func TestPullOfAStoppedClient(t *testing.T) {
	r := newRegistry(t)
	r.put("big", "latest", gzipped, big(t))
	s := openPuller(t, t.TempDir())
	stopped := make(chan struct{})
	done := make(chan error, 1)
	var told []Progress
	go func() {
		_, err := s.Pull(context.Background(), ref(r, "big"), PullOptions{Progress: func(p Progress) {
			<-stopped
			told = append(told, p)
		}})
		done <- err
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				close(stopped)
				<-done
				t.Fatal(what)
			}
		}
	}
	until("the image does not come", func() bool { _, err := s.Get(context.Background(), ref(r, "big")); return err == nil })
	if _, err := s.Remove(context.Background(), ref(r, "big"), false, false); err != nil {
		t.Error(err)
	}
	until("nothing is collected", func() bool { return len(tree(t, s)) == 0 })
	close(stopped)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := len(told); n == 0 || told[n-1].Stage != Pulled {
		t.Errorf("what the client hears in the end: %v", told)
	}
}

func TestPullCancelled(t *testing.T) {
	r := newRegistry(t)
	r.put("big", "latest", gzipped, big(t))
	s := openPuller(t, t.TempDir())
	for n := range 6 {
		ctx, cancel := context.WithCancel(context.Background())
		seen := 0
		r.wrapped(func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				if seen++; seen == n+1 {
					cancel()
				}
				h.ServeHTTP(w, q)
			})
		})
		_, err := s.Pull(ctx, ref(r, "big"), PullOptions{})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at request %d: %v", n+1, err)
		}
		verify(t, s)
		if left := tree(t, s); len(left) != 0 {
			t.Errorf("cancelled at request %d, left: %v", n+1, left)
		}
	}
}

func TestPullOfNonsense(t *testing.T) {
	r := newRegistry(t)
	s := openAt(t, t.TempDir(), func(c *Config) { c.Registries, c.MaxLayerBytes = impatient(), 1<<20 })
	put := func(tag, kind string, doc []byte) { r.send("PUT", "/v2/bad/manifests/"+tag, kind, doc) }
	layer := pack(t, gzipped, tarOf(t, file{name: "x", body: "y"}))
	r.blob("bad", layer)
	manifest := func(change func(*ocispec.Manifest, *sample)) []byte {
		i := sample{layers: [][]byte{tarOf(t, file{name: "x", body: "y"})}}
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		m.Layers = []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(layer), Size: int64(len(layer))}}
		if change != nil {
			change(&m, &i)
		}
		cfg := i.config(t)
		r.blob("bad", cfg)
		if m.Config.MediaType == "" {
			m.Config.MediaType = ocispec.MediaTypeImageConfig
		}
		m.Config.Digest, m.Config.Size = digest.FromBytes(cfg), int64(len(cfg))
		return encode(t, m)
	}
	good := manifest(nil)
	put("good", ocispec.MediaTypeImageManifest, good)
	pull(t, s, ref(r, "bad:good"))

	// A megabyte of packed zeros is 2 GiB: refused when it is over the limit.
	bomb := tarOf(t, file{name: "zeros", body: string(make([]byte, 2<<20))})
	cases := map[string]struct {
		kind string
		doc  []byte
		want string
	}{
		"schema1":  {"application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1,"name":"bad","fsLayers":[{"blobSum":"sha256:aa"}]}`), "schema 1"},
		"both":     {ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`), "at once"},
		"artifact": {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest, _ *sample) { m.Config.MediaType = "application/vnd.helm" }), "no container image"},
		"count": {ocispec.MediaTypeImageManifest, manifest(func(_ *ocispec.Manifest, i *sample) { i.layers = append(i.layers, i.layers[0]) }),
			"has 1 layers and its config names 2"},
		"lie": {ocispec.MediaTypeImageManifest, manifest(func(_ *ocispec.Manifest, i *sample) { i.lie = true }), "diffID"},
		"encrypted": {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest, _ *sample) { m.Layers[0].MediaType += "+encrypted" }),
			"not supported"},
		"bomb": {ocispec.MediaTypeImageManifest, manifest(func(m *ocispec.Manifest, i *sample) {
			i.layers = [][]byte{bomb}
			packed := pack(t, gzipped, bomb)
			r.blob("bad", packed)
			m.Layers[0].Digest, m.Layers[0].Size = digest.FromBytes(packed), int64(len(packed))
		}), "more than 1048576 bytes"},
		"garbage": {ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2`), "manifest"},
		"deep":    {ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`), "nested"},
	}
	for tag, c := range cases {
		put(tag, c.kind, c.doc)
		_, err := s.Pull(context.Background(), ref(r, "bad:%s", tag), PullOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", tag, err, c.want)
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: wrong kind: %v", tag, err)
		}
		verify(t, s)
	}
	large := []byte(`{"schemaVersion":2,"x":"` + strings.Repeat("x", 4<<20) + `"}`)
	put("large", ocispec.MediaTypeImageManifest, large)
	if _, err := s.Pull(context.Background(), ref(r, "bad:large"), PullOptions{}); err == nil || !strings.Contains(err.Error(), "4194304") {
		t.Errorf("manifest of more than 4 MiB: %v", err)
	}
	verify(t, s)
}

// A registry that sends other bytes than it promised is found out, whatever
// they unpack to, and nothing of them stays.
func TestPullOfForgery(t *testing.T) {
	r := newRegistry(t)
	r.put("app", "latest", gzipped, hello(t))
	forged := pack(t, gzipped, tarOf(t, file{name: "evil", body: strings.Repeat("evil", 100)}))
	s := openPuller(t, t.TempDir())
	r.wrapped(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method != "GET" || !strings.Contains(q.URL.Path, "/blobs/") {
				h.ServeHTTP(w, q)
				return
			}
			rec := &recorder{header: http.Header{}}
			h.ServeHTTP(rec, q)
			b := rec.body.Bytes()
			if b[0] == 0x1f {
				b = append(slices.Clone(forged), make([]byte, max(0, len(b)-len(forged)))...)[:len(b)]
			}
			w.WriteHeader(rec.status)
			_, _ = w.Write(b)
		})
	})
	_, err := s.Pull(context.Background(), ref(r, "app"), PullOptions{})
	var d *DigestError
	if !errors.As(err, &d) {
		t.Errorf("forged layers: %v", err)
	}
	verify(t, s)
	if left := tree(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	r.wrapped(nil)
	pull(t, s, ref(r, "app"))
	verify(t, s)
}

type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(s int)           { r.status = s }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func TestDistribution(t *testing.T) {
	r := newRegistry(t)
	s := openPuller(t, t.TempDir())
	mine := r.put("app", "v1", gzipped, hello(t))
	index := r.index("app", "multi", platformOf(mine, hostArch), platformOf(mine, "s390x"))
	d, plats, err := s.Distribution(context.Background(), ref(r, "app:multi"), noAuth)
	if err != nil || d.Digest != index || len(plats) != 2 {
		t.Errorf("%v %v %v", d, plats, err)
	}
	d, plats, err = s.Distribution(context.Background(), ref(r, "app:v1"), noAuth)
	if err != nil || d.Digest != mine.Digest || len(plats) != 1 || plats[0].Architecture != hostArch {
		t.Errorf("%v %v %v", d, plats, err)
	}
	verify(t, s)
}

func FuzzRemoteName(f *testing.F) {
	for _, s := range []string{"busybox", "a/b:c", "localhost:5000/x@sha256:" + strings.Repeat("0", 64), "[::1]:5000/x", "x@sha512:00", "A"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		named, at, err := parseRemote(name)
		if err != nil {
			return
		}
		again, at2, err := parseRemote(named.String())
		if err != nil || again.String() != named.String() || at != at2 || at == "" {
			t.Errorf("%q is %q at %q, and that is %v at %q, %v", name, named, at, again, at2, err)
		}
	})
}

// Who gives up leaves a layer to those who still want it, and to those who come.
func TestFetchGoesOnWithoutTheOneWhoGaveUp(t *testing.T) {
	r := newRegistry(t)
	d := r.put("one", "latest", gzipped, hello(t))
	gate := make(chan struct{})
	r.wrapped(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if strings.Contains(q.URL.Path, "/blobs/") {
				<-gate
			}
			h.ServeHTTP(w, q)
		})
	})
	s := openPuller(t, t.TempDir())
	named, at, err := parseRemote(ref(r, "one"))
	if err != nil {
		t.Fatal(err)
	}
	p := &puller{s: s, repo: s.cfg.Registries.Repository(named, noAuth)}
	m, err := p.repo.Manifest(context.Background(), at)
	if err != nil || m.Digest != d.Digest {
		t.Fatalf("%v %v", m.Digest, err)
	}
	var doc ocispec.Manifest
	if err := decodeJSON(m.Raw, "manifest", &doc); err != nil {
		t.Fatal(err)
	}
	blob, want := doc.Layers[0], digest.FromString("not asked")
	gone, cancel := context.WithCancel(context.Background())
	first, _ := p.join(gone, blob, want)
	second, _ := p.join(context.Background(), blob, want)
	cancel()
	p.leave(gone, first, [2]digest.Digest{blob.Digest, want}, gone.Err())
	third, mine := p.join(context.Background(), blob, want)
	if second != first || third != first || mine {
		t.Error("the layer is fetched a second time")
	}
	close(gate)
	<-first.done
	for _, f := range []*fetch{second, third} {
		p.leave(context.Background(), f, [2]digest.Digest{blob.Digest, want}, f.err)
	}
	if left := tree(t, s); len(left) != 0 || len(s.fetches.all) != 0 {
		t.Errorf("left: %v, %d fetches", left, len(s.fetches.all))
	}
}
