package network

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
	vnl "github.com/vishvananda/netlink"
)

func TestPick(t *testing.T) {
	sub := netip.MustParsePrefix("10.9.0.0/29") // .1 is the gateway, .2 to .6 can be given
	used := map[netip.Addr]string{}
	last := uint32(1)
	var got []string
	for range 5 {
		a, err := pick(sub, used, "", last)
		check(t, err)
		used[a], last = "x", number(sub, a)
		got = append(got, a.String())
	}
	if got[0] != "10.9.0.2" || got[4] != "10.9.0.6" {
		t.Errorf("given in turn: %v", got)
	}
	if _, err := pick(sub, used, "", last); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("a full network: %v", err)
	}
	delete(used, netip.MustParseAddr("10.9.0.3"))
	delete(used, netip.MustParseAddr("10.9.0.6"))
	if a, err := pick(sub, used, "", last); err != nil || a.String() != "10.9.0.3" {
		t.Errorf("after .6 the next free one is .3: got %v, %v", a, err)
	}
	if a, err := pick(sub, used, "10.9.0.6", last); err != nil || a.String() != "10.9.0.6" {
		t.Errorf("a wanted one: %v, %v", a, err)
	}
	for want, kind := range map[string]error{
		"10.9.0.4": errdefs.ErrAlreadyExists, "10.9.0.1": errdefs.ErrInvalidArgument, "10.9.0.0": errdefs.ErrInvalidArgument,
		"10.9.0.7": errdefs.ErrInvalidArgument, "10.9.1.2": errdefs.ErrInvalidArgument, "::1": errdefs.ErrInvalidArgument, "x": errdefs.ErrInvalidArgument,
	} {
		if _, err := pick(sub, used, want, last); !errors.Is(err, kind) {
			t.Errorf("wanted %s: %v", want, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	p4, p6 := netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd00:1::/64")
	if a := nth(p4, 258); a.String() != "172.30.1.2" || number(p4, a) != 258 || macOf(a).String() != "02:42:ac:1e:01:02" {
		t.Errorf("nth: %s", a)
	}
	if a := nth(p6, 258); a.String() != "fd00:1::102" || gateway(p6).String() != "fd00:1::1" || broadcast(p4).String() != "172.30.255.255" {
		t.Errorf("nth: %s", a)
	}
	for _, bad := range []string{"01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "02:42", "x", "02:42:00:00:00:00:00:01"} {
		if _, err := parseMAC(bad); err == nil {
			t.Errorf("MAC %s was taken", bad)
		}
	}
	for _, bad := range []string{"172.30.0.0", "fd00::/64", "10.0.0.0/31", "x"} {
		if _, err := parseSubnet(bad, false); err == nil {
			t.Errorf("subnet %s was taken", bad)
		}
	}
}

// The first candidate that the host has a route into is left alone, the choice
// is kept, and a network that comes up later makes the next bridge move.
func TestSubnetChoice(t *testing.T) {
	w := newWorld(t)
	up, err := vnl.LinkByName("up0")
	check(t, err)
	check(t, vnl.RouteAdd(&vnl.Route{LinkIndex: up.Attrs().Index, Dst: ipNet(netip.MustParseAddr("172.30.128.0"), 17), Gw: outsideIP.AsSlice()}))
	m := w.open(Config{Linger: -1})
	if got := m.record.Subnet.String(); got != "172.29.0.0/16" {
		t.Errorf("chose %s", got)
	}
	dir, six := m.cfg.Dir, m.record.Subnet6
	check(t, m.Close())
	check(t, vnl.RouteDel(&vnl.Route{LinkIndex: up.Attrs().Index, Dst: ipNet(netip.MustParseAddr("172.30.128.0"), 17), Gw: outsideIP.AsSlice()}))
	m = w.open(Config{Linger: -1, Dir: dir})
	defer m.Close()
	if got := m.record.Subnet.String(); got != "172.29.0.0/16" || m.record.Subnet6 != six {
		t.Errorf("another engine chose %s and %s", got, m.record.Subnet6)
	}
	check(t, vnl.AddrAdd(up, &vnl.Addr{IPNet: ipNet(netip.MustParseAddr("172.29.3.4"), 24)}))
	e, err := m.Reserve(ctx, "a", bridgeRequest("a"))
	check(t, err)
	if got := e.Address.String(); got != "172.30.0.2/16" {
		t.Errorf("the address is %s", got)
	}
	check(t, m.Release(ctx, "a"))

	fixed := w.open(Config{Linger: -1, Subnet: "172.29.0.0/16", Table: "proafix"})
	defer fixed.Close()
	if _, err := fixed.Reserve(ctx, "a", bridgeRequest("a")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a configured subnet that meets a route: %v", err)
	}
}
