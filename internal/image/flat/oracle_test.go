package flat

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// The oracle of this package's tests is GNU tar: the layers' tar files are
// extracted over each other into one directory, after a small routine that
// shares nothing with the package has applied their whiteouts. What a mounted
// image shows must equal that directory in everything that stat(2), the
// extended attributes and the contents say, under each mount strategy.

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts, owners, devices")
	}
}

// oracle extracts layers, in order, into a new directory.
func oracle(t *testing.T, layers []string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "oracle")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	setTime(t, dir, time.Unix(0, 0))
	for _, l := range layers {
		oracleApply(t, dir, l)
	}
	return dir
}

// oracleApply puts one layer on top of dir.
func oracleApply(t *testing.T, dir, layer string) {
	t.Helper()
	times := map[string]time.Time{}
	walk(t, dir, func(p string, st os.FileInfo) {
		if st.IsDir() {
			times[p] = st.ModTime()
		}
	})
	remove := func(p string) {
		must(t, os.RemoveAll(dir+p))
		for old := range times {
			if "/"+old == p || strings.HasPrefix("/"+old, p+"/") {
				delete(times, old)
			}
		}
	}
	explicit := map[string]bool{}
	headers := tarHeaders(t, layer)
	for _, h := range headers {
		if h.Typeflag == tar.TypeDir {
			explicit[path.Clean("/"+h.Name)] = true
		}
	}
	// void says that a directory of the layer takes the place of a file or
	// symlink above p: then there is nothing below it to delete.
	void := func(p string) bool {
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			if st, err := os.Lstat(dir + d); err == nil && !st.IsDir() && (explicit[d] || st.Mode().IsRegular()) {
				return true
			}
		}
		return false
	}
	for _, h := range headers {
		p := path.Clean("/" + h.Name)
		if void(p) {
			continue
		}
		if base := path.Base(p); base == ".wh..wh..opq" {
			kids, _ := os.ReadDir(dir + path.Dir(p))
			for _, k := range kids {
				remove(path.Join(path.Dir(p), k.Name()))
			}
		} else if strings.HasPrefix(base, ".wh.") {
			remove(path.Join(path.Dir(p), base[4:]))
		}
	}
	for _, h := range headers {
		p := path.Clean("/" + h.Name)
		if strings.HasPrefix(path.Base(p), ".wh.") || void(p) {
			continue
		}
		st, err := os.Lstat(dir + p)
		switch {
		case h.Typeflag == tar.TypeDir:
			if err == nil && st.IsDir() { // the new attributes replace the old ones
				for name := range xattrsOf(t, dir+p) {
					must(t, syscall.Removexattr(dir+p, name))
				}
			}
		case err == nil && st.IsDir():
			remove(p)
		}
	}
	cmd := exec.Command("tar", "-x", "-p", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore",
		"--no-wildcards-match-slash", "--exclude=.wh.*", "-C", dir, "-f", layer)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	// A directory that the layer does not name keeps its time; one that it
	// implies gets the time 0, as Write promises.
	walk(t, dir, func(p string, st os.FileInfo) {
		if st.IsDir() && !explicit["/"+p] {
			setTime(t, filepath.Join(dir, p), times[p])
		}
	})
}

func setTime(t *testing.T, p string, at time.Time) {
	t.Helper()
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	must(t, os.Chtimes(p, at, at))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tarHeaders(t *testing.T, file string) (out []*tar.Header) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		must(t, err)
		out = append(out, h)
	}
}

// walk calls f for every file below dir; the path of dir itself is "".
func walk(t *testing.T, dir string, f func(p string, st os.FileInfo)) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err == nil {
			f(strings.TrimPrefix(strings.TrimPrefix(p, dir), "/"), st)
		}
		return err
	})
	must(t, err)
}

var xattrBuf [70000]byte

