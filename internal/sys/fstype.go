package sys

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// FileSystemType is the kernel's name of the file system that path lies on, as
// this mount namespace shows it: "ext4", "overlay". statfs(2) knows numbers
// only, of which ext2, ext3 and ext4 have the same.
func FileSystemType(path string) (string, error) {
	f, err := OpenPath(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	id, err := mountID(f)
	if err != nil {
		return "", fmt.Errorf("cannot tell the file system of %q: %w", path, err)
	}
	mounts, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("cannot list mounts: %w", err)
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	lines.Buffer(nil, 1<<20) // options can fill a page
	for lines.Scan() {
		// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
		if words := strings.Fields(lines.Text()); len(words) == 0 || words[0] != id {
			continue
		}
		if _, after, ok := strings.Cut(lines.Text(), " - "); ok {
			name, _, _ := strings.Cut(after, " ")
			return name, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("cannot list mounts: %w", err)
	}
	return "", fmt.Errorf("cannot tell the file system of %q: mount %s is in no list", path, id)
}

// mountID is the number of the mount that an open file lies on.
func mountID(f *os.File) (string, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", RawFD(f)))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("descriptor %d names no mount", RawFD(f))
}

// SameMount says whether two open files lie on one mount.
func SameMount(a, b *os.File) (bool, error) {
	x, err := mountID(a)
	if err != nil {
		return false, err
	}
	y, err := mountID(b)
	return x == y, err
}

// PathOf is where an open file is now, as the calling thread sees it; in a
// detached mount, from the mount's root on. It is a name and no proof: another
// process can rename the file.
func PathOf(f *os.File) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", RawFD(f)))
}
