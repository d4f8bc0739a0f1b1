package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"proa/internal/image/snapshot"
	"proa/internal/state"
	"proa/internal/sys"
)

// containerd's own suite, which every snapshotter passes.
func TestSnapshotterSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, snapshot.Name, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		db, err := state.Open(filepath.Join(root, "proa.db"))
		if err != nil {
			return nil, nil, err
		}
		s, err := Open(ctx, Config{
			Root: filepath.Join(root, "image"), Mounts: filepath.Join(root, "mounts"), DB: db,
			Warn: func(err error) { t.Errorf("warning: %v", err) },
		})
		if err != nil {
			return nil, nil, err
		}
		return s.Snapshots(), func() error {
			if err := s.Close(); err != nil {
				return err
			}
			return db.Close()
		}, nil
	})
}

// in a build, everything that is made is under this lease.
func building(t testing.TB, s *Store) context.Context {
	t.Helper()
	l, err := s.LeaseManager().Create(t.Context(), leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	return leases.WithLease(t.Context(), l.ID)
}

// within mounts m for fn.
func within(t testing.TB, m []mount.Mount, fn func(root string)) {
	t.Helper()
	at, err := os.MkdirTemp("", "at")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(at)
	if err := mount.All(m, at); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sys.Detach(at); err != nil {
			t.Error(err)
		}
	}()
	fn(at)
}

