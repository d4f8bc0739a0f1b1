package proatest

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Registry is one running `proa registry serve`.
type Registry struct {
	t    testing.TB
	Root string
	Addr string // host:port, the same after each start
	log  string
	args []string
	proc *exec.Cmd
	dead chan error
}

var registryAddr = regexp.MustCompile(`registry is ready.* addr=(\S+)`)

// NewRegistry starts a registry on a free port of loopback, over a root that
// is removed when the test ends. args are further flags of serve.
func NewRegistry(t testing.TB, args ...string) *Registry {
	t.Helper()
	r := RegistryIn(t, filepath.Join(t.TempDir(), "registry"), args...)
	r.Start()
	return r
}

// RegistryIn is NewRegistry over a given root, and does not start it.
func RegistryIn(t testing.TB, root string, args ...string) *Registry {
	t.Helper()
	r := &Registry{t: t, Root: root, Addr: "127.0.0.1:0", args: args, log: filepath.Join(t.TempDir(), "registry.log")}
	t.Cleanup(func() {
		if r.proc != nil {
			r.Kill()
		}
		if t.Failed() {
			t.Logf("registry log:\n%s", r.Log())
		}
	})
	return r
}

// Start starts it and waits until it listens.
func (r *Registry) Start() {
	r.t.Helper()
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(Bin(r.t), "proa"), append([]string{"registry", "serve", "--addr", r.Addr, "--root", r.Root, "--log-level", "debug"}, r.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.proc, r.dead = cmd, make(chan error, 1)
	go func() { r.dead <- cmd.Wait() }()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if m := registryAddr.FindStringSubmatch(r.Log()); m != nil {
			r.Addr = m[1]
			return
		}
		select {
		case err := <-r.dead:
			r.proc = nil
			r.t.Fatalf("the registry ended at its start: %v\n%s", err, r.Log())
		default:
		}
		if time.Now().After(end) {
			r.t.Fatalf("the registry does not come up\n%s", r.Log())
		}
	}
}

// Kill sends SIGKILL and waits until it is gone.
func (r *Registry) Kill() {
	_ = r.proc.Process.Kill()
	<-r.dead
	r.proc = nil
}

// Stop sends SIGTERM and returns how it ended.
func (r *Registry) Stop() error {
	r.t.Helper()
	_ = r.proc.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.dead:
		r.proc = nil
		return err
	case <-time.After(30 * time.Second):
		r.t.Fatal("the registry did not end within 30 s of SIGTERM")
		return nil
	}
}

// Log is what the running process wrote so far.
func (r *Registry) Log() string {
	b, _ := os.ReadFile(r.log)
	return string(b)
}

// Command runs another command of `proa registry` on its root.
func (r *Registry) Command(args ...string) Result {
	r.t.Helper()
	return run(nil, "", filepath.Join(Bin(r.t), "proa"), append(append([]string{"registry"}, args...), "--root", r.Root)...)
}

// Check reads everything in a registry that was stopped and fails the test if
// something is not as it must be.
func (r *Registry) Check() {
	r.t.Helper()
	if res := r.Command("check"); res.Code != 0 {
		r.t.Errorf("the registry does not verify: %s%s", res.Stdout, res.Stderr)
	}
}

// In makes the registry's address answer in another network namespace as
// well: connections to it are handed on by the test.
func (r *Registry) In(netns string) {
	r.t.Helper()
	l := ListenIn(r.t, netns, r.Addr)
	var wait sync.WaitGroup
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() { forward(c, r.Addr) })
		}
	}()
}

func forward(c net.Conn, addr string) {
	defer c.Close()
	to, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(to, c)
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, to)
}

// Crane runs crane; env are further NAME=value.
func Crane(t testing.TB, env []string, args ...string) Result {
	t.Helper()
	return run(env, "", Tool(t, "crane"), args...)
}

// Must fails the test unless the command succeeded, and gives its output.
func Must(t testing.TB, r Result) string {
	t.Helper()
	if r.Code != 0 {
		t.Fatalf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}
