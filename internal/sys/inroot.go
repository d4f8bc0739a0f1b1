package sys

import (
	"os"
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
