package network

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// candidates are the IPv4 networks tried in turn. 172.17 to 172.20 are left to
// Docker and Compose on the same host, 10/8 to companies' own networks.
var candidates = []string{
	"172.30.0.0/16", "172.29.0.0/16", "172.28.0.0/16", "172.27.0.0/16", "172.26.0.0/16", "172.25.0.0/16", "172.24.0.0/16",
	"192.168.240.0/20", "192.168.224.0/20", "192.168.208.0/20", "192.168.192.0/20", "10.213.0.0/16", "10.197.0.0/16",
}

// chooseSubnet takes the first candidate that no route, address or nameserver
// of the host lies in.
func chooseSubnet(bridge string) (netip.Prefix, error) {
	taken, err := hostNetworks(bridge)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, c := range candidates {
		p := netip.MustParsePrefix(c)
		if _, who := overlap(p, taken); who == "" {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("cannot find a free IPv4 network for bridge %q: the host has routes to all of %s; choose one with --subnet: %w",
		bridge, strings.Join(candidates, ", "), errdefs.ErrFailedPrecondition)
}

// newSubnet6 makes a unique local /64 with a random global id (RFC 4193).
func newSubnet6() (netip.Prefix, error) {
	var a [16]byte
	a[0] = 0xfd
	if _, err := rand.Read(a[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot choose an IPv6 network: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64), nil
}

// hostHasIPv6 is whether the kernel has IPv6 and it is not switched off.
func hostHasIPv6() bool {
	b, err := os.ReadFile(sysctlRoot + "net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}

// hostNetworks lists what the host reaches without the default route, with
// the words that name each. What belongs to bridge is left out.
func hostNetworks(bridge string) (map[netip.Prefix]string, error) {
	out := map[netip.Prefix]string{}
	routes, err := complete(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's routes: %w", err)
	}
	links, err := complete(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		if !ok || p.Bits() == 0 || names[r.LinkIndex] == bridge {
			continue
		}
		out[p.Masked()] = fmt.Sprintf("route to %s by %s", p.Masked(), names[r.LinkIndex])
	}
	addrs, err := complete(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && names[a.LinkIndex] != bridge {
			out[p.Masked()] = fmt.Sprintf("address %s of %s", p, names[a.LinkIndex])
		}
	}
	for _, ns := range nameservers(readResolvConf(hostResolvConf())) {
		if a, err := netip.ParseAddr(ns); err == nil && !a.IsLoopback() {
			out[netip.PrefixFrom(a.WithZone(""), a.BitLen())] = "nameserver " + ns
		}
	}
	return out, nil
}

func overlap(p netip.Prefix, taken map[netip.Prefix]string) (netip.Prefix, string) {
	for t, who := range taken {
		if t.Overlaps(p) {
			return t, who
		}
	}
	return netip.Prefix{}, ""
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), true
}

// parseSubnet checks a network of the configuration.
func parseSubnet(s string, v6 bool) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("cannot use subnet %q: not in CIDR form, such as 172.30.0.0/16: %w", s, errdefs.ErrInvalidArgument)
	}
	if p.Addr().Is6() != v6 {
		return p, fmt.Errorf("cannot use subnet %q: wrong address family: %w", s, errdefs.ErrInvalidArgument)
	}
	if p.Bits() > p.Addr().BitLen()-3 || (v6 && p.Bits() > 96) {
		return p, fmt.Errorf("cannot use subnet %q: too small: %w", s, errdefs.ErrInvalidArgument)
	}
	return p.Masked(), nil
}

// gateway is the first address of a network: the bridge's own.
func gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}

// nth is the address of p with number n.
func nth(p netip.Prefix, n uint32) netip.Addr {
	if p.Addr().Is4() {
		a := p.Masked().Addr().As4()
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+n)
		return netip.AddrFrom4(a)
	}
	a := p.Masked().Addr().As16()
	binary.BigEndian.PutUint32(a[12:], n)
	return netip.AddrFrom16(a)
}

// number is the inverse of nth for IPv4.
func number(p netip.Prefix, a netip.Addr) uint32 {
	base, x := p.Masked().Addr().As4(), a.As4()
	return binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(base[:])
}

// macOf makes the locally administered MAC address of an IPv4 address, as
// Docker does: the same address always has the same MAC, so no neighbour's
// table goes stale when an address is given to somebody else.
func macOf(a netip.Addr) net.HardwareAddr {
	x := a.As4()
	return net.HardwareAddr{0x02, 0x42, x[0], x[1], x[2], x[3]}
}

// parseMAC takes a unicast MAC address of six bytes.
func parseMAC(s string) (net.HardwareAddr, error) {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 || m[0]&1 != 0 {
		return nil, fmt.Errorf("cannot use MAC address %q: want six bytes of a unicast address, such as 02:42:ac:1e:00:02: %w", s, errdefs.ErrInvalidArgument)
	}
	return m, nil
}
