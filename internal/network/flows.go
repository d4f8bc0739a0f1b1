package network

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	vnl "github.com/vishvananda/netlink"
)

// forgetFlows makes the kernel forget UDP flows to the published ports of e and
// to its addresses. A flow keeps the translation, or the lack of one, that it had
// with its first packet; a client that keeps sending would go on talking to
// nobody, or to whoever gets the address next. TCP needs none of this: a new
// connection is a new flow.
func (m *Manager) forgetFlows(e *Endpoint) error {
	for _, six := range []bool{false, true} {
		f := &udpFlows{ports: map[uint16]bool{}, to: e.Address.Addr()}
		fam := vnl.InetFamily(vnl.FAMILY_V4)
		if six {
			f.to, fam = e.Address6.Addr(), vnl.FAMILY_V6
		}
		for _, p := range e.Ports {
			if ip, err := netip.ParseAddr(p.HostIP); err == nil && ip.Is6() == six && p.Proto == UDP {
				f.ports[p.HostPort] = true
			}
		}
		if len(f.ports) == 0 {
			continue
		}
		if _, err := vnl.ConntrackDeleteFilters(vnl.ConntrackTable, fam, f); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("cannot make the kernel forget old UDP flows of %.12s: %w", e.ID, err)
		}
	}
	return nil
}

// udpFlows matches flows to one of the ports, or that are answered by to.
type udpFlows struct {
	ports map[uint16]bool
	to    netip.Addr
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f *udpFlows) MatchConntrackFlow(flow *vnl.ConntrackFlow) bool {
	if flow.Forward.Protocol != syscall.IPPROTO_UDP {
		return false
	}
	a, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return f.ports[flow.Forward.DstPort] || (ok && a.Unmap() == f.to)
}
