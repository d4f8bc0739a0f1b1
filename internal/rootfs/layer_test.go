package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/image/flat"
	"proa/internal/sys"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts, owners, devices")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openDir(t testing.TB, dir string) *os.File {
	t.Helper()
	f, err := sys.OpenPath(dir)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// at sets the modification time of a file, of a symbolic link itself.
func at(t testing.TB, path string, sec, nsec int64) {
	t.Helper()
	dir := openDir(t, filepath.Dir(path))
	var st syscall.Stat_t
	must(t, syscall.Lstat(path, &st))
	must(t, sys.SetMetadataAt(dir, filepath.Base(path), sys.Metadata{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Sec: sec, Nsec: uint32(nsec)}))
}

func write(t testing.TB, path, body string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(body), 0o644))
}

func layerOf(t testing.TB, upper string, opt LayerOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, WriteLayer(context.Background(), &b, openDir(t, upper), opt))
	return b.Bytes()
}

// describe says in one line each what is in a tar stream.
func describe(t testing.TB, stream []byte) (out []string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(t, err)
		body, err := io.ReadAll(tr)
		must(t, err)
		line := fmt.Sprintf("%c %q %o %d:%d %d.%09d", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), h.ModTime.Nanosecond())
		if h.Linkname != "" {
			line += fmt.Sprintf(" -> %q", h.Linkname)
		}
		if h.Devmajor != 0 || h.Devminor != 0 {
			line += fmt.Sprintf(" dev %d:%d", h.Devmajor, h.Devminor)
		}
		if len(body) > 100 {
			line += fmt.Sprintf(" %d bytes, sum %.8x", len(body), sha256.Sum256(body))
		} else if len(body) > 0 {
			line += fmt.Sprintf(" %q", body)
		}
		var keys []string
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.") {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			line += fmt.Sprintf(" %s=%q", k, h.PAXRecords[k])
		}
		out = append(out, line)
	}
}

