package network

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"
)

var ctx = context.Background()

// Every way that a packet can take, with and without br_netfilter, with what
// the kernel offers for IPv6 forwarding and with what older ones do.
func TestEveryWay(t *testing.T) {
	for name, c := range map[string]struct {
		filtered string
		old      bool
	}{"br_netfilter": {"1", false}, "plain": {"0", false}, "before-6.17": {"0", true}} {
		t.Run(name, func(t *testing.T) { everyWay(t, c.filtered, c.old) })
	}
}

func everyWay(t *testing.T, filtered string, old bool) {
	w := newWorld(t)
	filterBridges(t, filtered)
	before := w.snapshot()
	m := w.open(Config{Linger: -1})
	defer m.Close()
	m.noForce = old
	if _, err := readSysctl("net/ipv6/conf/lo/force_forwarding"); err != nil {
		old = true // the kernel itself
	}
	if got := w.snapshot(); got != before {
		t.Fatalf("Open changed the host:\n%s", got)
	}
	w.serve(w.outside, 7000, "outside")
	b := w.plug(m, "web", Request{Hostname: "web", Ports: []Port{
		{Proto: TCP, HostPort: 8080, ContainerPort: 80}, {Proto: UDP, HostPort: 8080, ContainerPort: 80},
	}})
	w.serve(b.ns, 80, "web")
	other := w.plug(m, "other", Request{Hostname: "other"})
	inside := fmt.Sprintf("%s:80", b.Address.Addr())
	inside6 := fmt.Sprintf("[%s]:80", b.Address6.Addr())

	for _, proto := range []string{TCP, UDP} {
		t.Run(proto, func(t *testing.T) {
			w := &world{t: t, outside: w.outside}
			// Out: the neighbour sees the host, not the container.
			w.answers(b.ns, proto, "192.0.2.9:7000", "outside 192.0.2.1")
			w.answers(b.ns, proto, "[2001:db8::9]:7000", "outside 2001:db8::1")
			// In: the container sees the true client.
			w.answers(w.outside, proto, "192.0.2.1:8080", "web 192.0.2.9")
			w.answers(w.outside, proto, "[2001:db8::1]:8080", "web 2001:db8::9")
			// From the host, by every address that it has.
			w.answers(nil, proto, "192.0.2.1:8080", "web")
			w.answers(nil, proto, "127.0.0.1:8080", "web")
			w.answers(nil, proto, b.Gateway.String()+":8080", "web")
			w.answers(nil, proto, inside, "web")
			w.answers(nil, proto, "[2001:db8::1]:8080", "web")
			w.answers(nil, proto, "["+b.Gateway6.String()+"]:8080", "web")
			w.answers(nil, proto, inside6, "web")
			if proto == TCP { // with UDP a client that takes localhost for ::1 never tries again
				w.answers(nil, proto, "localhost:8080", "web")
			}
			// Between containers, directly and by the host's address; and back to itself.
			w.answers(other.ns, proto, inside, "web "+other.Address.Addr().String())
			w.answers(other.ns, proto, inside6, "web "+other.Address6.Addr().String())
			w.answers(other.ns, proto, "192.0.2.1:8080", "web")
			w.answers(other.ns, proto, "[2001:db8::1]:8080", "web")
			w.answers(other.ns, proto, b.Gateway.String()+":8080", "web")
			w.answers(b.ns, proto, "192.0.2.1:8080", "web")
			w.answers(b.ns, proto, "[2001:db8::1]:8080", "web")
		})
	}

	s, err := m.Stats(ctx, "web")
	check(t, err)
	if s.RxBytes == 0 || s.TxBytes == 0 || s.RxPackets == 0 || s.TxPackets == 0 {
		t.Errorf("Stats: %+v", s)
	}
	// A client that tries ::1 first is refused at once, so that it tries 127.0.0.1 next.
	if _, err := w.ask(nil, TCP, "[::1]:8080", 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("[::1]:8080: %v; want a refusal", err)
	}
	// Uplinks that heard router advertisements still do.
	if v, _ := readSysctl("net/ipv6/conf/all/forwarding"); (v == "1") != old {
		t.Errorf("net.ipv6.conf.all.forwarding is %s", v)
	}
	if v, _ := readSysctl("net/ipv6/conf/up0/accept_ra"); (v == "2") != old {
		t.Errorf("accept_ra of the uplink is %s", v)
	}
	check(t, m.Release(ctx, "web"))
	check(t, m.Release(ctx, "web"))
	check(t, m.Release(ctx, "other"))
	m.background.Wait()
	if got := w.snapshot(); got != before {
		t.Errorf("after the last Release the host is\n%s\nit was\n%s", got, before)
	}
}

// filterBridges makes br_netfilter hand bridged packets to the IP firewall, or not.
func filterBridges(t *testing.T, on string) {
	for _, s := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if err := writeSysctl(s, on); err != nil && on == "1" {
			t.Skip("this kernel has no br_netfilter: ", err)
		}
	}
	t.Cleanup(func() {
		for _, s := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
			_ = writeSysctl(s, "1")
		}
	})
}

// A port published on 127.0.0.1 is for the host alone, and publishing anything
// opens nothing else (CVE-2020-8558 and its relatives).
func TestLoopbackOnly(t *testing.T) {
	t.Run("plain", func(t *testing.T) { loopbackOnly(t, "0", "1") })
	t.Run("br_netfilter", func(t *testing.T) { loopbackOnly(t, "1", "0") })
}

