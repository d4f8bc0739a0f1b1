package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// WatchDir gives a file that becomes readable when something in a directory is
// written, made, renamed or removed. What is read from it only says that.
func WatchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch %q: %w", dir, err)
	}
	const what = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, what); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.ENOSPC) {
			return nil, fmt.Errorf("cannot watch %q: no inotify watch is left (sysctl fs.inotify.max_user_watches): %w", dir, err)
		}
		return nil, fmt.Errorf("cannot watch %q: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}
