package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// member is one entry of a tar stream.
type member struct {
	tar.Header
	body string
}

func stream(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		m.Size = int64(len(m.body))
		if m.Mode == 0 {
			m.Mode = 0o644
		}
		if m.ModTime.IsZero() {
			m.ModTime = time.Unix(1_700_000_000, 5)
		}
		m.Format = tar.FormatPAX
		must(t, w.WriteHeader(&m.Header))
		_, err := io.WriteString(w, m.body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func file(name, body string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name}, body}
}

func dir(name string) member {
	return member{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func link(kind byte, name, target string) member {
	return member{tar.Header{Typeflag: kind, Name: name, Linkname: target}, ""}
}

func treeAt(t testing.TB, root string) *Tree {
	f := openDir(t, root)
	return &Tree{Root: f, Bare: f}
}

func get(t testing.TB, tree *Tree, name string) []string {
	t.Helper()
	var b bytes.Buffer
	must(t, tree.Get(context.Background(), name, &b))
	var names []string
	for _, l := range describe(t, b.Bytes()) {
		names = append(names, strings.Trim(strings.Fields(l)[1], `"`))
	}
	return names
}

// Names begin as those of docker's daemon do; its clients count on it.
func TestGetNames(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(root+"/etc/conf", 0o755))
	write(t, root+"/etc/conf/x", "x")
	write(t, root+"/etc/passwd", "p")
	must(t, os.Symlink("/etc", root+"/link"))
	must(t, os.Symlink("../../../../etc/passwd", root+"/etc/up"))
	tree := treeAt(t, root)
	for _, c := range []struct {
		path string
		want []string
	}{
		{"/etc", []string{"etc/", "etc/conf/", "etc/conf/x", "etc/passwd", "etc/up"}},
		{"etc/", []string{"etc/", "etc/conf/", "etc/conf/x", "etc/passwd", "etc/up"}},
		{"/etc/.", []string{"./", "./conf/", "./conf/x", "./passwd", "./up"}},
		{"/etc/passwd", []string{"passwd"}},
		{"/link", []string{"link"}},
		{"/link/", []string{"link/", "link/conf/", "link/conf/x", "link/passwd", "link/up"}},
		{"/link/conf/../passwd", []string{"passwd"}},
		{"/", []string{"/", "/etc/", "/etc/conf/", "/etc/conf/x", "/etc/passwd", "/etc/up", "/link"}},
		{"/../../etc/conf", []string{"conf/", "conf/x"}},
	} {
		if got := get(t, tree, c.path); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	for _, p := range []string{"/nope", "/etc/passwd/", "/etc/passwd/x"} {
		if err := tree.Get(context.Background(), p, io.Discard); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if err := tree.Get(context.Background(), "/a\x00b", io.Discard); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a zero byte: %v", err)
	}
	st, err := tree.Stat("/etc/up")
	must(t, err)
	if st.Name != "up" || st.LinkTarget != "/etc/passwd" || st.Mode&sys.TypeMask != sys.TypeSymlink {
		t.Errorf("%+v", st)
	}
	if st, err = tree.Stat("/link/"); err != nil || st.Mode&sys.TypeMask != sys.TypeDir || st.LinkTarget != "" {
		t.Errorf("%+v %v", st, err)
	}
}

func TestPut(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	in := func(p string) string { return filepath.Join(root, p) }
	must(t, os.MkdirAll(in("dest/was-dir"), 0o700))
	must(t, os.Mkdir(in("elsewhere"), 0o755))
	write(t, in("dest/was-dir/x"), "x")
	write(t, in("dest/was-file"), "old")
	must(t, os.Symlink("/elsewhere", in("dest/link")))
	must(t, os.Symlink("dest", in("way")))
	big := strings.Repeat("\x00", 1<<20) + "end"
	owned := file("owned", "o")
	owned.Uid, owned.Gid = 1000, 2000
	capable := file("capable", "c")
	capable.Mode = 0o4755
	capable.PAXRecords = map[string]string{
		"SCHILY.xattr.user.a%3Db":             "v",
		"SCHILY.xattr.user.overlay.fake":      "y",
		"SCHILY.xattr.trusted.overlay.opaque": "y",
	}
	fifo := member{tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, ""}
	tree := treeAt(t, root)
	must(t, tree.Put(context.Background(), &Request{Path: "/way"}, bytes.NewReader(stream(t,
		dir("./"), dir("was-dir"), file("was-dir/y", "y"), file("was-file", "new"), file("deep/er/file", "d"),
		file("link/through", "t"), owned, capable, fifo, file("sparse", big), link(tar.TypeLink, "hard", "was-file"),
		link(tar.TypeSymlink, "soft", "/nowhere")))))
	for p, want := range map[string]string{"dest/was-dir/x": "x", "dest/was-dir/y": "y", "dest/was-file": "new",
		"dest/deep/er/file": "d", "elsewhere/through": "t", "dest/hard": "new", "dest/sparse": big} {
		if b, err := os.ReadFile(in(p)); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes, %v", p, len(b), err)
		}
	}
	var st syscall.Stat_t
	must(t, syscall.Lstat(in("dest/was-dir"), &st))
	if st.Mode&0o777 != 0o755 || st.Mtim.Sec != 1_700_000_000 || st.Mtim.Nsec != 5 {
		t.Errorf("the merged directory: %o, time %v", st.Mode, st.Mtim)
	}
	must(t, syscall.Lstat(in("dest/owned"), &st))
	if st.Uid != 1000 || st.Gid != 2000 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	must(t, syscall.Lstat(in("dest/sparse"), &st))
	if st.Blocks*512 > 256<<10 {
		t.Errorf("a megabyte of zeros takes %d bytes", st.Blocks*512)
	}
	f, err := sys.OpenPath(in("dest/capable"))
	must(t, err)
	defer f.Close()
	attrs, err := sys.Xattrs(f)
	must(t, err)
	if fst, _ := sys.StatFile(f); len(attrs) != 1 || attrs[0] != (sys.Xattr{Name: "user.a=b", Value: "v"}) || fst.Mode&0o7777 != 0o4755 {
		t.Errorf("%v mode %o", attrs, fst.Mode)
	}
	must(t, syscall.Lstat(in("dest/hard"), &st))
	if st.Nlink != 2 {
		t.Errorf("%d links", st.Nlink)
	}
	// Another owner, and ids of a user namespace.
	tree.IDs = isolation.IDMap{{Host: 700_000, Size: 65536}}
	tree.User = func(name string) (uint32, uint32, error) {
		if name != "app" {
			return 0, 0, errors.New("who is " + name)
		}
		return 7, 8, nil
	}
	must(t, tree.Put(context.Background(), &Request{Path: "/dest", User: "app"}, bytes.NewReader(stream(t, owned))))
	must(t, syscall.Lstat(in("dest/owned"), &st))
	if st.Uid != 700_007 || st.Gid != 700_008 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	var b bytes.Buffer
	must(t, tree.Get(context.Background(), "/dest/owned", &b))
	if l := describe(t, b.Bytes()); !strings.Contains(l[0], " 7:8 ") {
		t.Errorf("%s", l)
	}
}

func TestPutRefuses(t *testing.T) {
	root := t.TempDir()
	in := func(p string) string { return filepath.Join(root, p) }
	must(t, os.MkdirAll(in("d/sub"), 0o755))
	write(t, in("d/f"), "f")
	tree := treeAt(t, root)
	for _, c := range []struct {
		what, path string
		no         bool
		body       []byte
		is         func(error) bool
		words      string
	}{
		{"no directory", "/nope", false, stream(t), errdefs.IsNotFound, "no such file"},
		{"a file", "/d/f", false, stream(t), errdefs.IsInvalidArgument, "extraction point is not a directory"},
		{"up", "/d", false, stream(t, file("../x", "")), errdefs.IsInvalidArgument, "goes up"},
		{"link up", "/d", false, stream(t, link(tar.TypeLink, "l", "../../etc/passwd")), errdefs.IsInvalidArgument, "hard link"},
		{"file on directory", "/d", true, stream(t, file("sub", "")), errdefs.IsInvalidArgument, `cannot overwrite directory "/d/sub" with non-directory`},
		{"directory on file", "/d", true, stream(t, dir("f")), errdefs.IsInvalidArgument, `cannot overwrite non-directory "/d/f" with directory`},
		{"no tar", "/d", false, []byte(strings.Repeat("x", 2048)), errdefs.IsInvalidArgument, "cannot read the archive"},
		{"cut", "/d", false, stream(t, file("cut", strings.Repeat("x", 100_000)))[:50_000], errdefs.IsInvalidArgument, "ends in the middle"},
		{"through a file", "/d", false, stream(t, file("f/x", "")), func(err error) bool { return err != nil }, ""},
	} {
		err := tree.Put(context.Background(), &Request{Path: c.path, NoOverwriteDirNonDir: c.no}, bytes.NewReader(c.body))
		if !c.is(err) || !strings.Contains(fmt.Sprint(err), c.words) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := os.Lstat(in("d/cut")); !os.IsNotExist(err) {
		t.Errorf("half a file is left: %v", err)
	}
	if _, err := os.Lstat(root + "/../x"); !os.IsNotExist(err) {
		t.Errorf("a file was made outside: %v", err)
	}
}

// A full disk is said, and half a file does not stay.
func TestPutDiskFull(t *testing.T) {
	needRoot(t)
	m, err := sys.NewFS("tmpfs", 0, sys.FSConfig{Key: "size", Value: "1m"})
	must(t, err)
	defer m.Close()
	tree := &Tree{Root: m}
	err = tree.Put(context.Background(), &Request{Path: "/"}, bytes.NewReader(stream(t, file("small", "s"), file("big", strings.Repeat("x", 2<<20)))))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "big") {
		t.Errorf("%v", err)
	}
	if got := get(t, tree, "/"); !slices.Equal(got, []string{"/", "/small"}) {
		t.Errorf("%q", got)
	}
}

// While a process inside exchanges directories for links that lead out, nothing
// outside is read or written (CVE-2018-15664), and no FIFO blocks.
func TestHostileTree(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	root := filepath.Join(top, "root")
	must(t, os.MkdirAll(root+"/a", 0o755))
	must(t, os.Mkdir(top+"/out", 0o755))
	secret := filepath.Join(top, "out", "secret")
	const words = "what nobody inside may see"
	write(t, secret, words)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.RemoveAll(root + "/a")
			switch i % 4 {
			case 0:
				_ = os.Symlink(top+"/out", root+"/a")
			case 1:
				_ = os.Symlink("../out", root+"/a")
			case 2:
				_ = syscall.Mkfifo(root+"/a", 0o600)
			case 3:
				_ = os.Mkdir(root+"/a", 0o755)
				_ = os.Symlink(secret, root+"/a/secret")
			}
		}
	})
	tree := treeAt(t, root)
	body := stream(t, file("secret", "overwritten"), file("made", "made"))
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		var b bytes.Buffer
		_ = tree.Get(context.Background(), "/a/secret", &b)
		_ = tree.Get(context.Background(), "/a", &b)
		if bytes.Contains(b.Bytes(), []byte(words)) {
			t.Fatal("the file outside was read")
		}
		_ = tree.Put(context.Background(), &Request{Path: "/a"}, bytes.NewReader(body))
		_, _ = tree.Stat("/a/secret")
	}
	close(stop)
	wg.Wait()
	if b, err := os.ReadFile(secret); err != nil || string(b) != words {
		t.Errorf("the file outside holds %q, %v", b, err)
	}
	if _, err := os.Lstat(top + "/out/made"); err == nil {
		t.Error("a file was made outside")
	}
}

