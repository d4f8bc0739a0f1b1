package sys

import (
	"net"

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
