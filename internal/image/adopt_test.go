package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// contents puts the blobs of a sample into the store under a lease of the
// caller's and gives the context with that lease.
func contents(t *testing.T, s *Store, lease string, i sample, without ...digest.Digest) (context.Context, ocispec.Descriptor) {
	t.Helper()
	blobs := map[string][]byte{}
	target := i.manifest(t, gzipped, blobs)
	l, err := s.leases.Create(in(t.Context()), leases.WithID(lease))
	if err != nil {
		t.Fatal(err)
	}
	ctx := in(leases.WithLease(t.Context(), l.ID))
next:
	for _, b := range blobs {
		d := ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
		for _, w := range without {
			if w == d.Digest {
				continue next
			}
		}
		if err := content.WriteBlob(ctx, s.blobs, d.Digest.String(), bytes.NewReader(b), d); err != nil {
			t.Fatal(err)
		}
	}
	return ctx, target
}

// What only a lease of somebody else keeps becomes an image, which keeps it
// when that lease ends.
func TestAdopt(t *testing.T) {
	s := openTest(t)
	ctx, target := contents(t, s, "foreign", hello(t))
	img, err := s.Adopt(ctx, target, []string{"hello", "example.com/hello:2"})
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Names) != 2 || img.Target.Digest != target.Digest {
		t.Errorf("adopted %v of %s", img.Names, img.Target.Digest)
	}
	if want := []int64{6, 9000}; !slices.Equal(img.LayerSizes, want) {
		t.Errorf("layers of %v bytes, want %v", img.LayerSizes, want)
	}
	if err := s.leases.Delete(in(t.Context()), leases.Lease{ID: "foreign"}); err != nil {
		t.Fatal(err)
	}
	settle(t, s)
	m, err := s.Mount(t.Context(), img.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, err := read(t, m, "etc/motd"); err != nil || got != "hello" {
		t.Errorf("motd: %q %v", got, err)
	}
	all, err := s.leases.List(in(t.Context()))
	if err != nil || len(all) != 0 {
		t.Errorf("leases left: %v %v", all, err)
	}
}

// Adopting again changes nothing; a name that moves leaves the old image
// without one; without a name an image is dangling.
func TestAdoptNames(t *testing.T) {
	s := openTest(t)
	ctx, one := contents(t, s, "foreign", hello(t))
	first, err := s.Adopt(ctx, one, []string{"app"})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Adopt(ctx, one, []string{"app"}); err != nil || again.ID != first.ID || len(again.Names) != 1 {
		t.Fatalf("again: %v %v", again, err)
	}
	ctx, two := contents(t, s, "foreign2", other(t))
	second, err := s.Adopt(ctx, two, []string{"app"})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "app"); got.ID != second.ID {
		t.Errorf("app is %s, not %s", got.ID, second.ID)
	}
	if got := get(t, s, first.ID.String()); len(got.Names) != 0 {
		t.Errorf("the old image still has names: %v", got.Names)
	}
	if _, err := s.Remove(t.Context(), first.ID.String(), false, true); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Adopt(ctx, one, nil); err != nil || len(img.Names) != 0 {
		t.Errorf("dangling: %v %v", img, err)
	}
}

// A manifest whose blobs are not all here is no image, and nothing is left.
func TestAdoptIncomplete(t *testing.T) {
	s := openTest(t)
	i := hello(t)
	layer := digest.FromBytes(pack(t, gzipped, i.layers[1]))
	ctx, target := contents(t, s, "foreign", i, layer)
	if _, err := s.Adopt(ctx, target, []string{"hello"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("adopted without a layer: %v", err)
	}
	if _, err := s.Get(t.Context(), "hello"); !errdefs.IsNotFound(err) {
		t.Errorf("image of an incomplete manifest: %v", err)
	}
	if err := s.leases.Delete(in(t.Context()), leases.Lease{ID: "foreign"}); err != nil {
		t.Fatal(err)
	}
	expectTree(t, s, nil)
}

// An image of no layers at all, "FROM scratch" with a label, is one as any
// other: it can be saved, loaded, mounted and removed.
func TestNoLayers(t *testing.T) {
	for _, strategy := range []string{"", "extract"} {
		s := openAt(t, t.TempDir(), func(c *Config) { c.Strategy = strategy })
		before := tree(t, s)
		ctx, target := contents(t, s, "foreign", sample{labels: map[string]string{"a": "b"}})
		if _, err := s.Adopt(ctx, target, []string{"bare"}); err != nil {
			t.Fatal(err)
		}
		if err := s.leases.Delete(in(t.Context()), leases.Lease{ID: "foreign"}); err != nil {
			t.Fatal(err)
		}
		var saved bytes.Buffer
		if err := s.Save(t.Context(), &saved, []string{"bare"}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			img := get(t, s, "bare")
			m, err := s.Mount(t.Context(), img.ID.String())
			if err != nil {
				t.Fatal(err)
			}
			if entries, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", m.Tree.Fd())); err != nil || len(entries) != 0 {
				t.Errorf("in no layers: %v %v", entries, err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if _, err := s.Remove(t.Context(), "bare", false, true); err != nil {
				t.Fatal(err)
			}
			expectTree(t, s, before)
			load(t, s, saved.Bytes())
		}
	}
}