// step makes the snapshot name of what fn does over parent.
func step(t testing.TB, ctx context.Context, s *Store, name, parent string, fn func(root string)) {
	t.Helper()
	m, err := s.Snapshots().Prepare(ctx, name+"-active", parent)
	if err != nil {
		t.Fatal(err)
	}
	if fn != nil {
		within(t, m, fn)
	}
	if err := s.Snapshots().Commit(ctx, name, name+"-active"); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, ctx context.Context, s *Store, parent string) []mount.Mount {
	t.Helper()
	if parent == "" {
		return nil
	}
	m, err := s.Snapshots().View(ctx, rand.Text(), parent)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func compare(t testing.TB, ctx context.Context, s *Store, lower, upper string, opts ...diff.Opt) ocispec.Descriptor {
	t.Helper()
	d, err := s.Snapshots().Compare(ctx, view(t, ctx, s, lower), view(t, ctx, s, upper), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// busy writes a tree with everything in it that a layer can hold.
func busy(t testing.TB) func(root string) {
	return func(root string) {
		p := func(name string) string { return filepath.Join(root, name) }
		must(t, os.MkdirAll(p("gone/below"), 0o755), os.MkdirAll(p("opaque/old"), 0o700), os.Mkdir(p("dir"), 0o2755), os.Mkdir(p("changed"), 0o755))
		for n, body := range map[string]string{"file": "file", "gone/below/x": "x", "opaque/old/y": "y", "linked": "linked", "big": noise(3, 300<<10) + strings.Repeat("\x00", 200<<10) + "end"} {
			must(t, os.WriteFile(p(n), []byte(body), 0o640))
		}
		must(t, os.Link(p("linked"), p("dir/link")), os.Symlink("../file", p("dir/sym")), syscall.Mkfifo(p("fifo"), 0o600),
			os.Chown(p("file"), 70000, 80000), os.Chtimes(p("file"), time.Time{}, time.Unix(1234567890, 123456789)),
			syscall.Setxattr(p("file"), "user.note", []byte("hello"), 0), os.Chmod(p("dir/link"), 0o4755))
	}
}

func change(t testing.TB) func(root string) {
	return func(root string) {
		p := func(name string) string { return filepath.Join(root, name) }
		must(t, os.RemoveAll(p("gone")), os.Remove(p("linked")), os.RemoveAll(p("opaque")), os.Mkdir(p("opaque"), 0o711),
			os.WriteFile(p("opaque/new"), []byte("new"), 0o600), os.WriteFile(p("file"), []byte("other"), 0o600), os.Chmod(root, 0o711))
	}
}

// A layer that is read again, out of the tar that was kept or out of its flat
// layer, is, byte for byte, the one that was made at the commit, whatever is in
// it.
func TestCompareGivesTheLayerOfTheCommit(t *testing.T) {
	for _, strategy := range []string{"", "loop", "extract"} {
		t.Run(strategy, func(t *testing.T) {
			s := openAt(t, t.TempDir(), func(c *Config) { c.Strategy = strategy })
			ctx := building(t, s)
			step(t, ctx, s, "one", "", busy(t))
			step(t, ctx, s, "two", "one", change(t))
			var before []os.DirEntry
			for range 2 {
				for kind, mt := range map[compression]string{gzipped: "", plain: ocispec.MediaTypeImageLayer, zstded: ocispec.MediaTypeImageLayerZstd} {
					for lower, upper := range map[string]string{"": "one", "one": "two"} {
						var o []diff.Opt
						if mt != "" {
							o = append(o, diff.WithMediaType(mt))
						}
						d := compare(t, ctx, s, lower, upper, o...)
						diffID := digest.Digest(d.Annotations[labels.LabelUncompressed])
						if _, err := os.Stat(s.layerDir(diffID)); err != nil {
							t.Errorf("%s of %s is not the flat layer: %v", kind, upper, err)
						}
						if k, err := s.packing(ctx, d); err != nil || k != kind {
							t.Errorf("%s of %s is packed as %q: %v", kind, upper, k, err)
						}
						if i, err := s.Content().Info(ctx, d.Digest); err != nil || i.Labels[labels.LabelUncompressed] != diffID.String() {
							t.Errorf("%s of %s has labels %v: %v", kind, upper, i.Labels, err)
						}
					}
					entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "flat"))
					must(t, err)
					if before != nil && len(entries) != len(before) {
						t.Errorf("flat layers: %v", entries)
					}
					before = entries
				}
				must(t, s.Snapshots().Close()) // forgets the tars that were kept
			}
		})
	}
}

// What a second commit of the same files gives is the same layer, on another
// store as well.
func TestCommitIsReproducible(t *testing.T) {
	var got [2]ocispec.Descriptor
	for i := range got {
		s := openTest(t)
		ctx := building(t, s)
		step(t, ctx, s, "one", "", func(root string) {
			must(t, os.WriteFile(filepath.Join(root, "b"), []byte("b"), 0o644), os.WriteFile(filepath.Join(root, "a"), []byte("a"), 0o644))
			for _, n := range []string{"a", "b"} {
				must(t, os.Chtimes(filepath.Join(root, n), time.Now(), time.Unix(1700000000, 0)))
			}
		})
		got[i] = compare(t, ctx, s, "", "one")
	}
	if got[0].Digest != got[1].Digest || got[0].Size != got[1].Size {
		t.Errorf("two builds: %v and %v", got[0], got[1])
	}
}

// A step that writes nothing has no layer, and its blob is the one by which
// BuildKit knows an empty layer.
func TestStepThatWritesNothing(t *testing.T) {
	s := openTest(t)
	ctx := building(t, s)
	step(t, ctx, s, "one", "", busy(t))
	step(t, ctx, s, "two", "one", nil)
	step(t, ctx, s, "nothing", "", nil)
	for lower, upper := range map[string]string{"one": "two", "": "nothing"} {
		if d := compare(t, ctx, s, lower, upper); d.Digest != "sha256:4f4fb700ef54461cfa02571ae0db9a0dc1e0cdb5577484a6d75e68dc38e8acc1" || d.Size != 32 {
			t.Errorf("empty layer of %q: %v", upper, d)
		}
		if d := compare(t, ctx, s, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer)); d.Digest != "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef" {
			t.Errorf("empty layer of %q, not packed: %v", upper, d)
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "flat"))
	if err != nil || len(entries) != 1 {
		t.Errorf("flat layers: %v %v", entries, err)
	}
	within(t, view(t, ctx, s, "nothing"), func(root string) {
		if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
			t.Errorf("a view of nothing can be written to: %v", err)
		}
	})
}

