package vm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/vm"
	"proa/internal/isolation/vm/machine"
)

const jailUser = 64999

// kernelDir is an unpacked guest kernel: PROA_TEST_KERNEL, what `make setup`
// fetched, or one fetched now into the user's cache.
var kernelDir = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("PROA_TEST_KERNEL"); dir != "" {
		return dir, nil
	}
	if _, err := os.Stat("../../../.cache/kernel/boot"); err == nil {
		return "../../../.cache/kernel", nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "proa-test", "kernel")
	if _, err := os.Stat(filepath.Join(dir, "boot")); err == nil {
		return dir, nil
	}
	if out, err := exec.Command("../../../scripts/guest-kernel", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("scripts/guest-kernel: %w\n%s", err, out)
	}
	return dir, nil
})

// workDir holds what all tests share: programs, and kits made of them.
var workDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "proa-vm-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	workDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var (
	buildMu sync.Mutex // one go build at a time
	built   = map[string]string{}
)

// program builds a guest's first process, once.
func program(pkg string) (string, error) {
	buildMu.Lock()
	defer buildMu.Unlock()
	if path, ok := built[pkg]; ok {
		return path, nil
	}
	path := filepath.Join(workDir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	built[pkg] = path
	return path, nil
}

const agentProgram = "proa/cmd/proa-agent"

// lab is one machine's surroundings: a factory, an image, a container directory.
type lab struct {
	t       testing.TB
	factory *machine.Factory
	image   machine.Disk
	home    string // the container's directory
	run     string // the instance's directory
	id      string

	bootLimit time.Duration // 0: as prepared
}

// forceKVM replaces the factory by one that does not ask whether KVM works.
func (l *lab) forceKVM() {
	l.t.Helper()
	kernel, err := kernelDir()
	if err != nil {
		l.t.Fatal(err)
	}
	agent, err := program(agentProgram)
	if err != nil {
		l.t.Fatal(err)
	}
	l.factory, err = machine.Open(machine.Config{
		Dir: agent + ".vm", KernelDirs: []string{kernel}, Agent: agent,
		Accelerator: "kvm", UID: jailUser, GID: jailUser,
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

var factories sync.Map // program -> *machine.Factory, so that a kit is made once

func newLab(t testing.TB, init string) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: namespaces and cgroups")
	}
	kernel, err := kernelDir()
	if err != nil {
		t.Fatal(err)
	}
	agent, err := program(init)
	if err != nil {
		t.Fatal(err)
	}
	f, ok := factories.Load(agent)
	if !ok {
		opened, err := machine.Open(machine.Config{
			Dir: agent + ".vm", KernelDirs: []string{kernel}, Agent: agent,
			Accelerator: "tcg", UID: jailUser, GID: jailUser,
		})
		if err != nil {
			t.Fatal(err)
		}
		f, _ = factories.LoadOrStore(agent, opened)
	}
	return &lab{
		t: t, factory: f.(*machine.Factory), image: machine.Disk{Index: busyboxImage(t)},
		home: t.TempDir(), run: t.TempDir(), id: fmt.Sprintf("%064x", time.Now().UnixNano()),
	}
}

// busyboxImage is an image of one file, as EROFS with its data inside.
func busyboxImage(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: apt-get install busybox-static", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "true", "false", "cat", "ls", "id", "sleep", "echo", "ps", "mount", "hostname", "dd", "sync", "ip", "ping", "kill", "touch", "stty", "df", "grep", "wget", "env", "pwd", "nc", "tail", "stat", "yes", "wc", "head"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n",
		"etc/group":  "root:x:0:\napp:x:1000:\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "image.erofs")
	if out, err := exec.Command("mkfs.erofs", "-E^inline_data", image, root).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return image
}

// spec is a machine that runs args.
func (l *lab) spec(args ...string) *isolation.Spec {
	return &isolation.Spec{
		ID: l.id, Kind: isolation.VM, Hostname: "guest",
		Process: isolation.Process{
			Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: 0xa80425fb,
		},
		Network:   isolation.Network{Mode: isolation.NetworkNone},
		Resources: isolation.Resources{CgroupParent: "/proa-vm-test"},
		Dir:       l.run,
	}
}

// create prepares and boots a machine; it is deleted with the test.
func (l *lab) create(spec *isolation.Spec) (*vm.Instance, error) {
	l.t.Helper()
	l.prepare(spec)
	return l.boot(spec)
}

// prepare fills in spec.Machine. This process is the shim: the descriptors are its own.
func (l *lab) prepare(spec *isolation.Spec) {
	l.t.Helper()
	p, err := l.factory.Prepare(context.Background(), spec, l.image, machine.Options{Dir: l.home, FirstFile: 100, DiskBytes: 1 << 30})
	if err != nil {
		l.t.Fatal(err)
	}
	defer p.Close()
	for i, f := range p.Files {
		fd, err := syscall.Dup(int(f.Fd()))
		if err != nil {
			l.t.Fatal(err)
		}
		syscall.CloseOnExec(fd)
		spec.Machine.Files[i] = isolation.File(fd)
	}
	if l.bootLimit > 0 {
		spec.Machine.BootLimit = l.bootLimit
	}
}

func (l *lab) boot(spec *isolation.Spec) (*vm.Instance, error) {
	l.t.Helper()
	i, err := vm.Driver{}.Create(context.Background(), spec)
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(func() {
		if err := i.Delete(context.Background()); err != nil {
			l.t.Error(err)
		}
	})
	return i.(*vm.Instance), nil
}

// output collects what a process prints.
type output struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

// waitFor polls what a process printed.
func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(o.String(), text) {
			return
		}
	}
	t.Fatalf("%q never came; there is %q", text, o.String())
}