// router is whether the host forwards between all its interfaces, as one with Docker does.
func loopbackOnly(t *testing.T, filtered, router string) {
	w := newWorld(t)
	filterBridges(t, filtered)
	for _, name := range []string{"net/ipv4/ip_forward", conf6All} {
		host, err := readSysctl(name)
		check(t, err)
		check(t, writeSysctl(name, router))
		t.Cleanup(func() { check(t, writeSysctl(name, host)) })
	}
	m := w.open(Config{Linger: -1})
	defer m.Close()
	b := w.plug(m, "db", Request{Hostname: "db", Ports: []Port{
		{Proto: TCP, HostIP: "127.0.0.1", HostPort: 5432, ContainerPort: 5432},
		{Proto: UDP, HostIP: "127.0.0.1", HostPort: 5432, ContainerPort: 5432},
		{Proto: TCP, HostIP: "192.0.2.1", HostPort: 5433, ContainerPort: 5433},
	}})
	defer m.Release(ctx, "db")
	w.serve(b.ns, 5432, "db")
	w.serve(b.ns, 5433, "public")
	w.serve(b.ns, 5434, "unpublished")
	w.serve(nil, 9000, "host-any")
	other := w.plug(m, "other", Request{Hostname: "other"})
	defer m.Release(ctx, "other")

	w.answers(nil, TCP, "127.0.0.1:5432", "db")
	w.answers(nil, UDP, "127.0.0.1:5432", "db")
	w.answers(nil, TCP, "192.0.2.1:5433", "public")
	w.answers(w.outside, TCP, "192.0.2.1:5433", "public 192.0.2.9")

	// Neither the neighbour nor another container reaches it by another address of the host.
	for _, from := range []*box{{ns: w.outside}, other} {
		w.silent(from.ns, TCP, "192.0.2.1:5432")
		w.silent(from.ns, UDP, "192.0.2.1:5432")
		w.silent(from.ns, TCP, b.Gateway.String()+":5432")
	}
	w.silent(nil, TCP, "192.0.2.1:5432")
	w.silent(nil, TCP, "127.0.0.1:5433")

	// A neighbour that routes the containers' network, and 127/8, to the host.
	inNetns(t, w.outside, func() {
		out, err := vnl.LinkByName("out0")
		check(t, err)
		check(t, vnl.RouteAdd(&vnl.Route{LinkIndex: out.Attrs().Index, Dst: ipNet(m.record.Subnet.Addr(), m.record.Subnet.Bits()), Gw: hostIP.AsSlice()}))
		check(t, vnl.RouteAdd(&vnl.Route{LinkIndex: out.Attrs().Index, Dst: ipNet(m.record.Subnet6.Addr(), 64), Gw: hostIP6.AsSlice()}))
		martian(t, "out0")
	})
	inNetns(t, other.ns, func() { martian(t, cardName) })
	for _, port := range []int{5432, 5433, 5434} {
		w.silent(w.outside, TCP, fmt.Sprintf("%s:%d", b.Address.Addr(), port))
		w.silent(w.outside, TCP, fmt.Sprintf("[%s]:%d", b.Address6.Addr(), port))
	}
	// The attack is real only if the packets come as far as the host.
	run(t, "nft", "add table ip seen; add chain ip seen c { type filter hook prerouting priority -400; };"+
		`add rule ip seen c iifname up0 ip daddr 127.0.0.1 counter; add rule ip seen c iifname tb0 ip daddr 127.0.0.1 counter`)
	hits := w.hits.Load()
	for _, from := range []*box{{ns: w.outside}, other} {
		w.silent(from.ns, TCP, "127.0.0.1:5432")
		w.silent(from.ns, UDP, "127.0.0.1:5432")
		w.silent(from.ns, TCP, "127.0.0.1:9000")
		w.silent(from.ns, UDP, "127.0.0.1:9000")
	}
	if n := w.hits.Load() - hits; n != 0 {
		t.Errorf("%d packets to 127.0.0.1 came through to a server", n)
	}
	if seen := run(t, "nft", "list", "table", "ip", "seen"); strings.Count(seen, "counter") != 2 || strings.Contains(seen, "counter packets 0 ") {
		t.Errorf("the attack never reached the host:\n%s", seen)
	}
}

// martian makes the present namespace send packets for 127/8 to the host by a
// link, as an attacker on the same wire would.
func martian(t *testing.T, name string) {
	check(t, writeSysctl("net/ipv4/conf/all/route_localnet", "1"))
	check(t, writeSysctl("net/ipv4/conf/"+name+"/route_localnet", "1"))
	lo, err := vnl.LinkByName("lo")
	check(t, err)
	addrs, err := vnl.AddrList(lo, vnl.FAMILY_V4)
	check(t, err)
	for _, a := range addrs {
		check(t, vnl.AddrDel(lo, &a)) // else 127/8 is always local
	}
	l, err := vnl.LinkByName(name)
	check(t, err)
	gw := hostIP
	if name == cardName {
		routes, err := vnl.RouteList(l, vnl.FAMILY_V4)
		check(t, err)
		for _, r := range routes {
			if r.Gw != nil {
				gw, _ = addrOf(r.Gw)
			}
		}
	}
	check(t, vnl.RouteReplace(&vnl.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(loopbackNet, 8), Gw: gw.AsSlice()}))
}
