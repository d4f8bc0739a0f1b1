package vm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/isolation/vm"
	"proa/internal/isolation/vm/machine"
	"proa/internal/rootfs"
	"proa/internal/sys"
)

// What was written stays over stop and start, an image stays as it was, and a
// disk that nobody wrote to costs the host next to nothing.
func TestDiskIsKept(t *testing.T) {
	l := newLab(t, agentProgram)
	disk := filepath.Join(l.home, machine.WritableDisk)
	if exit, out := l.mustRun(l.spec("/bin/true")); exit.Code != 0 {
		t.Fatalf("%+v %s", exit, out)
	}
	if used := diskUse(t, disk); used > 8<<20 {
		t.Errorf("a boot without writes left %d KiB on the disk of the host", used>>10)
	} else {
		t.Logf("a disk that was never written to takes %d KiB", used>>10)
	}
	if exit, out := l.mustRun(l.spec("/bin/sh", "-c", "test ! -e /kept && echo words >/kept && df -k /")); exit.Code != 0 {
		t.Fatalf("%+v %s", exit, out)
	}
	exit, out := l.mustRun(l.spec("/bin/sh", "-c", "cat /kept; dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; echo more >>/kept"))
	if exit.Code != 0 || out != "words\n" {
		t.Errorf("%+v, the file holds %q", exit, out)
	}
	// Clean means that nothing is left to be replayed.
	state := readAt(t, disk, 1024+0x60, 4) // s_feature_incompat
	if state[0]&0x04 != 0 {
		t.Error("the journal of the stopped machine's disk needs recovery")
	}
}