// Any two mounts can be compared: several layers at once, backwards, trees
// that have nothing to do with each other, one that is still being written.
func TestCompareAnything(t *testing.T) {
	s := openTest(t)
	ctx := building(t, s)
	sn := s.Snapshots()
	step(t, ctx, s, "one", "", busy(t))
	step(t, ctx, s, "two", "one", change(t))
	step(t, ctx, s, "three", "two", func(root string) { must(t, os.WriteFile(filepath.Join(root, "three"), []byte("3"), 0o600)) })
	step(t, ctx, s, "other", "", func(root string) { must(t, os.WriteFile(filepath.Join(root, "other"), []byte("o"), 0o600)) })
	active, err := sn.Prepare(ctx, "active", "two")
	must(t, err)
	within(t, active, func(root string) {
		must(t, os.WriteFile(filepath.Join(root, "three"), []byte("3"), 0o600), os.Remove(filepath.Join(root, "file")))
	})
	for _, c := range []struct {
		name, lower  string
		upper        []mount.Mount
		want, absent []string
	}{
		{"several", "one", view(t, ctx, s, "three"), []string{"three", "opaque/new", ".wh.gone"}, []string{"big"}},
		{"all", "", view(t, ctx, s, "three"), []string{"three", "big", "file"}, []string{".wh.gone"}},
		{"backwards", "two", view(t, ctx, s, "one"), []string{"gone/below/x", "linked", "opaque/.wh.new"}, []string{"big"}},
		{"unrelated", "two", view(t, ctx, s, "other"), []string{"other", ".wh.file"}, nil},
		{"active", "two", active, []string{"three", ".wh.file"}, []string{"big"}},
		{"active, several", "one", active, []string{"three", ".wh.file", ".wh.gone"}, []string{"big"}},
	} {
		d, err := sn.Compare(ctx, view(t, ctx, s, c.lower), c.upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		raw, err := content.ReadBlob(ctx, s.Content(), d)
		must(t, err)
		have := map[string]bool{}
		for r := tar.NewReader(bytes.NewReader(raw)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			must(t, err)
			have[strings.Trim(h.Name, "/")] = true
		}
		for _, n := range c.want {
			if !have[n] {
				t.Errorf("%s: %q is missing of %v", c.name, n, have)
			}
		}
		for _, n := range c.absent {
			if have[n] {
				t.Errorf("%s: %q is in it", c.name, n)
			}
		}
	}
}

// Apply makes a flat layer and extracts nothing; what was applied is to be
// seen at once; a second one, a wrong digest and foreign mounts are refused.
func TestApply(t *testing.T) {
	s := openTest(t)
	ctx := building(t, s)
	sn := s.Snapshots()
	raw := tarOf(t, file{name: "etc/", kind: tar.TypeDir}, file{name: "etc/motd", body: "hello"})
	blob := pack(t, gzipped, raw)
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	must(t, content.WriteBlob(ctx, s.Content(), "blob", bytes.NewReader(blob), d))
	m, err := sn.Prepare(ctx, "active", "")
	must(t, err)
	lie := d
	lie.Annotations = map[string]string{labels.LabelUncompressed: digest.FromString("a lie").String()}
	if _, err := sn.Apply(ctx, lie, m); !errdefs.IsInvalidArgument(err) {
		t.Errorf("wrong diffID: %v", err)
	}
	got, err := sn.Apply(ctx, d, m)
	if err != nil || got.Digest != digest.FromBytes(raw) || got.Size != int64(len(raw)) {
		t.Fatalf("applied %v: %v", got, err)
	}
	if _, err := sn.Apply(ctx, d, m); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("twice: %v", err)
	}
	if _, err := sn.Apply(ctx, d, []mount.Mount{{Type: "bind", Source: t.TempDir()}}); !errdefs.IsNotFound(err) {
		t.Errorf("foreign mounts: %v", err)
	}
	if _, err := sn.Apply(ctx, d, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no mounts: %v", err)
	}
	m, err = sn.Mounts(ctx, "active")
	must(t, err)
	within(t, m, func(root string) {
		if b, err := os.ReadFile(filepath.Join(root, "etc/motd")); err != nil || string(b) != "hello" {
			t.Errorf("before the commit: %q %v", b, err)
		}
	})
	must(t, sn.Commit(ctx, "base", "active"))
	m, err = sn.Prepare(ctx, "vm", "base")
	must(t, err)
	step := tarOf(t, file{name: "etc/.wh.motd"}, file{name: "etc/issue", body: "vm"})
	if got, err = sn.ApplyTar(ctx, m, bytes.NewReader(step)); err != nil || got.Digest != digest.FromBytes(step) {
		t.Fatalf("applied %v: %v", got, err)
	}
	must(t, sn.Commit(ctx, "stepped", "vm"))
	within(t, view(t, ctx, s, "stepped"), func(root string) {
		if entries, err := os.ReadDir(filepath.Join(root, "etc")); err != nil || len(entries) != 1 || entries[0].Name() != "issue" {
			t.Errorf("etc: %v %v", entries, err)
		}
	})
	// This tar is in no order of ours, so the layer is known by its blob alone.
	if d := compare(t, ctx, s, "", "base"); d.Annotations[labels.LabelUncompressed] == "" {
		t.Errorf("base: %v", d)
	}
	m, err = sn.Prepare(ctx, "used", "base")
	must(t, err)
	within(t, m, func(root string) { must(t, os.WriteFile(filepath.Join(root, "x"), nil, 0o600)) })
	if _, err := sn.Apply(ctx, d, m); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("over files: %v", err)
	}
	settleSnapshots(t, s)
}

