package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	vnl "github.com/vishvananda/netlink"

	"proa/internal/isolation"
)

func bridgeRequest(name string, ports ...Port) Request {
	return Request{Kind: isolation.NetworkBridge, Hostname: name, Ports: ports}
}

// eventually waits until the host is as it was.
func (w *world) eventually(want string) {
	w.t.Helper()
	var got string
	for range 60 {
		if got = w.snapshot(); got == want {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Errorf("the host is\n%s\nit was\n%s", got, want)
}

func TestPortTaken(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	m := w.open(Config{Linger: -1})
	defer m.Close()
	foreign, err := net.Listen("tcp4", "0.0.0.0:8081")
	check(t, err)
	defer foreign.Close()
	a, err := m.Reserve(ctx, "first", bridgeRequest("a", Port{Proto: TCP, HostIP: "127.0.0.1", HostPort: 8080, ContainerPort: 80}))
	check(t, err)
	defer a.Close()

	for _, c := range []struct {
		port   Port
		holder string
		words  string
	}{
		{Port{Proto: TCP, HostPort: 8080, ContainerPort: 80}, "first", "cannot publish port 8080/tcp: already in use on 0.0.0.0"},
		{Port{Proto: TCP, HostIP: "127.0.0.1", HostPort: 8080, ContainerPort: 80}, "first", "container first publishes it"},
		{Port{Proto: TCP, HostPort: 8081, ContainerPort: 80}, "", "ss -ltnp 'sport = :8081'"},
	} {
		_, err := m.Reserve(ctx, "second", bridgeRequest("b", Port{Proto: UDP, HostPort: 9999, ContainerPort: 9}, c.port))
		var taken *PortTakenError
		if !errors.As(err, &taken) || taken.Holder != c.holder || !errors.Is(err, errdefs.ErrInternal) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%+v: got %v", c.port, err)
		}
		if _, err := os.Stat(filepath.Join(m.cfg.Dir, "second")); !os.IsNotExist(err) {
			t.Errorf("a failed Reserve left its directory: %v", err)
		}
	}
	for _, p := range []Port{
		{Proto: "sctp", HostPort: 1, ContainerPort: 1},
		{Proto: TCP, HostPort: 1},
		{Proto: TCP, HostIP: "localhost", ContainerPort: 1},
		{Proto: TCP, HostIP: "::1", ContainerPort: 1},
		{Proto: TCP, HostIP: "203.0.113.5", HostPort: 8085, ContainerPort: 1},
	} {
		if _, err := m.Reserve(ctx, "second", bridgeRequest("b", p)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: got %v; want an invalid argument", p, err)
		}
	}
	// The ports of the failed ones are free again, and so is that of a released one.
	b, err := m.Reserve(ctx, "third", bridgeRequest("c", Port{Proto: UDP, HostPort: 9999, ContainerPort: 9}, Port{Proto: TCP, ContainerPort: 80}))
	check(t, err)
	if len(b.Ports) != 4 || b.Ports[2].HostPort == 0 || b.Ports[2].HostPort != b.Ports[3].HostPort || b.Ports[3].HostIP != "::" {
		t.Errorf("ports as bound: %+v", b.Ports)
	}
	if _, err := m.Reserve(ctx, "third", bridgeRequest("c")); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("second Reserve: %v", err)
	}
	b.Close()
	check(t, m.Release(ctx, "third"))
	check(t, m.Release(ctx, "first"))
	w.eventually(before)
}

