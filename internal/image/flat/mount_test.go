package flat

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

func TestProbe(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	a := Probe(dir)
	t.Logf("%+v", a)
	for name, v := range map[string]Verdict{StrategyFile: a.File, StrategyLoop: a.Loop, StrategyExtract: a.Extract} {
		m, err := Open(dir, name)
		if v.OK != (err == nil) || !v.OK && (v.Why == "" || !errdefs.IsFailedPrecondition(err)) {
			t.Errorf("%s: %+v but Open says %v", name, v, err)
		} else if v.OK {
			if got, _ := m.Strategy(); got != name {
				t.Errorf("%s was forced, %s is used", name, got)
			}
		}
	}
	_, err := Open(dir, "carrier pigeon")
	wantKind(t, "unknown strategy", err, errdefs.IsInvalidArgument)
	m, err := Open(dir, "")
	must(t, err)
	if name, _ := m.Strategy(); a.File.OK && name != StrategyFile {
		t.Errorf("%s is used though file-backed mounts work", name)
	}
	nothingLeft(t, "Probe", dir)

	_, err = Open(filepath.Join(dir, "missing"), "")
	wantKind(t, "no such directory", err, errdefs.IsFailedPrecondition)
}

// TestProbeRefuses looks at a file system that can hold no such image.
func TestProbeRefuses(t *testing.T) {
	needRoot(t)
	mount, err := sys.NewFS("ramfs", 0) // no extended attributes
	must(t, err)
	defer mount.Close()
	dir := viaFD(mount) + "/."
	a := Probe(dir)
	t.Logf("%+v", a)
	if a.Extract.OK || !strings.Contains(a.Extract.Why, "attribute") {
		t.Errorf("extract on ramfs: %+v", a.Extract)
	}
}

// TestPageCache reads one file through ten clones of an image's mount, as ten
// containers would, and counts what the kernel keeps of it.
func TestPageCache(t *testing.T) {
	needRoot(t)
	size := 64 << 20
	if s := os.Getenv("FLAT_MIB"); s != "" {
		n, err := strconv.Atoi(s)
		must(t, err)
		size = n << 20
	}
	body := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(body)
	layer := filepath.Join(t.TempDir(), "layer.tar")
	must(t, os.WriteFile(layer, tarBytes(t, reg("big", string(body))), 0o600))
	files := image(t, t.TempDir(), []string{layer})
	must(t, os.Remove(layer))

	for _, s := range strategies(t) {
		for _, f := range []string{files.Index, files.Data[0]} {
			evict(t, f)
		}
		at := mounted(t, files, s)
		before := meminfo(t)
		var resident int
		for range 10 {
			clone, err := sys.CloneTree(nil, at, false)
			must(t, err)
			f := open(t, viaFD(clone)+"/big")
			h := make([]byte, 1<<20)
			for off := 0; off < size; off += len(h) {
				_, err := io.ReadFull(f, h)
				must(t, err)
				if !bytes.Equal(h, body[off:off+len(h)]) {
					t.Fatalf("%s: other bytes at %d", s, off)
				}
			}
			resident = cached(t, f)
			clone.Close()
		}
		backing := cached(t, open(t, files.Data[0])) + cached(t, open(t, files.Index))
		if s == StrategyLoop {
			dev, err := sys.OpenLoop(open(t, files.Data[0]))
			must(t, err)
			backing += cached(t, dev)
			dev.Close()
		}
		total := resident + backing
		t.Logf("%s: ten readers of %d MiB: %.3f x (%d MiB of the image's file, %d MiB of what is behind it); /proc/meminfo Cached+Buffers grew by %d MiB",
			s, size>>20, float64(total)/float64(size), resident>>20, backing>>20, (meminfo(t)-before)>>20)
		if float64(total) > 1.1*float64(size) {
			t.Errorf("%s: %d bytes of page cache for a file of %d", s, total, size)
		}
	}
}

// evict drops a file's clean pages.
func evict(t *testing.T, path string) {
	t.Helper()
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	f := open(t, path)
	if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}

// cached counts the bytes of a file that are in the page cache.
func cached(t *testing.T, f *os.File) int {
	t.Helper()
	size, err := f.Seek(0, io.SeekEnd)
	must(t, err)
	b, err := syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED)
	must(t, err)
	defer syscall.Munmap(b)
	page := os.Getpagesize()
	vec := make([]byte, (len(b)+page-1)/page)
	if _, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
		t.Fatal(errno)
	}
	n := 0
	for _, v := range vec {
		n += int(v&1) * page
	}
	return n
}