// mustRun boots a machine, runs its main process to the end and returns the
// exit and what it printed.
func (l *lab) mustRun(spec *isolation.Spec) (isolation.Exit, string) {
	l.t.Helper()
	i, err := l.create(spec)
	if err != nil {
		l.t.Fatal(err)
	}
	var out output
	r, err := i.Start(context.Background(), isolation.Stdio{Stdout: &out, Stderr: &out})
	if err != nil {
		l.t.Fatal(err)
	}
	exit, err := r.Wait(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	if err := i.Delete(context.Background()); err != nil {
		l.t.Fatal(err)
	}
	return exit, out.String()
}

// exec runs one more process and returns its exit and output.
func (l *lab) exec(i *vm.Instance, args ...string) (isolation.Exit, string) {
	l.t.Helper()
	var out output
	p := &isolation.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: 0xa80425fb}
	r, err := i.Exec(context.Background(), p, isolation.Stdio{Stdout: &out, Stderr: &out})
	if err != nil {
		l.t.Fatal(err)
	}
	exit, err := r.Wait(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	return exit, out.String()
}

func TestRunAndExitCode(t *testing.T) {
	l := newLab(t, agentProgram)
	begin := time.Now()
	exit, out := l.mustRun(l.spec("/bin/sh", "-c", "echo out; echo err >&2; hostname; id -u; exit 42"))
	t.Logf("whole run took %v", time.Since(begin))
	if exit.Code != 42 || exit.Error != "" {
		t.Errorf("exit %+v", exit)
	}
	for _, want := range []string{"out\n", "err\n", "guest\n", "0\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in %q", want, out)
		}
	}
}

func TestStartErrors(t *testing.T) {
	l := newLab(t, agentProgram)
	i, err := l.create(l.spec("/no/such"))
	if err != nil {
		t.Fatal(err)
	}
	var start *isolation.StartError
	if _, err := i.Start(context.Background(), isolation.Stdio{}); !errors.As(err, &start) || start.Kind != isolation.StartNotFound {
		t.Errorf("start of a program that is missing: %v", err)
	}
}
