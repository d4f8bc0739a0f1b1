package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"proa/internal/isolation"
)

// The tests run in a network namespace of their own: TestMain starts the test
// binary again inside one. There it is "the host", with an interface up0 to a
// second namespace, "outside". The machine's own links and rules are never touched.

const (
	insideEnv  = "PROA_NETWORK_TEST_INSIDE"
	forwardEnv = "PROA_NETWORK_TEST_FORWARD" // ip_forward of the namespace outside, which the new ones get as well
)

func TestMain(m *testing.M) {
	if os.Getenv(insideEnv) == "1" {
		if err := likeHost(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Println("skip: the network's tests make network namespaces and so need root")
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	forward, err := readSysctl("net/ipv4/ip_forward")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	cmd.Env = append(os.Environ(), insideEnv+"=1", forwardEnv+"="+forward)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is of the thread
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			os.Exit(cmd.ProcessState.ExitCode())
		}
		fmt.Println("cannot run the tests in a network namespace:", err)
		os.Exit(1)
	}
}

var (
	hostIP     = netip.MustParseAddr("192.0.2.1")
	hostIP6    = netip.MustParseAddr("2001:db8::1")
	outsideIP  = netip.MustParseAddr("192.0.2.9")
	outsideIP6 = netip.MustParseAddr("2001:db8::9")
)

// world is the host of a test: fresh links, and a neighbour.
type world struct {
	t       testing.TB
	outside *os.File     // network namespace
	hits    atomic.Int64 // connections and datagrams that reached a server
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, outside: newNetns(t)}
	lo, err := vnl.LinkByName("lo")
	check(t, err)
	check(t, vnl.LinkSetUp(lo))
	up := &vnl.Veth{
		LinkAttrs: vnl.LinkAttrs{Name: "up0"}, PeerName: "out0",
		PeerNamespace: vnl.NsFd(w.outside.Fd()),
	}
	check(t, vnl.LinkAdd(up))
	t.Cleanup(func() {
		// What a failed test left must not be met by the next one.
		vnl.LinkDel(up)
		if br, err := vnl.LinkByName("tb0"); err == nil {
			vnl.LinkDel(br)
		}
		exec.Command("nft", "flush", "ruleset").Run()
	})
	configure := func(name string, a4, a6 netip.Addr) {
		l, err := vnl.LinkByName(name)
		check(t, err)
		check(t, vnl.AddrAdd(l, &vnl.Addr{IPNet: ipNet(a4, 24)}))
		check(t, vnl.AddrAdd(l, &vnl.Addr{IPNet: ipNet(a6, 64), Flags: ifaFNoDAD}))
		check(t, vnl.LinkSetUp(l))
	}
	configure("up0", hostIP, hostIP6)
	inNetns(t, w.outside, func() {
		lo, err := vnl.LinkByName("lo")
		check(t, err)
		check(t, vnl.LinkSetUp(lo))
		configure("out0", outsideIP, outsideIP6)
	})
	return w
}

var loopbackNet = netip.MustParseAddr("127.0.0.0")

func addrOf(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// likeHost gives the thread's network namespace the ip_forward of the one that
// the tests were started in.
func likeHost() error {
	now, err := readSysctl("net/ipv4/ip_forward")
	if want := os.Getenv(forwardEnv); err == nil && want != now {
		err = writeSysctl("net/ipv4/ip_forward", want)
	}
	return err
}

// newNetns makes a network namespace that lives as long as the test.
func newNetns(t testing.TB) *os.File {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	check(t, err)
	defer here.Close()
	ns, err := netns.New()
	check(t, err)
	check(t, likeHost())
	check(t, netns.Set(here))
	f := os.NewFile(uintptr(ns), "netns")
	t.Cleanup(func() { f.Close() })
	return f
}

// inNetns runs fn on a thread that is in ns.
func inNetns(t testing.TB, ns *os.File, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err := netns.Set(netns.NsHandle(ns.Fd())); err != nil {
			t.Errorf("cannot enter namespace: %v", err)
			return
		}
		fn()
	}()
	<-done
}

