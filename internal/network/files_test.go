package network

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"proa/internal/isolation"
)

func TestResolvConf(t *testing.T) {
	bridge := &Endpoint{
		Kind:    isolation.NetworkBridge,
		Address: netip.MustParsePrefix("172.30.0.2/16"), Gateway: netip.MustParseAddr("172.30.0.1"),
		Address6: netip.MustParsePrefix("fd00:1::2/64"), Gateway6: netip.MustParseAddr("fd00:1::1"),
	}
	only4 := &Endpoint{Kind: isolation.NetworkBridge, Address: bridge.Address, Gateway: bridge.Gateway}
	host := &Endpoint{Kind: isolation.NetworkHost}
	for _, c := range []struct {
		name, conf string
		e          *Endpoint
		r          Request
		want       string
	}{
		{"as it is", "# made by hand\nnameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:2 timeout:1\nsortlist 1.2.3.4\n", bridge, Request{},
			"nameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:2 timeout:1\nsortlist 1.2.3.4\n"},
		{"loopback is left out", "nameserver 127.0.0.1\nnameserver 10.0.0.1\nnameserver ::1\n", bridge, Request{}, "nameserver 10.0.0.1\n"},
		{"only loopback: by the gateway", "nameserver 127.0.0.1\n", bridge, Request{}, "nameserver 172.30.0.1\n"},
		{"IPv6", "nameserver 2001:db8::53\nnameserver fe80::1%eth0\n", bridge, Request{}, "nameserver 2001:db8::53\n"},
		{"IPv6 without a way there", "nameserver 2001:db8::53\nnameserver 10.0.0.1\n", only4, Request{}, "nameserver 10.0.0.1\n"},
		{"host keeps loopback", "nameserver 127.0.0.53\noptions edns0\n", host, Request{}, "nameserver 127.0.0.53\noptions edns0\n"},
		{"replaced", "nameserver 10.0.0.1\nsearch a.example\noptions ndots:2\n", bridge,
			Request{DNS: []string{"9.9.9.9"}, DNSSearch: []string{"c.example"}, DNSOptions: []string{"rotate"}},
			"nameserver 9.9.9.9\nsearch c.example\noptions rotate\n"},
		{"no search", "nameserver 10.0.0.1\ndomain a.example\n", bridge, Request{DNSSearch: []string{"."}}, "nameserver 10.0.0.1\n"},
		{"nothing there", "", bridge, Request{}, ""},
		{"rubbish", "nameserver\nnameserver what\n\x00\xff\n", bridge, Request{}, "\x00\xff\n"},
	} {
		if got := string(mergeResolvConf([]byte(c.conf), c.e, c.r)); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, c.want)
		}
	}
}

func TestHostsFile(t *testing.T) {
	e := &Endpoint{
		Kind:    isolation.NetworkBridge,
		Address: netip.MustParsePrefix("172.30.0.2/16"), Gateway: netip.MustParseAddr("172.30.0.1"),
		Address6: netip.MustParsePrefix("fd00:1::2/64"), Gateway6: netip.MustParseAddr("fd00:1::1"),
	}
	r := Request{Hostname: "web", Domain: "example.org", ExtraHosts: []string{"db:10.1.2.3", "up=host-gateway", "six:[2001:db8::7]", "seven:2001:db8::8"}}
	dir := t.TempDir()
	check(t, writeFiles(dir, e, r))
	b, err := os.ReadFile(filepath.Join(dir, "hosts"))
	check(t, err)
	const want = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n" +
		"10.1.2.3\tdb\n172.30.0.1\tup\nfd00:1::1\tup\n2001:db8::7\tsix\n2001:db8::8\tseven\n" +
		"172.30.0.2\tweb.example.org web\nfd00:1::2\tweb.example.org web\n"
	if string(b) != want {
		t.Errorf("hosts:\n%s\nwant\n%s", b, want)
	}
	if b, _ := os.ReadFile(e.HostsName); string(b) != "web\n" {
		t.Errorf("hostname: %q", b)
	}
	for _, bad := range []string{"db", ":1.2.3.4", "db:what", "a b:1.2.3.4", "db:1.2.3.4\n5.6.7.8\tx", "db:"} {
		if _, err := extraHosts([]string{bad}, nil); err == nil {
			t.Errorf("extra host %q was taken", bad)
		}
	}
	if _, err := extraHosts([]string{"up:host-gateway"}, nil); err == nil {
		t.Error("host-gateway without a bridge was taken")
	}
	for _, bad := range []Request{{Hostname: "a\nb"}, {DNS: []string{"x"}}, {DNSSearch: []string{"a\nnameserver 6.6.6.6"}}, {DNSOptions: []string{"a b"}}} {
		if checkNames(bad) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// Without a bridge there are files and nothing else.
func TestNoneAndHost(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	m := w.open(Config{})
	defer m.Close()
	for _, kind := range []isolation.NetworkMode{isolation.NetworkNone, isolation.NetworkHost} {
		e, err := m.Reserve(ctx, string(kind), Request{Kind: kind, Hostname: "h", Ports: []Port{{Proto: TCP, HostPort: 8080, ContainerPort: 80}}})
		check(t, err)
		if len(e.Ports)+len(e.Held) != 0 || e.Address.IsValid() || len(e.NIC().Address) != 0 {
			t.Errorf("%s: %+v", kind, e)
		}
		for _, f := range []string{e.Hosts, e.ResolvConf, e.HostsName} {
			if _, err := os.Stat(f); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		if b, _ := os.ReadFile(e.Hosts); kind == isolation.NetworkNone && (!strings.Contains(string(b), "localhost") || strings.Contains(string(b), "\th\n")) {
			t.Errorf("none: hosts is\n%s", b)
		}
		if m.Plug(ctx, e.ID, w.outside) == nil {
			t.Errorf("%s: was plugged", kind)
		}
		if got := w.snapshot(); got != before {
			t.Errorf("%s: changed the host:\n%s", kind, got)
		}
		check(t, m.Release(ctx, e.ID))
	}
	entries, err := os.ReadDir(m.cfg.Dir)
	check(t, err)
	for _, e := range entries {
		if e.Name() != bridgeFile {
			t.Errorf("%s is left", e.Name())
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.1\nsearch a b\noptions x\n"))
	e := &Endpoint{Kind: isolation.NetworkBridge, Gateway: netip.MustParseAddr("172.30.0.1")}
	f.Fuzz(func(t *testing.T, conf []byte) {
		out := mergeResolvConf(conf, e, Request{})
		for _, ns := range nameservers(out) {
			a, err := netip.ParseAddr(ns)
			if err != nil || a.IsLoopback() || a.Is6() {
				t.Errorf("nameserver %q got through", ns)
			}
		}
	})
}
