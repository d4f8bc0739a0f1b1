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
	info, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", RawFD(f)))
	if err != nil {
		return "", fmt.Errorf("cannot tell the file system of %q: %w", path, err)
	}
	id := ""
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id = strings.TrimSpace(v)
		}
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
