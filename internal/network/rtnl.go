package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nlenc"
)

// This file is the quick path to rtnetlink: several requests in one send, in
// the engine's network namespace or in another. What is not on the way of a
// start uses vishvananda/netlink.

// rtnl is one rtnetlink socket. It is used by one goroutine.
type rtnl struct{ conn *netlink.Conn }

// dialRTNL opens rtnetlink in netns, or in the engine's own namespace if netns is nil.
// A socket belongs to the namespace it was made in, so nobody has to stay in it.
func dialRTNL(netns *os.File) (*rtnl, error) {
	cfg := &netlink.Config{}
	if netns != nil {
		cfg.NetNS = int(netns.Fd())
	}
	c, err := netlink.Dial(syscall.NETLINK_ROUTE, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot open rtnetlink: %w", err)
	}
	_ = c.SetOption(netlink.ExtendedAcknowledge, true) // better messages only; absent before Linux 4.12
	return &rtnl{c}, nil
}

func (r *rtnl) close() { r.conn.Close() }

// do sends all requests at once. The kernel carries out each of them whatever
// happened to the others; the first error is returned.
func (r *rtnl) do(reqs ...netlink.Message) error {
	for i := range reqs {
		reqs[i].Header.Flags |= netlink.Request | netlink.Acknowledge
	}
	if _, err := r.conn.SendMessages(reqs); err != nil {
		return err
	}
	var first error
	for range reqs {
		if _, err := r.conn.Receive(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// get sends one request that has one answer.
func (r *rtnl) get(req netlink.Message) ([]byte, error) {
	req.Header.Flags |= netlink.Request
	if _, err := r.conn.Send(req); err != nil {
		return nil, err
	}
	msgs, err := r.conn.Receive()
	if err != nil {
		return nil, err
	}
	if len(msgs) == 0 {
		return nil, fmt.Errorf("the kernel gave no answer")
	}
	return msgs[0].Data, nil
}

// Attributes and flags of linux/if_link.h, linux/veth.h and linux/if_addr.h.
const (
	iflaNetNsFd   = 28
	iflaStats64   = 23
	iflaOperState = 16
	operUp        = 6 // IF_OPER_UP of linux/if.h
	iflaInfoKind  = 1
	iflaInfoData  = 2
	iflaSlaveKind = 4
	iflaSlaveData = 5
	vethInfoPeer  = 1
	brportMode    = 4 // hairpin
	ifaFNoDAD     = 0x02
	sizeofIfInfo  = syscall.SizeofIfInfomsg
	linkStatsSize = 8 * 8 // the first eight counters of rtnl_link_stats64
)

// link is what a request about a link says.
type link struct {
	index  int
	name   string
	mac    []byte
	mtu    int
	master int
	up     bool
	netns  *os.File // where it is made
}

func (l link) header() []byte {
	b := make([]byte, sizeofIfInfo)
	binary.NativeEndian.PutUint32(b[4:], uint32(l.index))
	if l.up {
		binary.NativeEndian.PutUint32(b[8:], syscall.IFF_UP)
		binary.NativeEndian.PutUint32(b[12:], syscall.IFF_UP)
	}
	return b
}

func (l link) encode(ae *netlink.AttributeEncoder) {
	if l.name != "" {
		ae.String(syscall.IFLA_IFNAME, l.name)
	}
	if len(l.mac) > 0 {
		ae.Bytes(syscall.IFLA_ADDRESS, l.mac)
	}
	if l.mtu > 0 {
		ae.Uint32(syscall.IFLA_MTU, uint32(l.mtu))
	}
	if l.master > 0 {
		ae.Uint32(syscall.IFLA_MASTER, uint32(l.master))
	}
	if l.netns != nil {
		ae.Uint32(iflaNetNsFd, uint32(l.netns.Fd()))
	}
}

// newVeth makes a pair in one step: host stays here, with its master and up;
// peer is born in its own namespace, so that it never has a name here.
func newVeth(host, peer link) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	host.encode(ae)
	ae.Nested(syscall.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(iflaInfoKind, "veth")
		info.Nested(iflaInfoData, func(data *netlink.AttributeEncoder) error {
			data.Do(vethInfoPeer|netlink.Nested, func() ([]byte, error) {
				pe := netlink.NewAttributeEncoder()
				peer.encode(pe)
				b, err := pe.Encode()
				return append(peer.header(), b...), err
			})
			return nil
		})
		return nil
	})
	return message(syscall.RTM_NEWLINK, netlink.Create|netlink.Excl, host.header(), ae)
}

// setLink changes the link that l.index or l.name names.
func setLink(l link) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	l.encode(ae)
	return message(syscall.RTM_NEWLINK, 0, l.header(), ae)
}