// Many at once, and all of them gone again.
func TestConcurrent(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	m := w.open(Config{Linger: -1})
	defer m.Close()
	const n = 20
	boxes := make([]*Endpoint, n)
	spaces := make([]*os.File, n)
	for i := range n {
		spaces[i] = newNetns(t)
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprintf("c%d", i)
			e, err := m.Reserve(ctx, id, bridgeRequest(id, Port{Proto: TCP, HostPort: uint16(10000 + i), ContainerPort: 80}))
			if err != nil {
				t.Error(err)
				return
			}
			boxes[i] = e
			if err := m.Plug(ctx, id, spaces[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	seen := map[string]bool{}
	for i, e := range boxes {
		for _, key := range []string{e.Address.String(), e.Address6.String(), e.MAC, e.Link} {
			if seen[key] {
				t.Errorf("%s was given twice", key)
			}
			seen[key] = true
		}
		w.serve(spaces[i], 80, e.ID)
	}
	for i, e := range boxes {
		w.answers(w.outside, TCP, fmt.Sprintf("192.0.2.1:%d", 10000+i), e.ID+" 192.0.2.9")
	}
	for _, e := range boxes {
		wg.Go(func() {
			e.Close()
			if err := m.Release(ctx, e.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.eventually(before)
}

// The engine is killed: nothing of the manager's memory is left, while one
// container lives, one died, one never was whole, and the kernel holds leftovers.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	dir := filepath.Join(t.TempDir(), "network")
	m := w.open(Config{Dir: dir})
	live := w.plug(m, "live", bridgeRequest("live", Port{Proto: TCP, HostPort: 8080, ContainerPort: 80}))
	w.serve(live.ns, 80, "live")
	dead := w.plug(m, "dead", bridgeRequest("dead", Port{Proto: TCP, HostPort: 8081, ContainerPort: 80}))
	w.serve(dead.ns, 80, "dead")
	half, err := m.Reserve(ctx, "half", bridgeRequest("half", Port{Proto: TCP, HostPort: 8082, ContainerPort: 80}))
	check(t, err)
	abandon(m)
	half.Close()
	dead.Close()
	// A card whose lease never reached the disk, a lease that did not get whole, an element that nobody wants.
	stray := &vnl.Veth{LinkAttrs: vnl.LinkAttrs{Name: linkPrefix + "ffffffff"}, PeerName: "x"}
	check(t, vnl.LinkAdd(stray))
	br, err := vnl.LinkByName("tb0")
	check(t, err)
	check(t, vnl.LinkSetMaster(stray, br))
	check(t, os.Mkdir(filepath.Join(dir, "unfinished"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "unfinished", leaseFile), []byte(`{"id":"unfin`), 0o600))
	run(t, "nft", "add", "element", "inet", "proatest", "any4", "{ tcp . 9 : 172.30.9.9 . 9 }")

	m2 := w.open(Config{Dir: dir})
	check(t, m2.Reconcile(ctx, map[string]bool{"live": true}))
	w.answers(w.outside, TCP, "192.0.2.1:8080", "live")
	w.silent(w.outside, TCP, "192.0.2.1:8081")
	if ids := m2.ids(); len(ids) != 1 || ids[0] != "live" {
		t.Errorf("leases after Reconcile: %v", ids)
	}
	e, err := m2.Endpoint("live")
	check(t, err)
	if e.Address != live.Address || e.MAC != live.MAC || len(e.Ports) != 2 {
		t.Errorf("the lease changed: %+v; it was %+v", e, live.Endpoint)
	}
	out := run(t, "nft", "list", "ruleset")
	if strings.Contains(out, "172.30.9.9") || strings.Contains(out, "8081") || strings.Contains(out, "8082") {
		t.Errorf("Reconcile left elements of nobody:\n%s", out)
	}
	if linkExists(stray.Name) {
		t.Errorf("Reconcile left a card of nobody")
	}
	if _, err := os.Stat(filepath.Join(dir, "unfinished")); !os.IsNotExist(err) {
		t.Errorf("an unfinished lease is still there: %v", err)
	}
	// An address that lives is not given to somebody else.
	n, err := m2.Reserve(ctx, "new", bridgeRequest("new"))
	check(t, err)
	if n.Address == live.Address {
		t.Errorf("%s was given twice", n.Address)
	}
	check(t, m2.Release(ctx, "new"))

	// Somebody flushes the whole ruleset: the next change brings the table back, with everything in it.
	run(t, "nft", "flush", "ruleset")
	other := w.plug(m2, "other", bridgeRequest("other", Port{Proto: TCP, HostPort: 8083, ContainerPort: 80}))
	w.serve(other.ns, 80, "other")
	w.answers(w.outside, TCP, "192.0.2.1:8080", "live")
	w.answers(w.outside, TCP, "192.0.2.1:8083", "other")
	check(t, m2.Release(ctx, "other"))

	// Killed again, and this time nobody lives: Open alone finds a bridge without leases only after Reconcile.
	abandon(m2)
	live.Close()
	m3 := w.open(Config{Dir: dir, Linger: -1})
	defer m3.Close()
	check(t, m3.Reconcile(ctx, nil))
	w.eventually(before)
}

// Killed between the last Release and the end of the bridge.
func TestKilledWhileLingering(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	dir := filepath.Join(t.TempDir(), "network")
	m := w.open(Config{Dir: dir, Linger: time.Hour})
	w.plug(m, "a", bridgeRequest("a"))
	check(t, m.Release(ctx, "a"))
	if !linkExists("tb0") {
		t.Fatal("the bridge did not linger")
	}
	abandon(m)
	m2 := w.open(Config{Dir: dir})
	defer m2.Close()
	w.eventually(before)
}

// abandon is what is left of a manager whose process was killed: its sockets are
// closed and nothing of it runs, but nothing was cleaned up.
func abandon(m *Manager) {
	m.bridge.Lock()
	if m.linger != nil {
		m.linger.Stop()
	}
	m.stopWatch()
	m.closed = true
	m.bridge.Unlock()
	m.background.Wait()
	m.nft.close()
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A bridge that is not ours is not touched.
func TestForeignBridge(t *testing.T) {
	w := newWorld(t)
	la := vnl.NewLinkAttrs()
	la.Name = "tb0"
	br := &vnl.Bridge{LinkAttrs: la}
	check(t, vnl.LinkAdd(br))
	defer vnl.LinkDel(br)
	m := w.open(Config{})
	if _, err := m.Reserve(ctx, "a", bridgeRequest("a")); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("Reserve: %v", err)
	}
	check(t, m.Close())
	if !linkExists("tb0") {
		t.Errorf("a foreign bridge was removed")
	}
}

// Interfaces that come later are opened, others' use of forwarding stays as it
// was, and when somebody switches forwarding on for all, it is theirs.
func TestForwarding(t *testing.T) {
	w := newWorld(t)
	host, err := readSysctl("net/ipv4/ip_forward")
	check(t, err)
	check(t, writeSysctl("net/ipv4/ip_forward", "0")) // whatever the host has
	defer func() { check(t, writeSysctl("net/ipv4/ip_forward", host)) }()
	m := w.open(Config{Linger: -1})
	defer m.Close()
	before := w.snapshot()
	b := w.plug(m, "web", bridgeRequest("web", Port{Proto: TCP, HostPort: 8080, ContainerPort: 80}))
	w.serve(b.ns, 80, "web")

	second := newNetns(t)
	late := &vnl.Veth{LinkAttrs: vnl.LinkAttrs{Name: "late0"}, PeerName: "l0", PeerNamespace: vnl.NsFd(second.Fd())}
	check(t, vnl.LinkAdd(late))
	defer vnl.LinkDel(late)
	check(t, vnl.AddrAdd(late, &vnl.Addr{IPNet: ipNet(lateIP, 24)}))
	check(t, vnl.LinkSetUp(late))
	inNetns(t, second, func() {
		l, err := vnl.LinkByName("l0")
		check(t, err)
		check(t, vnl.AddrAdd(l, &vnl.Addr{IPNet: ipNet(lateIP.Next(), 24)}))
		check(t, vnl.LinkSetUp(l))
		gw := lateIP.AsSlice()
		check(t, vnl.RouteAdd(&vnl.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(outsideIP, 32), Gw: gw}))
	})
	inNetns(t, w.outside, func() {
		l, err := vnl.LinkByName("out0")
		check(t, err)
		check(t, vnl.RouteAdd(&vnl.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParseAddr("198.51.100.0"), 24), Gw: hostIP.AsSlice()}))
	})
	w.serve(w.outside, 7000, "outside")
	waitFor(t, func() bool { v, _ := readSysctl("net/ipv4/conf/late0/forwarding"); return v == "1" })
	time.Sleep(50 * time.Millisecond)
	w.answers(second, TCP, lateIP.String()+":8080", "web")
	// The host has not become a router between its other networks.
	w.silent(second, TCP, outsideIP.String()+":7000")
	// Until its owner wants that.
	check(t, writeSysctl("net/ipv4/ip_forward", "1"))
	waitFor(t, func() bool {
		got, _ := w.ask(second, TCP, outsideIP.String()+":7000", 300*time.Millisecond)
		return got != ""
	})
	check(t, m.Release(ctx, "web"))
	waitFor(t, func() bool { return !linkExists("tb0") })
	if v, _ := readSysctl("net/ipv4/ip_forward"); v != "1" {
		t.Errorf("ip_forward of somebody else was switched off")
	}
	check(t, writeSysctl("net/ipv4/ip_forward", "0"))
	check(t, vnl.LinkDel(late))
	w.eventually(before)
}

var lateIP = netip.MustParseAddr("198.51.100.1")

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for range 100 {
		if ok() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("waited five seconds in vain")
}

// A datagram that came before the port was published, or a stream of them to a
// container that is gone, must not pin the flow to nobody.
func TestStaleFlows(t *testing.T) {
	w := newWorld(t)
	m := w.open(Config{Linger: -1})
	defer m.Close()
	keep := w.plug(m, "keep", bridgeRequest("keep"))
	defer m.Release(ctx, "keep")
	_ = keep
	var c net.Conn
	inNetns(t, w.outside, func() {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: outsideIP.AsSlice(), Port: 40000}}
		var err error
		c, err = d.Dial("udp", "192.0.2.1:5353")
		check(t, err)
	})
	defer c.Close()
	ask := func() string {
		c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		c.Write([]byte("x"))
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		return string(buf[:n])
	}
	for i := range 2 {
		name := fmt.Sprintf("dns%d", i)
		e, err := m.Reserve(ctx, name, bridgeRequest(name, Port{Proto: UDP, HostPort: 5353, ContainerPort: 53}))
		check(t, err)
		if got := ask(); got != "" {
			t.Fatalf("answered before the port was open: %q", got)
		}
		ns := newNetns(t)
		check(t, m.Plug(ctx, name, ns))
		w.serve(ns, 53, name)
		if got := ask(); got != name+" 192.0.2.9" {
			t.Errorf("container %s: got %q", name, got)
		}
		e.Close()
		check(t, m.Release(ctx, name))
		if got := ask(); got != "" {
			t.Errorf("answered after the end: %q", got)
		}
	}
}

// A tap and a container on one bridge see each other: a frame written to the
// tap is an ARP request, and the container's kernel answers it.
func TestTap(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	m := w.open(Config{Linger: -1})
	defer m.Close()
	box := w.plug(m, "box", bridgeRequest("box"))
	e, err := m.Reserve(ctx, "vm", bridgeRequest("vm", Port{Proto: TCP, HostPort: 8080, ContainerPort: 80}))
	check(t, err)
	defer e.Close()
	tap, err := m.PlugTap(ctx, "vm")
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV) {
		t.Skip("this host has no /dev/net/tun")
	}
	check(t, err)
	n := e.NIC()
	if len(n.Address) != 2 || n.Address[0] != e.Address.String() || n.Gateway[0] != "172.30.0.1" || n.Name != "eth0" || n.MTU != 1500 {
		t.Errorf("NIC: %+v", n)
	}
	mac, err := net.ParseMAC(e.MAC)
	check(t, err)
	const vnet = 10 // struct virtio_net_hdr
	frame := make([]byte, vnet+14+28)
	eth := frame[vnet:]
	copy(eth, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(eth[6:], mac)
	copy(eth[12:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1})
	copy(eth[22:], mac)
	copy(eth[28:], e.Address.Addr().AsSlice())
	copy(eth[38:], box.Address.Addr().AsSlice())
	// The bridge is up at once, but the first frames of a new card may meet one that is still settling.
	got := make(chan bool, 1)
	go func() {
		buf := make([]byte, 2048)
		for {
			n, err := tap.Read(buf)
			if err != nil {
				return
			}
			f := buf[min(vnet, n):n]
			if len(f) >= 42 && f[12] == 8 && f[13] == 6 && f[21] == 2 && net.HardwareAddr(f[22:28]).String() == box.MAC {
				got <- true
				return
			}
		}
	}()
	answered := false
	for range 20 {
		_, err := tap.Write(frame)
		check(t, err)
		select {
		case answered = <-got:
		case <-time.After(100 * time.Millisecond):
			continue
		}
		break
	}
	if !answered {
		t.Errorf("the container did not answer a frame from the tap")
	}
	s, err := m.Stats(ctx, "vm")
	check(t, err)
	if s.TxPackets == 0 || s.RxPackets == 0 {
		t.Errorf("Stats: %+v", s)
	}
	// The tap dies with its last descriptor, whoever holds it.
	check(t, tap.Close())
	waitFor(t, func() bool { return !linkExists(e.Link) })
	if _, err := m.Stats(ctx, "vm"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Stats of a tap that is gone: %v", err)
	}
	check(t, m.Release(ctx, "vm"))
	check(t, m.Release(ctx, "box"))
	w.eventually(before)
}
