package sys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSynced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	expect := func(want string, mode fs.FileMode) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("%q, %v; want %q", b, err, want)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode() != mode {
			t.Errorf("%v, %v; want %v", fi.Mode(), err, mode)
		}
		if all, _ := os.ReadDir(dir); len(all) != 1 {
			t.Errorf("beside it: %v", all)
		}
	}
	if err := WriteSynced(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("one", 0o600)
	if err := WriteSynced(path, []byte("two"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	expect("one", 0o600)
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := ReplaceSynced(path, []byte("three"), 0o640); err != nil {
		t.Fatal(err)
	}
	expect("three", 0o640)
	b := make([]byte, 8)
	if n, err := old.Read(b); err != nil || string(b[:n]) != "one" {
		t.Errorf("who read it before has %q, %v", b[:n], err)
	}
	if err := ReplaceSynced(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}
}

// On a full disk nothing half-written stays, and what was there is as it was.
func TestSyncedOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: needs root")
	}
	dir := t.TempDir()
	err := OnThread(func(th *Thread) error {
		if err := th.OwnMounts(); err != nil {
			return err
		}
		if err := unix.Mount("none", dir, "tmpfs", 0, "size=8k"); err != nil {
			return err
		}
		path, big := filepath.Join(dir, "f"), []byte(strings.Repeat("x", 64<<10))
		if err := ReplaceSynced(path, []byte("small"), 0o600); err != nil {
			return err
		}
		for name, err := range map[string]error{
			"replaced": ReplaceSynced(path, big, 0o600), "new": WriteSynced(filepath.Join(dir, "g"), big, 0o600),
		} {
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%s: %v", name, err)
			}
		}
		all, err := os.ReadDir(dir)
		if err != nil || len(all) != 1 {
			t.Errorf("left: %v, %v", all, err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "small" {
			t.Errorf("%q, %v", b, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
