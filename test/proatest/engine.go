// Package proatest gives tests a real engine: its own data root, exec root,
// socket, bridge, nftables table, cgroup and network namespace, so that tests
// run beside each other and beside a developer's own engine. It owns starting,
// killing and cleaning up; what is tested stands in the tests.
package proatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"proa/internal/image/flat"
)

// Engine is one running proad.
type Engine struct {
	t        testing.TB
	Dir      string // holds everything of this engine
	DataRoot string
	ExecRoot string
	Socket   string
	Host     string // unix://...
	Netns    string // name of its network namespace
	Cgroup   string // parent of its instances' cgroups
	bin      string
	kernel   string
	args     []string

	mu   sync.Mutex
	proc *exec.Cmd
	log  *os.File
	dead chan struct{}
}

// Option changes how an engine is started.
type Option func(*Engine)

// Args adds flags of proad.
func Args(args ...string) Option { return func(e *Engine) { e.args = append(e.args, args...) } }

// DataRoot puts the data root somewhere else.
func DataRoot(dir string) Option { return func(e *Engine) { e.DataRoot = dir } }

// GuestKernel is where the engine looks for a guest kernel.
func GuestKernel(dir string) Option { return func(e *Engine) { e.kernel = dir } }

var seq atomic.Int32

// hostUmask is that of who runs the tests. Engines are started with it; the
// files of tests and what the command lines write are made with the usual one.
var hostUmask = syscall.Umask(0o022)

// NeedRoot skips a test that cannot run without root, and says so.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts and nftables")
	}
}

// NeedStrategy skips a test of a way to mount images that this kernel lacks, and says why.
func NeedStrategy(t testing.TB, name string) {
	t.Helper()
	NeedRoot(t)
	can := flat.Probe(os.TempDir())
	if v := map[string]flat.Verdict{flat.StrategyFile: can.File, flat.StrategyLoop: can.Loop, flat.StrategyExtract: can.Extract}[name]; !v.OK {
		t.Skipf("strategy %s does not work here: %s", name, v.Why)
	}
}

// Bin is the directory of the built programs: $PROA_BIN, else bin/ of this checkout.
func Bin(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("PROA_BIN")
	if dir == "" {
		dir = filepath.Join(checkout(t), "bin")
	}
	for _, p := range []string{"proa", "proad", "proa-shim", "proa-agent", "proa-registry"} {
		if _, err := os.Stat(filepath.Join(dir, p)); err != nil {
			t.Fatalf("program %s is not built: run `make build` (%v)", p, err)
		}
	}
	return dir
}

// checkout is the root of the source tree.
func checkout(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("not inside the source tree")
	return ""
}

// Kernel is the directory of the unpacked guest kernel.
func Kernel(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("PROA_TEST_KERNEL")
	if dir == "" {
		dir = filepath.Join(checkout(t), ".cache", "kernel")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("no guest kernel: run `make setup` (%v)", err)
	}
	return dir
}

// DockerCLI is the unmodified docker command line.
func DockerCLI(t testing.TB) string {
	t.Helper()
	p := os.Getenv("PROA_DOCKER")
	if p == "" {
		p = filepath.Join(checkout(t), ".cache", "docker", "docker")
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("no docker CLI: run `scripts/docker-cli` (%v)", err)
	}
	return p
}

// Tool is a program that scripts/tools put there: crane, registry, or one of the distribution's docker (dockerd, containerd).
func Tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"bin", "cli-plugins", "dockerd/usr/sbin", "dockerd/usr/bin"} {
		p := filepath.Join(tools(t), dir, name)
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	t.Fatalf("no %s: run `scripts/tools`", name)
	return ""
}

// tools is the directory that scripts/tools fills.
func tools(t testing.TB) string {
	if dir := os.Getenv("PROA_TEST_TOOLS"); dir != "" {
		return dir
	}
	return filepath.Join(checkout(t), ".cache", "tools")
}

