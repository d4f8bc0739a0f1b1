package sys

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A copy has owners, modes, times, attributes, links and hard links of its source, the directory itself included.
func TestCopyTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	d, volume := t.TempDir(), t.TempDir()
	must(os.WriteFile(filepath.Join(d, "a"), []byte("aaa"), 0o600))
	must(os.Chmod(filepath.Join(d, "a"), os.ModeSetuid|0o711))
	must(os.Link(filepath.Join(d, "a"), filepath.Join(d, "b")))
	must(os.Mkdir(filepath.Join(d, "sub"), 0o700))
	must(os.Chmod(filepath.Join(d, "sub"), 0o750))
	must(os.Symlink("/etc/passwd", filepath.Join(d, "sub/link")))
	must(os.Link(filepath.Join(d, "a"), filepath.Join(d, "sub/c")))
	must(os.Chown(filepath.Join(d, "sub"), 1000, 1234))
	must(syscall.Setxattr(filepath.Join(d, "a"), "user.note", []byte("kept"), 0))
	must(os.Chown(d, 1000, 0))
	must(os.Chmod(d, 0o770))
	when := time.Unix(1_000_000_000, 123456789)
	must(os.Chtimes(filepath.Join(d, "a"), when, when))
	from, err := os.Open(d)
	must(err)
	defer from.Close()
	to, err := os.Open(volume)
	must(err)
	defer to.Close()
	must(CopyTree(from, to))

	var a, b, c, sub, top syscall.Stat_t
	for name, st := range map[string]*syscall.Stat_t{"a": &a, "b": &b, "sub/c": &c, "sub": &sub, ".": &top} {
		must(syscall.Lstat(filepath.Join(volume, name), st))
	}
	note := make([]byte, 16)
	n, err := syscall.Getxattr(filepath.Join(volume, "a"), "user.note", note)
	if a.Ino != b.Ino || a.Ino != c.Ino || a.Mode&0o7777 != 0o4711 || a.Uid != 0 || a.Mtim.Nano() != when.UnixNano() || err != nil || string(note[:n]) != "kept" {
		t.Errorf("a: %+v %v", a, err)
	}
	if sub.Uid != 1000 || sub.Gid != 1234 || sub.Mode&0o777 != 0o750 || top.Uid != 1000 || top.Mode&0o777 != 0o770 {
		t.Errorf("sub: %+v top: %+v", sub, top)
	}
	if to, err := os.Readlink(filepath.Join(volume, "sub/link")); err != nil || to != "/etc/passwd" {
		t.Error(to, err)
	}
	if body, err := os.ReadFile(filepath.Join(volume, "b")); err != nil || string(body) != "aaa" {
		t.Error(string(body), err)
	}
}
