package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/mdlayher/netlink"
	vnl "github.com/vishvananda/netlink"

	"proa/internal/isolation"
	"proa/internal/sys"
)

const (
	cardName   = "eth0" // inside
	linkPrefix = "proa" // of the host's end of a card, followed by eight hex digits
	linkGrace  = 300 * time.Millisecond
	linkWait   = 2 * time.Second
)

// Plug puts the card of id into a network namespace as eth0 with its addresses
// and routes, brings lo up, and opens the published ports.
func (m *Manager) Plug(ctx context.Context, id string, netns *os.File) error {
	e, err := m.plugging(id)
	if err != nil {
		return err
	}
	// The firewall and the links have locks of their own in the kernel: both at once.
	ports := make(chan error, 1)
	go func() { ports <- m.openPorts(e) }()
	err = m.plugVeth(e, netns)
	return errors.Join(err, <-ports)
}

// PlugTap makes the card of id as a tap on the bridge and opens its ports. The
// tap lives as long as the returned file, or a copy of it, is open.
func (m *Manager) PlugTap(ctx context.Context, id string) (*os.File, error) {
	e, err := m.plugging(id)
	if err != nil {
		return nil, err
	}
	tap, err := sys.NewTap(e.Link)
	if err != nil {
		return nil, fmt.Errorf("cannot plug %.12s: %w", id, err)
	}
	if err := errors.Join(m.attach(e), m.openPorts(e)); err != nil {
		tap.Close()
		return nil, err
	}
	return tap, nil
}

// plugging marks the endpoint, so that whatever happens now Release cleans up.
func (m *Manager) plugging(id string) (*Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.leases[id]
	if l == nil || !l.ready {
		return nil, fmt.Errorf("cannot plug %.12s: it has no endpoint: %w", id, errdefs.ErrNotFound)
	}
	if l.Kind != isolation.NetworkBridge {
		return nil, fmt.Errorf("cannot plug %.12s: its network mode is %s: %w", id, l.Kind, errdefs.ErrInvalidArgument)
	}
	l.plugged = true
	e := l.Endpoint
	return &e, nil
}

// plugVeth makes the pair in one request, then sets up the inner end through
// a socket of the inner namespace. No thread has to change its namespace for long.
func (m *Manager) plugVeth(e *Endpoint, netns *os.File) error {
	fail := func(err error) error { return fmt.Errorf("cannot plug %.12s: %w", e.ID, err) }
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return fail(err)
	}
	here, err := dialRTNL(nil)
	if err != nil {
		return fail(err)
	}
	defer here.close()
	pair, err := newVeth(
		link{name: e.Link, mtu: e.MTU, master: m.bridgeIndex(), up: true},
		link{name: cardName, mtu: e.MTU, mac: mac, netns: netns}, // a veth cannot be born up on this side (ENOTCONN)
	)
	if err != nil {
		return fail(err)
	}
	reqs := []netlink.Message{pair}
	if bridgeFiltered() {
		hairpin, err := setHairpin(e.Link)
		if err != nil {
			return fail(err)
		}
		reqs = append(reqs, hairpin)
	}
	if err := here.do(reqs...); err != nil {
		return fail(fmt.Errorf("cannot make card %s on bridge %q: %w", e.Link, m.cfg.Bridge, err))
	}
	there, err := dialRTNL(netns)
	if err != nil {
		return fail(fmt.Errorf("cannot enter its network namespace: %w", err))
	}
	defer there.close()
	if err := setUpCard(there, e); err != nil {
		return fail(fmt.Errorf("cannot set up %s: %w", cardName, err))
	}
	if err := here.awaitLink(e.Link, linkWait); err != nil {
		return fail(err)
	}
	return nil
}

func setUpCard(there *rtnl, e *Endpoint) error {
	index, err := there.linkIndex(cardName)
	if err != nil {
		return err
	}
	var reqs []netlink.Message
	var errs []error
	add := func(m netlink.Message, err error) {
		reqs, errs = append(reqs, m), append(errs, err)
	}
	add(setLink(link{index: 1, up: true})) // lo is always number 1
	add(setLink(link{index: index, up: true}))
	add(newAddr(index, e.Address))
	if e.Address6.IsValid() {
		add(newAddr(index, e.Address6))
	}
	add(newDefaultRoute(index, e.Gateway))
	if e.Gateway6.IsValid() {
		add(newDefaultRoute(index, e.Gateway6))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return there.do(reqs...)
}

// bridgeFiltered is whether br_netfilter hands bridged packets to the IP
// firewall (Docker and Kubernetes load it). It then turns a connection from a
// container to its own published port into one bridged back through the same
// card, which a card refuses unless it is a hairpin.
func bridgeFiltered() bool {
	for _, s := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if v, err := readSysctl(s); err == nil && v != "0" {
			return true
		}
	}
	return false
}

