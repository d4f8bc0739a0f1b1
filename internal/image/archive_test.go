package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func save(t testing.TB, s *Store, refs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.Save(context.Background(), &b, refs); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// untar gives the names and contents of an archive.
func untar(t testing.TB, raw []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = string(b)
	}
}

func TestRoundTripKeepsEveryDigest(t *testing.T) {
	for _, inner := range []compression{plain, gzipped, zstded} {
		for format, make := range map[string]func(testing.TB, compression, ...sample) []byte{"docker": dockerArchive, "oci": ociArchive} {
			t.Run(format+"-"+string(inner), func(t *testing.T) {
				a := openTest(t)
				load(t, a, make(t, inner, hello(t, "hello:1", "hello:2"), other(t, "example.com/other:x")))
				first := save(t, a, "hello", "example.com/other:x")
				if again := save(t, a, "hello", "example.com/other:x"); !bytes.Equal(first, again) {
					t.Error("two saves of the same images differ")
				}
				b := openTest(t)
				load(t, b, first)
				for _, ref := range []string{"hello:1", "hello:2", "example.com/other:x"} {
					x, y := get(t, a, ref), get(t, b, ref)
					if x.ID != y.ID || x.Target.Digest != y.Target.Digest || x.Target.MediaType != y.Target.MediaType || !slices.Equal(x.Names, y.Names) || x.ChainID != y.ChainID || x.Size != y.Size {
						t.Errorf("%s: %+v became %+v", ref, x.Target, y.Target)
					}
				}
				if second := save(t, b, "hello", "example.com/other:x"); !bytes.Equal(first, second) {
					t.Error("the archive of the loaded images differs")
				}
			})
		}
	}
}

// The archive is a docker archive as well: a reader that knows nothing of OCI
// finds everything by manifest.json.
func TestSavedArchiveIsBothFormats(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "hello")))
	files := untar(t, save(t, s, "hello"))
	var list []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal([]byte(files["manifest.json"]), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || strings.Join(list[0].RepoTags, " ") != "hello:latest" || len(list[0].Layers) != 2 {
		t.Fatalf("manifest.json: %+v", list)
	}
	for _, n := range append(list[0].Layers, list[0].Config) {
		if digest.FromString(files[n]).Encoded() != strings.TrimPrefix(n, "blobs/sha256/") {
			t.Errorf("%s does not hold what its name says", n)
		}
	}
	if !strings.Contains(files["repositories"], `"hello":{"latest":`) {
		t.Errorf("repositories: %s", files["repositories"])
	}
	delete(files, "index.json")
	delete(files, "oci-layout")
	var rest []file
	for n, b := range files {
		if !strings.HasSuffix(n, "/") {
			rest = append(rest, file{name: n, body: b})
		}
	}
	b := openTest(t)
	if got := load(t, b, tarOf(t, rest...)); strings.Join(got, " ") != "hello:latest" {
		t.Errorf("loaded %q", got)
	}
	if get(t, b, "hello").ID != get(t, s, "hello").ID {
		t.Error("the image has another id")
	}
}

func TestSaveErrors(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, plain, hello(t, "hello")))
	for _, refs := range [][]string{nil, {"none"}, {"hello", "none"}} {
		var b bytes.Buffer
		if err := s.Save(context.Background(), &b, refs); err == nil || b.Len() > 0 {
			t.Errorf("Save %q: %v after %d bytes; want an error before the first", refs, err, b.Len())
		}
	}
	// An id is saved without a name.
	id := get(t, s, "hello").ID.Encoded()[:12]
	o := openTest(t)
	if got := load(t, o, save(t, s, id)); len(got) != 1 || !strings.HasPrefix(got[0], "sha256:") {
		t.Errorf("loaded %q, want an id", got)
	}
}

