package test

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"

	"proa/internal/client"
	"proa/internal/compare"
	"proa/test/proatest"
)

// outside is what somebody who only looks at the host sees of one instance.
type outside struct {
	vm        bool
	appeared  time.Time // its shim's directory
	begin     time.Time // the command's first line was in the log
	end       time.Time // and its last
	cpu       float64   // seconds, of its processes by /proc/PID/stat
	group     float64   // most bytes charged to its control group
	resident  float64   // most memory of its processes, by /proc/PID/status, with the page cache that is charged to it
	shim      float64   // most resident bytes of its shim
	written   float64   // bytes, by /proc/PID/io
	disk      float64   // bytes, by du
	processes float64   // in its control group, and the shim
	samples   int
	// When the engine told of the start and the end of an exec, and the CPU time then.
	execs []time.Time
	used  []float64
}

// lookout watches the instances of an engine from outside until it is stopped.
type lookout struct {
	e    *proatest.Engine
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	seen map[string]*outside
	ids  []string // in order of appearance
}

func watchInstances(e *proatest.Engine) *lookout {
	l := &lookout{e: e, stop: make(chan struct{}), seen: map[string]*outside{}}
	loop := func(pause time.Duration, look func(id string, o *outside)) {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				case <-time.After(pause):
				}
				for _, id := range l.instances() {
					look(id, l.of(id))
				}
			}
		})
	}
	loop(2*time.Millisecond, l.sample)
	loop(100*time.Millisecond, l.du)
	return l
}

// execs takes a reading at each start and end of an exec that the engine tells of.
func (l *lookout) execs(ctx context.Context) error {
	c, err := client.New(l.e.Host)
	if err != nil {
		return err
	}
	return c.Events(ctx, "", "", client.Filters{"type": {"container"}}, func(m events.Message) {
		if a := string(m.Action); !strings.HasPrefix(a, "exec_start") && !strings.HasPrefix(a, "exec_die") {
			return
		}
		now, cpu := time.Now(), 0.0
		for _, pid := range strings.Fields(l.groupFile(m.Actor.ID, "cgroup.procs")) {
			cpu += processCPU(pid)
		}
		o := l.of(m.Actor.ID)
		o.execs, o.used = append(o.execs, now), append(o.used, cpu)
	})
}

func (l *lookout) close() {
	close(l.stop)
	l.wg.Wait()
}

// instances are those whose shim's directory is there.
func (l *lookout) instances() []string {
	entries, _ := os.ReadDir(filepath.Join(l.e.ExecRoot, "shim"))
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids
}

func (l *lookout) of(id string) *outside {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[id] == nil {
		l.seen[id] = &outside{appeared: time.Now()}
		l.ids = append(l.ids, id)
	}
	return l.seen[id]
}

// groupFile finds a file of an instance's control group in whichever hierarchy.
func (l *lookout) groupFile(id string, names ...string) string {
	for _, name := range names {
		for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"} {
			if b, err := os.ReadFile(filepath.Join(mount, l.e.Cgroup, id, name)); err == nil {
				return string(b)
			}
		}
	}
	return ""
}

func (l *lookout) sample(id string, o *outside) {
	log, _ := os.ReadFile(filepath.Join(l.e.DataRoot, "containers", id, id+"-json.log"))
	now := time.Now()
	if o.begin.IsZero() && bytes.Contains(log, []byte("begin")) {
		o.begin = now
	}
	if o.end.IsZero() && bytes.Contains(log, []byte("end")) {
		o.end = now
	}
	o.group = max(o.group, decimal(l.groupFile(id, "memory.max_usage_in_bytes", "memory.peak")))
	pids := strings.Fields(l.groupFile(id, "cgroup.procs"))
	var cpu, written, resident float64
	for _, pid := range pids {
		cpu += processCPU(pid)
		written += procField("/proc/"+pid+"/io", "write_bytes:")
		status := "/proc/" + pid + "/status"
		resident += 1024 * (procField(status, "RssAnon:") + procField(status, "RssShmem:"))
		if name, _ := os.ReadFile("/proc/" + pid + "/comm"); bytes.HasPrefix(name, []byte("qemu")) {
			o.vm = true
		}
	}
	stat := l.groupFile(id, "memory.stat")
	for _, key := range []string{"inactive_file ", "active_file "} { // in an instance's own group totals are the same
		for line := range strings.Lines(stat) {
			if v, ok := strings.CutPrefix(line, key); ok {
				resident += decimal(v)
			}
		}
	}
	o.cpu, o.written, o.resident = max(o.cpu, cpu), max(o.written, written), max(o.resident, resident)
	if len(pids) > 0 {
		o.processes = max(o.processes, float64(len(pids)+1))
		o.samples++
		if o.samples%64 == 1 {
			if pid := shimOf(id); pid != "" {
				o.shim = max(o.shim, 1024*procField("/proc/"+pid+"/status", "VmHWM:"))
			}
		}
	}
}

func (l *lookout) du(id string, o *outside) {
	out, err := exec.Command("du", "-s", "--block-size=1", filepath.Join(l.e.DataRoot, "containers", id)).Output()
	if err == nil {
		o.disk = decimal(string(out))
	}
}