func TestChanges(t *testing.T) {
	s := newStack(t, baseTree(t))
	in := func(p string) string { return filepath.Join(s.merged, p) }
	tree := &Tree{Upper: openDir(t, s.upper), Lower: openDir(t, s.lower), Exclude: []string{"/proc", "/etc/hosts", "/srv/mnt"}}
	list := func() string {
		t.Helper()
		var out []string
		var b bytes.Buffer
		must(t, tree.Serve(context.Background(), &Request{Op: OpChanges}, nil, &b))
		for d := json.NewDecoder(&b); ; {
			var c Change
			if err := d.Decode(&c); err == io.EOF {
				return strings.Join(out, ", ")
			} else {
				must(t, err)
			}
			out = append(out, "CAD"[c.Kind:c.Kind+1]+" "+c.Path)
		}
	}
	must(t, os.Mkdir(in("proc"), 0o755))
	write(t, in("etc/hosts"), "")
	must(t, os.MkdirAll(in("srv/mnt"), 0o755))
	if got := list(); got != "" {
		t.Errorf("untouched: %s", got)
	}
	write(t, in("etc/passwd"), "x")
	must(t, os.Remove(in("usr/share/doc/readme")))
	must(t, os.RemoveAll(in("var/lib")))
	must(t, os.MkdirAll(in("new/dir"), 0o755))
	write(t, in("new/dir/f"), "f")
	must(t, os.RemoveAll(in("etc/conf.d")))
	must(t, os.Mkdir(in("etc/conf.d"), 0o755))
	write(t, in("etc/conf.d/two"), "2")
	write(t, in("etc/conf.d/three"), "3")
	must(t, os.Remove(in("share")))
	must(t, os.Mkdir(in("share"), 0o755))
	write(t, in("share/x"), "x")
	want := "C /etc, C /etc/conf.d, D /etc/conf.d/one, A /etc/conf.d/three, C /etc/conf.d/two, C /etc/passwd, A /new, A /new/dir, A /new/dir/f, " +
		"C /share, A /share/x, C /usr, C /usr/share, C /usr/share/doc, D /usr/share/doc/readme, C /var, D /var/lib"
	if got := list(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// FuzzPut: whatever a tar stream holds, it is unpacked inside, and what was made
// can be read again.
// A process inside renames a directory that was just made and leads its path to
// another one: that one's owner and mode stay what they are (CVE-2018-15664).
func TestPutGivesOwnersToWhatItMade(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	in := func(p string) string { return filepath.Join(root, p) }
	must(t, os.MkdirAll(in("home"), 0o777))
	must(t, os.MkdirAll(in("etc/b"), 0o755))
	a := dir("a")
	a.Mode, a.Uid = 0o777, 1000
	b := dir("a/b")
	b.Mode, b.Uid = 0o777, 1000
	raw := stream(t, a, b, file("a/b/f", "f"), file("z", strings.Repeat("z", 1<<20)))
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- treeAt(t, root).Put(context.Background(), &Request{Path: "/home"}, r) }()
	// Everything but the last file has been unpacked when this is taken.
	cut := bytes.Index(raw, []byte("zzzz"))
	_, err := w.Write(raw[:cut+1])
	must(t, err)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(in("home/z")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing is unpacked")
		}
	}
	must(t, os.Rename(in("home/a"), in("home/mine")))
	must(t, os.Symlink("../etc", in("home/a")))
	_, err = w.Write(raw[cut+1:])
	must(t, err)
	must(t, w.Close())
	must(t, <-done)
	var st syscall.Stat_t
	must(t, syscall.Stat(in("etc/b"), &st))
	if st.Uid != 0 || st.Mode&0o777 != 0o755 {
		t.Errorf("somebody else's directory: owner %d, mode %o", st.Uid, st.Mode&0o777)
	}
	must(t, syscall.Stat(in("home/mine/b"), &st))
	if st.Uid != 1000 || st.Mode&0o777 != 0o777 {
		t.Errorf("what was made: owner %d, mode %o", st.Uid, st.Mode&0o777)
	}
}

