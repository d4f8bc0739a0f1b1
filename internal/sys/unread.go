package sys

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Unread tells how many bytes of memory hold what was written to a unix socket
// and its peer has not read yet; 0 for other connections.
func Unread(conn net.Conn) (n int, err error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); e != nil {
		return 0, e
	}
	return n, err
}

// HungUp tells whether the peer of a connection has closed both directions: a
// peer that only sends nothing more has not.
func HungUp(conn syscall.Conn) (gone bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	e := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}} // hang-ups and errors are always told
		for {
			if _, err = unix.Poll(p, 0); err != unix.EINTR {
				break
			}
		}
		gone = p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone, errors.Join(e, err)
}