func xattrsOf(t *testing.T, p string) map[string]string {
	t.Helper()
	call := func(nr uintptr, name string, buf []byte) int {
		cp, err := syscall.BytePtrFromString(p)
		must(t, err)
		var a, b, c uintptr
		if nr == syscall.SYS_LGETXATTR {
			cn, err := syscall.BytePtrFromString(name)
			must(t, err)
			a, b, c = uintptr(unsafe.Pointer(cn)), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf))
		} else {
			a, b = uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf))
		}
		n, _, errno := syscall.Syscall6(nr, uintptr(unsafe.Pointer(cp)), a, b, c, 0, 0)
		if errno != 0 {
			t.Fatalf("%s: extended attribute %q: %v", p, name, errno)
		}
		return int(n)
	}
	buf := xattrBuf[:]
	list := string(buf[:call(syscall.SYS_LLISTXATTR, "", buf)])
	out := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(list, "\x00"), "\x00") {
		if name != "" {
			out[name] = string(buf[:call(syscall.SYS_LGETXATTR, name, buf)])
		}
	}
	return out
}

// snapshot describes every file below dir in one line.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	type file struct{ dev, ino uint64 }
	first := map[file]string{}
	out := map[string]string{}
	walk(t, dir, func(p string, fi os.FileInfo) {
		st := fi.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("mode %o owner %d:%d time %d.%09d links %d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink)
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			b, err := os.Open(filepath.Join(dir, p))
			must(t, err)
			sum := sha256.New()
			_, err = io.Copy(sum, b)
			must(t, err)
			b.Close()
			line += fmt.Sprintf(" size %d sum %x", st.Size, sum.Sum(nil)[:8])
		case syscall.S_IFLNK:
			target, err := os.Readlink(filepath.Join(dir, p))
			must(t, err)
			line += fmt.Sprintf(" size %d target %q", st.Size, target)
		case syscall.S_IFCHR, syscall.S_IFBLK:
			line += fmt.Sprintf(" device %d", st.Rdev)
		}
		if !fi.IsDir() && st.Nlink > 1 {
			id := file{uint64(st.Dev), st.Ino}
			if first[id] == "" {
				first[id] = p
			}
			line += fmt.Sprintf(" same as %q", first[id])
		}
		attrs := xattrsOf(t, filepath.Join(dir, p))
		for _, name := range sortedKeys(attrs) {
			line += fmt.Sprintf(" %s=%q", name, attrs[name])
		}
		out[p] = line
	})
	return out
}

// compare reports every difference of two snapshots.
func compare(t *testing.T, what string, got, want map[string]string) {
	t.Helper()
	all := map[string]bool{}
	for p := range got {
		all[p] = true
	}
	for p := range want {
		all[p] = true
	}
	shown := 0
	for _, p := range sortedKeys(all) {
		if got[p] != want[p] {
			if shown++; shown > 20 {
				t.Fatalf("%s: and more", what)
			}
			t.Errorf("%s: %q\n is     %s\n wanted %s", what, p, got[p], want[p])
		}
	}
}

// image writes and merges layers given as tar files.
func image(t testing.TB, dir string, layers []string) Files {
	t.Helper()
	files := Files{Index: filepath.Join(dir, "index"), Dir: filepath.Join(dir, "unpacked")}
	var flats []*Layer
	for _, p := range layers {
		f, err := os.Open(p)
		must(t, err)
		l, err := Write(context.Background(), f, dir, Limits{})
		f.Close()
		must(t, err)
		again, err := ReadLayer(l.Dir)
		must(t, err)
		if *again != *l {
			t.Fatalf("the layer reads back as %+v, was %+v", again, l)
		}
		flats = append(flats, l)
		files.Data = append(files.Data, l.Data())
	}
	must(t, Merge(flats, files.Index))
	left, err := filepath.Glob(filepath.Join(dir, TempPrefix+"*"))
	must(t, err)
	if len(left) > 0 {
		t.Fatalf("left behind: %q", left)
	}
	return files
}

// fsck asks fsck.erofs about an index and every chunk in it.
func fsck(t *testing.T, files Files) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Log("skipped: fsck.erofs is not installed (apt-get install erofs-utils)")
		return
	}
	args := []string{"--extract"}
	for _, d := range files.Data {
		args = append(args, "--device="+d)
	}
	if out, err := exec.Command(tool, append(args, files.Index)...).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// mounted mounts an image by one strategy until the test ends.
