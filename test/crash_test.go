package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"proa/test/proatest"
)

// An engine that is killed twice while a container and a VM write 100,000
// numbered lines each, across log rotation, loses none and doubles none.
func TestLogsSurviveAKilledEngine(t *testing.T) {
	const lines = 100_000
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, w := range walls {
		e.MustDocker(append(append([]string{
			"run", "-d", "--network", "none", "--name", w.name, "--log-opt", "max-size=1m", "--log-opt", "max-file=20",
		}, w.args...), "bb", "sh", "-c", fmt.Sprintf("seq 1 %d; sleep 1; exit 11", lines))...)
	}
	for range 2 {
		time.Sleep(400 * time.Millisecond)
		e.Kill()
		time.Sleep(200 * time.Millisecond)
		e.Start()
	}
	for _, w := range walls {
		if got := e.MustDocker("wait", w.name); got != "11" {
			t.Errorf("%s: exit code %s, want 11", w.name, got)
		}
		got := strings.Split(e.MustDocker("logs", w.name), "\n")
		if len(got) != lines {
			t.Errorf("%s: %d lines, want %d", w.name, len(got), lines)
			continue
		}
		for i, l := range got {
			if l != strconv.Itoa(i+1) {
				t.Errorf("%s: line %d is %q", w.name, i+1, l)
				break
			}
		}
		files, _ := filepath.Glob(filepath.Join(e.DataRoot, "containers", "*", "*.log*"))
		if len(files) < 4 {
			t.Errorf("log files %v: the log was not rotated, so this test tests less than it says", files)
		}
	}
}

// What ends while no engine is there is reported with its code by the next.
func TestExitWhileTheEngineIsDead(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, w := range walls {
		e.MustDocker(append(append([]string{"run", "-d", "--network", "none", "--name", w.name}, w.args...), "bb", "sh", "-c", "sleep 2; echo last words; exit 23")...)
	}
	e.Kill()
	time.Sleep(4 * time.Second)
	e.Start()
	for _, w := range walls {
		if got := e.MustDocker("wait", w.name); got != "23" {
			t.Errorf("%s: exit code %s, want 23", w.name, got)
		}
		if got := e.MustDocker("logs", w.name); got != "last words" {
			t.Errorf("%s: log %q", w.name, got)
		}
	}
}

