package network

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	vnl "github.com/vishvananda/netlink"
)

// A table of ours cannot overrule another table's drop: every base chain at the
// forward hook has to let a packet through. So foreign chains are read and
// asked what they would do with the packets that the bridge needs. They are never changed.

// probe is a packet that the bridge needs forwarded. What is not said here is
// unknown, and a rule that asks for it neither matches nor does not.
type probe struct {
	traffic     string // in words
	iif, oif    string
	src, dst    netip.Addr
	dport       uint16 // of TCP; 0: unknown
	established bool   // else new
	translated  bool
}

// Blockers lists foreign rules and policies that drop traffic which the bridge
// needs forwarded: what leaves, what answers, what comes to published ports, and,
// where br_netfilter is on, what goes between two cards of the bridge. It looks at
// nftables and at legacy iptables. It changes nothing and needs no bridge to be there.
func (m *Manager) Blockers(ctx context.Context) ([]Blocker, error) {
	m.bridge.Lock()
	subnet, subnet6 := m.record.Subnet, m.record.Subnet6
	m.bridge.Unlock()
	out, err := m.nftBlockers(ctx, m.probes(subnet, syscall.AF_INET), m.probes(subnet6, syscall.AF_INET6))
	if err != nil {
		return nil, err
	}
	for _, x := range []struct {
		names, binary string
		probes        []probe
	}{
		{"/proc/net/ip_tables_names", "iptables-legacy-save", m.probes(subnet, syscall.AF_INET)},
		{"/proc/net/ip6_tables_names", "ip6tables-legacy-save", m.probes(subnet6, syscall.AF_INET6)},
	} {
		out = append(out, legacyBlockers(ctx, m.cfg.Bridge, x.names, x.binary, x.probes)...)
	}
	return merge(out), nil
}

// probes are the packets of one family.
func (m *Manager) probes(subnet netip.Prefix, fam int) []probe {
	if !subnet.IsValid() {
		return nil
	}
	uplink, far := defaultUplink(fam), netip.MustParseAddr("198.51.100.1") // RFC 5737: somebody, nobody in particular
	if fam == syscall.AF_INET6 {
		far = netip.MustParseAddr("2001:db8::1")
	}
	if uplink == "" {
		return nil // nowhere to forward to
	}
	br, in := m.cfg.Bridge, nth(subnet, 2)
	list := []probe{
		{traffic: "from containers to the outside", iif: br, oif: uplink, src: in, dst: far, dport: 443},
		{traffic: "answers from the outside to containers", iif: uplink, oif: br, src: far, dst: in, established: true},
		{traffic: "from the outside to published ports", iif: uplink, oif: br, src: far, dst: in, translated: true},
	}
	if bridgeFiltered() {
		list = append(list, probe{traffic: "between containers (br_netfilter is on)", iif: br, oif: br, src: in, dst: nth(subnet, 3)})
	}
	return list
}

// defaultUplink is the interface of the default route; where there is none, any
// interface that is up.
func defaultUplink(fam int) string {
	name := func(index int) string {
		l, err := vnl.LinkByIndex(index)
		if err != nil {
			return ""
		}
		return l.Attrs().Name
	}
	routes, err := complete(func() ([]vnl.Route, error) { return vnl.RouteList(nil, fam) })
	if err != nil {
		return ""
	}
	for _, r := range routes {
		if p, ok := prefixOf(r.Dst); (!ok || p.Bits() == 0) && r.LinkIndex > 0 {
			return name(r.LinkIndex)
		}
	}
	for _, r := range routes {
		if n := name(r.LinkIndex); n != "" && n != "lo" && r.Protocol == syscall.RTPROT_KERNEL {
			return n
		}
	}
	return ""
}

