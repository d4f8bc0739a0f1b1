package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

const (
	sysctlRoot = "/proc/sys/"
	conf6All   = "net/ipv6/conf/all/forwarding"
	defaultMTU = 1500 // bytes
)

// bridgeUp makes the bridge and the table unless they are there. The caller
// holds m.bridge.
func (m *Manager) bridgeUp(ctx context.Context) (err error) {
	if m.up {
		return nil
	}
	rec := &m.record
	if _, err := netlink.LinkByName(m.cfg.Bridge); err == nil {
		if !rec.Made {
			return fmt.Errorf("cannot make bridge %q: a link of that name exists and is not ours; choose another name or remove it with `ip link del %s`: %w",
				m.cfg.Bridge, m.cfg.Bridge, errdefs.ErrFailedPrecondition)
		}
	} else if err := m.settleSubnets(); err != nil {
		return err
	}
	rec.Made = true
	if err := m.saveRecord(); err != nil {
		return err
	}
	defer func() {
		if err != nil && m.leased() == 0 {
			err = errors.Join(err, m.bridgeDown())
		}
	}()
	index, err := m.makeBridge()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.index = index
	m.mu.Unlock()
	m.describeTable()
	if err := m.openForwarding(); err != nil {
		return err
	}
	if err := m.table().create(m.wantedElements()); err != nil {
		return err
	}
	if err := m.startWatch(); err != nil {
		return err
	}
	m.up = true
	return nil
}

// describeTable writes down what the table is to be for the present record.
func (m *Manager) describeTable() {
	t := &table{
		name: m.cfg.Table, bridge: m.cfg.Bridge,
		subnet: m.record.Subnet, subnet6: m.record.Subnet6, resolver: loopbackResolver(), nft: &m.nft,
	}
	m.mu.Lock()
	m.rules = t
	m.mu.Unlock()
}

// settleSubnets checks that the subnets are still free of the host's networks,
// and chooses another one where the configuration leaves that to us. There is
// no bridge now; if there are leases nevertheless, their addresses stay.
func (m *Manager) settleSubnets() error {
	if m.leased() > 0 {
		return nil
	}
	taken, err := hostNetworks(m.cfg.Bridge)
	if err != nil {
		return err
	}
	if _, who := overlap(m.record.Subnet, taken); who != "" {
		if m.cfg.Subnet != "" {
			return fmt.Errorf("cannot use subnet %s for bridge %q: it meets the host's %s; choose another one: %w",
				m.record.Subnet, m.cfg.Bridge, who, errdefs.ErrFailedPrecondition)
		}
		if m.record.Subnet, err = chooseSubnet(m.cfg.Bridge); err != nil {
			return err
		}
	}
	return nil
}

// makeBridge makes the link with its addresses and settings and returns its
// index. What is there already is kept.
func (m *Manager) makeBridge() (int, error) {
	fail := func(what string, err error) (int, error) {
		return 0, fmt.Errorf("cannot %s bridge %q: %w", what, m.cfg.Bridge, err)
	}
	gw := gateway(m.record.Subnet)
	la := netlink.NewLinkAttrs()
	la.Name = m.cfg.Bridge
	m.mtuNow = m.mtu()
	la.MTU = m.mtuNow
	// A MAC of its own: else the bridge takes the lowest one of its cards and changes with them.
	la.HardwareAddr = macOf(gw)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fail("make", err)
	}
	br, err := netlink.LinkByName(m.cfg.Bridge)
	if err != nil {
		return fail("find", err)
	}
	conf4, conf6 := "net/ipv4/conf/"+m.cfg.Bridge+"/", "net/ipv6/conf/"+m.cfg.Bridge+"/"
	settings := [][2]string{
		{conf4 + "forwarding", "1"},
		{conf4 + "route_localnet", "1"}, // clients at 127.0.0.1; see the chain raw in table.go
		{conf4 + "send_redirects", "0"},
	}
	if m.record.Subnet6.IsValid() {
		settings = append(settings,
			[2]string{conf6 + "disable_ipv6", "0"},
			// A container must not be able to give the host a route (CVE-2020-13401).
			[2]string{conf6 + "accept_ra", "0"},
			[2]string{conf6 + "accept_redirects", "0"},
			// Nobody else has the bridge's addresses. While they are looked for, the host asks for no neighbour: over a second.
			[2]string{conf6 + "accept_dad", "0"},
		)
	}
	for _, s := range settings {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return fail("set up", err)
		}
	}
	for _, p := range []netip.Prefix{m.record.Subnet, m.record.Subnet6} {
		if !p.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: gateway(p).AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = ifaFNoDAD
		}
		if err := netlink.AddrAdd(br, a); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fail("give an address to", err)
		}
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fail("bring up", err)
	}
	return br.Attrs().Index, nil
}

// bridgeDown removes the table and the bridge and puts back what was changed.
// The caller holds m.bridge.
func (m *Manager) bridgeDown() error {
	m.stopWatch()
	m.up = false
	var errs []error
	errs = append(errs, m.table().remove())
	if br, err := netlink.LinkByName(m.cfg.Bridge); err == nil {
		if err := netlink.LinkDel(br); err != nil && !errors.Is(err, syscall.ENODEV) {
			errs = append(errs, fmt.Errorf("cannot remove bridge %q: %w", m.cfg.Bridge, err))
		}
	}
	errs = append(errs, m.restoreSysctls())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.record.Made = false
	return m.saveRecord()
}

func (m *Manager) saveRecord() error {
	return writeJSON(filepath.Join(m.cfg.Dir, bridgeFile), &m.record)
}