// decimal is the first number of a text, 0 if there is none.
func decimal(s string) float64 {
	f := strings.Fields(s)
	if len(f) == 0 {
		return 0
	}
	v, _ := strconv.ParseFloat(f[0], 64)
	return v
}

// processCPU is what a process and the children that it waited for ran, in seconds.
func processCPU(pid string) float64 {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 15 {
		return 0
	}
	sum := 0.0
	for _, ticks := range f[11:15] { // utime, stime, cutime, cstime
		sum += decimal(ticks)
	}
	return sum / 100
}

// procField is the number behind a key in a file of /proc.
func procField(path, key string) float64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			return decimal(rest)
		}
	}
	return 0
}

// shimOf finds the shim of an instance by its command line.
func shimOf(id string) string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		b, _ := os.ReadFile(d + "/cmdline")
		if bytes.HasPrefix(b, []byte("proa-shim\x00")) && bytes.Contains(b, []byte(id)) {
			return filepath.Base(d)
		}
	}
	return ""
}

// comparison runs proa compare and reads its JSON.
func comparison(t *testing.T, e *proatest.Engine, args ...string) *compare.Report {
	t.Helper()
	out := e.MustProa(append([]string{"compare", "--format", "json"}, args...)...)
	r := &compare.Report{}
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return r
}

func contender(t *testing.T, r *compare.Report, name string) *compare.Contender {
	t.Helper()
	for i := range r.Contenders {
		if r.Contenders[i].Name == name && len(r.Contenders[i].Runs) > 0 {
			return &r.Contenders[i]
		}
	}
	t.Fatalf("no runs of %s: %+v", name, r.Contenders)
	return nil
}

