package network

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Each firewall is loaded into the kernel. What Blockers says is compared with
// what truly happens to a packet.
func TestBlockers(t *testing.T) {
	w := newWorld(t)
	m := w.open(Config{Linger: -1})
	defer m.Close()
	b := w.plug(m, "web", bridgeRequest("web", Port{Proto: TCP, HostPort: 8080, ContainerPort: 80}))
	defer m.Release(ctx, "web")
	w.serve(b.ns, 80, "web")
	w.serve(w.outside, 7000, "outside")
	for _, c := range []struct {
		name, rules    string
		out, in        bool // still work
		where, what    string
		traffic, hint  string
		count          int
		uncertainCount int
	}{
		{name: "nothing", rules: "", out: true, in: true},
		{name: "accepting", rules: "table inet f { chain forward { type filter hook forward priority 0; policy accept; ct state invalid drop; iifname \"docker0\" drop; } }", out: true, in: true},
		{name: "policy", rules: "table inet f { chain forward { type filter hook forward priority 0; policy drop; } }",
			where: "nftables table inet f, chain forward", what: "policy drop", traffic: "published ports", count: 1,
			hint: `nft insert rule inet f forward iifname "tb0" accept && nft insert rule inet f forward oifname "tb0" accept`},
		{name: "policy with our way through", out: true, in: true,
			rules: "table inet f { chain forward { type filter hook forward priority 0; policy drop; iifname \"tb0\" accept; oifname \"tb*\" accept; } }"},
		{name: "docker", rules: "table ip filter { chain DOCKER-USER { return; }\n chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; oifname \"docker0\" ct state established,related accept; iifname \"docker0\" accept; } }",
			where: "nftables table ip filter, chain FORWARD", what: "policy drop", count: 1, traffic: "to the outside",
			hint: "iptables -I DOCKER-USER -i tb0 -j ACCEPT && iptables -I DOCKER-USER -o tb0 -j ACCEPT"},
		{name: "a rule in a chain of its own", out: false, in: true,
			rules: "table inet f { chain out { ip daddr 10.0.0.0/8 accept; counter reject; }\n chain forward { type filter hook forward priority 10; policy accept; ct state vmap { established : accept, related : accept, invalid : drop }; iifname { \"tb0\", \"x\" } jump out; } }",
			where: "nftables table inet f, chain out", what: "reject", count: 1, traffic: "from containers to the outside"},
		{name: "only established", out: false, in: false, where: "chain forward", what: "policy drop", count: 1,
			rules: "table ip f { chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; } }"},
		{name: "translated is let in", out: false, in: true, where: "chain forward", what: "policy drop", count: 1, traffic: "from containers to the outside",
			rules: "table ip f { chain forward { type filter hook forward priority 0; policy drop; ct state established accept; ct status dnat accept; } }"},
		{name: "networks in a set", out: true, in: false, where: "chain forward", what: "drop", count: 1, traffic: "published ports",
			rules: "table ip f { set nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 172.16.0.0/12 } }\n chain forward { type filter hook forward priority 0; ct state established accept; ip daddr @nets drop; } }"},
		{name: "cannot be told", out: false, in: false, where: "chain forward", what: "policy drop", uncertainCount: 1,
			rules: "table ip f { chain forward { type filter hook forward priority 0; policy drop; meta mark 77 accept; } }"},
		{name: "our own kind of rule elsewhere", rules: "table inet f { chain input { type filter hook input priority 0; policy drop; iifname \"tb0\" drop; accept; } }", out: true, in: true},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			w := &world{t: t, outside: w.outside}
			load(t, c.rules)
			blockers, err := m.Blockers(ctx)
			check(t, err)
			certain := 0
			for _, b := range blockers {
				if b.Certain {
					certain++
				}
				if !strings.Contains(b.Where, c.where) || !strings.Contains(b.What, c.what) || !strings.Contains(b.Traffic, c.traffic) || (c.hint != "" && b.Hint != c.hint) {
					t.Errorf("got %+v", b)
				}
			}
			if certain != c.count || len(blockers)-certain != c.uncertainCount {
				t.Errorf("got %d certain, %d others: %+v", certain, len(blockers)-certain, blockers)
			}
			for _, x := range []struct {
				from *os.File
				addr string
				want bool
			}{{b.ns, "192.0.2.9:7000", c.out}, {w.outside, "192.0.2.1:8080", c.in}} {
				_, err := w.ask(x.from, TCP, x.addr, 300*time.Millisecond)
				if (err == nil) != x.want {
					t.Errorf("to %s: %v; should work: %v", x.addr, err, x.want)
				}
			}
		})
	}
}