// open makes a manager of its own for the test.
func (w *world) open(cfg Config) *Manager {
	w.t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(w.t.TempDir(), "network")
	}
	if cfg.Bridge == "" {
		cfg.Bridge = "tb0"
	}
	if cfg.Table == "" {
		cfg.Table = "proatest"
	}
	m, err := Open(context.Background(), cfg)
	check(w.t, err)
	return m
}

// box is a container's network namespace that was reserved and plugged.
type box struct {
	w  *world
	m  *Manager
	ns *os.File
	*Endpoint
}

func (w *world) plug(m *Manager, id string, r Request) *box {
	w.t.Helper()
	if r.Kind == "" {
		r.Kind = isolation.NetworkBridge
	}
	e, err := m.Reserve(context.Background(), id, r)
	check(w.t, err)
	w.t.Cleanup(e.Close)
	b := &box{w: w, m: m, ns: newNetns(w.t), Endpoint: e}
	check(w.t, m.Plug(context.Background(), id, b.ns))
	return b
}

// serve answers every TCP connection and every datagram to port inside ns with
// name and the address that the caller was seen to have.
func (w *world) serve(ns *os.File, port int, name string) {
	w.t.Helper()
	listen := func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		check(w.t, err)
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		check(w.t, err)
		w.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.hits.Add(1)
				fmt.Fprintf(c, "%s %s", name, hostOf(c.RemoteAddr()))
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				w.hits.Add(1)
				u.WriteTo(fmt.Appendf(nil, "%s %s", name, hostOf(from)), from)
			}
		}()
	}
	if ns == nil {
		listen()
	} else {
		inNetns(w.t, ns, listen)
	}
}

func hostOf(a net.Addr) string {
	ap := netip.MustParseAddrPort(a.String())
	return ap.Addr().Unmap().WithZone("").String()
}

// ask connects from ns (nil: the host) and returns the answer, or an error.
func (w *world) ask(ns *os.File, proto, addr string, wait time.Duration) (answer string, err error) {
	dial := func() {
		d := net.Dialer{Timeout: wait, FallbackDelay: -1}
		var c net.Conn
		if c, err = d.Dial(proto, addr); err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		if proto == "udp" {
			c.Write([]byte("hello"))
			buf := make([]byte, 2048)
			var n int
			n, err = c.Read(buf)
			answer = string(buf[:n])
			return
		}
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	}
	if ns == nil {
		dial()
	} else {
		inNetns(w.t, ns, dial)
	}
	return answer, err
}

// answers fails the test unless proto at addr answers as want begins.
func (w *world) answers(from *os.File, proto, addr, want string) {
	w.t.Helper()
	start := time.Now()
	got, err := w.ask(from, proto, addr, 2*time.Second)
	if d := time.Since(start); d > 500*time.Millisecond {
		w.t.Logf("%s %s took %v", proto, addr, d)
	}
	if err != nil || !strings.HasPrefix(got, want) {
		w.t.Errorf("%s %s: got %q, %v; want %q", proto, addr, got, err, want)
	}
}

// silent fails the test if anything answers at addr.
func (w *world) silent(from *os.File, proto, addr string) {
	w.t.Helper()
	if got, err := w.ask(from, proto, addr, 300*time.Millisecond); err == nil {
		w.t.Errorf("%s %s: answered %q; nothing should", proto, addr, got)
	}
}

// snapshot is what the host's network consists of, in words.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	links, err := complete(vnl.LinkList)
	check(w.t, err)
	for _, l := range links {
		fmt.Fprintf(&b, "link %s\n", l.Attrs().Name)
	}
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		w.t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	b.Write(out)
	for _, dir := range []string{"net/ipv4/conf", "net/ipv6/conf"} {
		ents, err := os.ReadDir(sysctlRoot + dir)
		check(w.t, err)
		for _, e := range ents {
			for _, s := range []string{"forwarding", "force_forwarding", "accept_ra", "accept_redirects", "route_localnet"} {
				if v, err := readSysctl(dir + "/" + e.Name() + "/" + s); err == nil {
					fmt.Fprintf(&b, "%s/%s/%s=%s\n", dir, e.Name(), s, v)
				}
			}
		}
	}
	return b.String()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