// openForwarding lets the host forward between the bridge and its other
// interfaces, with the least change that does it. The kernel looks at the
// interface on which a packet arrives, so the bridge and each interface that
// answers or clients come in by needs it, and no other; the rules on
// opened4 and opened6 keep such an interface from forwarding anything else.
// net.ipv4.ip_forward is left alone: switching it resets other settings (accept_redirects).
//
// The same can be had for IPv6 since Linux 6.17 (force_forwarding). Before, only
// conf.all.forwarding counts; it makes the host stop listening to router
// advertisements, so accept_ra=2 goes with it where accept_ra was 1.
func (m *Manager) openForwarding() error {
	links, err := complete(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("cannot list the host's links: %w", err)
	}
	m.uplinks = nil
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback == 0 && a.Name != m.cfg.Bridge && a.MasterIndex == 0 {
			m.uplinks = append(m.uplinks, a.Name)
		}
	}
	var want []sysctl
	if on, err := readSysctl("net/ipv4/ip_forward"); err != nil {
		return err
	} else if on == "1" {
		m.forget("net/ipv4/conf/") // somebody switched it on for all: it is theirs, also where we were first
	} else {
		for _, name := range m.uplinks {
			want = append(want, sysctl{Name: "net/ipv4/conf/" + name + "/forwarding", New: "1"})
		}
	}
	if m.record.Subnet6.IsValid() {
		want = append(want, m.forwarding6()...)
	}
	return m.changeSysctls(want)
}

// forwarding6 is the part of openForwarding for IPv6.
func (m *Manager) forwarding6() (want []sysctl) {
	force := "net/ipv6/conf/" + m.cfg.Bridge + "/force_forwarding"
	all, _ := readSysctl(conf6All)
	_, err := readSysctl(force)
	switch {
	case all == "1" && !m.changed(conf6All):
		m.forget("net/ipv6/conf/")
	case err == nil && !m.noForce && !m.changed(conf6All):
		want = append(want, sysctl{Name: force, New: "1"})
		for _, name := range m.uplinks {
			want = append(want, sysctl{Name: "net/ipv6/conf/" + name + "/force_forwarding", New: "1"})
		}
	default:
		for _, name := range m.uplinks {
			accept := "net/ipv6/conf/" + name + "/accept_ra"
			if ra, err := readSysctl(accept); err == nil && ra == "1" {
				want = append(want, sysctl{Name: accept, New: "2"})
			}
		}
		want = append(want, sysctl{Name: conf6All, New: "1"})
	}
	return want
}

// changeSysctls records and then makes the changes that are still to be made.
func (m *Manager) changeSysctls(want []sysctl) error {
	var todo []sysctl
	for _, s := range want {
		old, err := readSysctl(s.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the interface went away, or has no such family
		}
		if err != nil {
			return err
		}
		if old == s.New {
			continue
		}
		s.Old = old
		todo = append(todo, s)
		if !m.changed(s.Name) {
			m.record.Changed = append(m.record.Changed, s)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	if err := m.saveRecord(); err != nil {
		return err
	}
	for _, s := range todo {
		if err := writeSysctl(s.Name, s.New); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// restoreSysctls puts back the settings that still are what we made them.
func (m *Manager) restoreSysctls() error {
	var errs []error
	for i := len(m.record.Changed) - 1; i >= 0; i-- {
		s := m.record.Changed[i]
		now, err := readSysctl(s.Name)
		if errors.Is(err, fs.ErrNotExist) || (err == nil && now != s.New) {
			continue
		}
		if err == nil {
			err = writeSysctl(s.Name, s.Old)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	m.record.Changed = nil
	return nil
}

func (m *Manager) changed(name string) bool {
	for _, s := range m.record.Changed {
		if s.Name == name {
			return true
		}
	}
	return false
}

// forget drops the records below a path: those settings are no longer ours.
func (m *Manager) forget(prefix string) {
	var keep []sysctl
	for _, s := range m.record.Changed {
		if !strings.HasPrefix(s.Name, prefix) {
			keep = append(keep, s)
		}
	}
	m.record.Changed = keep
}

// openedOn lists the interfaces on which forwarding of a family ("ipv4" or
// "ipv6") was switched on for us.
func (m *Manager) openedOn(family string) (names []string) {
	if family == "ipv6" && m.changed(conf6All) {
		return m.uplinks
	}
	for _, s := range m.record.Changed {
		rest, ok := strings.CutPrefix(s.Name, "net/"+family+"/conf/")
		name, setting, _ := strings.Cut(rest, "/")
		if ok && setting != "accept_ra" && name != m.cfg.Bridge {
			names = append(names, name)
		}
	}
	return names
}

// mtu is that of the bridge: the configured one, or that of the default route's interface.
func (m *Manager) mtu() int {
	if m.cfg.MTU > 0 {
		return m.cfg.MTU
	}
	routes, err := complete(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: syscall.RT_TABLE_MAIN, Dst: nil}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	})
	if err != nil || len(routes) == 0 {
		return defaultMTU
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil || l.Attrs().MTU < 1280 { // less than IPv6 needs
		return defaultMTU
	}
	return l.Attrs().MTU
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile(sysctlRoot + name)
	if err != nil {
		return "", fmt.Errorf("cannot read sysctl %q: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSysctl(name, value string) error {
	f, err := os.OpenFile(sysctlRoot+name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		f.Close()
	}
	if err != nil {
		return fmt.Errorf("cannot set sysctl %q to %q: %w", name, value, err)
	}
	return nil
}
