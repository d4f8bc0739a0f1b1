package sys

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Both ways to join the layers give an overlay whose files belong, on disk, to
// the ids that an idmapped layer shows inside.
func TestOverlayOfIdmappedLayers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	const host = 710_000_000
	userns, err := MakeUserNS([]syscall.SysProcIDMap{{HostID: host, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	for name, join := range map[string]func(lowers []*os.File, layer *os.File, attr int, rest []FSConfig) (*os.File, error){"detached": overlayDetached, "attached": overlayAttached} {
		t.Run(name, func(t *testing.T) {
			// As on a host, where mounts are shared.
			dir := t.TempDir()
			for _, m := range []struct {
				from  string
				flags uintptr
			}{{dir, unix.MS_BIND}, {"", unix.MS_SHARED}} {
				if err := unix.Mount(m.from, dir, "", m.flags, ""); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			for _, d := range []string{"lower", "rw", "rw/upper", "rw/work"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "lower/old"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
			old := false
			err := OnThread(func(th *Thread) error {
				if err := th.FileIDs(host, host); err != nil {
					return err
				}
				var trees []*os.File
				for _, d := range []string{"lower", "rw"} {
					m, err := CloneTree(nil, filepath.Join(dir, d), false)
					if err != nil {
						return err
					}
					defer m.Close()
					if err := Idmap(m, userns, false); err != nil {
						return err
					}
					trees = append(trees, m)
				}
				m, err := join(trees[:1], trees[1], 0, nil)
				if name == "detached" && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
					old = true
					return nil
				}
				if err != nil {
					return err
				}
				defer m.Close()
				fd, err := unix.Openat(RawFD(m), "new", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
				if err != nil {
					return err
				}
				unix.Close(fd)
				return unix.Fchmodat(RawFD(m), "old", 0o600, 0)
			})
			if err != nil {
				t.Fatal(err)
			}
			if old {
				t.Skip("this kernel takes no descriptors of detached layers (6.15)")
			}
			table, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			mounts := 0
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir) {
					mounts++
				}
			}
			if mounts != 1 {
				t.Errorf("%d mounts at or below %s, want only the test's own", mounts, dir)
			}
			for _, f := range []string{"new", "old"} {
				var st syscall.Stat_t
				if err := syscall.Stat(filepath.Join(dir, "rw/upper", f), &st); err != nil {
					t.Fatal(err)
				}
				if st.Uid != 0 || st.Gid != 0 {
					t.Errorf("%s belongs to %d:%d on disk, want root", f, st.Uid, st.Gid)
				}
			}
		})
	}
}
