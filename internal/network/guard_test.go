package network

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"
)

// A VM's root can send whatever frames it likes. What claims an address outside
// the bridge's networks, the host's loopback above all, gets nowhere.
func TestSpoof(t *testing.T) {
	w := newWorld(t)
	m := w.open(Config{Linger: -1})
	defer m.Close()
	b := w.plug(m, "liar", bridgeRequest("liar"))
	defer m.Release(ctx, "liar")
	w.serve(nil, 9000, "host")
	w.serve(w.outside, 7000, "outside")
	say := func(source, to string) {
		inNetns(t, b.ns, func() {
			l, err := vnl.LinkByName(cardName)
			check(t, err)
			a := netip.MustParseAddr(source)
			check(t, writeSysctl("net/ipv4/conf/eth0/route_localnet", "1"))
			_ = vnl.AddrAdd(l, &vnl.Addr{IPNet: ipNet(a, a.BitLen()), Flags: ifaFNoDAD})
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: a.AsSlice()}}
			c, err := d.Dial("udp", to)
			check(t, err)
			defer c.Close()
			_, err = c.Write([]byte("x"))
			check(t, err)
		})
	}
	own, own6 := b.Address.Addr().String(), b.Address6.Addr().String()
	for _, c := range []struct {
		source, to string
		arrives    bool
	}{
		{own, "192.0.2.1:9000", true},
		{own, "192.0.2.9:7000", true},
		{own6, "[2001:db8::9]:7000", true},
		{"127.0.0.9", "192.0.2.1:9000", false},
		{"192.0.2.77", "192.0.2.1:9000", false},
		{"203.0.113.1", "192.0.2.9:7000", false},
		{"2001:db8::77", "[2001:db8::1]:9000", false},
		{"2001:db8:1::1", "[2001:db8::9]:7000", false},
	} {
		// The host's own check of the way back (rp_filter) is off, so that the table alone counts.
		for _, link := range []string{"all", "tb0"} {
			check(t, writeSysctl("net/ipv4/conf/"+link+"/rp_filter", "0"))
		}
		before := w.hits.Load()
		say(c.source, c.to)
		for range 20 {
			if !c.arrives {
				time.Sleep(200 * time.Millisecond)
				break
			}
			if w.hits.Load() != before {
				break
			}
			time.Sleep(100 * time.Millisecond) // a fresh uplink looks for doubles of its IPv6 address first
		}
		if got := w.hits.Load() != before; got != c.arrives {
			t.Errorf("from %s to %s: arrived: %v", c.source, c.to, got)
		}
	}
}

// Where the host's only resolver listens on its loopback, containers reach it
// at the gateway's port 53, and nothing else on that loopback.
func TestLoopbackResolver(t *testing.T) {
	w := newWorld(t)
	m := w.open(Config{Linger: -1})
	defer m.Close()
	b := w.plug(m, "a", bridgeRequest("a"))
	defer m.Release(ctx, "a")
	resolver := netip.MustParseAddr("127.0.0.35")
	for _, port := range []int{53, 54} {
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: resolver.AsSlice(), Port: port})
		check(t, err)
		defer u.Close()
		go func() {
			buf := make([]byte, 512)
			for {
				n, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				u.WriteTo(append([]byte("resolved "), buf[:n]...), from)
			}
		}()
	}
	w.silent(b.ns, UDP, b.Gateway.String()+":53")
	// The test cannot change the machine's /etc/resolv.conf; the table is made as if it had been so.
	m.mu.Lock()
	rules := *m.rules
	rules.resolver = resolver
	m.rules = &rules
	m.mu.Unlock()
	check(t, m.table().create(m.wantedElements()))
	w.answers(b.ns, UDP, b.Gateway.String()+":53", "resolved hello")
	w.silent(b.ns, UDP, b.Gateway.String()+":54")
	w.silent(w.outside, UDP, "192.0.2.1:53")
	if out := run(t, "nft", "list", "table", "inet", "proatest"); !strings.Contains(out, "dnat ip to 127.0.0.35:53") {
		t.Errorf("the table is\n%s", out)
	}
}
