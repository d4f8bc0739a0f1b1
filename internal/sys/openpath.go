package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// OpenPath opens what a path of the host names without opening its contents
// (O_PATH): the descriptor pins that very file or directory, whatever happens
// to the name. Symbolic links are followed: the path is the caller's own.
func OpenPath(path string) (*os.File, error) {
	for {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// OpenPathInRoot is OpenPath below an open directory, which no ".." and no
// symbolic link can leave.
func OpenPathInRoot(root *os.File, path string) (*os.File, error) {
	return OpenInRoot(root, path, unix.O_PATH, 0)
}
