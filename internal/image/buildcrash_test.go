package image

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// buildForever is a builder that makes stacks of three snapshots: one of a
// blob, one of files, one of a tar, with a blob of the second. Each stack is
// kept by a lease of its own, and given up one round later.
func buildForever(ctx context.Context, s *Store) error {
	sn := s.Snapshots()
	fmt.Println("ready")
	for i := 0; ; i++ {
		id := fmt.Sprintf("%d-%d", os.Getpid(), i)
		l, err := s.LeaseManager().Create(ctx, leases.WithID("round/"+id))
		if err != nil {
			return err
		}
		ctx := leases.WithLease(ctx, l.ID)
		raw := victimTar("blob", uint64(i%5))
		d := ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if err := content.WriteBlob(ctx, s.Content(), id, bytes.NewReader(raw), d); err != nil && !errdefs.IsAlreadyExists(err) {
			return err
		}
		m, err := sn.Prepare(ctx, "a/"+id, "")
		if err != nil {
			return err
		}
		if _, err := sn.Apply(ctx, d, m); err != nil {
			return err
		}
		if err := sn.Commit(ctx, "blob/"+id, "a/"+id); err != nil {
			return err
		}
		if m, err = sn.Prepare(ctx, "b/"+id, "blob/"+id); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(upperOf(m), "files"), []byte(noise(uint64(i%7), 200<<10)), 0o600); err != nil {
			return err
		}
		if err := sn.Commit(ctx, "files/"+id, "b/"+id); err != nil {
			return err
		}
		lower, err := sn.View(ctx, "lower/"+id, "blob/"+id)
		if err != nil {
			return err
		}
		upper, err := sn.View(ctx, "upper/"+id, "files/"+id)
		if err != nil {
			return err
		}
		if _, err := sn.Compare(ctx, lower, upper); err != nil {
			return err
		}
		if m, err = sn.Prepare(ctx, "c/"+id, "files/"+id); err != nil {
			return err
		}
		if _, err := sn.ApplyTar(ctx, m, bytes.NewReader(victimTar("tar", uint64(i%3)))); err != nil {
			return err
		}
		if err := sn.Commit(ctx, "tar/"+id, "c/"+id); err != nil {
			return err
		}
		if i > 0 {
			old := leases.Lease{ID: fmt.Sprintf("round/%d-%d", os.Getpid(), i-1)}
			if err := s.LeaseManager().Delete(ctx, old, leases.SynchronousDelete); err != nil {
				return err
			}
		}
	}
}

// victimTar is a tar with one file of noise.
func victimTar(name string, seed uint64) []byte {
	var b bytes.Buffer
	if err := writeTar(&b, file{name: name, body: noise(seed, 100<<10)}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func upperOf(m []mount.Mount) string {
	for _, o := range m[0].Options {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			return u
		}
	}
	return m[0].Source
}

// After a kill at any moment of a build every snapshot that is there is whole,
// has the files of its layers and of those below, and nothing lies about that
// none of them needs; and without leases nothing is left at all.
func TestKilledWhileBuilding(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	seen := map[string]int{}
	for range 12 {
		kill(t, dir, "build", time.Duration(random.IntN(300))*time.Millisecond)
		s := openAt(t, dir, nil)
		must(t, s.snapshots.Close())
		l, err := s.LeaseManager().Create(t.Context(), leases.WithRandomID())
		must(t, err)
		ctx := leases.WithLease(t.Context(), l.ID)
		need, dirs := map[string]bool{}, 0
		var all []snapshots.Info
		must(t, s.Snapshots().Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			all = append(all, i)
			return nil
		}))
		for _, i := range all {
			kind, _, _ := strings.Cut(i.Name, "/")
			seen[kind]++
			var m []mount.Mount
			var err error
			if i.Kind == snapshots.KindCommitted {
				m = view(t, ctx, s, i.Name)
			} else {
				m, err = s.Snapshots().Mounts(ctx, i.Name)
			}
			if err != nil {
				t.Errorf("%s: %v", i.Name, err)
				continue
			}
			if i.Kind == snapshots.KindActive {
				dirs++
			}
			want := map[string][]string{"blob": {"blob"}, "files": {"blob", "files"}, "tar": {"blob", "files", "tar"}}[kind]
			within(t, m, func(root string) {
				for _, n := range want {
					if fi, err := os.Stat(filepath.Join(root, n)); err != nil || fi.Size() < 100<<10 {
						t.Errorf("%s: %q: %v", i.Name, n, err)
					} else if b, err := os.ReadFile(filepath.Join(root, n)); err != nil || !slices.Contains(noises(len(b)), string(b)) {
						t.Errorf("%s: %q has other contents: %v", i.Name, n, err)
					}
				}
			})
		}
		must(t, s.cfg.DB.View(func(tx *bolt.Tx) error {
			layers, _, err := s.snapshots.Needed(tx)
			for d := range layers {
				need[d.Encoded()] = true
			}
			return err
		}))
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "flat"))
		must(t, err)
		for _, e := range entries {
			if !need[e.Name()] {
				t.Errorf("flat layer %s, which no snapshot needs", e.Name())
			}
			delete(need, e.Name())
		}
		if len(need) > 0 {
			t.Errorf("flat layers are missing: %v", need)
		}
		entries, err = os.ReadDir(filepath.Join(s.cfg.Root, "snapshot"))
		must(t, err)
		if len(entries) != dirs+1 {
			t.Errorf("%d directories of %d active snapshots", len(entries)-1, dirs)
		}
		must(t, s.LeaseManager().Delete(t.Context(), l, leases.SynchronousDelete))
		if random.IntN(3) == 0 {
			settleSnapshots(t, s)
			if blobs := tree(t, s); len(blobs) > 0 {
				t.Errorf("left: %v", blobs)
			}
		}
		closeTest(t, s)
	}
	t.Logf("found %v", seen)
	if seen["tar"] == 0 {
		t.Error("no kill found a whole stack: the test does not test")
	}
}

// noises are the contents that a victim writes.
func noises(n int) (out []string) {
	for seed := range uint64(7) {
		out = append(out, noise(seed, n))
	}
	return out
}