func mounted(t testing.TB, files Files, strategy string) string {
	t.Helper()
	m, err := Open(filepath.Dir(files.Index), strategy)
	must(t, err)
	at := filepath.Join(t.TempDir(), "mnt")
	must(t, os.Mkdir(at, 0o700))
	must(t, m.Mount(files, at))
	t.Cleanup(func() { must(t, m.Unmount(at)) })
	return at
}

// canMount is what this host's kernel can do where tests keep their files.
var canMount = sync.OnceValues(func() (Ability, error) {
	dir, err := os.MkdirTemp("", "proa-flat-")
	if err != nil {
		return Ability{}, err
	}
	defer os.RemoveAll(dir)
	return Probe(dir), nil
})

// strategies are those that work here, and a log line for each that does not.
// One always does.
func strategies(t testing.TB) (out []string) {
	t.Helper()
	can, err := canMount()
	must(t, err)
	if !can.Extract.OK {
		t.Fatalf("strategy extract does not work here: %s", can.Extract.Why)
	}
	for _, s := range []struct {
		name string
		Verdict
	}{{StrategyFile, can.File}, {StrategyLoop, can.Loop}, {StrategyExtract, can.Extract}} {
		if s.OK {
			out = append(out, s.name)
		} else {
			t.Logf("strategy %s is left out, it does not work here: %s", s.name, s.Why)
		}
	}
	return out
}

// checkStack compares an image of layers with the oracle.
func checkStack(t *testing.T, layers []string) {
	t.Helper()
	want := snapshot(t, oracle(t, layers))
	files := image(t, t.TempDir(), layers)
	fsck(t, files)
	for _, s := range strategies(t) {
		compare(t, s, snapshot(t, mounted(t, files, s)), want)
	}
	if t.Failed() {
		for i, l := range layers {
			out, _ := exec.Command("tar", "-tvf", l).CombinedOutput()
			t.Logf("layer %d:\n%.4000s", i+1, out)
		}
	}
}

// A member is one entry of a layer that a test makes by hand.
type member struct {
	tar.Header
	body string
}

var testTime = time.Unix(1700000000, 123456789)

func reg(name, body string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: testTime, Size: int64(len(body))}, body}
}

func dirm(name string) member {
	return member{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: testTime.Add(time.Second)}, ""}
}

func sym(name, target string) member {
	return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: testTime}, ""}
}

func hard(name, target string) member {
	return member{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: testTime}, ""}
}

func node(kind byte, name string, major, minor int64) member {
	return member{tar.Header{Typeflag: kind, Name: name, Mode: 0o660, Devmajor: major, Devminor: minor, ModTime: testTime}, ""}
}

func (m member) mode(mode int64) member     { m.Mode = mode; return m }
func (m member) owner(u, g int) member      { m.Uid, m.Gid = u, g; return m }
func (m member) time(at time.Time) member   { m.ModTime = at; return m }
func (m member) format(f tar.Format) member { m.Format = f; return m }
func (m member) xattr(name, value string) member {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range m.PAXRecords {
		records[k] = v
	}
	m.PAXRecords = records
	return m
}

// tarBytes writes members as a tar stream.
func tarBytes(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		must(t, w.WriteHeader(&m.Header))
		_, err := io.WriteString(w, m.body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// stack writes each list of members as a layer file.
func stack(t testing.TB, layers ...[]member) (files []string) {
	t.Helper()
	dir := t.TempDir()
	for i, l := range layers {
		p := filepath.Join(dir, fmt.Sprintf("layer%d.tar", i+1))
		must(t, os.WriteFile(p, tarBytes(t, l...), 0o600))
		files = append(files, p)
	}
	return files
}

// gnuTar makes a layer of a directory with GNU tar.
func gnuTar(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layer.tar")
	cmd := exec.Command("tar", append([]string{"-c", "-C", dir, "-f", out, "--numeric-owner"}, append(args, ".")...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, b)
	}
	return out
}

func wantKind(t *testing.T, what string, err error, is func(error) bool) {
	t.Helper()
	if err == nil || !is(err) {
		t.Errorf("%s: %v", what, err)
	}
}