// New prepares an engine and starts it. It is stopped, and all that it left
// is removed, when the test ends.
func New(t testing.TB, opts ...Option) *Engine {
	t.Helper()
	NeedRoot(t)
	n := seq.Add(1)
	e := &Engine{
		t: t, bin: Bin(t), kernel: Kernel(t), // what may be missing, before anything is made
		Netns: fmt.Sprintf("proa-%d-%d", os.Getpid(), n), Cgroup: fmt.Sprintf("proa-test-%d-%d", os.Getpid(), n),
	}
	t.Cleanup(e.cleanup)
	dir, err := os.MkdirTemp("", "proa-test-")
	if err != nil {
		t.Fatal(err)
	}
	e.Dir, e.DataRoot = dir, filepath.Join(dir, "data")
	e.ExecRoot = execRoot(t)
	e.Socket = filepath.Join(dir, "proa.sock")
	e.Host = "unix://" + e.Socket
	for _, o := range opts {
		o(e)
	}
	// The CLI's configuration is the engine's directory: that is where the CLI looks for buildx.
	if err := os.Symlink(filepath.Join(tools(t), "cli-plugins"), filepath.Join(dir, "cli-plugins")); err != nil {
		t.Fatal(err)
	}
	if err := addNetns(e.Netns); err != nil {
		t.Fatal(err)
	}
	e.must("ip", "-n", e.Netns, "link", "set", "lo", "up")
	// A way out that leads nowhere: the engine sees a host with a default
	// route, and no packet can leave this namespace.
	e.must("ip", "-n", e.Netns, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	e.must("ip", "-n", e.Netns, "addr", "add", "192.0.2.2/24", "dev", "up0")
	e.must("ip", "-n", e.Netns, "link", "set", "up1", "up")
	e.must("ip", "-n", e.Netns, "link", "set", "up0", "up")
	e.must("ip", "-n", e.Netns, "route", "add", "default", "via", "192.0.2.1")
	e.Start()
	return e
}

// execRoot is a directory on a tmpfs, as /run is on every common host: /run
// itself where it is one, else /dev/shm.
func execRoot(t testing.TB) string {
	t.Helper()
	parent := "/dev/shm"
	var st syscall.Statfs_t
	if err := syscall.Statfs("/run", &st); err == nil && st.Type == 0x01021994 {
		parent = "/run"
	}
	dir, err := os.MkdirTemp(parent, "proa-test-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func (e *Engine) must(name string, args ...string) {
	e.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		e.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// Start starts the engine and waits until it answers.
func (e *Engine) Start() {
	e.t.Helper()
	if err := e.TryStart(); err != nil {
		e.t.Fatalf("%v\n%s", err, e.Log())
	}
}

// TryStart is Start that reports an engine which does not come up.
func (e *Engine) TryStart() error {
	log, err := os.OpenFile(filepath.Join(e.Dir, "proad.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	args := []string{
		"--net=/run/netns/" + e.Netns, filepath.Join(e.bin, "proad"), "--data-root", e.DataRoot, "--exec-root", e.ExecRoot, "-H", e.Host,
		"--cgroup-parent", e.Cgroup, "--guest-kernel", e.kernel, "--log-level", "debug",
		"--subid-file", filepath.Join(e.Dir, "subuid"), "--subid-file", filepath.Join(e.Dir, "subgid"),
	}
	line := fmt.Sprintf(`umask %04o; exec nsenter "$@"`, hostUmask)
	cmd := exec.Command("sh", slices.Concat([]string{"-c", line, "nsenter"}, args, e.args)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		log.Close()
		return err
	}
	dead := make(chan struct{})
	go func() { _ = cmd.Wait(); close(dead) }()
	e.mu.Lock()
	e.proc, e.log, e.dead = cmd, log, dead
	e.mu.Unlock()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-dead:
			return errors.New("the engine ended at its start")
		default:
		}
		if r := e.Request("GET", "/_ping"); strings.HasSuffix(r, "OK") {
			return nil
		}
	}
	return errors.New("the engine does not answer")
}

// Bin is the directory of the programs that this engine was started from.
func (e *Engine) Bin() string { return e.bin }

// Request sends one bare HTTP request and returns the whole answer, "" on error.
func (e *Engine) Request(method, path string) string {
	conn, err := net.Dial("unix", e.Socket)
	if err != nil {
		return ""
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.0\r\nHost: proa\r\n\r\n", method, path)
	b, _ := io.ReadAll(conn)
	return string(b)
}

// Pid is the engine's process.
func (e *Engine) Pid() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.proc.Process.Pid
}

// Kill sends SIGKILL and waits until the engine is gone.
func (e *Engine) Kill() {
	e.mu.Lock()
	proc, dead := e.proc, e.dead
	e.mu.Unlock()
	_ = proc.Process.Kill()
	<-dead
}

// Stop asks the engine to end and waits; it fails the test after 20 s.
func (e *Engine) Stop() {
	e.t.Helper()
	e.mu.Lock()
	proc, dead := e.proc, e.dead
	e.mu.Unlock()
	if proc == nil {
		return
	}
	_ = proc.Process.Signal(syscall.SIGTERM)
	select {
	case <-dead:
	case <-time.After(20 * time.Second):
		_ = proc.Process.Kill()
		<-dead
		e.t.Errorf("the engine did not end within 20 s of SIGTERM\n%s", e.Log())
	}
}

// Log is what the engine wrote so far, at most its last 64 KiB.
func (e *Engine) Log() string {
	b, _ := os.ReadFile(filepath.Join(e.Dir, "proad.log"))
	if len(b) > 64<<10 {
		b = b[len(b)-64<<10:]
	}
	return string(b)
}

// cleanup removes every container, stops the engine and checks nothing of it runs on.
func (e *Engine) cleanup() {
	if e.proc != nil {
		if e.Request("GET", "/_ping") == "" {
			e.Kill()
			_ = e.TryStart()
		}
		if r := e.Proa("ps", "-aq"); r.Stdout != "" {
			e.Proa(append([]string{"rm", "-f", "-v"}, strings.Fields(r.Stdout)...)...)
		}
		e.Stop()
		if e.t.Failed() {
			e.t.Logf("engine log:\n%s", e.Log())
		}
		e.log.Close()
	}
	_ = exec.Command("ip", "netns", "del", e.Netns).Run()
	for _, dir := range []string{e.Dir, e.ExecRoot} {
		if err := os.RemoveAll(dir); err != nil {
			e.t.Errorf("cannot remove %s: %v", dir, err)
		}
	}
}

// Result is how one command ended.
type Result struct {
	Stdout, Stderr string
	Code           int
	Took           time.Duration
}

// Out is standard output without its last newline.
func (r Result) Out() string { return strings.TrimRight(r.Stdout, "\n") }

// Proa runs the proa command line against this engine.
func (e *Engine) Proa(args ...string) Result {
	return e.Exec("", filepath.Join(e.bin, "proa"), append([]string{"-H", e.Host}, args...)...)
}

// Docker runs the docker CLI against this engine.
func (e *Engine) Docker(args ...string) Result {
	e.t.Helper()
	return e.Exec("", DockerCLI(e.t), append([]string{"-H", e.Host}, args...)...)
}

// MustProa is Proa that fails the test on any exit code but 0.
func (e *Engine) MustProa(args ...string) string {
	e.t.Helper()
	r := e.Proa(args...)
	if r.Code != 0 {
		e.t.Fatalf("proa %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Out()
}

// MustDocker is Docker that fails the test on any exit code but 0.
func (e *Engine) MustDocker(args ...string) string {
	e.t.Helper()
	r := e.Docker(args...)
	if r.Code != 0 {
		e.t.Fatalf("docker %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Out()
}

// InNetns runs a command in the engine's network namespace, where its
// published ports are.
func (e *Engine) InNetns(name string, args ...string) Result {
	return e.Exec("", "nsenter", append([]string{"--net=/run/netns/" + e.Netns, name}, args...)...)
}

// Exec runs a command with the given standard input, as a user of this engine has it in the environment.
func (e *Engine) Exec(stdin, name string, args ...string) Result {
	return run([]string{"DOCKER_CONFIG=" + e.Dir, "DOCKER_HOST=", "PROA_HOST="}, stdin, name, args...)
}

// run runs a command with more environment and the given standard input; it is killed after six minutes: nothing here takes as
// long on a busy machine.
func run(env []string, stdin, name string, args ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	cmd.WaitDelay = 5 * time.Second
	begin := time.Now()
	err := cmd.Run()
	r := Result{Stdout: out.String(), Stderr: errb.String(), Took: time.Since(begin)}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.Code, r.Stderr = -1, r.Stderr+"\nkilled after six minutes"
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code, r.Stderr = -1, r.Stderr+err.Error()
	}
	return r
}
