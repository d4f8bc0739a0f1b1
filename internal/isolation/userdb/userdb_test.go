package userdb

import (
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
app:x:1000:1000::/home/app:/bin/sh
1234:x:77:77::/odd:/bin/sh
nohome:x:1001:50:::/bin/sh
`

const group = `root:x:0:root
adm:x:4:app,root
app:x:1000:
staff:x:50:app
`

func rootWith(t *testing.T, passwd, group string) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestLookup(t *testing.T) {
	root := rootWith(t, passwd, group)
	for _, c := range []struct {
		spec   string
		groups []string
		uid    uint32
		gid    uint32
		gids   []uint32
		home   string
	}{
		{"", nil, 0, 0, []uint32{0, 4}, "/root"},
		{"app", nil, 1000, 1000, []uint32{1000, 4, 50}, "/home/app"},
		{"1000", nil, 1000, 1000, []uint32{1000, 4, 50}, "/home/app"},
		{"app:staff", nil, 1000, 50, []uint32{50}, "/home/app"},
		{"app:4", nil, 1000, 4, []uint32{4}, "/home/app"},
		{"4242", nil, 4242, 0, []uint32{0}, "/"},
		{"4242:4343", nil, 4242, 4343, []uint32{4343}, "/"},
		{"1234", nil, 1234, 0, []uint32{0}, "/"}, // a number is never a name
		{"nohome", nil, 1001, 50, []uint32{50}, "/"},
		{"app", []string{"staff", "999"}, 1000, 1000, []uint32{1000, 4, 50, 999}, "/home/app"},
		{"0:0", []string{"adm"}, 0, 0, []uint32{0, 4}, "/root"},
	} {
		uid, gid, gids, home, err := Lookup(root, c.spec, c.groups)
		if err != nil {
			t.Errorf("%q: %v", c.spec, err)
			continue
		}
		if uid != c.uid || gid != c.gid || !reflect.DeepEqual(gids, c.gids) || home != c.home {
			t.Errorf("%q %v: got %d:%d %v %q, want %d:%d %v %q", c.spec, c.groups, uid, gid, gids, home, c.uid, c.gid, c.gids, c.home)
		}
	}
}

func TestLookupErrors(t *testing.T) {
	root := rootWith(t, passwd, group)
	for _, c := range []struct {
		spec   string
		groups []string
		text   string
		is     func(error) bool
	}{
		{"ghost", nil, "unable to find user ghost: no matching entries in passwd file", errdefs.IsNotFound},
		{"app:ghost", nil, "unable to find group ghost: no matching entries in group file", errdefs.IsNotFound},
		{"app", []string{"ghost"}, "unable to find group ghost: no matching entries in group file", errdefs.IsNotFound},
		{"-1", nil, "uids and gids must be in range 0-2147483647", errdefs.IsInvalidArgument},
	} {
		_, _, _, _, err := Lookup(root, c.spec, c.groups)
		if err == nil || err.Error() != c.text || !c.is(err) {
			t.Errorf("%q: got %v, want %q", c.spec, err, c.text)
		}
	}
}

func TestMissingDatabases(t *testing.T) {
	root := rootWith(t, "", "")
	uid, gid, _, home, err := Lookup(root, "5:6", nil)
	if err != nil || uid != 5 || gid != 6 || home != "/" {
		t.Errorf("numbers without databases: %d:%d %q %v", uid, gid, home, err)
	}
	if _, _, _, _, err := Lookup(root, "app", nil); !errdefs.IsNotFound(err) {
		t.Errorf("name without databases: %v", err)
	}
}

// An image must not make us read the host's passwd (compare CVE-2019-14271),
// nor hang on a FIFO.
func TestStaysInside(t *testing.T) {
	root := rootWith(t, "", "")
	etc := filepath.Join(root.Name(), "etc")
	if err := os.Symlink("../../../../../../etc/passwd", filepath.Join(etc, "passwd")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(etc, "group"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, _, _, err := Lookup(root, "root", nil); !errdefs.IsNotFound(err) {
		t.Errorf("root was found through a link that leaves the root: %v", err)
	}
}