// Each figure is what somebody sees who looks at the host and not at the
// engine: /proc, control groups, du, and a clock of the test's own. The command
// waits, allocates, writes, burns, waits until all counters stand still.
func TestCompareTellsTheTruth(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	// A container starts within the error of a clock that looks from outside, so
	// it is given time; a guest's own clock is no measure of time under emulation.
	script := `[ "$(uname -r)" != ` + hostKernel(t) + ` ] || sleep 3; echo begin
dd if=/dev/zero of=/dev/null bs=96M count=6 2>/dev/null
dd if=/dev/urandom of=/file bs=1M count=48 conv=fsync 2>/dev/null
i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done
sync; sleep 2; echo end`
	l := watchInstances(e)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan error, 1)
	go func() { told <- l.execs(ctx) }()
	r := comparison(t, e, "--runs", "1", "--memory", "256m", "bb", "--", "sh", "-c", script)
	l.close()
	cancel()
	if err := <-told; err != nil {
		t.Fatal(err)
	}
	if len(l.ids) != 3 {
		t.Fatalf("%d instances were seen", len(l.ids))
	}
	agree := func(what string, said *float64, seen float64) {
		t.Helper()
		if said == nil {
			t.Errorf("%-32s was not measured", what)
			return
		}
		off := (*said - seen) / seen
		t.Logf("%-32s said %12.3f, seen %12.3f, off by %+.1f %%", what, *said, seen, 100*off)
		if !(math.Abs(off) <= 0.05) {
			t.Errorf("%-32s is off by %.1f %%: said %g, seen %g", what, 100*off, *said, seen)
		}
	}
	for i, name := range []string{compare.Container, compare.VMCold} {
		run, o := contender(t, r, name).Runs[0], l.seen[l.ids[i]]
		if o.vm != (name == compare.VMCold) {
			t.Fatalf("instance %d of a race of one round is no %s", i+1, name)
		}
		if o.begin.IsZero() || o.end.IsZero() {
			t.Fatalf("%s: the command's lines were not seen: %+v", name, o)
		}
		agree(name+": first output", run.FirstOutput, o.begin.Sub(o.appeared).Seconds())
		slept := 3.0
		if o.vm {
			slept = 0
		}
		agree(name+": command ran", run.Wall, o.end.Sub(o.begin).Seconds()+slept)
		agree(name+": CPU", minus(run.CPU, run.ShimCPU), o.cpu)
		agree(name+": peak of the group", minus(run.Memory, run.ShimMemory), o.group)
		agree(name+": peak by its processes", minus(run.Memory, run.ShimMemory), o.resident)
		agree(name+": peak of the shim", run.ShimMemory, o.shim)
		agree(name+": disk", run.Disk, o.disk)
		agree(name+": written", run.Written, o.written)
		agree(name+": processes", run.Processes, o.processes)
		args := []string{"run", "--rm", "--network", "none", "bb", "uname", "-r"}
		if name == compare.VMCold {
			args = append([]string{"run", "--vm"}, args[1:]...)
		}
		if k := e.MustProa(args...); run.Kernel != k {
			t.Errorf("%s: kernel %q, uname says %q", name, run.Kernel, k)
		}
	}
	warm, o := contender(t, r, compare.VMWarm).Runs[0], l.seen[l.ids[2]]
	if len(o.execs) != 2 {
		t.Fatalf("the start and the end of one exec were not told: %v", o.execs)
	}
	agree("vm-warm: command ran", warm.Wall, o.execs[1].Sub(o.execs[0]).Seconds())
	agree("vm-warm: CPU", minus(warm.CPU, warm.ShimCPU), o.used[1]-o.used[0])
	agree("vm-warm: peak of the group", minus(warm.Memory, warm.ShimMemory), o.group)
	agree("vm-warm: disk and what a boot adds", plus(warm.Disk, 300<<10), o.disk)
	if left := e.MustProa("ps", "-aq"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

func plus(a *float64, b float64) *float64 {
	if a == nil {
		return nil
	}
	sum := *a + b
	return &sum
}

func hostKernel(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func minus(a, b *float64) *float64 {
	if a == nil || b == nil {
		return nil
	}
	d := *a - *b
	return &d
}

// The order alternates, every contender has all its runs, a failing command is
// reported and does not end the race, another engine can take part, and nothing
// stays behind on either.
func TestCompareRaces(t *testing.T) {
	e, second := proatest.New(t), proatest.New(t)
	for _, engine := range []*proatest.Engine{e, second} {
		engine.ImportBusybox("bb")
	}
	docker := proatest.NewDocker(t)
	tar := filepath.Join(e.Dir, "bb.tar")
	e.MustProa("save", "-o", tar, "bb")
	docker.MustDocker("load", "-i", tar)
	r := comparison(t, e, "--runs", "2", "--memory", "200m", "--cpus", "1", "--against", second.Host, "--against", docker.Host(),
		"bb", "--", "sh", "-c", "echo said; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1; exit 3")
	if r.Schema != 1 || r.Runs != 2 || r.Limits.MemoryBytes != 200<<20 || r.Limits.CPUs != 1 || r.Host.CPUs == 0 || r.VM.QEMU == "" || r.Sentence == "" {
		t.Errorf("%+v", r)
	}
	if len(r.Contenders) != 5 || r.Contenders[3].Engine != second.Host || r.Contenders[4].Engine != docker.Host() || !strings.HasPrefix(r.Contenders[4].Name, "docker ") {
		t.Fatalf("contenders %+v", r.Contenders)
	}
	for i, want := range [][2]int{{1, 4}, {2, 3}, {1, 1}, {3, 2}, {4, 1}} {
		c := r.Contenders[i]
		if len(c.Runs) != 2 || c.Runs[0].Position != want[0] || c.Runs[1].Position != want[1] {
			t.Errorf("%s: %+v, want positions %v", c.Name, c.Runs, want)
			continue
		}
		for _, run := range c.Runs {
			if run.ExitCode != 3 || run.LastWords != "said" || run.FirstOutput == nil || run.Wall == nil || run.CPU == nil || run.Memory == nil || run.Disk == nil || run.Processes == nil ||
				*run.CPU < 0.01 || *run.Wall < 1 || *run.Processes < 1 || run.Kernel == "" || i != 4 && run.Written == nil {
				t.Errorf("%s: %+v", c.Name, run)
			}
		}
	}
	if left := docker.MustDocker("ps", "-aq"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	for _, engine := range []*proatest.Engine{e, second} {
		if left := engine.MustProa("ps", "-aq"); left != "" {
			t.Errorf("left behind: %s", left)
		}
	}
	// An image without a program that waits can still be compared, warm VMs apart.
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	e.Import("bare", []proatest.Entry{{Name: "uname", Mode: 0o755, Body: string(body)}}, `ENTRYPOINT ["/uname"]`, `CMD ["-r"]`)
	r = comparison(t, e, "--runs", "1", "bare")
	if c := r.Contenders[2]; len(c.Runs) != 0 || !strings.Contains(c.Skipped, "no program that waits") {
		t.Errorf("%+v", c)
	}
	if got := strings.Join(r.Command, " "); got != "/uname -r" || r.Contenders[1].Runs[0].ExitCode != 0 {
		t.Errorf("command %q, %+v", got, r.Contenders[1].Runs)
	}
}

// Ctrl-C removes what runs, in a container and in a VM that is just booting.
func TestCompareInterrupted(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, wall := range []string{"container", "vm"} {
		script := "sleep 1000"
		if wall == "vm" { // the containers' runs come first and are over at once
			script = "test -e /sys/fs/cgroup/cgroup.controllers -a ! -e /proc/fs/nfsd && grep -q proa-agent /proc/1/cmdline && sleep 1000; exit 0"
		}
		cmd := exec.Command(filepath.Join(proatest.Bin(t), "proa"), "-H", e.Host, "compare", "--runs", "2", "bb", "--", "sh", "-c", script)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "an instance of the race runs or starts", func() bool {
			out := e.MustProa("ps", "-a", "--filter", "label="+compare.Label, "--format", "{{.Isolation}} {{.ID}}")
			return strings.Contains(out, wall)
		})
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(errs.String(), "interrupted") {
			t.Errorf("%s: exit code %d\n%s", wall, code, errs.String())
		}
		if left := e.MustProa("ps", "-aq"); left != "" {
			t.Errorf("%s: left behind: %s", wall, left)
		}
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