// Directories get their times at the end, also those that an archive comes
// back to, those deeper than what is held open, and those named twice.
func TestPutSetsTimesOfDirectories(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	deep := "d" + strings.Repeat("/d", maxHeld+20)
	members := []member{dir("a"), dir("a"), dir("b"), file("b/f", "f"), file("a/f", "f")}
	for i := range strings.Split(deep, "/") {
		members = append(members, dir("d"+strings.Repeat("/d", i)))
	}
	members = append(members, file(deep+"/f", "f"))
	must(t, treeAt(t, root).Put(context.Background(), &Request{Path: "/"}, bytes.NewReader(stream(t, members...))))
	for _, p := range []string{"a", "b", "d", deep, filepath.Dir(deep)} {
		fi, err := os.Stat(filepath.Join(root, p))
		must(t, err)
		if fi.ModTime().Unix() != 1_700_000_000 || fi.Mode().Perm() != 0o755 {
			t.Errorf("%.20s (%d): %v %v", p, len(p), fi.ModTime(), fi.Mode())
		}
	}
	p := &put{r: &Request{}, said: maxPaths}
	f, err := os.Open(root)
	must(t, err)
	if err := p.enterDir("/x", f, sys.Metadata{}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("paths without end: %v", err)
	}
}

func FuzzPut(f *testing.F) {
	f.Add(stream(f, dir("d"), file("d/x", "x"), link(tar.TypeSymlink, "s", "../../.."), file("s/out", "out"), link(tar.TypeLink, "h", "d/x")), false)
	f.Add(stream(f, file("../out", "out"), link(tar.TypeLink, "h", "/../../out")), true)
	f.Add(stream(f, link(tar.TypeSymlink, "a", "b"), link(tar.TypeSymlink, "b", "a"), file("a/x", "")), false)
	f.Add(stream(f, member{tar.Header{Typeflag: tar.TypeFifo, Name: "p"}, ""}, file("p/x", ""), file("p", "file")), false)
	f.Fuzz(func(t *testing.T, b []byte, strict bool) {
		top := t.TempDir()
		root := top + "/inside/root"
		must(t, os.MkdirAll(root, 0o755))
		tree := treeAt(t, root)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // of zeros without end
		defer cancel()
		_ = tree.Put(ctx, &Request{Path: "/", NoOverwriteDirNonDir: strict}, io.LimitReader(bytes.NewReader(b), 1<<20))
		for at, want := range map[string]int{top: 1, top + "/inside": 1} {
			if names, err := os.ReadDir(at); err != nil || len(names) != want {
				t.Fatalf("%s holds %v, %v", at, names, err)
			}
		}
		if err := tree.Get(ctx, "/", io.Discard); err != nil && !errdefs.IsFailedPrecondition(err) && ctx.Err() == nil {
			t.Errorf("what was unpacked cannot be read: %v", err)
		}
		must(t, sys.RemoveTree(root))
	})
}