// settleSnapshots removes every lease of builds; then nothing of them is left.
func settleSnapshots(t testing.TB, s *Store) {
	t.Helper()
	all, err := s.LeaseManager().List(t.Context())
	must(t, err)
	for _, l := range all {
		must(t, s.LeaseManager().Delete(t.Context(), l))
	}
	must(t, s.Collect(t.Context()), s.snapshots.Close())
	var left []string
	for _, d := range []string{"flat", "index", "owners", "extract", "snapshot"} {
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, d))
		must(t, err)
		for _, e := range entries {
			if e.Name() != "empty" {
				left = append(left, d+"/"+e.Name())
			}
		}
	}
	entries, err := os.ReadDir(s.cfg.Mounts)
	must(t, err)
	for _, e := range entries {
		left = append(left, "mounts/"+e.Name())
	}
	if left != nil {
		t.Errorf("left of snapshots that nobody needs: %v", left)
	}
}

// A lease keeps a snapshot, what lies below it and its layers, across a
// restart, and an image keeps the layers that it shares with it. What an
// active one holds stays mounted.
func TestSnapshotsAreCollected(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, nil)
	ctx := building(t, s)
	step(t, ctx, s, "one", "", busy(t))
	step(t, t.Context(), s, "lost", "one", change(t)) // under no lease
	step(t, ctx, s, "two", "one", change(t))
	m, err := s.Snapshots().Prepare(ctx, "active", "two")
	must(t, err)
	must(t, s.Collect(t.Context()))
	if _, err := s.Snapshots().Stat(ctx, "lost"); !errdefs.IsNotFound(err) {
		t.Errorf("without a lease: %v", err)
	}
	within(t, m, func(root string) { must(t, os.WriteFile(filepath.Join(root, "kept"), []byte("kept"), 0o600)) })
	// Orphans of a crash.
	must(t, os.MkdirAll(filepath.Join(s.cfg.Root, "snapshot/77/upper/x"), 0o700))
	closeTest(t, s)
	s = openAt(t, dir, nil)
	must(t, s.snapshots.Close())
	if _, err := os.Stat(filepath.Join(s.cfg.Root, "snapshot/77")); !os.IsNotExist(err) {
		t.Errorf("orphan: %v", err)
	}
	m, err = s.Snapshots().Mounts(ctx, "active")
	must(t, err)
	within(t, m, func(root string) {
		if b, err := os.ReadFile(filepath.Join(root, "kept")); err != nil || string(b) != "kept" {
			t.Errorf("after a restart: %q %v", b, err)
		}
		if _, err := os.Stat(filepath.Join(root, "opaque/new")); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.Snapshots().Prepare(ctx, "new", "two"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	var u int64
	must(t, s.Snapshots().Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		got, err := s.Snapshots().Usage(ctx, i.Name)
		u += got.Size
		return err
	}))
	if u < 300<<10 {
		t.Errorf("all of it takes %d bytes", u)
	}
	settleSnapshots(t, s)
}

