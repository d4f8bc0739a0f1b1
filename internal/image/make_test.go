package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	"proa/internal/state"
)

// openTest opens a Store in a directory of its own. Warnings fail the test.
func openTest(t testing.TB) *Store { return openAt(t, t.TempDir(), nil) }

func openAt(t testing.TB, dir string, adjust func(*Config)) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: images are mounted")
	}
	db, err := state.Open(filepath.Join(dir, "proa.db"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Root: filepath.Join(dir, "image"), Mounts: filepath.Join(dir, "mounts"), DB: db,
		Warn: func(err error) { t.Errorf("warning: %v", err) },
	}
	if adjust != nil {
		adjust(&cfg)
	}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sync.OnceFunc(func() { closeTest(t, s) }))
	return s
}

func closeTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.cfg.DB.Close(); err != nil {
		t.Error(err)
	}
}

// file is one entry of a layer.
type file struct {
	name, body, link string
	kind             byte
	mode             int64
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeTar(&b, files...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeTar(out io.Writer, files ...file) error {
	w := tar.NewWriter(out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Mode: f.mode, Size: int64(len(f.body)), Linkname: f.link, ModTime: time.Unix(1700000000, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			return err
		}
	}
	return w.Close()
}

func pack(t testing.TB, kind compression, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch kind {
	case plain:
		return raw
	case gzipped:
		w = gzip.NewWriter(&b)
	case zstded:
		w, err = zstd.NewWriter(&b)
	case xzed:
		w, err = xz.NewWriter(&b)
	default:
		t.Fatalf("cannot pack %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sample is an image being made: layers as plain tars.
type sample struct {
	names  []string
	layers [][]byte
	arch   string // "" is this host's
	lie    bool   // the config names another diffID for the last layer
	env    []string
	labels map[string]string
	built  time.Time
}

func (i sample) config(t testing.TB) []byte {
	t.Helper()
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: i.arch}}
	if c.Architecture == "" {
		c.Architecture = "amd64"
		if hostArch != "" {
			c.Architecture = hostArch
		}
	}
	c.Config.Env, c.Config.Labels = i.env, i.labels
	if !i.built.IsZero() {
		c.Created = &i.built
	}
	c.RootFS.Type = "layers"
	for n, l := range i.layers {
		d := digest.FromBytes(l)
		if i.lie && n == len(i.layers)-1 {
			d = digest.FromString("a lie")
		}
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, d)
	}
	return encode(t, c)
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dockerArchive is what old versions of docker save wrote.
func dockerArchive(t testing.TB, kind compression, imgs ...sample) []byte {
	t.Helper()
	type entry struct {
		Config           string
		RepoTags, Layers []string
	}
	var list []entry
	var files []file
	for _, i := range imgs {
		cfg := i.config(t)
		e := entry{Config: digest.FromBytes(cfg).Encoded() + ".json", RepoTags: i.names}
		files = append(files, file{name: e.Config, body: string(cfg)})
		for _, l := range i.layers {
			dir := digest.FromBytes(append([]byte(e.Config), l...)).Encoded()
			files = append(files, file{name: dir + "/", kind: tar.TypeDir}, file{name: dir + "/VERSION", body: "1.0"},
				file{name: dir + "/json", body: "{}"}, file{name: dir + "/layer.tar", body: string(pack(t, kind, l))})
			e.Layers = append(e.Layers, dir+"/layer.tar")
		}
		list = append(list, e)
	}
	files = append(files, file{name: "manifest.json", body: string(encode(t, list))})
	return tarOf(t, files...)
}

func (i sample) manifest(t testing.TB, kind compression, blobs map[string][]byte) ocispec.Descriptor {
	t.Helper()
	put := func(mt string, b []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mt, Digest: digest.FromBytes(b), Size: int64(len(b))}
		blobs["blobs/sha256/"+d.Digest.Encoded()] = b
		return d
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = put(ocispec.MediaTypeImageConfig, i.config(t))
	mt := map[compression]string{plain: ocispec.MediaTypeImageLayer, gzipped: ocispec.MediaTypeImageLayerGzip, zstded: ocispec.MediaTypeImageLayerZstd}[kind]
	for _, l := range i.layers {
		m.Layers = append(m.Layers, put(mt, pack(t, kind, l)))
	}
	return put(ocispec.MediaTypeImageManifest, encode(t, m))
}

// ociArchive is an OCI layout in a tar.
func ociArchive(t testing.TB, kind compression, imgs ...sample) []byte {
	t.Helper()
	blobs := map[string][]byte{}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for _, i := range imgs {
		d := i.manifest(t, kind, blobs)
		for _, n := range i.names {
			d.Annotations = map[string]string{"io.containerd.image.name": n}
			idx.Manifests = append(idx.Manifests, d)
		}
		if len(i.names) == 0 {
			idx.Manifests = append(idx.Manifests, d)
		}
	}
	return ociTar(t, blobs, idx)
}

func ociTar(t testing.TB, blobs map[string][]byte, idx ocispec.Index) []byte {
	t.Helper()
	files := []file{{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, {name: "index.json", body: string(encode(t, idx))}}
	var names []string
	for n := range blobs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		files = append(files, file{name: n, body: string(blobs[n])})
	}
	return tarOf(t, files...)
}

func load(t testing.TB, s *Store, archive []byte) []string {
	t.Helper()
	names, err := s.Load(context.Background(), bytes.NewReader(archive), nil)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func get(t testing.TB, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Get(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// hello is a small image with two layers, the upper of which removes a file.
func hello(t testing.TB, names ...string) sample {
	return sample{names: names, layers: [][]byte{
		tarOf(t, file{name: "etc/", kind: tar.TypeDir}, file{name: "etc/motd", body: "hello"}, file{name: "etc/gone", body: "x"}),
		tarOf(t, file{name: "etc/.wh.gone"}, file{name: "bin/", kind: tar.TypeDir}, file{name: "bin/run", body: strings.Repeat("run", 3000)}),
	}}
}

// other is a small image that shares hello's lower layer.
func other(t testing.TB, names ...string) sample {
	i := hello(t, names...)
	i.layers[1] = tarOf(t, file{name: "other", body: "other"})
	return i
}

// tree lists the regular files below the store's root, temp files and all, so
// that an orphan shows.
func tree(t testing.TB, s *Store) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(s.cfg.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(s.cfg.Root, p)
		if !d.IsDir() || isDir(filepath.Base(rel)) || strings.Contains(rel, "tmp") {
			out = append(out, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// settle waits for work in the background.
func settle(t testing.TB, s *Store) {
	t.Helper()
	if err := s.clean(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// onlyFiles drops directories from what tree gave.
func expectTree(t testing.TB, s *Store, want []string) {
	t.Helper()
	settle(t, s)
	if got := tree(t, s); !slices.Equal(got, want) {
		t.Errorf("files of the store:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
