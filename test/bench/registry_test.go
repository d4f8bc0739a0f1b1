package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/test/proatest"
)

// layout makes an OCI layout of one image with random layers, which no
// registry has, and returns the paths of its blobs below a repository.
func layout(b *testing.B, dir string, layers, size int, seed uint64) (blobs []string) {
	b.Helper()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o700))
	write := func(mediaType string, r io.Reader) ocispec.Descriptor {
		b.Helper()
		f, err := os.CreateTemp(dir, "")
		check(err)
		h := digest.SHA256.Digester()
		n, err := io.Copy(io.MultiWriter(f, h.Hash()), r)
		check(err)
		check(f.Close())
		check(os.Rename(f.Name(), filepath.Join(dir, "blobs/sha256", h.Digest().Encoded())))
		return ocispec.Descriptor{MediaType: mediaType, Digest: h.Digest(), Size: n}
	}
	text := func(v any) io.Reader {
		raw, err := json.Marshal(v)
		check(err)
		return strings.NewReader(string(raw))
	}
	var key [32]byte
	key[0], key[1], key[2], key[3] = byte(seed), byte(layers), byte(size), byte(size>>8)
	source := rand.NewChaCha8(key)
	img := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for range layers {
		d := write(ocispec.MediaTypeImageLayer, io.LimitReader(source, int64(size)))
		m.Layers = append(m.Layers, d)
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, d.Digest)
		blobs = append(blobs, "blobs/"+d.Digest.String())
	}
	m.Config = write(ocispec.MediaTypeImageConfig, text(img))
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{write(ocispec.MediaTypeImageManifest, text(m))}}
	raw, err := io.ReadAll(text(index))
	check(err)
	check(os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o600))
	check(os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600))
	return blobs
}

// BenchmarkRegistry pushes to and pulls from the registry in the box and
// distribution's, over plain HTTP on loopback: an image of four layers of
// 64 MB, and one of a hundred of 1 kB. Every push is of content that the
// registry does not have; pulls go to /dev/null, so that they show the server.
func BenchmarkRegistry(b *testing.B) {
	const rounds, box, other = 5, "127.0.0.1:5000", "127.0.0.1:5001"
	netns := proatest.Netns(b)
	proatest.Box(b, netns, box, filepath.Join(b.TempDir(), "box"))
	proatest.Distribution(b, netns, other, filepath.Join(b.TempDir(), "distribution"))
	in := func(name string, args ...string) error {
		return command("nsenter", append([]string{"--net=/run/netns/" + netns, name}, args...)...)()
	}
	crane := proatest.Tool(b, "crane")
	for _, kind := range []struct {
		name         string
		layers, size int
	}{{"four layers of 64 MB", 4, 64 << 20}, {"a hundred layers of 1 kB", 100, 1000}} {
		var dirs []string
		var blobs []string
		for i := range rounds + 1 {
			dirs = append(dirs, filepath.Join(b.TempDir(), fmt.Sprint(i)))
			blobs = layout(b, dirs[i], kind.layers, kind.size, uint64(i))
		}
		next := map[string]int{}
		push := func(addr string) func() error {
			return func() error {
				i := next[addr]
				next[addr]++
				return in(crane, "push", dirs[i], fmt.Sprintf("%s/push/%d:%d", addr, kind.layers, i))
			}
		}
		race(b, "push of "+kind.name, "distribution", rounds, []contender{{"proa", push(box)}, {"distribution", push(other)}})
		pull := func(addr string) func() error {
			args := []string{"-sfZ", "--parallel-max", "4"}
			for _, blob := range blobs {
				args = append(args, "-o", "/dev/null", fmt.Sprintf("http://%s/v2/push/%d/%s", addr, kind.layers, blob))
			}
			return func() error { return in("curl", args...) }
		}
		race(b, "pull of "+kind.name, "distribution", rounds, []contender{{"proa", pull(box)}, {"distribution", pull(other)}})
		for _, d := range dirs {
			_ = os.RemoveAll(d)
		}
	}
}