// attach puts the host's end of a card on the bridge and brings it up, in this order.
func (m *Manager) attach(e *Endpoint) error {
	here, err := dialRTNL(nil)
	if err != nil {
		return err
	}
	defer here.close()
	index, err := here.linkIndex(e.Link)
	if err != nil {
		return fmt.Errorf("cannot find card %s: %w", e.Link, err)
	}
	enslave, err1 := setLink(link{index: index, mtu: e.MTU, master: m.bridgeIndex()})
	raise, err2 := setLink(link{index: index, up: true})
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	reqs := []netlink.Message{enslave, raise}
	if bridgeFiltered() {
		hairpin, err := setHairpin(e.Link)
		if err != nil {
			return err
		}
		reqs = append(reqs, hairpin)
	}
	if err := here.do(reqs...); err != nil {
		return fmt.Errorf("cannot put card %s on bridge %q: %w", e.Link, m.cfg.Bridge, err)
	}
	return nil
}

// openPorts puts the ports of e into the table.
func (m *Manager) openPorts(e *Endpoint) error {
	if len(e.Ports) == 0 {
		return nil
	}
	err := m.table().change(m.table().portElements(e), nil)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EEXIST) {
		err = m.syncTable() // flushed by somebody, or something stale in the way
	}
	if err != nil {
		return err
	}
	return m.forgetFlows(e)
}

// removeLink makes sure in the background that a card goes away. It mostly goes
// by itself, with its namespace or its tap's last descriptor; removing it at the
// same time would only make the next start wait for the kernel's one lock on
// links. If the engine dies before, Reconcile finds the card.
func (m *Manager) removeLink(name string) {
	m.background.Go(func() {
		select {
		case <-time.After(linkGrace):
		case <-m.quit:
		}
		_ = deleteLink(name)
	})
}

// deleteLink removes a link; one that is gone is no error.
func deleteLink(name string) error {
	here, err := dialRTNL(nil)
	if err != nil {
		return err
	}
	defer here.close()
	req, err := delLink(name)
	if err != nil {
		return err
	}
	if err := here.do(req); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("cannot remove card %s: %w", name, err)
	}
	return nil
}

// removeStrays removes the cards on the bridge that no lease names.
func (m *Manager) removeStrays() error {
	links, err := complete(vnl.LinkList)
	if err != nil {
		return fmt.Errorf("cannot list the host's links: %w", err)
	}
	known := map[string]bool{}
	m.mu.Lock()
	for _, l := range m.leases {
		known[l.Link] = true
	}
	index := m.index
	m.mu.Unlock()
	var errs []error
	for _, l := range links {
		a := l.Attrs()
		if a.MasterIndex == index && strings.HasPrefix(a.Name, linkPrefix) && !known[a.Name] {
			errs = append(errs, deleteLink(a.Name))
		}
	}
	return errors.Join(errs...)
}

// Stats reads the counters of the card of id.
func (m *Manager) Stats(ctx context.Context, id string) (Stats, error) {
	e, err := m.Endpoint(id)
	if err != nil {
		return Stats{}, err
	}
	if e.Link == "" {
		return Stats{}, nil
	}
	here, err := dialRTNL(nil)
	if err != nil {
		return Stats{}, err
	}
	defer here.close()
	s, err := here.linkStats(e.Link)
	if err != nil {
		if errors.Is(err, syscall.ENODEV) {
			err = errdefs.ErrNotFound
		}
		return Stats{}, fmt.Errorf("cannot read the counters of card %s: %w", e.Link, err)
	}
	// What the host's end sends, the inner end receives.
	return Stats{
		RxBytes: s.TxBytes, RxPackets: s.TxPackets, RxErrors: s.TxErrors, RxDropped: s.TxDropped,
		TxBytes: s.RxBytes, TxPackets: s.RxPackets, TxErrors: s.RxErrors, TxDropped: s.RxDropped,
	}, nil
}

func (m *Manager) bridgeIndex() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.index
}

func randomUint32() uint32 {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return binary.NativeEndian.Uint32(b[:])
}