func meminfo(t *testing.T) int {
	b, err := os.ReadFile("/proc/meminfo")
	must(t, err)
	n := 0
	for _, line := range strings.Split(string(b), "\n") {
		var kib int
		for _, key := range []string{"Cached:", "Buffers:"} {
			if rest, ok := strings.CutPrefix(line, key); ok {
				_, err := fmt.Sscanf(rest, "%d kB", &kib)
				must(t, err)
				n += kib << 10
			}
		}
	}
	return n
}

// loopsOf counts the loop devices over a file.
func loopsOf(t *testing.T, path string) (n int) {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, p := range all {
		if b, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(b)) == path {
			n++
		}
	}
	return n
}

func TestLoopsAreShared(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	files := image(t, dir, stack(t, []member{reg("a", "1")}, []member{reg("b", "2")}))
	m, err := Open(dir, StrategyLoop)
	must(t, err)
	var at []string
	for range 3 {
		p := filepath.Join(t.TempDir(), "mnt")
		must(t, os.Mkdir(p, 0o700))
		must(t, m.Mount(files, p))
		at = append(at, p)
	}
	for _, f := range append(files.Data, files.Index) {
		if n := loopsOf(t, f); n != 1 {
			t.Errorf("%d loop devices for %s while mounted three times", n, f)
		}
	}
	must(t, m.Unmount(at[0]))
	must(t, m.Unmount(at[1]))
	if b, err := os.ReadFile(at[2] + "/b"); err != nil || string(b) != "2" {
		t.Errorf("the last mount shows %q, %v", b, err)
	}
	must(t, m.Unmount(at[2]))
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n := loopsOf(t, files.Data[0]) + loopsOf(t, files.Data[1]) + loopsOf(t, files.Index)
		if n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d loop devices are left", n)
		}
	}
}

func TestMountLifetimes(t *testing.T) {
	needRoot(t)
	for _, s := range strategies(t) {
		dir := t.TempDir()
		files := image(t, dir, stack(t, []member{reg("a", "1")}))
		m, err := Open(dir, s)
		must(t, err)
		at := filepath.Join(dir, "mnt")
		must(t, os.Mkdir(at, 0o700))

		must(t, m.Unmount(at)) // nothing is there
		gone := files
		gone.Data = []string{filepath.Join(dir, "gone")}
		gone.Dir += "gone"
		if err := m.Mount(gone, at); err == nil {
			t.Errorf("%s: an image without its data was mounted", s)
		}
		gone.Data = nil
		if err := m.Mount(gone, at); err == nil {
			t.Errorf("%s: an image with too few data files was mounted", s)
		}
		gone = files
		gone.Index, gone.Dir = files.Data[0], files.Dir+"gone"
		if err := m.Mount(gone, at); err == nil {
			t.Errorf("%s: a file that is no index was mounted", s)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*gone")); len(left) > 0 {
			t.Errorf("%s: left behind: %q", s, left)
		}

		must(t, m.Mount(files, at))
		if err := os.WriteFile(at+"/new", nil, 0o600); err == nil {
			t.Errorf("%s: the mount is writable", s)
		}
		clone, err := sys.CloneTree(nil, at, false)
		must(t, err)
		must(t, m.Unmount(at))
		if _, err := os.Stat(at + "/a"); !os.IsNotExist(err) {
			t.Errorf("%s: still mounted: %v", s, err)
		}
		if b, err := os.ReadFile(viaFD(clone) + "/a"); err != nil || string(b) != "1" {
			t.Errorf("%s: a clone shows %q, %v after the unmount", s, b, err)
		}
		clone.Close()
	}
}

func TestMountLongPath(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for range 4 {
		dir = filepath.Join(dir, strings.Repeat("p", 100))
	}
	must(t, os.MkdirAll(dir, 0o700))
	files := image(t, dir, stack(t, []member{reg("a", "1")}))
	for _, s := range strategies(t) {
		if b, err := os.ReadFile(mounted(t, files, s) + "/a"); err != nil || string(b) != "1" {
			t.Errorf("%s: %q, %v", s, b, err)
		}
	}
}

func TestMountTogether(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	files := image(t, dir, stack(t, []member{reg("a", "1")}))
	for _, s := range strategies(t) {
		m, err := Open(dir, s)
		must(t, err)
		var wg sync.WaitGroup
		for range 8 {
			at := filepath.Join(t.TempDir(), "mnt")
			must(t, os.Mkdir(at, 0o700))
			t.Cleanup(func() { must(t, m.Unmount(at)) })
			wg.Go(func() {
				if err := m.Mount(files, at); err != nil {
					t.Error(err)
				} else if b, err := os.ReadFile(at + "/a"); err != nil || string(b) != "1" {
					t.Errorf("%s: %q, %v", s, b, err)
				}
			})
		}
		wg.Wait()
	}
}