// load makes rules the only ones besides our table.
func load(t *testing.T, rules string) {
	t.Helper()
	out := run(t, "nft", "list", "tables")
	var b strings.Builder
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "proatest") {
			b.WriteString("delete " + line)
		}
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(b.String() + strings.ReplaceAll(rules, "; }", ";\n}\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func TestIptablesLegacy(t *testing.T) {
	out := probe{iif: "proa0", oif: "eth0", src: hostIP, dst: outsideIP, dport: 443}
	in := probe{iif: "eth0", oif: "proa0", src: outsideIP, dst: hostIP, translated: true}
	answer := probe{iif: "eth0", oif: "proa0", src: outsideIP, dst: hostIP, established: true}
	const head = "# Generated by iptables-save v1.8.9\n*nat\n:PREROUTING ACCEPT [0:0]\n-A FORWARD -j DROP\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\n"
	for _, c := range []struct {
		name, save      string
		out, in, answer string // where each is dropped; "" is let through; "?" in front: not certain
	}{
		{name: "empty", save: head},
		{name: "policy", save: head + ":FORWARD DROP [0:0]\nCOMMIT\n", out: "policy DROP", in: "policy DROP", answer: "policy DROP"},
		{name: "docker", save: head + ":FORWARD DROP [12:720]\n:DOCKER - [0:0]\n:DOCKER-USER - [0:0]\n" +
			"-A FORWARD -j DOCKER-USER\n-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n-A DOCKER-USER -j RETURN\nCOMMIT\n",
			out: "policy DROP", in: "policy DROP", answer: "policy DROP"},
		{name: "let through", save: head + ":FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n" +
			"-A DOCKER-USER -i proa+ -m comment --comment \"the \\\"new\\\" -j DROP engine\" -j ACCEPT\n-A DOCKER-USER -o proa0 -j ACCEPT\nCOMMIT\n"},
		{name: "states", save: head + ":FORWARD DROP [0:0]\n-A FORWARD -m state --state ESTABLISHED -j ACCEPT\n-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT\nCOMMIT\n", out: "policy DROP"},
		{name: "reject", save: head + ":FORWARD ACCEPT [0:0]\n[5:300] -A FORWARD ! -o proa0 -s 192.0.2.0/24 -j REJECT --reject-with icmp-port-unreachable\nCOMMIT\n",
			out: "rule [5:300] -A FORWARD ! -o proa0 -s 192.0.2.0/24 -j REJECT --reject-with icmp-port-unreachable"},
		{name: "cannot be told", save: head + ":FORWARD DROP [0:0]\n-A FORWARD -m mark --mark 0x4 -j ACCEPT\nCOMMIT\n", out: "?policy DROP", in: "?policy DROP", answer: "?policy DROP"},
		{name: "a loop", save: head + ":FORWARD ACCEPT [0:0]\n:A - [0:0]\n-A FORWARD -g A\n-A A -j A\nCOMMIT\n"},
	} {
		rs := parseIptables([]byte(c.save))
		for _, x := range []struct {
			p    probe
			want string
		}{{out, c.out}, {in, c.in}, {answer, c.answer}} {
			end := rs.judge(x.p)
			got := end.what
			if end.drop && !end.certain {
				got = "?" + got
			}
			if got != x.want || end.drop != (x.want != "") {
				t.Errorf("%s: %s -> %s: got %q, want %q", c.name, x.p.iif, x.p.oif, got, x.want)
			}
		}
	}
}

func FuzzIptables(f *testing.F) {
	f.Add([]byte("*filter\n:FORWARD DROP [0:0]\n-A FORWARD ! -i a+ -m comment --comment \"x y\" -g FORWARD\nCOMMIT\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseIptables(b).judge(probe{iif: "a", oif: "b", src: hostIP, dst: outsideIP})
	})
}
