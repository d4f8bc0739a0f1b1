package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// table is the engine's one nftables table. Its rules are written once, when the
// bridge comes up; after that an endpoint is nothing but elements of the maps, so
// that a start costs one small batch however many endpoints there are. Every
// change is one batch: the kernel takes all of it or nothing.
type table struct {
	name     string
	bridge   string
	subnet   netip.Prefix
	subnet6  netip.Prefix // invalid: no IPv6
	resolver netip.Addr   // of the host, on its loopback, offered at the gateway's port 53; invalid: none
	nft      *firewall
}

// firewall is the connection to nftables. It is kept: closing one waits until
// the kernel has freed what was deleted by earlier batches, many milliseconds.
type firewall struct {
	mu   sync.Mutex // one batch at a time; the kernel takes no more either
	conn *nftables.Conn
}

// with hands the connection to fn. After an error it is closed, since answers
// of the failed batch may still be waiting in it.
func (f *firewall) with(fn func(*nftables.Conn) error) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == nil {
		if f.conn, err = nftables.New(nftables.AsLasting()); err != nil {
			return fmt.Errorf("cannot open nftables: %w", err)
		}
	}
	if err = fn(f.conn); err != nil {
		f.conn.CloseLasting()
		f.conn = nil
	}
	return err
}

// close ends the connection; the next use opens another one.
func (f *firewall) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		f.conn.CloseLasting()
		f.conn = nil
	}
}

// Numbers of linux/netfilter/nf_tables.h and friends that syscall does not have.
const (
	reg1      = 1 // 16 bytes; the same memory as reg32(0) to reg32(3)
	rtnLocal  = 2 // RTN_LOCAL of linux/rtnetlink.h
	ctNew     = 8
	ctRelated = 4
	ctEstab   = 2
	ipsDstNAT = 1 << 5 // IPS_DST_NAT of nf_conntrack_common.h

	ipsDstNATDone = 1 << 8
	ifNameSize    = 16
)

func reg32(n uint32) uint32 { return 8 + n } // NFT_REG32_00

// Names and numbers of the maps and sets. The numbers only tie sets and rules
// together inside one batch.
//
//	spec4, spec6     address . protocol . port -> address . port
//	any4, any6       protocol . port -> address . port
//	opened4, opened6 interfaces on which the engine switched forwarding on
const (
	setSpec4, setSpec6     = "spec4", "spec6"
	setAny4, setAny6       = "any4", "any6"
	setOpened4, setOpened6 = "opened4", "opened6"
)

func (t *table) ref() *nftables.Table {
	return &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
}

func (t *table) set(name string) *nftables.Set {
	s := &nftables.Set{Table: t.ref(), Name: name, IsMap: true, Concatenation: true}
	target4 := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	target6 := nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
	switch name {
	case setSpec4:
		s.ID, s.DataType = 1, target4
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	case setSpec6:
		s.ID, s.DataType = 2, target6
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	case setAny4:
		s.ID, s.DataType = 3, target4
		s.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	case setAny6:
		s.ID, s.DataType = 4, target6
		s.KeyType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	case setOpened4:
		return &nftables.Set{Table: t.ref(), Name: name, ID: 5, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	case setOpened6:
		return &nftables.Set{Table: t.ref(), Name: name, ID: 6, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	}
	return s
}

// create makes the table with all its rules and the elements of ports, in one
// batch that also removes what was there under the name.
func (t *table) create(elems map[string][]nftables.SetElement) error {
	return t.nft.with(func(c *nftables.Conn) error {
		// Adding before deleting makes the deletion work whether or not it is there.
		c.AddTable(t.ref())
		c.DelTable(t.ref())
		c.AddTable(t.ref())
		for _, name := range t.setNames() {
			if err := c.AddSet(t.set(name), elems[name]); err != nil {
				return fmt.Errorf("cannot describe set %s: %w", name, err)
			}
		}
		t.addRules(c)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("cannot make nftables table %q: %w", t.name, err)
		}
		return nil
	})
}

func (t *table) setNames() []string {
	if t.subnet6.IsValid() {
		return []string{setSpec4, setAny4, setOpened4, setSpec6, setAny6, setOpened6}
	}
	return []string{setSpec4, setAny4, setOpened4}
}

// remove deletes the table; one that is not there is no error.
func (t *table) remove() error {
	err := t.nft.with(func(c *nftables.Conn) error {
		c.DelTable(t.ref())
		return c.Flush()
	})
	if err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("cannot remove nftables table %q: %w", t.name, err)
	}
	return nil
}