func TestPlatforms(t *testing.T) {
	s := openTest(t)
	foreign := "arm64"
	if hostArch == foreign {
		foreign = "amd64"
	}
	far := hello(t, "hello")
	far.arch = foreign
	// One image for another platform is taken as any other; who asks for this
	// host's alone gets an error that names both.
	for name, a := range map[string][]byte{"docker": dockerArchive(t, gzipped, far), "oci": ociArchive(t, gzipped, far)} {
		o := openTest(t)
		before := tree(t, o)
		_, err := o.Load(context.Background(), bytes.NewReader(a), nil, ocispec.Platform{OS: "linux", Architecture: hostArch})
		var p *PlatformError
		if !errors.As(err, &p) || !strings.Contains(err.Error(), "linux/"+foreign) || !strings.Contains(err.Error(), "linux/"+hostArch) {
			t.Errorf("%s: %v, want an error that names both platforms", name, err)
		}
		expectTree(t, o, before)
		load(t, o, a)
		if img := get(t, o, "hello"); img.Platform.Architecture != foreign {
			t.Errorf("%s: loaded for %s, want %s", name, img.Platform.Architecture, foreign)
		}
	}
	// An index that offers both; its digest is kept as the image's target.
	blobs := map[string][]byte{}
	near := hello(t)
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for arch, i := range map[string]sample{foreign: far, hostArch: near} {
		d := i.manifest(t, gzipped, blobs)
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		idx.Manifests = append(idx.Manifests, d)
	}
	idx.Manifests = append(idx.Manifests, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("provenance"), Size: 10,
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}, Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}})
	raw := encode(t, idx)
	top := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Annotations: map[string]string{"io.containerd.image.name": "both:1"}}
	blobs["blobs/sha256/"+top.Digest.Encoded()] = raw
	load(t, s, ociTar(t, blobs, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}}))
	img := get(t, s, "both:1")
	if img.Target.Digest != top.Digest || img.Config.Architecture != hostArch {
		t.Errorf("target %s for %s, want %s for %s", img.Target.Digest, img.Config.Architecture, top.Digest, hostArch)
	}
	settle(t, s)
	files := untar(t, save(t, s, "both:1"))
	// The attestation is not here, so a shorter index takes the place of its own (D30).
	for n := range blobs {
		if _, ok := files[n]; ok == (n == "blobs/sha256/"+top.Digest.Encoded()) {
			t.Errorf("%s is saved: %v", n, ok)
		}
	}
}

func TestBadArchives(t *testing.T) {
	good := ociArchive(t, gzipped, hello(t, "hello"))
	lying := hello(t, "hello")
	lying.lie = true
	deep := `{"a":` + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + `}`
	flip := func(a []byte, at string, offset int) []byte {
		b := bytes.Clone(a)
		i := bytes.Index(b, []byte(at))
		if i < 0 {
			t.Fatalf("no %q in the archive", at)
		}
		b[i+offset] ^= 0x55
		return b
	}
	cut := func(a []byte) []byte { return a[: len(a)/2+100 : len(a)/2+100] }
	many := sample{names: []string{"many"}}
	for range maxLayers + 1 {
		many.layers = append(many.layers, hello(t).layers[0])
	}
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"empty":             {nil, "not an image archive"},
		"garbage":           {bytes.Repeat([]byte("garbage "), 1000), "not an image archive"},
		"foreign":           {tarOf(t, file{name: "etc/passwd", body: "root"}), "not an image archive"},
		"truncated":         {cut(good), "truncated"},
		"truncated gzip":    {cut(pack(t, gzipped, good)), "truncated"},
		"truncated zstd":    {cut(pack(t, zstded, good)), "truncated"},
		"damaged gzip":      {flip(pack(t, gzipped, good), "\x1f\x8b", 200), "damaged"},
		"damaged blob":      {flip(good, "\x1f\x8b\x08", 60), "damaged"},
		"lying diffID":      {ociArchive(t, gzipped, lying), "diffID"},
		"lying diffID 2":    {dockerArchive(t, plain, lying), "diffID"},
		"layer is no tar":   {ociArchive(t, gzipped, sample{names: []string{"x"}, layers: [][]byte{bytes.Repeat([]byte("x"), 2000)}}), ""},
		"no rootfs":         {tarOf(t, file{name: "c", body: "{}"}, file{name: "manifest.json", body: `[{"Config":"c"}]`}), "layers"},
		"too many layers":   {dockerArchive(t, plain, many), "layers"},
		"bad name":          {dockerArchive(t, plain, hello(t, "UPPER")), "UPPER"},
		"missing layer":     {tarOf(t, file{name: "c", body: "{}"}, file{name: "manifest.json", body: `[{"Config":"c","Layers":["nowhere"]}]`}), "nowhere"},
		"missing config":    {tarOf(t, file{name: "manifest.json", body: `[{"Config":"nowhere"}]`}), "nowhere"},
		"missing blob":      {tarOf(t, file{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, file{name: "index.json", body: `{"manifests":[{"digest":"` + digest.FromString("x").String() + `"}]}`}), "no blob"},
		"no index":          {tarOf(t, file{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}), "index.json"},
		"bad manifest.json": {tarOf(t, file{name: "manifest.json", body: `[{`}), "manifest.json"},
		"deep manifest":     {tarOf(t, file{name: "manifest.json", body: deep}), "nested"},
		"large manifest":    {tarOf(t, file{name: "manifest.json", body: strings.Repeat(" ", maxJSON+1)}), "larger"},
		"deep config":       {tarOf(t, file{name: "c", body: deep}, file{name: "manifest.json", body: `[{"Config":"c"}]`}), "nested"},
		"link loop":         {tarOf(t, file{name: "a", link: "b", kind: tar.TypeSymlink}, file{name: "b", link: "a", kind: tar.TypeSymlink}, file{name: "manifest.json", body: `[{"Config":"a"}]`}), `"a"`},
		"escaping blob":     {tarOf(t, file{name: "blobs/sha256/../../../x", body: "x"}, file{name: "manifest.json", body: `[{"Config":"/x"}]`}), ""},
		"md5 blob":          {tarOf(t, file{name: "blobs/sha256/123", body: "x"}), "digest"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTest(t)
			load(t, s, ociArchive(t, plain, other(t, "other")))
			settle(t, s)
			before, usage := tree(t, s), usageOf(t, s)
			_, err := s.Load(context.Background(), bytes.NewReader(c.archive), nil)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want an invalid argument with %q", err, c.want)
			}
			if got := tree(t, s); !slices.Equal(got, before) {
				t.Errorf("left behind:\n%s\nbefore:\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
			}
			if got := usageOf(t, s); got != usage {
				t.Errorf("usage %+v, before %+v", got, usage)
			}
			if list, err := s.List(context.Background()); err != nil || len(list) != 1 {
				t.Errorf("%d images, %v", len(list), err)
			}
			// The store is none the worse for it.
			load(t, s, good)
		})
	}
}

