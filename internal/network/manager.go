package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"proa/internal/isolation"
)

// Manager is the owner of one bridge. Its methods can be called from many
// goroutines.
type Manager struct {
	cfg Config

	// bridge is held while the bridge and the table are made, removed or
	// compared with the leases. It is taken before mu.
	bridge  sync.Mutex
	up      bool         // both exist
	record  bridgeRecord // as in Dir/bridge.json
	uplinks []string     // interfaces of the host that are not on a bridge
	mtuNow  int          // of the bridge, bytes
	watch   *netlink.Conn
	linger  *time.Timer

	mu     sync.Mutex
	leases map[string]*lease
	used   map[netip.Addr]string // IPv4 address -> id
	last   uint32                // number of the address that was given last
	index  int                   // of the bridge's link
	rules  *table                // never changed, only replaced
	closed bool

	noForce    bool // tests: do without force_forwarding, as kernels before 6.17
	nft        firewall
	quit       chan struct{}  // closed by Close: hurry
	background sync.WaitGroup // links on their way out, the watch
}

// lease is one endpoint and what is being done with it.
type lease struct {
	Endpoint
	ready   bool // Reserve has ended
	plugged bool // its ports are open, or may be
}

// Open reads the leases of an earlier engine and chooses the subnets. It makes
// nothing in the kernel; if an earlier engine left a bridge that nobody uses any
// more, it is removed.
func Open(ctx context.Context, cfg Config) (*Manager, error) {
	if cfg.Bridge == "" {
		cfg.Bridge = "proa0"
	}
	if cfg.Table == "" {
		cfg.Table = "proa"
	}
	if cfg.Linger == 0 {
		cfg.Linger = time.Second
	}
	if len(cfg.Bridge) >= ifNameSize || strings.ContainsAny(cfg.Bridge, "/ \t\n:%") || cfg.Bridge == "." || cfg.Bridge == ".." {
		return nil, fmt.Errorf("cannot use bridge name %q: at most 15 bytes, no slash, colon or space: %w", cfg.Bridge, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the network: %w", err)
	}
	m := &Manager{cfg: cfg, leases: map[string]*lease{}, used: map[netip.Addr]string{}, last: 1, quit: make(chan struct{})}
	eps, err := readLeases(cfg.Dir)
	if err != nil {
		return nil, err
	}
	for id, e := range eps {
		m.leases[id] = &lease{Endpoint: *e, ready: true, plugged: true}
		if e.Address.IsValid() {
			m.used[e.Address.Addr()] = id
			m.last = max(m.last, number(e.Address, e.Address.Addr()))
		}
	}
	if m.record, err = readBridge(cfg.Dir); err != nil {
		return nil, err
	}
	if err := m.chooseSubnets(); err != nil {
		return nil, err
	}
	m.describeTable()
	if m.leased() == 0 && m.record.Made {
		m.bridge.Lock()
		defer m.bridge.Unlock()
		if err := m.bridgeDown(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// chooseSubnets takes the subnets from the leases' record, the configuration
// or the candidates. While endpoints have addresses, the record wins.
func (m *Manager) chooseSubnets() error {
	was := m.record
	if m.leased() == 0 || !m.record.Subnet.IsValid() {
		var err error
		switch {
		case m.cfg.Subnet != "":
			m.record.Subnet, err = parseSubnet(m.cfg.Subnet, false)
		case !m.record.Subnet.IsValid():
			m.record.Subnet, err = chooseSubnet(m.cfg.Bridge)
		}
		if err != nil {
			return err
		}
		switch {
		case m.cfg.Subnet6 == "none" || !hostHasIPv6():
			m.record.Subnet6 = netip.Prefix{}
		case m.cfg.Subnet6 != "":
			m.record.Subnet6, err = parseSubnet(m.cfg.Subnet6, true)
		case !m.record.Subnet6.IsValid():
			m.record.Subnet6, err = newSubnet6()
		}
		if err != nil {
			return err
		}
	}
	if m.record.Subnet == was.Subnet && m.record.Subnet6 == was.Subnet6 {
		return nil
	}
	return m.saveRecord()
}

// Close removes an unused bridge at once and waits for what is under way.
// Endpoints stay as they are.
func (m *Manager) Close() error {
	m.bridge.Lock()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		m.bridge.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	close(m.quit)
	if m.linger != nil {
		m.linger.Stop()
	}
	var err error
	if m.leased() == 0 && m.record.Made {
		err = m.bridgeDown()
	}
	m.stopWatch()
	m.bridge.Unlock()
	m.background.Wait()
	m.nft.close()
	return err
}

// leased is the number of endpoints on the bridge.
func (m *Manager) leased() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.used)
}

// Reserve leases addresses, binds the host's ports and writes the files of id.
// It makes the bridge and the table if they are not there. A second Reserve of
// the same id is errdefs.ErrAlreadyExists; a port that somebody has is a
// *PortTakenError. On error nothing is left.
func (m *Manager) Reserve(ctx context.Context, id string, r Request) (_ *Endpoint, err error) {
	if err := checkRequest(id, &r); err != nil {
		return nil, err
	}
	l := &lease{Endpoint: Endpoint{ID: id, Kind: r.Kind}}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, fmt.Errorf("cannot reserve network of %.12s: the engine is stopping: %w", id, errdefs.ErrUnavailable)
	}
	if m.leases[id] != nil {
		m.mu.Unlock()
		return nil, fmt.Errorf("cannot reserve network of %.12s: it has an endpoint already: %w", id, errdefs.ErrAlreadyExists)
	}
	m.leases[id] = l
	m.mu.Unlock()
	var held []*os.File
	defer func() {
		if err != nil {
			closeAll(held)
			err = errors.Join(err, m.drop(l))
		}
	}()
	if r.Kind == isolation.NetworkBridge {
		if err := m.lease(ctx, l, r); err != nil {
			return nil, err
		}
		if l.Ports, held, err = bindPorts(r.Ports, l.Address6.IsValid()); err != nil {
			return nil, m.nameHolder(err)
		}
	}
	dir := filepath.Join(m.cfg.Dir, id)
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot make the directory of an endpoint: %w", err)
	}
	if err := writeFiles(dir, &l.Endpoint, r); err != nil {
		return nil, err
	}
	if err := writeJSON(filepath.Join(dir, leaseFile), &l.Endpoint); err != nil {
		return nil, err
	}
	m.mu.Lock()
	l.ready = true
	e := l.Endpoint
	m.mu.Unlock()
	e.Held = held
	return &e, nil
}

