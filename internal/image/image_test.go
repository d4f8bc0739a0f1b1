package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"proa/internal/sys"
)

var hostArch = runtime.GOARCH

// read reads a file of a mounted image.
func read(t testing.TB, m *Mounted, path string) (string, error) {
	t.Helper()
	f, err := sys.OpenInRoot(m.Tree, path, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		t.Fatal(err)
	}
	return b.String(), nil
}

func TestLoadAndMount(t *testing.T) {
	for _, outer := range []compression{plain, gzipped, zstded, xzed} {
		for _, inner := range []compression{plain, gzipped, zstded} {
			for format, make := range map[string]func(testing.TB, compression, ...sample) []byte{"docker": dockerArchive, "oci": ociArchive} {
				t.Run(fmt.Sprintf("%s-%s-%s", format, outer, inner), func(t *testing.T) {
					s := openTest(t)
					names := load(t, s, pack(t, outer, make(t, inner, hello(t, "hello", "example.com/hello:2"))))
					if got := strings.Join(names, " "); got != "hello:latest example.com/hello:2" {
						t.Fatalf("loaded %q", got)
					}
					img := get(t, s, "hello")
					if get(t, s, img.ID.String()).ID != img.ID || get(t, s, img.ID.Encoded()[:6]).ID != img.ID || get(t, s, img.Digests[0]).ID != img.ID {
						t.Error("not the same image by name, id, short id and digest")
					}
					if err := s.Lease(context.Background(), nil, "container/x", img.ID.String()); err != nil {
						t.Fatal(err)
					}
					m, err := s.Mount(context.Background(), img.ID.String())
					if err != nil {
						t.Fatal(err)
					}
					defer m.Close()
					if got, err := read(t, m, "/etc/motd"); err != nil || got != "hello" {
						t.Errorf("/etc/motd: %q, %v", got, err)
					}
					if got, err := read(t, m, "/bin/run"); err != nil || got != strings.Repeat("run", 3000) {
						t.Errorf("/bin/run: %d bytes, %v", len(got), err)
					}
					if _, err := read(t, m, "/etc/gone"); !os.IsNotExist(err) {
						t.Errorf("/etc/gone: %v, want not found", err)
					}
					d, err := s.Disk(context.Background(), img.ID.String())
					if err != nil || len(d.Data) != 2 {
						t.Fatalf("Disk: %v, %v", d, err)
					}
					for _, p := range append(d.Data, d.Index) {
						if fi, err := os.Stat(p); err != nil || fi.Size()%4096 != 0 {
							t.Errorf("disk file %s: %v, %v", filepath.Base(p), fi, err)
						}
					}
				})
			}
		}
	}
}
