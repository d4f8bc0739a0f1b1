package sys

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetWinsize sets a terminal's size in characters.
func SetWinsize(tty *os.File, rows, cols uint16) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	err = raw.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err == nil {
		err = ioctl
	}
	if err != nil {
		return fmt.Errorf("cannot set the size of a terminal: %w", err)
	}
	return nil
}

// OpenPTYIn makes a pseudo terminal in the devpts instance whose root directory
// is pts (O_PATH). Nothing is resolved by a path that somebody else could have
// changed: pts is the file system itself (CVE-2025-52565).
func OpenPTYIn(pts *os.File) (master, terminal *os.File, err error) {
	fd, err := unix.Openat(RawFD(pts), "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot open a pseudo terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("cannot unlock a pseudo terminal: %w", err)
	}
	peer, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("cannot open the terminal end of a pseudo terminal: %w", errno)
	}
	return os.NewFile(uintptr(fd), "ptmx"), os.NewFile(peer, "pts"), nil
}
