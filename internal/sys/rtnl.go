package sys

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// RTNL is a route netlink socket of the network namespace it was opened in. It
// knows the five requests by which a guest brings up its own interfaces; the
// host side, which needs more, has a library. Not for concurrent use.
type RTNL struct {
	fd  int
	seq uint32
}

// OpenRTNL opens a route netlink socket.
func OpenRTNL() (*RTNL, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("cannot open a netlink socket: %w", err)
	}
	return &RTNL{fd: fd}, nil
}

// Close closes the socket.
func (n *RTNL) Close() error { return unix.Close(n.fd) }

// Link is one network interface.
type Link struct {
	Index int
	Name  string
	MAC   [6]byte // zero for those that have none
}

// Links lists the interfaces.
func (n *RTNL) Links() ([]Link, error) {
	var links []Link
	err := n.call(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(0, 0, 0), func(b []byte) {
		if len(b) < unix.SizeofIfInfomsg {
			return
		}
		l := Link{Index: int(int32(binary.NativeEndian.Uint32(b[4:])))}
		eachAttr(b[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
			switch kind {
			case unix.IFLA_IFNAME:
				l.Name = unix.ByteSliceToString(v)
			case unix.IFLA_ADDRESS:
				if len(v) == len(l.MAC) {
					copy(l.MAC[:], v)
				}
			}
		})
		links = append(links, l)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list network interfaces: %w", err)
	}
	return links, nil
}

// SetLink renames an interface (empty: leave), sets its MTU in bytes (0: leave)
// and brings it up. A name can only be given to an interface that is down.
func (n *RTNL) SetLink(index int, name string, mtu int) error {
	b := ifinfo(index, unix.IFF_UP, unix.IFF_UP)
	if name != "" {
		b = attr(b, unix.IFLA_IFNAME, append([]byte(name), 0))
	}
	if mtu > 0 {
		b = attr(b, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu)))
	}
	if err := n.call(unix.RTM_NEWLINK, unix.NLM_F_ACK, b, nil); err != nil {
		return fmt.Errorf("cannot set up network interface %d %q: %w", index, name, err)
	}
	return nil
}

// AddAddress gives an interface an address; one that it has is no error. IPv6
// addresses are used at once, without duplicate address detection, because
// whoever chose it knows that it is free.
func (n *RTNL) AddAddress(index int, p netip.Prefix) error {
	a := p.Addr().Unmap()
	flags := 0
	b := []byte{family(a), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	if a.Is4() {
		b = attr(b, unix.IFA_LOCAL, a.AsSlice())
		if p.Bits() < 31 {
			last := a.As4()
			host := uint32(1)<<(32-p.Bits()) - 1
			binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|host)
			b = attr(b, unix.IFA_BROADCAST, last[:])
		}
	} else {
		flags = unix.IFA_F_NODAD
	}
	b = attr(b, unix.IFA_ADDRESS, a.AsSlice())
	b = attr(b, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, uint32(flags)))
	err := n.call(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, b, nil)
	if err != nil && err != syscall.EEXIST {
		return fmt.Errorf("cannot add address %s to network interface %d: %w", p, index, err)
	}
	return nil
}

// AddDefaultRoute makes gateway the way out by an interface. The gateway need
// not be inside one of the interface's subnets (RTNH_F_ONLINK).
func (n *RTNL) AddDefaultRoute(index int, gateway netip.Addr) error {
	gateway = gateway.Unmap()
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = family(gateway)
	b[4] = unix.RT_TABLE_MAIN
	b[5] = unix.RTPROT_BOOT
	b[6] = unix.RT_SCOPE_UNIVERSE
	b[7] = unix.RTN_UNICAST
	binary.NativeEndian.PutUint32(b[8:], unix.RTNH_F_ONLINK)
	b = attr(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = attr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	err := n.call(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b, nil)
	if err != nil && err != syscall.EEXIST {
		return fmt.Errorf("cannot route by gateway %s: %w", gateway, err)
	}
	return nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// attr appends an attribute, padded to four bytes.
func attr(b []byte, kind uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func eachAttr(b []byte, f func(kind uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:]), b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// call sends one request and reads its answers until the acknowledgement or the
// end of the dump. The error is the kernel's errno.
func (n *RTNL) call(kind, flags uint16, payload []byte, each func([]byte)) error {
	n.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, n.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, payload...)
	if err := unix.Sendto(n.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for {
		k, _, err := unix.Recvfrom(n.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		for msg := buf[:k]; len(msg) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(msg))
			if size < unix.SizeofNlMsghdr || size > len(msg) {
				return syscall.EBADMSG
			}
			body := msg[unix.SizeofNlMsghdr:size]
			switch t := binary.NativeEndian.Uint16(msg[4:]); {
			case binary.NativeEndian.Uint32(msg[8:]) != n.seq: // of an earlier call that failed
			case t == unix.NLMSG_DONE:
				return nil
			case t == unix.NLMSG_ERROR:
				if len(body) < 4 {
					return syscall.EBADMSG
				}
				if e := int32(binary.NativeEndian.Uint32(body)); e != 0 {
					return syscall.Errno(-e)
				}
				return nil
			case each != nil:
				each(body)
			}
			msg = msg[min((size+3)&^3, len(msg)):]
		}
	}
}