func readAt(t *testing.T, path string, at int64, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

func diskUse(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// start boots a machine with a main process whose output is returned.
func (l *lab) start(spec *isolation.Spec) (*vm.Instance, isolation.Running, *output) {
	l.t.Helper()
	i, err := l.create(spec)
	if err != nil {
		l.t.Fatal(err)
	}
	out := new(output)
	r, err := i.Start(context.Background(), isolation.Stdio{Stdout: out, Stderr: out})
	if err != nil {
		l.t.Fatal(err)
	}
	return i, r, out
}

func TestSignalsExecAndFigures(t *testing.T) {
	l := newLab(t, agentProgram)
	ctx := context.Background()
	spec := l.spec("/bin/sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.1; done")
	spec.Resources.MemoryBytes = 256 << 20
	spec.Resources.CPUQuota, spec.Resources.CPUPeriod = 100000, 100000
	i, r, out := l.start(spec)
	out.waitFor(t, "up")

	if exit, said := l.exec(i, "/bin/sh", "-c", "echo in; exit 3"); exit.Code != 3 || said != "in\n" {
		t.Errorf("exec: %+v %q", exit, said)
	}
	if exit, said := l.exec(i, "/bin/grep", "-c", "^processor", "/proc/cpuinfo"); said != "1\n" {
		t.Errorf("--cpus 1 gives %q processors (%+v)", said, exit)
	}
	_, said := l.exec(i, "/bin/grep", "MemTotal", "/proc/meminfo")
	var kib int
	if _, err := fmt.Sscanf(said, "MemTotal: %d kB", &kib); err != nil || kib > 256<<10 || kib < 150<<10 {
		t.Errorf("a guest of 256 MiB has %q", said)
	}

	s, err := i.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.MemoryBytes < 32<<20 || s.CPUNanos == 0 || s.Pids == 0 {
		t.Errorf("figures of a running machine: %+v", s)
	}
	if want := uint64(256+spec.Machine.OverheadMiB) << 20; s.MemoryLimit != want {
		t.Errorf("the memory limit of the VMM is %d, not %d", s.MemoryLimit, want)
	}
	// The shell and its sleep; between two sleeps the shell is alone.
	list, err := i.Processes(ctx)
	for end := time.Now().Add(10 * time.Second); err == nil && len(list) < 2 && time.Now().Before(end); {
		list, err = i.Processes(ctx)
	}
	if err != nil || len(list) < 2 {
		t.Errorf("processes: %+v %v", list, err)
	}

	if err := i.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	frozen, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	if _, err := i.Processes(frozen); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused guest answered: %v", err)
	}
	stop()
	if err := i.Resume(ctx); err != nil {
		t.Fatal(err)
	}

	limits := spec.Resources
	limits.CPUQuota = 50000
	if err := i.Update(ctx, &limits); err != nil {
		t.Errorf("update of the quota: %v", err)
	}
	limits.MemoryBytes *= 2
	if err := i.Update(ctx, &limits); !errdefs.IsInvalidArgument(err) {
		t.Errorf("update of the memory: %v", err)
	}

	if err := r.Signal(ctx, int(syscall.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	exit, err := r.Wait(ctx)
	if err != nil || exit.Code != 7 || !strings.HasSuffix(out.String(), "bye\n") {
		t.Errorf("after SIGTERM: %+v %v %q", exit, err, out)
	}
	if err := syscall.Kill(i.Pid(), 0); err != syscall.ESRCH {
		t.Errorf("the VMM outlives its main process: %v", err)
	}
}

// A guest's clock is the host's, and one that runs evenly.
func TestClock(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/sh", "-c", "echo up; while :; do sleep 1; done")
	i, _, out := l.start(spec)
	out.waitFor(t, "up")
	_, source := l.exec(i, "/bin/cat", "/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if spec.Machine.Emulated && sys.SteadyTSC() && !strings.HasPrefix(source, "tsc") { // tsc-early at first
		t.Errorf("an emulated guest's clock is %q", source)
	}
	before := time.Now()
	_, said := l.exec(i, "/bin/busybox", "adjtimex")
	after := time.Now()
	var now [2]int64 // seconds, microseconds
	for line := range strings.Lines(said) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		for at, want := range []string{"time.tv_sec", "time.tv_usec"} {
			if strings.HasSuffix(name, want) {
				now[at], _ = strconv.ParseInt(strings.TrimSpace(value), 10, 64) // 0 is far off
			}
		}
	}
	// It was set to when the request was sent, not to when it was read.
	guest := time.Unix(now[0], now[1]*1000)
	if guest.Before(before.Add(-time.Second)) || guest.After(after.Add(10*time.Millisecond)) {
		t.Errorf("the guest's time is %v, between %v and %v of the host\n%s", guest, before, after, said)
	}
}

func TestKill(t *testing.T) {
	l := newLab(t, agentProgram)
	_, r, out := l.start(l.spec("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"))
	out.waitFor(t, "up")
	if err := r.Signal(context.Background(), int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	exit, err := r.Wait(context.Background())
	if err != nil || exit.Code != 137 || exit.Signal != 9 || exit.Error != "" {
		t.Errorf("after SIGKILL: %+v %v", exit, err)
	}
}

// A frozen guest cannot act on SIGKILL: the VMM goes.
func TestKillOfAFrozenGuest(t *testing.T) {
	l := newLab(t, agentProgram)
	i, r, out := l.start(l.spec("/bin/sh", "-c", "echo up; sleep 1000"))
	out.waitFor(t, "up")
	if err := i.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := r.Signal(context.Background(), int(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	exit, err := r.Wait(context.Background())
	if err != nil || exit.Code != 137 || exit.Error != "" {
		t.Errorf("after SIGKILL: %+v %v", exit, err)
	}
}

// QEMU's own death is told apart from a wanted end.
func TestVMMDies(t *testing.T) {
	l := newLab(t, agentProgram)
	i, r, out := l.start(l.spec("/bin/sh", "-c", "echo up; sleep 1000"))
	out.waitFor(t, "up")
	if err := syscall.Kill(i.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	exit, err := r.Wait(context.Background())
	if err != nil || exit.Code != 137 || !strings.Contains(exit.Error, "signal 9") {
		t.Errorf("%+v %v", exit, err)
	}
	if _, err := i.Exec(context.Background(), &isolation.Process{Args: []string{"true"}}, isolation.Stdio{}); !errdefs.IsUnavailable(err) {
		t.Errorf("exec in a dead machine: %v", err)
	}
}

// A guest whose first process never answers is given up, with its last words.
func TestGuestNeverAnswers(t *testing.T) {
	l := newLab(t, "proa/internal/isolation/vm/testdata/mute")
	l.bootLimit = 8 * time.Second
	begin := time.Now()
	_, err := l.create(l.spec("/bin/true"))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "I say nothing to the host") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("giving up took %v", took)
	}
	if groups, _ := filepath.Glob("/sys/fs/cgroup/*/proa-vm-test/" + l.id); len(groups) != 0 {
		t.Errorf("left behind: %v", groups)
	}
}

// QEMU's own complaint reaches the one who asked.
func TestVMMRefuses(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/true")
	p, err := l.factory.Prepare(context.Background(), spec, l.image, machine.Options{Dir: l.home, FirstFile: 100, DiskBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	spec.Machine.Files = nil
	spec.Machine.Args = []string{"-no-such-option"}
	_, err = vm.Driver{}.Create(context.Background(), spec)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("%v", err)
	}
	spec.Machine.Binary = "/no/such/qemu"
	if _, err = (vm.Driver{}).Create(context.Background(), spec); err == nil || !strings.Contains(err.Error(), "/no/such/qemu") {
		t.Errorf("%v", err)
	}
}

// Stdin, a terminal and its size.
func TestTerminal(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/sh", "-c", "stty size; read x; echo got $x; tty >/dev/null 2>&1; exit 5")
	spec.Process.Terminal, spec.Process.Stdin, spec.Process.Rows, spec.Process.Cols = true, true, 33, 99
	i, err := l.create(spec)
	if err != nil {
		t.Fatal(err)
	}
	in, keys := io.Pipe()
	out := new(output)
	r, err := i.Start(context.Background(), isolation.Stdio{Stdin: in, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	out.waitFor(t, "33 99")
	if _, err := keys.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	exit, err := r.Wait(context.Background())
	if err != nil || exit.Code != 5 || !strings.Contains(out.String(), "got word") {
		t.Errorf("%+v %v %q", exit, err, out)
	}
}

// A machine that is held gives its files after the end of its main process, and
// what was put into it before the start is there.
func TestFilesOfHeldMachine(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/sh", "-c", "cat /early >/late; echo $?")
	spec.Hold = true
	i, err := l.create(spec)
	if err != nil {
		t.Fatal(err)
	}
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "early", Size: 5, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, "words")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := i.Files(t.Context(), &rootfs.Request{Op: rootfs.OpPut, Path: "/"}, &in, nil); err != nil {
		t.Fatal(err)
	}
	out := new(output)
	r, err := i.Start(t.Context(), isolation.Stdio{Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := r.Wait(t.Context()); err != nil || exit.Code != 0 || out.String() != "0\n" {
		t.Fatalf("%+v %v %q", exit, err, out)
	}
	var layer bytes.Buffer
	if err := i.Files(t.Context(), &rootfs.Request{Op: rootfs.OpLayer, Still: true}, nil, &layer); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for tr := tar.NewReader(&layer); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = string(b)
	}
	if len(found) != 2 || found["early"] != "words" || found["late"] != "words" {
		t.Errorf("%q", found)
	}
	if err := i.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
}
