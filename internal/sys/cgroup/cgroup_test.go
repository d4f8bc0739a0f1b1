package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"proa/internal/isolation"
)

// These tests make groups on this host's own hierarchies, whatever their
// layout is, below a parent of their own that they remove.
var parent = fmt.Sprintf("proa-test-cgroup-%d", os.Getpid())

func create(t testing.TB, name string, r *isolation.Resources, devices ...isolation.Device) *Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	g, warnings, err := Create(parent+"/"+name, r, devices...)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Log("warning:", w)
	}
	t.Cleanup(func() {
		_ = g.Kill()
		if err := g.Delete(); err != nil {
			t.Error(err)
		}
		left(t, name)
	})
	return g
}

// left wants nothing of a group to be there.
func left(t testing.TB, name string) {
	t.Helper()
	h, _ := Detect()
	mounts := map[string]bool{h.Unified: h.Unified != ""}
	for _, m := range h.V1 {
		mounts[m] = true
	}
	for m, ok := range mounts {
		if _, err := os.Stat(filepath.Join(m, parent, name)); ok && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left in %s", name, m)
		}
	}
}

// in runs a shell script in the group and returns what it wrote.
func in(t *testing.T, g *Group, script string) (string, error) {
	t.Helper()
	var out strings.Builder
	c := start(t, g, script, &out)
	err := c.Wait()
	return out.String(), err
}

func start(t *testing.T, g *Group, script string, out *strings.Builder) *exec.Cmd {
	t.Helper()
	c := exec.Command("/bin/sh", "-c", "read x; "+script)
	if out != nil {
		c.Stdout, c.Stderr = out, out
	}
	w, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Add(c.Process.Pid); err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() })
	return c
}

func TestLimitsHold(t *testing.T) {
	r := &isolation.Resources{
		MemoryBytes: 48 << 20, SwapBytes: 48 << 20, MemoryLow: 16 << 20,
		CPUQuota: 20000, CPUPeriod: 100000, CPUShares: 512, CpusetCpus: "0", Pids: 4,
	}
	g := create(t, "limits", r)
	s, err := g.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if s.MemoryLimit != 48<<20 || s.PidsLimit != 4 {
		t.Fatalf("limits read back: %+v", s)
	}
	// A group of its own: dead children count until the host's init reaps them.
	few := create(t, "few", &isolation.Resources{Pids: 4})
	full, _ := in(t, few, "sleep 1 & sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait; echo no")
	if !strings.Contains(full, "fork") {
		t.Errorf("five processes in a group of four: %q", full)
	}
	out, err := in(t, g, "grep Cpus_allowed_list /proc/self/status; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done")
	if err != nil || !strings.Contains(out, "Cpus_allowed_list:\t0\n") {
		t.Errorf("cpuset: %q %v", out, err)
	}
	if _, err = in(t, g, "tail /dev/zero"); err == nil {
		t.Error("48 MiB held all of /dev/zero")
	}
	if n, err := g.OOMKills(); n == 0 || err != nil {
		t.Errorf("OOM kills: %d %v", n, err)
	}
	s, err = g.Stats()
	if err != nil || s.CPUNanos < 1e6 || s.MemoryMax < 40<<20 || s.Periods == 0 || s.Throttled == 0 {
		t.Errorf("counters %+v %v", s, err)
	}
	// The bill after the end: nobody is left, everything counts.
	u, err := g.Usage()
	if err != nil || u.CPUNanos != s.CPUNanos || u.MemoryPeak != s.MemoryMax || u.Processes != 0 {
		t.Errorf("usage %+v %v, counters %+v", u, err, s)
	}
	// What somebody asks for and cannot have is an error, and nothing is left.
	_, _, err = Create(parent+"/bad", &isolation.Resources{CpusetCpus: "4000"})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("cpuset 4000: %v", err)
	}
	left(t, "bad")
	if _, _, err = Create(parent+"/limits", r); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second of one name: %v", err)
	}
	if _, err = Open(parent + "/nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("open of nothing: %v", err)
	}
}

func TestKillAndFreeze(t *testing.T) {
	g := create(t, "kill", &isolation.Resources{})
	c := start(t, g, "while :; do sleep 0.01; done", nil)
	again, err := Open(parent + "/kill")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	pids, err := again.Procs()
	if err != nil || len(pids) == 0 || pids[0] != c.Process.Pid {
		t.Fatalf("processes %v %v", pids, err)
	}
	if err := again.Freeze(); err != nil {
		t.Fatal(err)
	}
	ticks := func() string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
		f := strings.Fields(string(b))
		return strings.Join(f[13:17], " ") + " " + f[9]
	}
	before := ticks()
	time.Sleep(50 * time.Millisecond)
	if after := ticks(); after != before {
		t.Errorf("a frozen shell went on: %s, %s", before, after)
	}
	if err := again.Thaw(); err != nil {
		t.Fatal(err)
	}
	if err := again.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := again.Kill(); err != nil { // frozen ones die as well
		t.Fatal(err)
	}
	err = c.Wait()
	var status *exec.ExitError
	if !errors.As(err, &status) || status.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("ended by %v", err)
	}
}

