package sys

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSpreadDirs(t *testing.T) {
	dir := t.TempDir()
	for range 2 { // the second time there is nothing to do
		if err := SpreadDirs(dir); err != nil {
			t.Fatal(err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.EXT4_SUPER_MAGIC {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil || flags&topDir == 0 {
			t.Fatalf("flags are %#x (%v)", flags, err)
		}
	}
	if err := SpreadDirs("/proc/self"); err != nil {
		t.Fatalf("a file system without flags: %v", err)
	}
	if err := SpreadDirs(filepath.Join(dir, "none")); err == nil {
		t.Fatal("a missing directory was marked")
	}
}