func checkRequest(id string, r *Request) error {
	if err := checkID(id); err != nil {
		return err
	}
	switch r.Kind {
	case isolation.NetworkBridge:
	case isolation.NetworkNone, isolation.NetworkHost:
		r.Ports = nil // Docker ignores them there as well
	default:
		return fmt.Errorf("cannot use network mode %q: want bridge, host or none: %w", r.Kind, errdefs.ErrInvalidArgument)
	}
	for _, p := range r.Ports {
		if err := checkPort(p); err != nil {
			return err
		}
	}
	if r.MAC != "" {
		if _, err := parseMAC(r.MAC); err != nil {
			return err
		}
	}
	return checkNames(*r)
}

// lease makes sure of the bridge and gives l its addresses.
func (m *Manager) lease(ctx context.Context, l *lease, r Request) error {
	m.bridge.Lock()
	defer m.bridge.Unlock()
	if err := m.bridgeUp(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	sub, sub6 := m.record.Subnet, m.record.Subnet6
	a, err := pick(sub, m.used, r.IP, m.last)
	if err != nil {
		return err
	}
	n := number(sub, a)
	if r.IP == "" {
		m.last = n
	}
	m.used[a] = l.ID
	l.Address, l.Gateway = netip.PrefixFrom(a, sub.Bits()), gateway(sub)
	if sub6.IsValid() {
		l.Address6, l.Gateway6 = netip.PrefixFrom(nth(sub6, n), sub6.Bits()), gateway(sub6)
	}
	l.MAC = macOf(a).String()
	if r.MAC != "" {
		mac, _ := parseMAC(r.MAC)
		l.MAC = mac.String()
	}
	l.MTU = m.mtuNow
	l.Link = fmt.Sprintf("%s%08x", linkPrefix, randomUint32())
	return nil
}

// nameHolder says which container has a port, if it is one of ours.
func (m *Manager) nameHolder(err error) error {
	var taken *PortTakenError
	if !errors.As(err, &taken) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, l := range m.leases {
		if !l.ready {
			continue
		}
		for _, p := range l.Ports {
			if p.Proto == taken.Port.Proto && p.HostPort == taken.Port.HostPort && meets(p.HostIP, taken.Port.HostIP) {
				taken.Holder = id
			}
		}
	}
	return taken
}

func meets(a, b string) bool {
	x, y := netip.MustParseAddr(a), netip.MustParseAddr(b)
	return x.Is4() == y.Is4() && (x == y || x.IsUnspecified() || y.IsUnspecified())
}

// drop forgets a lease and its files, and starts the end of the bridge if it
// was the last one.
func (m *Manager) drop(l *lease) error {
	err := os.RemoveAll(filepath.Join(m.cfg.Dir, l.ID))
	if err != nil {
		err = fmt.Errorf("cannot remove the files of an endpoint: %w", err)
	}
	m.mu.Lock()
	if m.leases[l.ID] == l {
		delete(m.leases, l.ID)
	}
	if l.Address.IsValid() && m.used[l.Address.Addr()] == l.ID {
		delete(m.used, l.Address.Addr())
	}
	last := len(m.used) == 0
	m.mu.Unlock()
	if last && l.Kind == isolation.NetworkBridge {
		return errors.Join(err, m.end())
	}
	return err
}

// end removes the bridge after Linger unless somebody needs it again.
func (m *Manager) end() error {
	if m.cfg.Linger < 0 {
		return m.endNow()
	}
	m.bridge.Lock()
	defer m.bridge.Unlock()
	if m.linger != nil {
		m.linger.Stop()
	}
	m.linger = time.AfterFunc(m.cfg.Linger, func() {
		// An error leaves record.Made set: the next Reserve or Open meets it again.
		_ = m.endNow()
	})
	return nil
}

func (m *Manager) endNow() error {
	m.bridge.Lock()
	defer m.bridge.Unlock()
	if !m.record.Made || m.leased() > 0 {
		return nil
	}
	return m.bridgeDown()
}

// Release removes all that belongs to id: its ports, its card, its files and its
// lease. Releasing what is not there is no error.
func (m *Manager) Release(ctx context.Context, id string) error {
	m.mu.Lock()
	l := m.leases[id]
	if l == nil || !l.ready {
		m.mu.Unlock()
		return nil
	}
	l.ready = false // a Release at the same time finds nothing to do
	e, plugged := l.Endpoint, l.plugged
	m.mu.Unlock()
	if plugged {
		if err := m.closePorts(&e); err != nil {
			m.mu.Lock()
			l.ready = true
			m.mu.Unlock()
			return err
		}
		m.removeLink(e.Link)
	}
	return m.drop(l)
}

// closePorts takes the ports of e out of the table.
func (m *Manager) closePorts(e *Endpoint) error {
	if len(e.Ports) == 0 {
		return nil
	}
	err := m.table().change(nil, m.table().portElements(e))
	if errors.Is(err, syscall.ENOENT) {
		// Not all were there, or somebody flushed the table: compare one by one.
		err = m.syncTable()
	}
	if err != nil {
		return err
	}
	return m.forgetFlows(e)
}

// Endpoint returns the lease of id without its sockets, or errdefs.ErrNotFound.
func (m *Manager) Endpoint(id string) (*Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.leases[id]
	if l == nil || !l.ready {
		return nil, fmt.Errorf("cannot find the network endpoint of %.12s: %w", id, errdefs.ErrNotFound)
	}
	e := l.Endpoint
	return &e, nil
}

// Reconcile releases every endpoint that is not in live and makes the kernel
// agree with the rest: the bridge and the table exist, with the ports of the
// living and no others, and no card that belongs to nobody is left.
func (m *Manager) Reconcile(ctx context.Context, live map[string]bool) error {
	var errs []error
	for _, id := range m.ids() {
		if !live[id] {
			errs = append(errs, m.Release(ctx, id))
		}
	}
	if m.leased() > 0 {
		errs = append(errs, m.bridgeAgrees(ctx))
	}
	return errors.Join(errs...)
}

func (m *Manager) bridgeAgrees(ctx context.Context) error {
	m.bridge.Lock()
	err := m.bridgeUp(ctx)
	m.bridge.Unlock()
	if err != nil {
		return err
	}
	if err := m.syncTable(); err != nil {
		return err
	}
	return m.removeStrays()
}

func (m *Manager) ids() (ids []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range maps.Keys(m.leases) {
		ids = append(ids, id)
	}
	return ids
}

// table is the description of the nftables table.
func (m *Manager) table() *table {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rules
}

// wantedElements is what the maps and sets should hold: the ports of every
// plugged endpoint and the interfaces that forwarding was opened on.
func (m *Manager) wantedElements() map[string][]nftables.SetElement {
	t, out := m.table(), map[string][]nftables.SetElement{}
	for name, family := range map[string]string{setOpened4: "ipv4", setOpened6: "ipv6"} {
		for _, link := range m.openedOn(family) {
			out[name] = append(out[name], nftables.SetElement{Key: ifName(link)})
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.leases {
		if l.ready && l.plugged {
			for name, list := range t.portElements(&l.Endpoint) {
				out[name] = append(out[name], list...)
			}
		}
	}
	return out
}

// syncTable compares the table with the leases and mends it; one that is gone
// (somebody ran `nft flush ruleset`) is made anew.
func (m *Manager) syncTable() error {
	m.bridge.Lock()
	defer m.bridge.Unlock()
	if !m.up {
		return nil
	}
	return m.syncTableLocked()
}

func (m *Manager) syncTableLocked() error {
	t, want := m.table(), m.wantedElements()
	have, err := t.elements()
	if err != nil {
		return t.create(want) // it is not there, or not whole
	}
	add, remove := difference(have, want)
	return t.change(add, remove)
}