// BenchmarkSnapshot is what a step costs that writes one small file.
func BenchmarkSnapshot(b *testing.B) {
	s := openTest(b)
	ctx := building(b, s)
	step(b, ctx, s, "base", "", busy(b))
	sn := s.Snapshots()
	var prepare, commit, remove time.Duration
	for i := range b.N {
		k := fmt.Sprint(i)
		t0 := time.Now()
		_, err := sn.Prepare(ctx, k, "base")
		must(b, err)
		prepare += time.Since(t0)
		must(b, os.WriteFile(filepath.Join(s.cfg.Root, "snapshot", fmt.Sprint(i+2), "upper/f"), []byte(k), 0o600))
		t0 = time.Now()
		must(b, sn.Commit(ctx, "c"+k, k))
		commit += time.Since(t0)
		t0 = time.Now()
		must(b, sn.Remove(ctx, "c"+k))
		remove += time.Since(t0)
	}
	for n, d := range map[string]time.Duration{"prepare": prepare, "commit": commit, "remove": remove} {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N), n+"-us")
	}
}

// Many builds at once, with collections in between, get in nobody's way.
func TestSnapshotsAtOnce(t *testing.T) {
	s := openTest(t)
	base := building(t, s)
	step(t, base, s, "base", "", busy(t))
	g, ctx := errgroup.WithContext(t.Context())
	for b := range 4 {
		g.Go(func() error {
			sn := s.Snapshots()
			for i := range 5 {
				id := fmt.Sprintf("%d-%d", b, i)
				l, err := s.LeaseManager().Create(ctx, leases.WithID(id))
				if err != nil {
					return err
				}
				ctx := leases.WithLease(ctx, l.ID)
				parent := "base"
				for n := range 3 {
					m, err := sn.Prepare(ctx, fmt.Sprintf("a%d/%s", n, id), parent)
					if err != nil {
						return err
					}
					// The same files in several builds, so that they make the same layers.
					if err := os.WriteFile(filepath.Join(upperOf(m), fmt.Sprintf("f%d", n)), []byte(noise(uint64(i), 10<<10)), 0o600); err != nil {
						return err
					}
					if err := os.Chtimes(filepath.Join(upperOf(m), fmt.Sprintf("f%d", n)), time.Time{}, time.Unix(1, 0)); err != nil {
						return err
					}
					name := fmt.Sprintf("c%d/%s", n, id)
					if err := sn.Commit(ctx, name, fmt.Sprintf("a%d/%s", n, id)); err != nil {
						return err
					}
					lower, err := sn.View(ctx, "l"+name, parent)
					if err != nil {
						return err
					}
					upper, err := sn.View(ctx, "u"+name, name)
					if err != nil {
						return err
					}
					if _, err := sn.Compare(ctx, lower, upper); err != nil {
						return err
					}
					if b, err := os.ReadFile(filepath.Join(upper[0].Source, fmt.Sprintf("f%d", n))); err != nil || string(b) != noise(uint64(i), 10<<10) {
						return fmt.Errorf("%s: %d bytes, %w", name, len(b), err)
					}
					parent = name
				}
				if err := s.LeaseManager().Delete(ctx, l, leases.SynchronousDelete); err != nil {
					return err
				}
				if i%3 == 0 {
					if err := s.Collect(ctx); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	must(t, g.Wait())
	settleSnapshots(t, s)
}
