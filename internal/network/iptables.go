package network

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Legacy iptables (not the one that writes nftables) keeps tables of its own in
// the kernel. They are read as iptables-save prints them.

// legacyBlockers asks the FORWARD chain of a legacy filter table. names is the
// kernel's list of the tables in use.
func legacyBlockers(ctx context.Context, bridge, names, binary string, probes []probe) []Blocker {
	b, err := os.ReadFile(names)
	if err != nil || len(probes) == 0 || !slices.Contains(strings.Fields(string(b)), "filter") {
		return nil
	}
	tool := strings.TrimSuffix(binary, "-legacy-save")
	where := tool + " (legacy), table filter, chain "
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var out []byte
	for _, name := range []string{binary, tool + "-save"} {
		if out, err = exec.CommandContext(ctx, name, "-t", "filter").Output(); !errors.Is(err, exec.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return []Blocker{{
			Where: where + "FORWARD", What: fmt.Sprintf("could not be read: %v", err), Traffic: "unknown",
			Hint: "apt-get install iptables",
		}}
	}
	rs := parseIptables(out)
	var list []Blocker
	for _, p := range probes {
		end := rs.judge(p)
		if !end.drop {
			continue
		}
		hint := iptablesHint(tool, "FORWARD", bridge)
		if _, ok := rs.chains["DOCKER-USER"]; ok {
			hint = iptablesHint(tool, "DOCKER-USER", bridge)
		} else if rs.hasPrefix("ufw") {
			hint = ufwHint(bridge)
		}
		list = append(list, Blocker{Where: where + end.chain, What: end.what, Traffic: p.traffic, Certain: end.certain, Hint: hint})
	}
	return list
}

// ruleset is one table of iptables-save.
type ruleset struct {
	policy map[string]string
	chains map[string][]iptablesRule
}

type iptablesRule struct {
	text string   // as printed
	args []string // after "-A CHAIN"
}

func (rs *ruleset) hasPrefix(p string) bool {
	for name := range rs.chains {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// parseIptables reads the filter table of iptables-save's output. A line that
// it does not know is left out.
func parseIptables(b []byte) *ruleset {
	rs := &ruleset{policy: map[string]string{}, chains: map[string][]iptablesRule{}}
	in := false
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		switch {
		case strings.HasPrefix(line, "*"):
			in = line == "*filter"
		case !in || line == "" || line == "COMMIT":
		case line[0] == ':':
			if f := strings.Fields(line[1:]); len(f) >= 2 {
				rs.policy[f[0]] = f[1]
				rs.chains[f[0]] = nil
			}
		default:
			words := splitWords(line)
			if i := slices.Index(words, "-A"); i >= 0 && i+1 < len(words) { // counters may stand before it
				chain := words[i+1]
				rs.chains[chain] = append(rs.chains[chain], iptablesRule{text: line, args: words[i+2:]})
			}
		}
	}
	return rs
}

// splitWords splits as a shell would, with double quotes and backslashes only.
func splitWords(s string) (words []string) {
	var w strings.Builder
	quoted, open := false, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			i++
			w.WriteByte(s[i])
			open = true
		case c == '"':
			quoted, open = !quoted, true
		case (c == ' ' || c == '\t') && !quoted:
			if open {
				words = append(words, w.String())
			}
			w.Reset()
			open = false
		default:
			w.WriteByte(c)
			open = true
		}
	}
	if open {
		words = append(words, w.String())
	}
	return words
}

type iptablesFate struct {
	drop, certain bool
	chain, what   string
}

// judge sends a probe through FORWARD.
func (rs *ruleset) judge(p probe) iptablesFate {
	certain := true
	if end := rs.walk("FORWARD", p, &certain, 0); end != nil {
		return *end
	}
	if rs.policy["FORWARD"] == "DROP" {
		return iptablesFate{drop: true, certain: certain, chain: "FORWARD", what: "policy DROP"}
	}
	return iptablesFate{}
}

func (rs *ruleset) walk(chain string, p probe, certain *bool, depth int) *iptablesFate {
	if depth > maxDepth {
		return nil
	}
	for _, r := range rs.chains[chain] {
		match, target, isGoto := r.judge(p)
		if match == no {
			continue
		}
		switch target {
		case "DROP", "REJECT":
			if match == yes {
				return &iptablesFate{drop: true, certain: *certain, chain: chain, what: "rule " + r.text}
			}
		case "ACCEPT":
			if match == yes {
				return &iptablesFate{}
			}
			*certain = false
		case "RETURN":
			if match == yes {
				return nil
			}
			*certain = false
		default:
			if _, ok := rs.chains[target]; !ok {
				continue // LOG, MARK and the like go on
			}
			inner := true
			end := rs.walk(target, p, &inner, depth+1)
			was := *certain
			*certain = was && inner
			if match == yes && (end != nil || isGoto) {
				if end != nil {
					end.certain = end.certain && was
				}
				return end
			}
			if match == maybe && ((end != nil && !end.drop) || isGoto) {
				*certain = false
			}
		}
	}
	return nil
}

// judge decides whether a rule matches, and finds its target.
func (r *iptablesRule) judge(p probe) (match trit, target string, isGoto bool) {
	match = yes
	invert := false
	for i := 0; i < len(r.args); i++ {
		opt, arg := r.args[i], ""
		if opt == "!" {
			invert = true
			continue
		}
		// An option's argument may itself be negated in old versions: "-s ! 10.0.0.0/8".
		if i+1 < len(r.args) && (r.args[i+1] == "!" || !strings.HasPrefix(r.args[i+1], "-")) {
			i++
			if r.args[i] == "!" && i+1 < len(r.args) {
				invert = true
				i++
			}
			arg = r.args[i]
		}
		hit := maybe
		switch opt {
		case "-j", "--jump":
			target = arg
			continue
		case "-g", "--goto":
			target, isGoto = arg, true
			continue
		case "-m", "--match", "--comment", "--reject-with", "--log-prefix", "--log-level", "-c":
			invert = false
			continue // the module's own options are judged one by one
		case "-i", "--in-interface":
			hit = ifMatches(p.iif, arg)
		case "-o", "--out-interface":
			hit = ifMatches(p.oif, arg)
		case "-s", "--source":
			hit = addrMatches(p.src, arg)
		case "-d", "--destination":
			hit = addrMatches(p.dst, arg)
		case "-p", "--protocol":
			hit = tritOf(arg == "tcp" || arg == "6" || arg == "all")
		case "--ctstate", "--state":
			state := "NEW"
			if p.established {
				state = "ESTABLISHED"
			}
			list := strings.Split(arg, ",")
			hit = tritOf(slices.Contains(list, state) || (p.translated && slices.Contains(list, "DNAT")))
		}
		if invert {
			hit = hit.not()
		}
		invert = false
		match = match.and(hit)
	}
	return match, target, isGoto
}

func ifMatches(name, pattern string) trit {
	if prefix, ok := strings.CutSuffix(pattern, "+"); ok {
		return tritOf(strings.HasPrefix(name, prefix))
	}
	return tritOf(name == pattern)
}

func addrMatches(a netip.Addr, s string) trit {
	if one, err := netip.ParseAddr(s); err == nil {
		return tritOf(one == a)
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return maybe
	}
	return tritOf(p.Contains(a))
}