// A shim that is killed takes its instance with it, and that is said.
func TestKilledShim(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, w := range walls {
		e.MustDocker(append(append([]string{"run", "-d", "--network", "none", "--name", w.name}, w.args...), "bb", "sleep", "1000")...)
		pid, err := strconv.Atoi(e.MustDocker("inspect", "-f", "{{.State.Pid}}", w.name))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(parent(t, pid), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if got := e.MustDocker("wait", w.name); got != "137" {
			t.Errorf("%s: exit code %s, want 137", w.name, got)
		}
		if got := e.MustDocker("inspect", "-f", "{{.State.Error}}", w.name); !strings.Contains(got, "shim") {
			t.Errorf("%s: error %q does not name the shim", w.name, got)
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if syscall.Kill(pid, 0) != nil {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s: process %d outlived its shim", w.name, pid)
				break
			}
		}
	}
}

// CVE-2019-5736: nobody can write the shim's program through a process that
// runs it, not even root of the host; the program itself is the owner's.
func TestShimProgramCannotBeWritten(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	e.MustDocker("run", "-d", "--network", "none", "--userns", "host", "--name", "c1", "bb", "sleep", "1000")
	pid, err := strconv.Atoi(e.MustDocker("inspect", "-f", "{{.State.Pid}}", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	// A script that names the program it was born from as its interpreter.
	e.MustDocker("exec", "c1", "sh", "-c", "printf '#!/proc/self/exe\n' >/trick; chmod 755 /trick")
	if r := e.Docker("exec", "c1", "/trick"); r.Code == 0 {
		t.Errorf("the shim's program ran inside: %s%s", r.Stdout, r.Stderr)
	}
	// What somebody caught of the program while it ran, and uses afterwards:
	// as long as it runs, "text file busy" protects it.
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", parent(t, pid)))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	e.MustDocker("rm", "-f", "c1")
	var f *os.File
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if f, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", exe.Fd()), os.O_WRONLY, 0); !errors.Is(err, syscall.ETXTBSY) {
			break
		}
	}
	if !errors.Is(err, syscall.EROFS) {
		if err == nil {
			f.Close()
		}
		t.Errorf("opening the shim's program for writing gave %v, want %v", err, syscall.EROFS)
	}
}

// parent is the parent of a process; the process's own name is a program of Proa's.
func parent(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
	ppid, err := strconv.Atoi(fields[1])
	if err != nil || ppid <= 1 {
		t.Fatalf("parent of %d: %q %v", pid, fields[1], err)
	}
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", ppid))
	if filepath.Base(exe) != "proa-shim" {
		t.Fatalf("parent of %d is %s, not a shim", pid, exe)
	}
	return ppid
}

// bootable starts an engine whose boots are told by reboot.
func bootable(t *testing.T) (e *proatest.Engine, reboot func()) {
	t.Helper()
	file, boots := filepath.Join(t.TempDir(), "boot_id"), 0
	reboot = func() {
		boots++
		if err := os.WriteFile(file, fmt.Appendf(nil, "boot-%d\n", boots), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reboot()
	return proatest.New(t, proatest.Args("--boot-id-file", file)), reboot
}

// After a reboot (another boot id) what ran is exited, and restart policies run.
func TestReboot(t *testing.T) {
	e, reboot := bootable(t)
	e.ImportBusybox("bb")
	e.MustDocker("run", "-d", "--network", "none", "--name", "stays-down", "bb", "sleep", "1000")
	e.MustDocker("run", "-d", "--network", "none", "--restart", "always", "--name", "comes-back", "bb", "sleep", "1000")
	old := e.MustDocker("inspect", "-f", "{{.State.Pid}}", "comes-back")
	// The machine goes down: engine and everything below it die at once, and
	// what lay in /run is gone.
	e.Kill()
	killAll(t, e)
	if err := os.RemoveAll(e.ExecRoot); err != nil {
		t.Fatal(err)
	}
	reboot()
	e.Start()
	if got := e.MustDocker("inspect", "-f", "{{.State.Status}}", "stays-down"); got != "exited" {
		t.Errorf("without a policy: %s, want exited", got)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got := e.MustDocker("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "comes-back")
		if strings.HasPrefix(got, "running ") && got != "running "+old {
			break
		}
		if time.Now().After(end) {
			t.Errorf("with restart always: %s", got)
			break
		}
	}
}

// A builder that is killed has its cache still, for the kernel has what it
// wrote. After a power cut, which another boot id tells, nobody knows what
// reached the disk: the cache begins empty, and the store keeps nothing of it.
func TestRebootEmptiesTheBuildCache(t *testing.T) {
	e, reboot := bootable(t)
	e.ImportBusybox("bb")
	before := e.StoreFiles()
	dir := buildContext(t, "Dockerfile", "FROM bb\nRUN head -c 1000000 /dev/urandom > /d\n")
	build := func(cached bool) {
		t.Helper()
		r := e.Proa("build", "--progress", "plain", dir)
		if r.Code != 0 || strings.Contains(r.Stderr, "CACHED") != cached {
			t.Fatalf("exit code %d, cached should be %v:\n%s", r.Code, cached, r.Stderr)
		}
	}
	down := func() {
		t.Helper()
		pid := builderOf(t, e)
		e.Kill()
		for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the builder outlives its engine")
			}
		}
	}
	build(false)
	down()
	e.Start()
	build(true)
	down()
	reboot()
	e.Start()
	build(false)
	if raw, err := os.ReadFile(filepath.Join(e.ExecRoot, "build", "container", "build.log")); err != nil || !strings.Contains(string(raw), "the machine went down") {
		t.Errorf("the builder's log does not say why: %v\n%s", err, raw)
	}
	build(true)
	e.MustProa("image", "prune", "-f")
	e.MustProa("builder", "prune", "-a", "-f")
	var after []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if after = e.StoreFiles(); slices.Equal(after, before) {
			return
		}
	}
	t.Errorf("%d files of the store, %d before the first build:\n%s", len(after), len(before), strings.Join(after, "\n"))
}

// killAll kills every shim of this engine.
func killAll(t *testing.T, e *proatest.Engine) {
	t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(cmdline), e.ExecRoot) && strings.Contains(string(cmdline), "proa-shim") {
			pid, _ := strconv.Atoi(filepath.Base(p))
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	time.Sleep(500 * time.Millisecond)
}
