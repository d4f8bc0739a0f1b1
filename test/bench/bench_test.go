// Package bench measures Proa beside its peers: each round runs every
// contender once, in turn, so that a slow moment of the machine hits all.
// Medians and ratios are printed; nothing here passes or fails by time.
package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// contender is one way to do the same thing.
type contender struct {
	name string
	do   func() error
}

// pause stands before each run, so that nobody profits or suffers from what
// the one before left in the kernel: grace periods, dying namespaces.
const pause = 100 * time.Millisecond

// race runs the contenders in turn, rounds times after one warm-up, and prints
// medians and ratios to the one named base. Each round begins with another
// contender.
func race(b *testing.B, what, base string, rounds int, cs []contender) map[string]time.Duration {
	b.Helper()
	times := map[string][]time.Duration{}
	for i := range rounds + 1 {
		for j := range cs {
			c := cs[(i+j)%len(cs)]
			time.Sleep(pause)
			begin := time.Now()
			if err := c.do(); err != nil {
				b.Fatalf("%s, %s: %v", what, c.name, err)
			}
			if i > 0 {
				times[c.name] = append(times[c.name], time.Since(begin))
			}
		}
	}
	var names []string
	for _, c := range cs {
		names = append(names, c.name)
	}
	return table(what, base, rounds, names, times)
}

// table prints what was measured, and its ratios to the one named base.
func table(what, base string, rounds int, names []string, times map[string][]time.Duration) map[string]time.Duration {
	med := map[string]time.Duration{}
	for n, d := range times {
		slices.Sort(d)
		med[n] = d[len(d)/2]
	}
	fmt.Printf("\n%s (%d rounds)\n%-34s %10s %10s %10s %8s\n", what, rounds, "", "median", "min", "max", "ratio")
	for _, n := range names {
		d := times[n]
		ratio := ""
		if med[base] > 0 {
			ratio = fmt.Sprintf("%.2f", float64(med[n])/float64(med[base]))
		}
		fmt.Printf("%-34s %8.1fms %8.1fms %8.1fms %8s\n", n, ms(med[n]), ms(d[0]), ms(d[len(d)-1]), ratio)
	}
	return med
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func command(name string, args ...string) func() error {
	return func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
}

// bundle makes a bare OCI bundle with a busybox root for crun and runc.
func bundle(b *testing.B, args []string) string {
	b.Helper()
	dir := b.TempDir()
	root := filepath.Join(dir, "rootfs")
	tar := filepath.Join(dir, "root.tar")
	if err := os.WriteFile(tar, proatest.Tar(b, proatest.BusyboxRoot(b)...), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		b.Fatal(err)
	}
	for _, c := range [][]string{{"tar", "-xf", tar, "-C", root}, {"runc", "spec", "-b", dir}} {
		if err := command(c[0], c[1:]...)(); err != nil {
			b.Fatal(err)
		}
	}
	cfg := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(cfg)
	if err != nil {
		b.Fatal(err)
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = strconv.Quote(a)
	}
	s := strings.Replace(string(text), `"terminal": true`, `"terminal": false`, 1)
	s = strings.Replace(s, "\"sh\"\n", strings.Join(quoted, ",")+"\n", 1)
	if err := os.WriteFile(cfg, []byte(s), 0o600); err != nil {
		b.Fatal(err)
	}
	return dir
}

// oci runs a low-level runtime. crun refuses hybrid cgroups (v1 controllers
// with a v2 tree beside them), so the v2 tree is out of its sight.
func oci(runtime string, args ...string) func() error {
	line := "umount /sys/fs/cgroup/unified 2>/dev/null; exec " + runtime + " " + strings.Join(args, " ")
	return command("unshare", "-m", "sh", "-c", line)
}

func have(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil
}

var n int

func fresh() string {
	n++
	return fmt.Sprintf("bench%d-%d", os.Getpid(), n)
}

func BenchmarkRun(b *testing.B) {
	e := proatest.New(b)
	e.ImportBusybox("bb")
	proa := filepath.Join(proatest.Bin(b), "proa")
	net := "--net=/run/netns/" + e.Netns
	dir := bundle(b, []string{"true"})
	cs := []contender{
		{"proa run --network none", command("nsenter", net, proa, "-H", e.Host, "run", "--rm", "--network", "none", "bb", "true")},
		{"proa run (bridge)", command("nsenter", net, proa, "-H", e.Host, "run", "--rm", "bb", "true")},
	}
	for _, r := range []string{"crun", "runc"} {
		if have(r) {
			cs = append(cs, contender{r + " run (bare bundle)", func() error { return oci(r, "run", "-b", dir, fresh())() }})
		}
	}
	d := startDocker(b)
	cs = append(cs,
		contender{"docker run --network none", func() error { return d.docker("run", "--rm", "--network", "none", "bb", "true") }},
		contender{"docker run (bridge)", func() error { return d.docker("run", "--rm", "bb", "true") }})
	race(b, "run --rm IMAGE true", "crun run (bare bundle)", 15, cs)
}

func BenchmarkExec(b *testing.B) {
	e := proatest.New(b)
	e.ImportBusybox("bb")
	proa := filepath.Join(proatest.Bin(b), "proa")
	e.MustProa("run", "-d", "--network", "none", "--name", "c0", "bb", "sleep", "10000")
	cs := []contender{{"proa exec", command(proa, "-H", e.Host, "exec", "c0", "true")}}
	dir := bundle(b, []string{"sleep", "10000"})
	for _, r := range []string{"crun", "runc"} {
		if !have(r) {
			continue
		}
		id := fresh()
		if err := oci(r, "run", "-d", "-b", dir, id, ">/dev/null", "2>&1", "</dev/null")(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = oci(r, "delete", "-f", id)() })
		cs = append(cs, contender{r + " exec", oci(r, "exec", id, "true")})
	}
	d := startDocker(b)
	if err := d.docker("run", "-d", "--name", "c0", "bb", "sleep", "10000"); err != nil {
		b.Fatal(err)
	}
	cs = append(cs, contender{"docker exec", func() error { return d.docker("exec", "c0", "true") }})
	race(b, "exec CONTAINER true", "crun exec", 15, cs)
}