// nftBlockers asks every foreign base chain at the forward hook.
func (m *Manager) nftBlockers(ctx context.Context, probes4, probes6 []probe) ([]Blocker, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("cannot open nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's nftables chains: %w", err)
	}
	var out []Blocker
	for _, ch := range chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || (ch.Table.Name == m.cfg.Table && ch.Table.Family == nftables.TableFamilyINet) {
			continue
		}
		var probes []probe
		switch ch.Table.Family {
		case nftables.TableFamilyIPv4:
			probes = probes4
		case nftables.TableFamilyIPv6:
			probes = probes6
		case nftables.TableFamilyINet:
			probes = append(slices.Clone(probes4), probes6...)
		}
		if len(probes) == 0 {
			continue
		}
		r := &nftReader{conn: c, table: ch.Table, chains: chains, rules: map[string][]*nftables.Rule{}}
		for _, p := range probes {
			end, err := r.judge(ch, p)
			if err != nil {
				return nil, err
			}
			if !end.drop {
				continue
			}
			b := Blocker{
				Where:   fmt.Sprintf("nftables table %s %s, chain %s", familyName(ch.Table.Family), ch.Table.Name, end.chain),
				What:    "policy drop",
				Traffic: p.traffic,
				Certain: end.certain,
				Hint:    nftHint(m.cfg.Bridge, ch, chains),
			}
			if end.handle != 0 {
				b.What = ruleText(ctx, ch.Table, end.chain, end.handle)
			}
			out = append(out, b)
		}
	}
	return out, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// ruleText asks nft how a rule is written; without nft its handle must do.
func ruleText(ctx context.Context, t *nftables.Table, chain string, handle uint64) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	mark := fmt.Sprintf(" # handle %d", handle)
	out, err := exec.CommandContext(ctx, "nft", "-a", "list", "chain", familyName(t.Family), t.Name, chain).Output()
	if err == nil {
		for line := range strings.Lines(string(out)) {
			if text, ok := strings.CutSuffix(strings.TrimRight(line, "\n"), mark); ok {
				return "rule " + strings.TrimSpace(text)
			}
		}
	}
	return fmt.Sprintf("rule with handle %d (`nft -a list chain %s %s %s` shows it)", handle, familyName(t.Family), t.Name, chain)
}

// nftHint is the command of whoever owns the chain.
func nftHint(bridge string, base *nftables.Chain, chains []*nftables.Chain) string {
	has := func(prefix string) bool {
		return slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
			return c.Table.Name == base.Table.Name && c.Table.Family == base.Table.Family && strings.HasPrefix(c.Name, prefix)
		})
	}
	iptables := "iptables"
	if base.Table.Family == nftables.TableFamilyIPv6 {
		iptables = "ip6tables"
	}
	switch {
	case base.Table.Name == "firewalld":
		return firewalldHint(bridge)
	case has("ufw-"), has("ufw6-"):
		return ufwHint(bridge)
	case has("DOCKER-USER"):
		return iptablesHint(iptables, "DOCKER-USER", bridge)
	case base.Table.Family != nftables.TableFamilyINet && base.Table.Name == "filter" && base.Name == "FORWARD":
		return iptablesHint(iptables, "FORWARD", bridge)
	}
	at := fmt.Sprintf("%s %s %s", familyName(base.Table.Family), base.Table.Name, base.Name)
	return fmt.Sprintf("nft insert rule %s iifname %q accept && nft insert rule %s oifname %q accept", at, bridge, at, bridge)
}

func firewalldHint(bridge string) string {
	return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", bridge)
}

func ufwHint(bridge string) string {
	return fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", bridge, bridge)
}

func iptablesHint(iptables, chain, bridge string) string {
	return fmt.Sprintf("%s -I %s -i %s -j ACCEPT && %s -I %s -o %s -j ACCEPT", iptables, chain, bridge, iptables, chain, bridge)
}

// merge makes one Blocker of those that differ in the traffic alone.
func merge(list []Blocker) (out []Blocker) {
next:
	for _, b := range list {
		for i := range out {
			o := &out[i]
			if o.Where == b.Where && o.What == b.What && o.Certain == b.Certain {
				if !slices.Contains(strings.Split(o.Traffic, "; "), b.Traffic) {
					o.Traffic += "; " + b.Traffic
				}
				continue next
			}
		}
		out = append(out, b)
	}
	return out
}

// trit is yes, no, or could not tell.
type trit int

const (
	maybe trit = iota
	no
	yes
)

func tritOf(b bool) trit {
	if b {
		return yes
	}
	return no
}

func (t trit) not() trit {
	switch t {
	case yes:
		return no
	case no:
		return yes
	}
	return maybe
}

// and of conditions: one no is enough to know.
func (t trit) and(u trit) trit {
	switch {
	case t == no || u == no:
		return no
	case t == yes && u == yes:
		return yes
	}
	return maybe
}
