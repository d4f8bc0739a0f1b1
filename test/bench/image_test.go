package bench

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"proa/test/proatest"
)

// host is one engine that images are made, loaded and removed on.
type host struct {
	name  string
	netns string
	do    func(args ...string) error // docker's verbs
	build func(args ...string) error
	pids  func() map[string]int // its processes, besides those of containers
}

// hosts are Proa and the distribution's docker, both with the image bb.
func hosts(b *testing.B) []host {
	b.Helper()
	e, d := proatest.New(b), startDocker(b)
	e.ImportBusybox("bb")
	proa := func(args ...string) error {
		if r := e.Proa(args...); r.Code != 0 {
			return fmt.Errorf("proa %s: %s%s", strings.Join(args, " "), r.Stdout, r.Stderr)
		}
		return nil
	}
	return []host{
		{"proa", e.Netns, proa, func(args ...string) error { return proa(append([]string{"build"}, args...)...) }, func() map[string]int { return tree(e.Pid()) }},
		{"docker 20.10", d.Netns, d.docker, d.build, func() map[string]int { return tree(d.Pid()) }},
	}
}

// tree is a process and what descends from it, by pid, without shims and what they keep.
func tree(pid int) map[string]int {
	found := map[string]int{}
	var walk func(pid int)
	walk = func(pid int) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.Contains(string(name), "shim") {
			return
		}
		found[fmt.Sprintf("%s (%d)", strings.TrimSpace(string(name)), pid)] = pid
		kids, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
		for _, k := range kids {
			text, _ := os.ReadFile(k)
			for _, f := range strings.Fields(string(text)) {
				var kid int
				fmt.Sscan(f, &kid)
				walk(kid)
			}
		}
	}
	walk(pid)
	return found
}

// text is n bytes that compress about as well as programs do.
func text(r *rand.Rand, n int) []byte {
	buf := make([]byte, n)
	for i := range buf {
		buf[i] = byte(r.IntN(256)) & byte(r.IntN(256)) // six bits of eight
	}
	return buf
}

