package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/image/flat"
)

func dev(t testing.TB, f *os.File) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Dev)
}

// All users of a stack of layers get clones of one mount, hence one page
// cache, also those who come at once and those who use another image with the
// same layers.
func TestMountsShareOneSuperblock(t *testing.T) {
	s := openTest(t)
	twin := hello(t, "twin")
	twin.env = []string{"A=1"}
	load(t, s, ociArchive(t, gzipped, hello(t, "hello"), twin))
	a, b := get(t, s, "hello").ID.String(), get(t, s, "twin").ID.String()
	if a == b {
		t.Fatal("the images are the same")
	}
	var mu sync.Mutex
	devs := map[uint64]int{}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			m, err := s.Mount(context.Background(), []string{a, b}[i%2])
			if err != nil {
				t.Error(err)
				return
			}
			defer m.Close()
			mu.Lock()
			defer mu.Unlock()
			devs[dev(t, m.Tree)]++
		})
	}
	wg.Wait()
	if len(devs) != 1 {
		t.Errorf("%d superblocks: %v", len(devs), devs)
	}
}

func TestMountIsReadonly(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "hello")))
	m, err := s.Mount(context.Background(), get(t, s, "hello").ID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	p := fmt.Sprintf("/proc/self/fd/%d/new", m.Tree.Fd())
	if err := os.WriteFile(p, nil, 0o600); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writing: %v, want a read-only file system", err)
	}
}

// An image that nobody uses is unmounted after a while, and mounted again
// when somebody comes back; one that is used stays.
func TestIdleImagesAreUnmounted(t *testing.T) {
	s := openAt(t, t.TempDir(), func(c *Config) { c.Idle = 30 * time.Millisecond })
	load(t, s, ociArchive(t, gzipped, hello(t, "hello"), other(t, "other")))
	ctx := context.Background()
	used, err := s.Mount(ctx, get(t, s, "other").ID.String())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		m, err := s.Mount(ctx, get(t, s, "hello").ID.String())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal("second Close", err)
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			left, err := os.ReadDir(s.cfg.Mounts)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) == 1 {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("still mounted: %v", left)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(s.cfg.Mounts, dir(get(t, s, "other").ChainID), "other")); err != nil {
		t.Errorf("the used image was unmounted: %v", err)
	}
	_ = used.Close()
}

// The index follows from the layers: it is made again when it is lost.
func TestLostIndexIsMadeAgain(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "hello")))
	img := get(t, s, "hello")
	first, err := os.ReadFile(s.indexPath(img.ChainID))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.indexPath(img.ChainID)); err != nil {
		t.Fatal(err)
	}
	d, err := s.Disk(context.Background(), img.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(d.Index); err != nil || string(again) != string(first) {
		t.Errorf("the index differs: %d and %d bytes, %v", len(first), len(again), err)
	}
}

// Damage of one image is said, hides no other image, and is mended by loading
// the image again.
func TestDamagedLayer(t *testing.T) {
	warned := 0
	home := t.TempDir()
	s := openAt(t, home, nil)
	a := ociArchive(t, gzipped, hello(t, "hello"))
	load(t, s, a)
	load(t, s, ociArchive(t, gzipped, sample{names: []string{"other"}, layers: [][]byte{tarOf(t, file{name: "x", body: "x"})}}))
	img := get(t, s, "hello")
	if err := os.Truncate((&flat.Layer{Dir: s.layerDir(img.Config.RootFS.DiffIDs[1])}).Tree(), 10); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)

	s = openAt(t, home, func(c *Config) { c.Warn = func(error) { warned++ } })
	list, err := s.List(context.Background())
	if err != nil || len(list) != 2 || warned == 0 {
		t.Errorf("List: %d images, %d warnings, %v", len(list), warned, err)
	}
	load(t, s, a)
	m, err := s.Mount(context.Background(), img.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, err := read(t, m, "/bin/run"); err != nil || len(got) != 9000 {
		t.Errorf("/bin/run: %d bytes, %v", len(got), err)
	}
	if again := get(t, s, "hello"); again.Size != img.Size {
		t.Errorf("size %d, was %d", again.Size, img.Size)
	}
}

func TestMountErrors(t *testing.T) {
	s := openTest(t)
	for _, id := range []string{"", "hello", "sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Mount(context.Background(), id); err == nil {
			t.Errorf("Mount %q gave no error", id)
		}
	}
	if _, err := s.Mount(context.Background(), "sha256:"+strings.Repeat("0", 64)); !errdefs.IsNotFound(err) {
		t.Errorf("kind of %v", err)
	}
}

