package cgroup

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// Version 2 with controllers cannot run on a host whose controllers belong to
// version 1, so here its tree is a directory with the files that the kernel
// would put there: what is written and read is checked, what the kernel makes
// of it is not.
func fakeV2(t *testing.T, files map[string]string) (*Host, *Group, string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "proa", "x")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cgroup.subtree_control", "proa/cgroup.subtree_control", "proa/x/cgroup.freeze", "proa/x/cgroup.kill", "proa/x/cgroup.procs"} {
		files[f] += ""
	}
	for name, text := range files {
		if !strings.Contains(name, "/") && !strings.HasPrefix(name, "cgroup.") {
			name = "proa/x/" + name
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	h := &Host{Mode: V2, Unified: root, V1: map[string]string{}, Controllers: map[string]bool{"cpu": true, "cpuset": true, "memory": true, "pids": true, "io": true}}
	g, err := h.Open("proa/x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return h, g, root
}

func TestV2Writes(t *testing.T) {
	empty := map[string]string{}
	for _, f := range []string{"memory.max", "memory.swap.max", "memory.low", "cpu.weight", "cpu.max", "cpuset.cpus", "cpuset.mems", "pids.max"} {
		empty[f] = ""
	}
	_, g, root := fakeV2(t, empty)
	if !g.kill || !g.freeze || g.FD() < 0 {
		t.Fatalf("kill %v, freeze %v, fd %d", g.kill, g.freeze, g.FD())
	}
	if err := g.delegate(); err != nil {
		t.Fatal(err)
	}
	r := &isolation.Resources{
		MemoryBytes: 1 << 20, SwapBytes: 3 << 20, MemoryLow: 4096, CPUQuota: 1500, CPUPeriod: 1000, CPUShares: 1024,
		CpusetCpus: "0-1", CpusetMems: "0", Pids: 77,
	}
	if w, err := g.Update(r); err != nil || len(w) != 0 {
		t.Fatal(w, err)
	}
	if err := g.Add(4711); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cgroup.subtree_control": "+cpu +cpuset +io +memory +pids", "proa/cgroup.subtree_control": "+cpu +cpuset +io +memory +pids",
		"proa/x/memory.max": "1048576", "proa/x/memory.swap.max": "2097152", "proa/x/memory.low": "4096", "proa/x/cpu.max": "1500 1000",
		"proa/x/cpu.weight": "100", "proa/x/cpuset.cpus": "0-1", "proa/x/cpuset.mems": "0", "proa/x/pids.max": "77",
		"proa/x/cgroup.procs": "4711", "proa/x/cgroup.kill": "1",
	} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q (%v), want %q", name, b, err, want)
		}
	}
	if _, err := g.Update(&isolation.Resources{MemoryBytes: 5, SwapBytes: 4}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("swap below memory: %v", err)
	}
}