// A fork bomb does not outrun the kill, nor a group that was made inside the delete.
func TestDeleteWithWhatIsInside(t *testing.T) {
	g := create(t, "bomb", &isolation.Resources{Pids: 60})
	for _, d := range g.dirs {
		if err := os.Mkdir(filepath.Join(d.mount, g.path, "inner"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, g, "f() { f | f & }; f 2>/dev/null; sleep 100", nil)
	time.Sleep(100 * time.Millisecond)
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
	left(t, "bomb")
	if err := g.Delete(); err != nil {
		t.Errorf("second delete: %v", err)
	}
}

func TestSweep(t *testing.T) {
	g := create(t, "sweep", &isolation.Resources{})
	c := start(t, g, "sleep 100 & sleep 100", nil)
	if err := Sweep(parent + "/sweep"); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	left(t, "sweep")
	if err := Sweep(parent + "/sweep"); err != nil {
		t.Errorf("of none: %v", err)
	}
}

const deviceProbe = `p() { if eval "$2" 2>/dev/null; then echo "$1 yes"; else echo "$1 no"; fi; }
p null 'true > /dev/null'; p kmsg 'true < %[1]s/kmsg'; p zero 'head -c1 < /dev/zero > /dev/null'; p mknod 'mknod %[1]s/made c 1 11'; p extra 'true < %[1]s/extra'; p wextra 'true > %[1]s/extra'`

const deviceAnswer = "null yes\nkmsg no\nzero yes\nmknod yes\nextra yes\nwextra no\n"

func devices(t *testing.T) (string, []isolation.Device) {
	dir := t.TempDir()
	if err := unix.Mknod(dir+"/kmsg", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))); err != nil {
		t.Skip("no device nodes here: ", err)
	}
	if err := unix.Mknod(dir+"/extra", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil { // /dev/net/tun
		t.Fatal(err)
	}
	return dir, []isolation.Device{{Path: "/dev/x", Type: "c", Major: 10, Minor: 200, Allow: "r"}}
}

func TestDeviceList(t *testing.T) {
	dir, extra := devices(t)
	if f, err := os.OpenFile(dir+"/extra", os.O_RDONLY, 0); err != nil {
		t.Skip("this host has no /dev/net/tun: ", err)
	} else {
		f.Close()
	}
	g := create(t, "devices", &isolation.Resources{}, extra...)
	out, err := in(t, g, fmt.Sprintf(deviceProbe, dir))
	if err != nil || out != deviceAnswer {
		t.Errorf("devices by mode %s: %v\n%s", g.Mode(), err, out)
	}
}

// The program of version 2 also runs on a hybrid host: its tree takes programs
// even though it holds no controllers.
func TestDeviceProgram(t *testing.T) {
	dir, extra := devices(t)
	g := create(t, "program", &isolation.Resources{Privileged: true})
	if g.unified == nil {
		t.Skip("no version 2 tree on this host")
	}
	if out, _ := in(t, g, fmt.Sprintf(deviceProbe, dir)); !strings.Contains(out, "kmsg yes") {
		t.Skipf("/dev/kmsg cannot be read here anyhow: %s", out)
	}
	_ = os.Remove(dir + "/made")
	rules := append(standard[:len(standard):len(standard)], rule{'c', int64(extra[0].Major), int64(extra[0].Minor), extra[0].Allow})
	if err := g.attachDeviceProgram(deviceProgram(rules)); err != nil {
		t.Fatal(err)
	}
	if out, err := in(t, g, fmt.Sprintf(deviceProbe, dir)); err != nil || out != deviceAnswer {
		t.Errorf("%v\n%s", err, out)
	}
}

// A limit that comes later may need a hierarchy that the group is not in.
func TestUpdateBringsControllers(t *testing.T) {
	g := create(t, "update", &isolation.Resources{MemoryBytes: 64 << 20, SwapBytes: 64 << 20})
	c := start(t, g, "sleep 100 & sleep 100 & wait", nil)
	time.Sleep(50 * time.Millisecond)
	if _, err := g.Update(&isolation.Resources{CPUShares: 256, CpusetCpus: "0", MemoryBytes: 128 << 20, SwapBytes: 256 << 20, Pids: 9}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Update(&isolation.Resources{MemoryBytes: 32 << 20, SwapBytes: 32 << 20, Pids: -1}); err != nil {
		t.Fatal(err)
	}
	pids, err := g.Procs()
	if err != nil || len(pids) != 3 {
		t.Fatalf("processes %v %v", pids, err)
	}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), g.Path()); g.Mode() != V2 && n < 6 {
			t.Errorf("process %d (of %d) is in %d hierarchies:\n%s", pid, c.Process.Pid, n, b)
		}
	}
	s, err := g.Stats()
	if err != nil || s.MemoryLimit != 32<<20 || s.PidsLimit != 0 {
		t.Errorf("%+v %v", s, err)
	}
}

// Groups come and go under one parent, which comes and goes with them.
func TestManyAtOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				g, _, err := Create(fmt.Sprintf("%s-many/%d-%d", parent, i, j), &isolation.Resources{CpusetCpus: "0"})
				if err != nil {
					t.Error(err)
					return
				}
				if err := g.Delete(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCreateAddDelete(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("control groups need root")
	}
	c := exec.Command("/bin/sleep", "1000")
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	keep, _, err := Create(parent+"-bench/keep", &isolation.Resources{})
	if err != nil {
		b.Fatal(err)
	}
	var made, added, deleted time.Duration
	n := 0
	for b.Loop() {
		t0 := time.Now()
		g, _, err := Create(fmt.Sprintf("%s-bench/%d", parent, n), &isolation.Resources{Pids: 4096})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := g.Add(c.Process.Pid); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if err := keep.Add(c.Process.Pid); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		if err := g.Delete(); err != nil {
			b.Fatal(err)
		}
		made, added, deleted = made+t1.Sub(t0), added+t2.Sub(t1), deleted+time.Since(t3)
		n++
	}
	_ = keep.Kill()
	_ = c.Wait()
	if err := keep.Delete(); err != nil {
		b.Error(err)
	}
	b.ReportMetric(float64(made.Microseconds())/float64(n), "us-create")
	b.ReportMetric(float64(added.Microseconds())/float64(n), "us-add")
	b.ReportMetric(float64(deleted.Microseconds())/float64(n), "us-delete")
}