// sources is a build's context: 1,000 files of 0.5 to 8 KiB in 20 directories,
// and a Dockerfile of three RUN steps around a COPY. No two seeds share
// anything that a cache could use.
func sources(b *testing.B, seed uint64) string {
	b.Helper()
	dir := b.TempDir()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range 1000 {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%20))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%04d", i)), text(r, 512+r.IntN(7680)), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	dockerfile := fmt.Sprintf("FROM bb\nENV seed=%d\nRUN echo tools >/tools\nCOPY . /src\nRUN cat /src/d*/* | md5sum >/sum\nRUN find /src -type f | wc -l >/count && test $(cat /count) -ge 1000\n", seed)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		b.Fatal(err)
	}
	return dir
}

// BenchmarkBuild builds 1,000 files and three RUN steps: with nothing cached,
// with everything cached, and with one file changed.
func BenchmarkBuild(b *testing.B) {
	hs := hosts(b)
	const rounds = 7
	var seed uint64
	var cold, cached, changed []contender
	for _, h := range hs {
		warm := sources(b, 1000)
		cold = append(cold, contender{h.name, func() error {
			seed++
			return h.build("-q", "-t", "cold", sources(b, seed))
		}})
		cached = append(cached, contender{h.name, func() error { return h.build("-q", "-t", "warm", warm) }})
		n := 0
		changed = append(changed, contender{h.name, func() error {
			n++
			if err := os.WriteFile(filepath.Join(warm, "d07", "f0007"), fmt.Appendf(nil, "change %d\n", n), 0o644); err != nil {
				return err
			}
			return h.build("-q", "-t", "warm", warm)
		}})
	}
	race(b, "build, nothing cached (making the 1,000 files included)", "docker 20.10", rounds, cold)
	race(b, "build, everything cached", "docker 20.10", rounds, cached)
	race(b, "build, one of 1,000 files changed", "docker 20.10", rounds, changed)
}

// BenchmarkBuildMemory is what an engine's processes hold a minute after a build.
func BenchmarkBuildMemory(b *testing.B) {
	hs := hosts(b)
	for i, h := range hs {
		for j := range 3 {
			if err := h.build("-q", "-t", "x", sources(b, uint64(10*i+j))); err != nil {
				b.Fatal(err)
			}
		}
	}
	time.Sleep(60 * time.Second)
	fmt.Printf("\nmemory 60 s after three builds (RSS, MiB)\n")
	for _, h := range hs {
		var sum float64
		for name, pid := range h.pids() {
			v := field(b, fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
			fmt.Printf("%-34s %10.1f\n", "  "+name, v)
			sum += v
		}
		fmt.Printf("%-34s %10.1f\n", h.name, sum)
	}
}

// bigImage is an archive of an image with a busybox root and layers that hold
// size bytes together in files of about 50 KiB.
func bigImage(b *testing.B, name string, size, layers int) string {
	b.Helper()
	r := rand.New(rand.NewPCG(42, uint64(size)))
	all := [][]byte{proatest.Tar(b, proatest.BusyboxRoot(b)...)}
	for l := range layers {
		entries := []proatest.Entry{{Name: "data/"}}
		for i := range size / layers / (50 << 10) {
			if i%100 == 0 {
				entries = append(entries, proatest.Entry{Name: fmt.Sprintf("data/l%d-%d/", l, i/100)})
			}
			entries = append(entries, proatest.Entry{Name: fmt.Sprintf("data/l%d-%d/%d", l, i/100, i), Body: string(text(r, 50<<10))})
		}
		all = append(all, proatest.Tar(b, entries...))
	}
	file := filepath.Join(b.TempDir(), "big.tar")
	if err := os.WriteFile(file, proatest.Archive(b, name, map[string]any{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}, all...), 0o600); err != nil {
		b.Fatal(err)
	}
	return file
}

// stages races the hosts through several stages of one life, each round in
// another order, and prints a table for each stage.
func stages(b *testing.B, rounds int, hs []host, names []string, do []func(host) error) {
	b.Helper()
	times := make([]map[string][]time.Duration, len(do))
	for i := range rounds + 1 {
		for j := range hs {
			h := hs[(i+j)%len(hs)]
			for k, f := range do {
				syscall.Sync() // what the stage before wrote is not this stage's
				time.Sleep(pause)
				begin := time.Now()
				if err := f(h); err != nil {
					b.Fatalf("%s, %s: %v", names[k], h.name, err)
				}
				if i > 0 {
					if times[k] == nil {
						times[k] = map[string][]time.Duration{}
					}
					times[k][h.name] = append(times[k][h.name], time.Since(begin))
				}
			}
		}
	}
	for k := range do {
		table(names[k], "docker 20.10", rounds, []string{hs[0].name, hs[1].name}, times[k])
	}
}

// BenchmarkLoad loads an image of 400 MB, runs it, and removes it.
func BenchmarkLoad(b *testing.B) {
	archive := bigImage(b, "big:latest", 400_000_000, 4)
	stages(b, 5, hosts(b), []string{"load and first run of a 400 MB image", "removal of it"}, []func(host) error{
		func(h host) error {
			if err := h.do("load", "-q", "-i", archive); err != nil {
				return err
			}
			return h.do("run", "--rm", "--network", "none", "big", "head", "-c", "1", "/data/l0-0/0")
		},
		func(h host) error { return h.do("rmi", "big") },
	})
}

// BenchmarkPull pulls an image of 150 MB in five layers from a registry on the
// loopback of each engine and runs it. Both registries are distribution's.
func BenchmarkPull(b *testing.B) {
	const addr = "127.0.0.1:5001"
	store := b.TempDir()
	hs := hosts(b)
	for _, h := range hs {
		proatest.Distribution(b, h.netns, addr, store)
	}
	name := addr + "/bench/big:1"
	archive := bigImage(b, name, 150_000_000, 5)
	out, err := exec.Command("nsenter", "--net=/run/netns/"+hs[0].netns, proatest.Tool(b, "crane"), "push", archive, name).CombinedOutput()
	if err != nil {
		b.Fatalf("crane push: %v\n%s", err, out)
	}
	stages(b, 5, hs, []string{"pull of 150 MB in five layers to the first output", "removal of it"}, []func(host) error{
		func(h host) error {
			if err := h.do("pull", "-q", name); err != nil {
				return err
			}
			return h.do("run", "--rm", "--network", "none", name, "head", "-c", "1", "/data/l0-0/0")
		},
		func(h host) error { return h.do("rmi", name) },
	})
}
