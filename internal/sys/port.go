package sys

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// BindPort reserves a port of the calling thread's network namespace: a socket
// that is bound and never used. proto is "tcp" or "udp". Port 0 lets the kernel
// choose. An IPv6 socket takes IPv6 only. SO_REUSEADDR stays off, so that the
// port belongs to this socket alone (EADDRINUSE for everybody else); a TCP socket
// that does not listen answers with a reset, as a free port would.
func BindPort(proto string, at netip.AddrPort) (*os.File, netip.AddrPort, error) {
	typ := unix.SOCK_STREAM
	if proto == "udp" {
		typ = unix.SOCK_DGRAM
	}
	dom := unix.AF_INET
	if at.Addr().Is6() {
		dom = unix.AF_INET6
	}
	fd, err := unix.Socket(dom, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, at, os.NewSyscallError("socket", err)
	}
	fail := func(call string, err error) (*os.File, netip.AddrPort, error) {
		unix.Close(fd)
		return nil, at, os.NewSyscallError(call, err)
	}
	var sa unix.Sockaddr
	if dom == unix.AF_INET {
		sa = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fail("setsockopt", err)
		}
		sa = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	if typ == unix.SOCK_DGRAM {
		// What arrives before the port is translated is never read: keep as little of it as can be.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return fail("bind", err)
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		return fail("getsockname", err)
	}
	port := at.Port()
	switch g := got.(type) {
	case *unix.SockaddrInet4:
		port = uint16(g.Port)
	case *unix.SockaddrInet6:
		port = uint16(g.Port)
	default:
		return fail("getsockname", syscall.EAFNOSUPPORT)
	}
	at = netip.AddrPortFrom(at.Addr(), port)
	return os.NewFile(uintptr(fd), fmt.Sprintf("%s %s", proto, at)), at, nil
}