// Every strategy gives the same files through the same door.
func TestForcedStrategies(t *testing.T) {
	for _, name := range []string{flat.StrategyFile, flat.StrategyLoop, flat.StrategyExtract} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			can := flat.Probe(dir)
			if v := map[string]flat.Verdict{flat.StrategyFile: can.File, flat.StrategyLoop: can.Loop, flat.StrategyExtract: can.Extract}[name]; !v.OK {
				t.Skipf("strategy %s does not work here: %s", name, v.Why)
			}
			s := openAt(t, dir, func(c *Config) { c.Strategy = name })
			if got, _ := s.Strategy(); got != name {
				t.Fatalf("strategy %q", got)
			}
			empty := tree(t, s)
			load(t, s, ociArchive(t, gzipped, hello(t, "hello")))
			m, err := s.Mount(context.Background(), get(t, s, "hello").ID.String())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := read(t, m, "/etc/motd"); err != nil || got != "hello" {
				t.Errorf("/etc/motd: %q, %v", got, err)
			}
			if _, err := read(t, m, "/etc/gone"); !os.IsNotExist(err) {
				t.Errorf("/etc/gone: %v", err)
			}
			_ = m.Close()
			if _, err := s.Remove(context.Background(), "hello", false, true); err != nil {
				t.Fatal(err)
			}
			expectTree(t, s, empty)
		})
	}
	if _, err := Open(context.Background(), Config{}); err == nil {
		t.Error("a store without a root")
	}
}

// benchStore has n images besides the one that is measured.
func benchStore(b *testing.B, n int) (*Store, *Image) {
	s := openAt(b, b.TempDir(), func(c *Config) { c.Warn = nil })
	imgs := []sample{hello(b, "hello")}
	for i := range n {
		imgs = append(imgs, sample{names: []string{fmt.Sprintf("i%d", i)}, layers: hello(b).layers[:1], env: []string{fmt.Sprint(i)}})
	}
	load(b, s, ociArchive(b, plain, imgs...))
	return s, get(b, s, "hello")
}

func BenchmarkGet(b *testing.B) {
	for _, n := range []int{1, 100} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s, _ := benchStore(b, n)
			for b.Loop() {
				get(b, s, "hello")
			}
		})
	}
}

func BenchmarkLease(b *testing.B) {
	s, img := benchStore(b, 20)
	for b.Loop() {
		if err := s.Lease(context.Background(), nil, "container/1", img.ID.String()); err != nil {
			b.Fatal(err)
		}
		if err := s.Unlease(context.Background(), nil, "container/1"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMount(b *testing.B) {
	s, img := benchStore(b, 20)
	for b.Loop() {
		m, err := s.Mount(context.Background(), img.ID.String())
		if err != nil {
			b.Fatal(err)
		}
		_ = m.Close()
	}
}

// BenchmarkArchive measures with a real root file system: PROA_BENCH_ROOT
// names its tar.
func BenchmarkArchive(b *testing.B) {
	name := os.Getenv("PROA_BENCH_ROOT")
	if name == "" {
		b.Skip("PROA_BENCH_ROOT names no tar of a root file system")
	}
	s := openTest(b)
	ctx := context.Background()
	defer os.Remove(name + ".saved")
	b.Run("import", func(b *testing.B) {
		for b.Loop() {
			f, err := os.Open(name)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Import(ctx, f, "root", nil, "", ""); err != nil {
				b.Fatal(err)
			}
			f.Close()
			b.StopTimer()
			u := usageOf(b, s)
			b.ReportMetric(float64(u[0])/1e6, "blobMB")
			b.ReportMetric(float64(u[1])/1e6, "flatMB")
			if fi, err := os.Stat(name + ".saved"); err != nil || fi.Size() == 0 {
				saveTo(b, s, name+".saved")
			}
			if _, err := s.Remove(ctx, "root", true, true); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			f, err := os.Open(name + ".saved")
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Load(ctx, f, nil); err != nil {
				b.Fatal(err)
			}
			f.Close()
			b.StopTimer()
			if err := s.Save(ctx, io.Discard, []string{"root"}); err != nil {
				b.Fatal(err)
			}
			if _, err := s.Remove(ctx, "root", true, true); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}

func saveTo(b *testing.B, s *Store, name string) {
	b.Helper()
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := s.Save(context.Background(), f, []string{"root"}); err != nil {
		b.Fatal(err)
	}
}