func usageOf(t testing.TB, s *Store) [3]int64 {
	t.Helper()
	u, err := s.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return [3]int64{u.Blobs, u.Flat, u.Indexes}
}

// A layer that unpacks to more than allowed is refused while it is read.
func TestLayerLimit(t *testing.T) {
	s := openAt(t, t.TempDir(), func(c *Config) { c.MaxLayerBytes = 1 << 20 })
	before := tree(t, s)
	bomb := sample{names: []string{"bomb"}, layers: [][]byte{tarOf(t, file{name: "zeros", body: strings.Repeat("\x00", 2<<20)})}}
	_, err := s.Load(context.Background(), bytes.NewReader(ociArchive(t, gzipped, bomb)), nil)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v, want an invalid argument", err)
	}
	expectTree(t, s, before)
}

// A load that is cancelled leaves nothing, and its error is the context's.
func TestLoadCancelled(t *testing.T) {
	s := openTest(t)
	before := tree(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	a := ociArchive(t, gzipped, hello(t, "hello"))
	r := io.MultiReader(bytes.NewReader(a[:len(a)/2]), readerFunc(func([]byte) (int, error) { cancel(); return 0, ctx.Err() }))
	if _, err := s.Load(ctx, r, nil); !errors.Is(err, context.Canceled) || errdefs.IsInvalidArgument(err) {
		t.Errorf("error %v, want the context's", err)
	}
	expectTree(t, s, before)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// The same archive loaded many times at once gives one image, whole.
func TestLoadAtOnce(t *testing.T) {
	s := openTest(t)
	a, b := ociArchive(t, gzipped, hello(t, "hello")), dockerArchive(t, zstded, hello(t, "hello2"), other(t, "other"))
	errs := make(chan error)
	for i := range 12 {
		go func() {
			_, err := s.Load(context.Background(), bytes.NewReader([][]byte{a, b}[i%2]), nil)
			errs <- err
		}()
	}
	for range 12 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	settle(t, s)
	once := openTest(t)
	load(t, once, a)
	load(t, once, b)
	expectTree(t, s, func() []string { settle(t, once); return tree(t, once) }())
}
