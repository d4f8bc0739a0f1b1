package proatest

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// Traces are named lists of what an engine could leave on the host.
type Traces map[string][]string

// Traces lists what is there now: mounts, loop devices, network namespaces,
// links, nftables rules (of the engine's namespace), sysctls that engines
// touch, cgroups, processes, and files of the engine below its directories
// except those of the data root that the engine keeps for itself.
func (e *Engine) Traces() Traces {
	e.t.Helper()
	tr := Traces{}
	add := func(kind string, lines ...string) {
		for _, l := range lines {
			if l = strings.TrimSpace(l); l != "" {
				tr[kind] = append(tr[kind], l)
			}
		}
	}
	// Mounts of the host, and those that the engine sees in its own namespace.
	for kind, pid := range map[string]string{"host mounts": "1", "engine mounts": fmt.Sprint(e.Pid())} {
		f, err := os.Open("/proc/" + pid + "/mountinfo")
		if err != nil {
			e.t.Fatal(err)
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			fields := strings.Fields(sc.Text())
			// Images stay mounted for a while after their last use.
			if pid != "1" && strings.HasPrefix(fields[4], filepath.Join(e.ExecRoot, "image")) {
				continue
			}
			if !strings.HasPrefix(fields[4], e.Dir) && !strings.HasPrefix(fields[4], e.ExecRoot) && !strings.Contains(fields[4], e.Netns) {
				continue // somebody else's: other tests run beside this one
			}
			add(kind, fields[4])
		}
		f.Close()
	}
	// The engine makes none with a name; this one is the test's own.
	ns, _ := filepath.Glob("/run/netns/*" + e.Netns + "*")
	add("named network namespaces", ns...)
	for kind, args := range map[string][]string{
		"links":    {"ip", "-o", "link"},
		"nftables": {"nft", "list", "ruleset"},
		"routes":   {"ip", "route", "show", "table", "all"},
		"sysctls":  {"sh", "-c", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/all/route_localnet"},
	} {
		r := e.InNetns(args[0], args[1:]...)
		if r.Code != 0 {
			e.t.Fatalf("%v: %s", args, r.Stderr)
		}
		for _, l := range strings.Split(r.Stdout, "\n") {
			if kind == "links" {
				if f := strings.Fields(l); len(f) > 1 {
					l = f[1]
				}
			}
			if kind == "routes" && strings.Contains(l, "fe80::") {
				continue // link-local addresses come when the kernel is done probing
			}
			add(kind, l)
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, e.Cgroup) {
			add("cgroups", p)
		}
		return nil
	})
	// A process is this engine's when it names a directory of it, or is one of its programs in its network namespace.
	home, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", e.Pid()))
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, err := os.ReadFile(p + "/cmdline")
		if err != nil {
			continue
		}
		line := strings.ReplaceAll(string(cmdline), "\x00", " ")
		own := strings.Contains(line, e.Dir) || strings.Contains(line, e.ExecRoot)
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(filepath.Base(name), "proa-") {
			ns, err := os.Readlink(p + "/ns/net")
			own = own || err == nil && ns == home
		}
		if own && !strings.Contains(line, "proad") {
			add("processes", line)
		}
	}
	for _, dir := range []string{filepath.Join(e.DataRoot, "containers"), filepath.Join(e.DataRoot, "volumes"), e.ExecRoot} {
		_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			if p == filepath.Join(e.ExecRoot, "image") {
				return fs.SkipDir
			}
			for _, kept := range []string{"build", "build/*", "build/*/build.log"} { // of a builder: its log, which errors name
				if ok, _ := filepath.Match(filepath.Join(e.ExecRoot, kept), p); ok {
					return nil
				}
			}
			add("files", p)
			return nil
		})
	}
	for _, l := range tr {
		sort.Strings(l)
	}
	return tr
}

// SameTraces waits until the traces are those of before; what stays different
// for ten seconds (an unused bridge may linger) fails the test.
func (e *Engine) SameTraces(t testing.TB, before Traces) {
	t.Helper()
	var diff string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if diff = before.diff(e.Traces()); diff == "" {
			return
		}
	}
	t.Errorf("what is there is not what was there:\n%s", diff)
}

func (tr Traces) diff(now Traces) string {
	var out []string
	kinds := map[string]bool{}
	for k := range tr {
		kinds[k] = true
	}
	for k := range now {
		kinds[k] = true
	}
	for k := range kinds {
		count := map[string]int{}
		for _, l := range tr[k] {
			count[l]--
		}
		for _, l := range now[k] {
			count[l]++
		}
		for l, n := range count {
			if n > 0 {
				out = append(out, fmt.Sprintf("%s: left behind: %s", k, l))
			} else if n < 0 {
				out = append(out, fmt.Sprintf("%s: gone: %s", k, l))
			}
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
