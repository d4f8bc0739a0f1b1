package sys

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenInRoot opens path as a process whose root directory is root would: ".."
// and absolute symbolic links stay inside (openat2 with RESOLVE_IN_ROOT, Linux
// 5.6), magic links of proc are refused. The error is an *os.PathError with
// the kernel's errno. O_CLOEXEC and O_NOCTTY are added to flags (of open(2)).
func OpenInRoot(root *os.File, path string, flags int, perm uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NOCTTY
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(perm)
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		// EAGAIN: a rename raced with the resolution of ".."; trying again is what openat2(2) asks for.
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// MkdirInRoot makes directory path and its parents below root, as OpenInRoot
// resolves them, and returns it opened with O_PATH. Directories that exist stay
// as they are; new ones have mode perm. A dangling symbolic link is ENOENT.
func MkdirInRoot(root *os.File, path string, perm uint32) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	dir, err := OpenInRoot(root, path, flags, 0)
	if !errors.Is(err, syscall.ENOENT) {
		return dir, err
	}
	clean := strings.TrimRight(path, "/")
	at := strings.LastIndexByte(clean, '/')
	name := clean[at+1:]
	if name == "" || name == "." || name == ".." {
		return nil, err
	}
	var parent *os.File
	if at <= 0 {
		parent, err = OpenInRoot(root, "/", flags, 0)
	} else {
		parent, err = MkdirInRoot(root, clean[:at], perm)
	}
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(int(parent.Fd()), name, perm); err != nil && err != syscall.EEXIST {
		return nil, &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return OpenInRoot(root, path, flags, 0)
}

// RemoveAt removes one entry of an open directory: a file, a link (not what it
// points to), or an empty directory.
func RemoveAt(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == syscall.EISDIR {
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return nil
}