// change adds and removes elements in one batch.
func (t *table) change(add, remove map[string][]nftables.SetElement) error {
	return t.nft.with(func(c *nftables.Conn) error {
		for name, list := range remove {
			if len(list) > 0 {
				if err := c.SetDeleteElements(t.set(name), list); err != nil {
					return fmt.Errorf("cannot describe elements of %s: %w", name, err)
				}
			}
		}
		for name, list := range add {
			if len(list) > 0 {
				if err := c.SetAddElements(t.set(name), list); err != nil {
					return fmt.Errorf("cannot describe elements of %s: %w", name, err)
				}
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("cannot change nftables table %q: %w", t.name, err)
		}
		return nil
	})
}

// elements reads what the kernel has in the maps and sets. It is an error
// where one of them is missing.
func (t *table) elements() (out map[string][]nftables.SetElement, err error) {
	err = t.nft.with(func(c *nftables.Conn) error {
		out = map[string][]nftables.SetElement{}
		for _, name := range t.setNames() {
			list, err := c.GetSetElements(t.set(name))
			if err != nil {
				return fmt.Errorf("cannot read set %s of nftables table %q: %w", name, t.name, err)
			}
			out[name] = list
		}
		return nil
	})
	return out, err
}

// portElements are the map elements of one endpoint's ports.
func (t *table) portElements(e *Endpoint) map[string][]nftables.SetElement {
	out := map[string][]nftables.SetElement{}
	for _, p := range e.Ports {
		ip, err := netip.ParseAddr(p.HostIP)
		if err != nil {
			continue // written by bindPort, so it is one
		}
		name, to := setSpec4, e.Address.Addr()
		if ip.Is6() {
			name, to = setSpec6, e.Address6.Addr()
		}
		if !to.IsValid() {
			continue
		}
		var key []byte
		if ip.IsUnspecified() {
			name = map[string]string{setSpec4: setAny4, setSpec6: setAny6}[name]
		} else {
			key = ip.AsSlice()
		}
		proto := byte(syscall.IPPROTO_TCP)
		if p.Proto == UDP {
			proto = syscall.IPPROTO_UDP
		}
		key = append(key, proto, 0, 0, 0)
		key = append(key, port32(p.HostPort)...)
		out[name] = append(out[name], nftables.SetElement{
			Key:     key,
			Val:     append(to.AsSlice(), port32(p.ContainerPort)...),
			Comment: fmt.Sprintf("%.12s", e.ID),
		})
	}
	return out
}

// port32 is a port in network order, padded to a register.
func port32(p uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, p), 0, 0)
}

func ifName(name string) []byte {
	b := make([]byte, ifNameSize)
	copy(b, name)
	return b
}

// difference is what must be added to and removed from have to make it want.
func difference(have, want map[string][]nftables.SetElement) (add, remove map[string][]nftables.SetElement) {
	minus := func(a, b map[string][]nftables.SetElement) map[string][]nftables.SetElement {
		out := map[string][]nftables.SetElement{}
		for name, list := range a {
		next:
			for _, x := range list {
				for _, y := range b[name] {
					if bytes.Equal(x.Key, y.Key) && bytes.Equal(x.Val, y.Val) {
						continue next
					}
				}
				out[name] = append(out[name], x)
			}
		}
		return out
	}
	return minus(want, have), minus(have, want)
}