// field reads one kB figure of a /proc file.
func field(b *testing.B, path, key string) float64 {
	b.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	for _, l := range strings.Split(string(text), "\n") {
		if f := strings.Fields(l); len(f) > 1 && f[0] == key+":" {
			v, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return v / 1024
		}
	}
	b.Fatalf("no %s in %s", key, path)
	return 0
}

func BenchmarkMemory(b *testing.B) {
	e := proatest.New(b)
	e.ImportBusybox("bb")
	fmt.Printf("\nmemory (MiB)\n")
	var shims []int
	for i := range 10 {
		id := e.MustProa("run", "-d", "--network", "none", "--name", fmt.Sprintf("c%d", i), "bb", "sleep", "10000")
		out, err := exec.Command("pgrep", "-f", "proa-shim.*"+id).Output()
		if err != nil {
			b.Fatalf("no shim of %s: %v", id, err)
		}
		pid, err := strconv.Atoi(strings.Fields(string(out))[0])
		if err != nil {
			b.Fatal(err)
		}
		shims = append(shims, pid)
	}
	time.Sleep(5 * time.Second)
	var most, sum float64
	for _, pid := range shims {
		v := field(b, fmt.Sprintf("/proc/%d/status", pid), "RssAnon")
		most, sum = max(most, v), sum+v
	}
	fmt.Printf("%-34s %10.1f (mean %.1f)\n", "shim RssAnon, ten running, most", most, sum/10)
	fmt.Printf("%-34s %10.1f\n", "engine RSS with ten running", field(b, fmt.Sprintf("/proc/%d/status", e.Pid()), "VmRSS"))
	for i := range 10 {
		e.MustProa("rm", "-f", fmt.Sprintf("c%d", i))
	}
	time.Sleep(20 * time.Second)
	fmt.Printf("%-34s %10.1f\n", "engine RSS idle", field(b, fmt.Sprintf("/proc/%d/status", e.Pid()), "VmRSS"))
}