// An upper directory as overlayfs leaves it gives this very stream, on any
// host: the digest is that of the bytes.
func TestLayerGolden(t *testing.T) {
	needRoot(t)
	upper := t.TempDir()
	in := func(p string) string { return filepath.Join(upper, p) }
	for _, d := range []string{"b", "b/sub", "a-dir", "etc"} {
		must(t, os.Mkdir(in(d), 0o755))
	}
	write(t, in("b/file"), "hello")
	must(t, os.Link(in("b/file"), in("z-link")))
	must(t, os.Chown(in("b/file"), 3_000_000, 7))
	must(t, os.Chmod(in("b/file"), 0o4755|fs.ModeSetuid))
	// Revision 3, as a process in a user namespace sets it: the root id goes.
	must(t, syscall.Setxattr(in("b/file"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, syscall.Setxattr(in("b/file"), "user.k=%", []byte("v\x00w"), 0))
	must(t, syscall.Setxattr(in("b/sub"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, syscall.Setxattr(in("b/sub"), "trusted.overlay.origin", []byte("x"), 0))
	must(t, syscall.Setxattr(in("b/sub"), "user.overlay.opaque", []byte("y"), 0))
	must(t, os.Symlink("../nowhere", in("b/sub/link")))
	must(t, syscall.Mknod(in("b/gone"), syscall.S_IFCHR, 0))
	must(t, syscall.Mknod(in("b/null"), syscall.S_IFCHR|0o640, 1<<8|3))
	must(t, syscall.Mknod(in("b/pipe"), syscall.S_IFIFO|0o600, 0))
	must(t, syscall.Mknod(in("b/sock"), syscall.S_IFSOCK|0o600, 0))
	write(t, in("a-dir/é\xff"), "")
	write(t, in("etc/hosts"), "")
	hole, err := os.Create(in("sparse"))
	must(t, err)
	must(t, hole.Truncate(8<<10))
	_, err = hole.WriteAt([]byte("end"), 8<<10-3)
	must(t, err)
	must(t, hole.Close())
	for p, sec := range map[string]int64{"b/file": 1_700_000_000, "b/sub/link": -5, "a-dir/é\xff": 1 << 32, "sparse": 0, "b/null": 1, "b/pipe": 2} {
		at(t, in(p), sec, 123_456_789)
	}
	// at sets the owner, which drops set-id bits and capabilities: once more.
	must(t, os.Chmod(in("b/file"), 0o755|fs.ModeSetuid))
	must(t, syscall.Setxattr(in("b/file"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	for _, d := range []string{"b/sub", "a-dir", "b", "etc"} {
		at(t, in(d), 42, 0)
	}
	got := layerOf(t, upper, LayerOptions{Exclude: []string{"/etc/hosts", "proc"}})
	want := []string{
		`5 "a-dir/" 755 0:0 42.000000000`,
		"0 \"a-dir/é\\xff\" 644 0:0 4294967296.123456789",
		`5 "b/" 755 0:0 42.000000000`,
		`0 "b/file" 4755 3000000:7 1700000000.123456789 "hello" SCHILY.xattr.security.capability="\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" SCHILY.xattr.user.k%3D%25="v\x00w"`,
		`0 "b/.wh.gone" 600 0:0 0.000000000`,
		`3 "b/null" 640 0:0 1.123456789 dev 1:3`,
		`6 "b/pipe" 600 0:0 2.123456789`,
		`5 "b/sub/" 755 0:0 42.000000000`,
		`0 "b/sub/.wh..wh..opq" 600 0:0 0.000000000`,
		`2 "b/sub/link" 777 0:0 -5.123456789 -> "../nowhere"`,
		fmt.Sprintf(`0 "sparse" 644 0:0 0.123456789 8192 bytes, sum %.8x`, sha256.Sum256([]byte(strings.Repeat("\x00", 8<<10-3)+"end"))),
		`1 "z-link" 4755 3000000:7 1700000000.123456789 -> "b/file"`,
	}
	if lines := describe(t, got); !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	const digest = "4e080a14d1b3f635caa84321ebddf95083ecf7019fa983367d32129cc0ccac45"
	if sum := fmt.Sprintf("%x", sha256.Sum256(got)); sum != digest {
		t.Errorf("the bytes have changed: their digest is %s, was %s", sum, digest)
	}
	if again := layerOf(t, upper, LayerOptions{Exclude: []string{"/etc/hosts", "proc"}}); !bytes.Equal(got, again) {
		t.Error("the same directory gives other bytes the second time")
	}
}

// stack is an image of one layer and an overlay of it, mounted in the test's
// own directory.
type stack struct {
	dir, lower, upper, merged string
	base                      *flat.Layer
}

// mountFlat mounts layers until the test ends.
func mountFlat(t testing.TB, dir, name string, layers ...*flat.Layer) string {
	t.Helper()
	files := flat.Files{Index: filepath.Join(dir, name+".index"), Dir: filepath.Join(dir, name+".unpacked")}
	for _, l := range layers {
		files.Data = append(files.Data, l.Data())
	}
	must(t, flat.Merge(layers, files.Index))
	strategy := flat.StrategyExtract
	if flat.Probe(dir).File.OK {
		strategy = flat.StrategyFile
	}
	m, err := flat.Open(dir, strategy)
	must(t, err)
	at := filepath.Join(dir, name)
	must(t, os.Mkdir(at, 0o700))
	must(t, m.Mount(files, at))
	t.Cleanup(func() { must(t, m.Unmount(at)) })
	return at
}

func newStack(t testing.TB, build func(dir string)) *stack {
	t.Helper()
	needRoot(t)
	s := &stack{dir: t.TempDir()}
	tree := filepath.Join(s.dir, "tree")
	must(t, os.Mkdir(tree, 0o755))
	build(tree)
	var err error
	s.base, err = flat.Write(context.Background(), bytes.NewReader(layerOf(t, tree, LayerOptions{})), s.dir, flat.Limits{})
	must(t, err)
	s.lower = mountFlat(t, s.dir, "lower", s.base)
	rw := filepath.Join(s.dir, "rw")
	s.upper, s.merged = filepath.Join(rw, "upper"), filepath.Join(s.dir, "merged")
	must(t, os.Mkdir(s.merged, 0o755))
	layer, err := sys.WritableLayer(rw, openDir(t, s.lower))
	must(t, err)
	defer layer.Close()
	lower, err := sys.CloneTree(nil, s.lower, false)
	must(t, err)
	defer lower.Close()
	m, err := sys.Overlay([]*os.File{lower}, layer, 0, false)
	must(t, err)
	defer m.Close()
	must(t, sys.Attach(m, s.merged))
	t.Cleanup(func() { must(t, sys.Detach(s.merged)) })
	return s
}

func baseTree(t testing.TB) func(string) {
	return func(dir string) {
		in := func(p string) string { return filepath.Join(dir, p) }
		for _, d := range []string{"bin", "etc", "etc/conf.d", "usr", "usr/share", "usr/share/doc", "var", "var/lib"} {
			must(t, os.Mkdir(in(d), 0o755))
		}
		write(t, in("bin/tool"), "#!tool")
		must(t, os.Link(in("bin/tool"), in("bin/other")))
		must(t, os.Symlink("usr/share", in("share")))
		write(t, in("etc/passwd"), "root:x:0:0::/:/bin/sh\n")
		write(t, in("etc/conf.d/one"), "1")
		write(t, in("etc/conf.d/two"), "2")
		write(t, in("usr/share/doc/readme"), "read me")
		write(t, in("var/lib/db"), strings.Repeat("db", 5000))
		must(t, os.Chown(in("var/lib/db"), 33, 33))
	}
}

// What is done in an overlay is in its layer: an image of both layers shows
// what the overlay shows.
func TestLayerRoundTrip(t *testing.T) {
	s := newStack(t, baseTree(t))
	in := func(p string) string { return filepath.Join(s.merged, p) }
	must(t, os.RemoveAll(in("etc/conf.d")))
	must(t, os.Mkdir(in("etc/conf.d"), 0o700)) // opaque
	write(t, in("etc/conf.d/three"), "3")
	must(t, os.Remove(in("bin/other")))
	write(t, in("etc/passwd"), "changed")
	must(t, os.Chown(in("etc/passwd"), 1000, 2000))
	must(t, os.Chmod(in("usr/share"), 0o2755|fs.ModeSetgid))
	if err := os.Rename(in("usr/share/doc"), in("usr/doc")); !errors.Is(err, syscall.EXDEV) {
		t.Errorf("rename of a directory of the image: %v; with redirect_dir its contents would not be in the upper", err)
	}
	must(t, os.Rename(in("var/lib/db"), in("var/lib/db.old")))
	// overlayfs itself takes links of what it has just copied up for two files.
	write(t, in("var/linked"), "linked")
	must(t, os.Link(in("var/linked"), in("linked")))
	must(t, os.Mkdir(in("new"), 0o1777|fs.ModeSticky))
	must(t, os.Mkdir(in("new/deep"), 0o755))
	must(t, syscall.Mknod(in("new/fifo"), syscall.S_IFIFO|0o644, 0))
	must(t, syscall.Mknod(in("new/dev"), syscall.S_IFBLK|0o640, 8<<8|1))
	must(t, os.Symlink("/etc/passwd", in("new/link")))
	must(t, os.Lchown(in("new/link"), 5, 6))
	must(t, syscall.Setxattr(in("new/deep"), "user.colour", []byte("blue"), 0))
	must(t, syscall.Setxattr(in("bin/tool"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, os.Remove(in("share")))
	must(t, os.Mkdir(in("share"), 0o755)) // a directory in the place of a symbolic link
	write(t, in("share/x"), "x")
	must(t, os.Chmod(s.merged, 0o711))

	opt := LayerOptions{Lower: openDir(t, s.lower)}
	stream := layerOf(t, s.upper, opt)
	if again := layerOf(t, s.upper, opt); !bytes.Equal(stream, again) {
		t.Error("the same upper gives other bytes the second time")
	}
	top, err := flat.Write(context.Background(), bytes.NewReader(stream), s.dir, flat.Limits{})
	must(t, err)
	both := mountFlat(t, s.dir, "both", s.base, top)
	sameTrees(t, both, s.merged)
}

// Names that the engine made to mount on are not the user's work, unless
// something is in them.
func TestLayerExclude(t *testing.T) {
	s := newStack(t, baseTree(t))
	in := func(p string) string { return filepath.Join(s.merged, p) }
	stubs := []string{"/proc", "/dev/", "etc/hosts", "/usr/share/doc/mnt", "/srv/a/b", "/var/lib/data"}
	for _, d := range []string{"proc", "dev", "usr/share/doc/mnt", "srv", "srv/a", "srv/a/b", "var/lib/data"} {
		must(t, os.Mkdir(in(d), 0o755))
	}
	write(t, in("etc/hosts"), "")
	lower := openDir(t, s.lower)
	names := func(opt LayerOptions) string {
		var out []string
		for _, l := range describe(t, layerOf(t, s.upper, opt)) {
			out = append(out, strings.Fields(l)[1])
		}
		return strings.Join(out, " ")
	}
	check := func(what string, opt LayerOptions, want string) {
		t.Helper()
		if got := names(opt); got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	check("untouched", LayerOptions{Exclude: stubs, Lower: lower}, `"srv/" "srv/a/"`)
	check("untouched, with nothing to compare", LayerOptions{Exclude: stubs}, ``)
	must(t, os.Chmod(in("usr/share/doc"), 0o700))
	write(t, in("etc/hosts"), "127.0.0.1 me")
	must(t, os.Mkdir(in("var/lib/data/x"), 0o755))
	check("touched", LayerOptions{Exclude: stubs, Lower: lower},
		`"etc/" "etc/hosts" "srv/" "srv/a/" "usr/" "usr/share/" "usr/share/doc/" "var/" "var/lib/" "var/lib/data/" "var/lib/data/x/"`)
	// Below a directory that hides the image's, nothing is as it was in the image.
	must(t, os.RemoveAll(in("usr")))
	must(t, os.MkdirAll(in("usr/share/doc/mnt"), 0o755))
	check("hidden", LayerOptions{Exclude: []string{"usr/share/doc/mnt", "srv/a/b", "proc", "dev", "etc/hosts"}, Lower: lower},
		`"etc/" "etc/hosts" "srv/" "srv/a/" "usr/" "usr/.wh..wh..opq" "usr/share/" "usr/share/doc/" "var/" "var/lib/" "var/lib/data/" "var/lib/data/x/"`)
}

// What a layer cannot say is an error, not another layer.
func TestLayerRefuses(t *testing.T) {
	needRoot(t)
	for name, make := range map[string]func(dir string){
		"a name that would delete": func(dir string) { write(t, dir+"/.wh.x", "") },
		"a redirect": func(dir string) {
			must(t, os.Mkdir(dir+"/d", 0o755))
			must(t, syscall.Setxattr(dir+"/d", "trusted.overlay.redirect", []byte("/x"), 0))
		},
		"data elsewhere": func(dir string) {
			write(t, dir+"/f", "")
			must(t, syscall.Setxattr(dir+"/f", "trusted.overlay.metacopy", nil, 0))
		},
		"depth": func(dir string) {
			at := openDir(t, dir)
			for range maxDepth + 1 {
				next, err := sys.MakeDirAt(at, "d")
				must(t, err)
				at.Close()
				at = next
			}
			at.Close()
			t.Cleanup(func() { must(t, sys.RemoveTree(dir)) })
		},
	} {
		dir, err := os.MkdirTemp("", "rootfs-")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		make(dir)
		if err := WriteLayer(context.Background(), io.Discard, openDir(t, dir), LayerOptions{}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	write(t, dir+"/f", "x")
	if err := WriteLayer(ctx, io.Discard, openDir(t, dir), LayerOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := WriteLayer(context.Background(), io.Discard, openDir(t, dir+"/f"), LayerOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file: %v", err)
	}
}

// A stream stays whole while files are cut off, appended to, replaced by FIFOs
// and removed under it.
func TestLayerOfChangingTree(t *testing.T) {
	dir := t.TempDir()
	stop, done := make(chan struct{}), make(chan struct{})
	for i := range 20 {
		write(t, fmt.Sprintf("%s/f%d", dir, i), strings.Repeat("x", 200<<10))
	}
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			p := fmt.Sprintf("%s/f%d", dir, i%20)
			switch i % 4 {
			case 0:
				_ = os.Truncate(p, 10)
			case 1:
				_ = os.Remove(p)
				_ = syscall.Mkfifo(p, 0o600)
			case 2:
				_ = os.Remove(p)
			case 3:
				_ = os.Remove(p)
				_ = os.WriteFile(p, bytes.Repeat([]byte("y"), 300<<10), 0o600)
			}
		}
	}()
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		describe(t, layerOf(t, dir, LayerOptions{}))
	}
	close(stop)
	<-done
}

// sameTrees reports every difference of two trees that stat(2), the extended
// attributes and the contents show; of directories neither links nor size
// count, and of the roots no time.
func sameTrees(t *testing.T, got, want string) {
	t.Helper()
	a, b := snapshot(t, got), snapshot(t, want)
	for p, line := range b {
		if a[p] != line {
			t.Errorf("%q\n is     %s\n wanted %s", p, a[p], line)
		}
	}
	for p, line := range a {
		if _, ok := b[p]; !ok {
			t.Errorf("%q is not wanted: %s", p, line)
		}
	}
}

func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	out, first := map[string]string{}, map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, dir)
		parent := openDir(t, filepath.Dir(p))
		f, err := sys.OpenEntry(parent, filepath.Base(p))
		must(t, err)
		defer f.Close()
		st, err := sys.StatFile(f)
		must(t, err)
		line := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.UID, st.GID)
		if rel != "" {
			line += fmt.Sprintf(" time %d.%09d", st.Sec, st.Nsec)
		}
		switch st.Type() {
		case sys.TypeRegular:
			b, err := os.ReadFile(p)
			must(t, err)
			line += fmt.Sprintf(" size %d sum %x", len(b), sha256.Sum256(b))
		case sys.TypeSymlink:
			target, err := os.Readlink(p)
			must(t, err)
			line += " -> " + target
		case sys.TypeChar, sys.TypeBlock:
			line += fmt.Sprintf(" device %d:%d", st.Major, st.Minor)
		}
		if st.Type() != sys.TypeDir && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			line += fmt.Sprintf(" links %d, same as %q", st.Nlink, first[st.Ino])
		}
		attrs, err := sys.Xattrs(f)
		must(t, err)
		for _, x := range ownXattrs(attrs, func(name string) bool { return !strings.HasPrefix(name, "trusted.overlay.") }) {
			line += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		out[rel] = line
		return nil
	}))
	return out
}