func TestV2Reads(t *testing.T) {
	h, g, root := fakeV2(t, map[string]string{
		"cpu.stat":       "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 4\nthrottled_usec 8\n",
		"memory.current": "1000\n", "memory.peak": "2000\n", "memory.max": "max\n", "memory.stat": "anon 1\ninactive_file 300\nfile 3\n",
		"memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
		"pids.current":  "3\n", "pids.max": "max\n",
		"io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=2 rios=0 wios=0 dbytes=7\n",
	})
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	want := isolation.Stats{
		Read: s.Read, CPUNanos: 5000, CPUUser: 3000, CPUSystem: 2000, Periods: 9, Throttled: 4, ThrottledNs: 8000, MemoryBytes: 1000,
		MemoryMax: 2000, MemoryLimit: hostMemory(), MemoryCache: 300, Pids: 3, ReadBytes: 11, WriteBytes: 22, OOMKills: 1,
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v\nwant %+v", s, want)
	}
	u, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if want := (isolation.Usage{
		CPUNanos: 5000, CPUUser: 3000, CPUSystem: 2000, MemoryPeak: 2000, BlockCounted: true, ReadBytes: 11, WriteBytes: 22,
	}); u != want {
		t.Errorf("got %+v\nwant %+v", u, want)
	}
	if !h.Has("memory") || !h.Has("devices") || h.Has("hugetlb") || len(h.Wanted(&isolation.Resources{})) != 0 {
		t.Error("wrong idea of the controllers")
	}
	// A controller that is not enabled: an error for what was asked by name, a warning for the default.
	w, err := g.Update(&isolation.Resources{Pids: 5})
	if err != nil || len(w) != 0 {
		t.Error(w, err)
	}
	if _, err := g.Update(&isolation.Resources{CPUShares: 5}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no cpu.weight: %v", err)
	}
	h.Controllers["pids"] = false
	if w, err := g.Update(&isolation.Resources{Pids: 5}); err != nil || len(w) != 1 {
		t.Error(w, err)
	}
	if w, err := g.Update(&isolation.Resources{SwapBytes: -1}); err != nil || len(w) != 1 {
		t.Error("swap without accounting:", w, err)
	}
	_ = root
}

func TestWeight(t *testing.T) {
	for shares, want := range map[int64]int64{0: 1, 2: 1, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
	for s, last := int64(2), int64(0); s <= 262144; s++ {
		if w := weight(s); w < last || w < 1 || w > 10000 {
			t.Fatalf("weight(%d) = %d after %d", s, w, last)
		} else {
			last = w
		}
	}
}

func TestLayouts(t *testing.T) {
	hybrid := `23 1 0:21 / /sys rw - sysfs sysfs rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 /docker/abc /elsewhere rw - cgroup cgroup rw,memory
34 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
36 31 0:38 / /sys/fs/cgroup/uni\040fied rw - cgroup2 cgroup2 rw
`
	h, err := parseHost([]byte(hybrid))
	if err != nil {
		t.Fatal(err)
	}
	if h.Mode != Hybrid || h.V1["cpu"] != "/sys/fs/cgroup/cpu,cpuacct" || h.V1["cpuacct"] != h.V1["cpu"] || h.V1["memory"] != "/sys/fs/cgroup/memory" || h.Unified != "/sys/fs/cgroup/uni fied" || h.V1["pids"] != "" {
		t.Errorf("%+v", h)
	}
	if got := h.Wanted(&isolation.Resources{CPUQuota: 1, CpusetCpus: "0"}); strings.Join(got, " ") != "memory cpu cpuacct" {
		t.Errorf("wanted %v", got)
	}
	v1, err := parseHost([]byte(strings.ReplaceAll(hybrid, "cgroup2", "tmpfs")))
	if err != nil || v1.Mode != V1 {
		t.Errorf("%+v %v", v1, err)
	}
	if _, err := parseHost([]byte("23 1 0:21 / /sys rw - sysfs sysfs rw\n")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a host without groups: %v", err)
	}
}

func TestPathsStayBelow(t *testing.T) {
	for _, p := range []string{"", "/", "..", "../..", "a\nb"} {
		if got, err := cleanPath(p); err == nil {
			t.Errorf("%q became %q", p, got)
		}
	}
	if got, err := cleanPath("/../../proa/../x/y"); err != nil || got != "x/y" {
		t.Error(got, err)
	}
}

// Every jump of the device program stays inside it.
func TestDeviceProgramIsClosed(t *testing.T) {
	code := deviceProgram(append(standard[:len(standard):len(standard)], rule{'b', 8, -1, "r"}))
	n := len(code) / 8
	for i := range n {
		if code[8*i] == jneK {
			if to := i + 1 + int(int16(binary.NativeEndian.Uint16(code[8*i+2:]))); to <= i || to >= n {
				t.Errorf("instruction %d jumps to %d of %d", i, to, n)
			}
		}
	}
	if code[8*(n-1)] != exit {
		t.Error("it does not end with exit")
	}
}