// addRules puts the chains and their rules into the batch.
func (t *table) addRules(c *nftables.Conn) {
	chain := func(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t.ref(), Type: typ, Hooknum: hook, Priority: prio})
	}
	raw := chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	prerouting := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)

	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		var all []expr.Any
		for _, p := range parts {
			all = append(all, p...)
		}
		c.AddRule(&nftables.Rule{Table: ch.Table, Chain: ch, Exprs: all})
	}
	loopback4 := netip.MustParsePrefix("127.0.0.0/8")
	loopback6 := netip.MustParsePrefix("::1/128")

	// route_localnet is on for the bridge, so that clients at 127.0.0.1 reach published ports. Without these two
	// a container could talk to what listens on the host's loopback (CVE-2020-8558), or pretend to be it.
	rule(raw, iifIs(t.bridge), family4, daddrIn(loopback4), verdict(expr.VerdictDrop))
	rule(raw, iifIs(t.bridge), family4, saddrNotIn(t.subnet), verdict(expr.VerdictDrop))
	if t.subnet6.IsValid() {
		rule(raw, iifIs(t.bridge), family6, saddrIn(t.subnet6), verdict(expr.VerdictAccept))
		rule(raw, iifIs(t.bridge), family6, saddrIn(netip.MustParsePrefix("fe80::/10")), verdict(expr.VerdictAccept))
		rule(raw, iifIs(t.bridge), family6, saddrIn(netip.MustParsePrefix("::/128")), verdict(expr.VerdictAccept))
		rule(raw, iifIs(t.bridge), family6, verdict(expr.VerdictDrop))
	}

	// A packet for 127/8 that comes from outside would be translated before the kernel could see that it is a martian:
	// a port published on 127.0.0.1 would be open to the neighbours.
	rule(prerouting, family4, daddrIn(loopback4), verdict(expr.VerdictReturn))
	rule(prerouting, family6, daddrIn(loopback6), verdict(expr.VerdictReturn))
	if t.resolver.IsValid() {
		gw := netip.PrefixFrom(gateway(t.subnet), 32)
		for _, proto := range []byte{syscall.IPPROTO_UDP, syscall.IPPROTO_TCP} {
			rule(prerouting, iifIs(t.bridge), family4, daddrIn(gw), protoPort(proto, 53), dnatTo4(t.resolver, 53))
		}
	}
	// ::1 is never translated: the kernel takes answers for it on lo alone, and a client that is refused at
	// once tries 127.0.0.1 next, while one that waits does not.
	rule(output, family6, daddrIn(loopback6), verdict(expr.VerdictReturn))
	for _, ch := range []*nftables.Chain{prerouting, output} {
		rule(ch, daddrNotLocal(), verdict(expr.VerdictReturn))
		rule(ch, family4, t.dnat(setSpec4))
		rule(ch, family4, t.dnat(setAny4))
		if t.subnet6.IsValid() {
			rule(ch, family6, t.dnat(setSpec6))
			rule(ch, family6, t.dnat(setAny6))
		}
	}

	masquerade := []expr.Any{&expr.Masq{}}
	rule(postrouting, oifIsNot(t.bridge), family4, saddrIn(t.subnet), masquerade)
	// From one card of the bridge to another by the host's address: the answer must come back this way.
	rule(postrouting, oifIs(t.bridge), family4, saddrIn(t.subnet), translated(), masquerade)
	rule(postrouting, oifIs(t.bridge), family4, saddrIn(loopback4), masquerade)
	if t.subnet6.IsValid() {
		rule(postrouting, oifIsNot(t.bridge), family6, saddrIn(t.subnet6), masquerade)
		rule(postrouting, oifIs(t.bridge), family6, saddrIn(t.subnet6), translated(), masquerade)
	}

	rule(forward, oifIs(t.bridge), ctStateIn(ctEstab|ctRelated), verdict(expr.VerdictAccept))
	rule(forward, iifIs(t.bridge), verdict(expr.VerdictAccept))
	rule(forward, oifIs(t.bridge), translated(), verdict(expr.VerdictAccept))
	rule(forward, oifIs(t.bridge), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop))
	// The engine switched forwarding on for these interfaces: for everything but the bridge it stays as it was, off.
	rule(forward, family4, iifIn(t.set(setOpened4)), verdict(expr.VerdictDrop))
	if t.subnet6.IsValid() {
		rule(forward, family6, iifIn(t.set(setOpened6)), verdict(expr.VerdictDrop))
	}
}

// dnat translates by a map, if it has an element for the packet.
func (t *table) dnat(name string) []expr.Any {
	six := name == setSpec6 || name == setAny6
	var key []expr.Any
	next := uint32(0)
	if name == setSpec4 || name == setSpec6 {
		off, n := addrField(six, false)
		key = append(key, &expr.Payload{DestRegister: reg32(0), Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n})
		next = n / 4
	}
	key = append(key,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32(next)},
		&expr.Payload{DestRegister: reg32(next + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	)
	s := t.set(name)
	fam, port := uint32(syscall.AF_INET), reg32(1)
	if six {
		fam, port = syscall.AF_INET6, reg32(4)
	}
	return append(key,
		&expr.Lookup{SourceRegister: reg32(0), DestRegister: reg32(0), IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: reg32(0), RegProtoMin: port, Specified: true},
	)
}

func dnatTo4(a netip.Addr, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg32(0), Data: a.AsSlice()},
		&expr.Immediate{Register: reg32(1), Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: syscall.AF_INET, RegAddrMin: reg32(0), RegProtoMin: reg32(1), Specified: true},
	}
}