// setHairpin lets a card of a bridge get back its own frames.
func setHairpin(name string) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(syscall.IFLA_IFNAME, name)
	ae.Nested(syscall.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(iflaSlaveKind, "bridge")
		info.Nested(iflaSlaveData, func(data *netlink.AttributeEncoder) error {
			data.Uint8(brportMode, 1)
			return nil
		})
		return nil
	})
	return message(syscall.RTM_NEWLINK, 0, link{}.header(), ae)
}

func getLink(name string) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(syscall.IFLA_IFNAME, name)
	return message(syscall.RTM_GETLINK, 0, link{}.header(), ae)
}

func delLink(name string) (netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(syscall.IFLA_IFNAME, name)
	return message(syscall.RTM_DELLINK, 0, link{}.header(), ae)
}

// newAddr adds an address to a link. Duplicate address detection is left out:
// addresses are ours to give, and it would make a start wait for a second.
func newAddr(index int, p netip.Prefix) (netlink.Message, error) {
	h := make([]byte, syscall.SizeofIfAddrmsg)
	h[0], h[1] = family(p.Addr()), byte(p.Bits())
	if p.Addr().Is6() {
		h[2] = ifaFNoDAD
	}
	binary.NativeEndian.PutUint32(h[4:], uint32(index))
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(syscall.IFA_LOCAL, p.Addr().AsSlice())
	ae.Bytes(syscall.IFA_ADDRESS, p.Addr().AsSlice())
	if p.Addr().Is4() {
		ae.Bytes(syscall.IFA_BROADCAST, broadcast(p).AsSlice())
	}
	return message(syscall.RTM_NEWADDR, netlink.Create|netlink.Excl, h, ae)
}

// newDefaultRoute adds the default route of gateway's family.
func newDefaultRoute(index int, gateway netip.Addr) (netlink.Message, error) {
	h := make([]byte, syscall.SizeofRtMsg)
	h[0] = family(gateway)
	h[4] = syscall.RT_TABLE_MAIN
	h[5] = syscall.RTPROT_STATIC
	h[6] = syscall.RT_SCOPE_UNIVERSE
	h[7] = syscall.RTN_UNICAST
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(syscall.RTA_GATEWAY, gateway.AsSlice())
	ae.Uint32(syscall.RTA_OIF, uint32(index))
	return message(syscall.RTM_NEWROUTE, netlink.Create|netlink.Excl, h, ae)
}

func message(typ uint16, flags netlink.HeaderFlags, header []byte, ae *netlink.AttributeEncoder) (netlink.Message, error) {
	b, err := ae.Encode()
	if err != nil {
		return netlink.Message{}, fmt.Errorf("cannot encode a netlink request: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: flags},
		Data:   append(header, b...),
	}, nil
}

// readLink asks for the link called name: its index and its attributes.
func (r *rtnl) readLink(name string) (int, *netlink.AttributeDecoder, error) {
	req, err := getLink(name)
	if err != nil {
		return 0, nil, err
	}
	b, err := r.get(req)
	if err != nil {
		return 0, nil, err
	}
	if len(b) < sizeofIfInfo {
		return 0, nil, fmt.Errorf("short answer of %d bytes", len(b))
	}
	ad, err := netlink.NewAttributeDecoder(b[sizeofIfInfo:])
	return int(binary.NativeEndian.Uint32(b[4:])), ad, err
}

// linkIndex is the index of the link called name.
func (r *rtnl) linkIndex(name string) (int, error) {
	index, _, err := r.readLink(name)
	return index, err
}

// awaitLink waits until the kernel has noticed that both ends of a link are
// up. It notices later, in a worker of its own, and until then a bridge drops what
// the link sends: a first packet lost here costs its sender a second. Since Linux 6.8
// asking is enough to make it notice.
func (r *rtnl) awaitLink(name string, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Microsecond) {
		_, ad, err := r.readLink(name)
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == iflaOperState && ad.Uint8() == operUp {
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s has no carrier after %v", name, limit)
		}
	}
}

// linkStats reads the counters of the link called name as the link sees them.
func (r *rtnl) linkStats(name string) (Stats, error) {
	_, ad, err := r.readLink(name)
	if err != nil {
		return Stats{}, err
	}
	for ad.Next() {
		if ad.Type() != iflaStats64 {
			continue
		}
		s := ad.Bytes()
		if len(s) < linkStatsSize {
			return Stats{}, fmt.Errorf("short counters of %d bytes", len(s))
		}
		n := func(i int) uint64 { return nlenc.Uint64(s[8*i : 8*i+8]) }
		return Stats{
			RxPackets: n(0), TxPackets: n(1), RxBytes: n(2), TxBytes: n(3),
			RxErrors: n(4), TxErrors: n(5), RxDropped: n(6), TxDropped: n(7),
		}, nil
	}
	return Stats{}, fmt.Errorf("no counters in the answer")
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return syscall.AF_INET
	}
	return syscall.AF_INET6
}
