package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// PortTakenError says that a port of the host cannot be published because
// somebody has it. It is errdefs.ErrInternal, which Docker's API shows as status 500.
type PortTakenError struct {
	Port   Port
	Holder string // id of the container that published it; "" if it is somebody else
}

func (e *PortTakenError) Error() string {
	at := netip.AddrPortFrom(netip.MustParseAddr(e.Port.HostIP), e.Port.HostPort)
	s := fmt.Sprintf("cannot publish port %d/%s: already in use on %s (port is already allocated): ", e.Port.HostPort, e.Port.Proto, e.Port.HostIP)
	if e.Holder != "" {
		return s + fmt.Sprintf("container %.12s publishes it; stop it or choose another host port", e.Holder)
	}
	flag := "t"
	if e.Port.Proto == UDP {
		flag = "u"
	}
	return s + fmt.Sprintf("`ss -l%snp 'sport = :%d'` shows who has %s; stop that or choose another host port", flag, e.Port.HostPort, at)
}

// Unwrap gives the kind.
func (e *PortTakenError) Unwrap() error { return errdefs.ErrInternal }

// checkPort refuses what is not a port.
func checkPort(p Port) error {
	if p.Proto != TCP && p.Proto != UDP {
		return fmt.Errorf("cannot publish port %d/%s: only tcp and udp can be published: %w", p.ContainerPort, p.Proto, errdefs.ErrInvalidArgument)
	}
	if p.ContainerPort == 0 {
		return fmt.Errorf("cannot publish port 0/%s: the container's port is missing: %w", p.Proto, errdefs.ErrInvalidArgument)
	}
	if p.HostIP != "" {
		a, err := netip.ParseAddr(p.HostIP)
		if err == nil && a.Is6() && a.IsLoopback() {
			return fmt.Errorf("cannot publish port %d/%s on ::1: Linux translates no IPv6 loopback address; use 127.0.0.1: %w", p.ContainerPort, p.Proto, errdefs.ErrInvalidArgument)
		}
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("cannot publish port %d/%s on %q: not an address: %w", p.ContainerPort, p.Proto, p.HostIP, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// bindPorts binds all ports or none. v6 tells whether an empty HostIP means
// IPv6 as well.
func bindPorts(want []Port, v6 bool) (bound []Port, held []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(held)
			bound, held = nil, nil
		}
	}()
	for _, p := range want {
		b, h, err := bindPort(p, v6)
		held = append(held, h...)
		if err != nil {
			return bound, held, err
		}
		bound = append(bound, b...)
	}
	return bound, held, nil
}

// bindPort binds one port on every address that it means, with one number on
// all of them.
func bindPort(p Port, v6 bool) ([]Port, []*os.File, error) {
	var ips []netip.Addr
	switch {
	case p.HostIP != "":
		ips = []netip.Addr{netip.MustParseAddr(p.HostIP)}
		if ips[0].Is6() && !v6 {
			return nil, nil, fmt.Errorf("cannot publish port %d/%s on %s: the bridge has no IPv6: %w", p.ContainerPort, p.Proto, p.HostIP, errdefs.ErrInvalidArgument)
		}
	case v6:
		ips = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	default:
		ips = []netip.Addr{netip.IPv4Unspecified()}
	}
	// A number that the kernel chose for the first address may be taken on the second: choose again.
	tries := 1
	if p.HostPort == 0 && len(ips) > 1 {
		tries = 32
	}
	var err error
	for range tries {
		var bound []Port
		var held []*os.File
		number := p.HostPort
		for _, ip := range ips {
			var f *os.File
			var at netip.AddrPort
			if f, at, err = sys.BindPort(p.Proto, netip.AddrPortFrom(ip, number)); err != nil {
				err = bindError(p, ip, number, err)
				break
			}
			number = at.Port()
			held = append(held, f)
			bound = append(bound, Port{Proto: p.Proto, HostIP: ip.String(), HostPort: number, ContainerPort: p.ContainerPort})
		}
		if err == nil {
			return bound, held, nil
		}
		closeAll(held)
	}
	return nil, nil, err
}

func bindError(p Port, ip netip.Addr, number uint16, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return &PortTakenError{Port: Port{Proto: p.Proto, HostIP: ip.String(), HostPort: number, ContainerPort: p.ContainerPort}}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("cannot publish port %d/%s: the host has no address %s; `ip -br address` lists those it has: %w", number, p.Proto, ip, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("cannot publish port %d/%s on %s: %w", number, p.Proto, ip, err)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
