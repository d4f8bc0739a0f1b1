package proatest

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	vnetns "github.com/vishvananda/netns"

	"proa/internal/sys"
)

// Docker is the distribution's dockerd in network and mount namespaces of its
// own, with its own data root: its rules touch nothing of the host. Its CLI is
// the distribution's as well, so that its BuildKit is met without buildx.
type Docker struct {
	t      testing.TB
	Dir    string // holds everything of it
	Socket string
	Netns  string // name of its network namespace
	cli    string
	proc   *exec.Cmd
}

// NewDocker starts dockerd and waits until it answers. It is stopped, and what
// it left is removed, when the test ends.
func NewDocker(t testing.TB) *Docker {
	t.Helper()
	NeedRoot(t)
	dir, err := os.MkdirTemp("", "proa-docker-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Docker{t: t, Dir: dir, Socket: filepath.Join(dir, "docker.sock"), Netns: fmt.Sprintf("proa-docker-%d-%d", os.Getpid(), seq.Add(1))}
	dockerd := Tool(t, "dockerd")
	// The CLI that came with it, not another of the same name in PATH.
	d.cli = filepath.Join(filepath.Dir(dockerd), "..", "bin", "docker")
	if _, err := os.Stat(d.cli); err != nil {
		t.Fatalf("no docker CLI beside %s: %v", dockerd, err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := addNetns(d.Netns); err != nil {
		t.Fatal(err)
	}
	// The group of each engine lies in a parent of its own, so that two of them run beside each other.
	const line = `ip link set lo up; mount --make-rprivate /; mount -t tmpfs none /run; mkdir -p /run/lock; umount /sys/fs/cgroup/unified 2>/dev/null
exec "$2" --data-root "$1/data" --exec-root /run/docker -H "unix://$1/docker.sock" --pidfile "$1/pid" --log-level warn --cgroup-parent "/$3" --iptables=true`
	cmd := exec.Command("nsenter", "--net=/run/netns/"+d.Netns, "unshare", "-m", "sh", "-c", line, "sh", dir, dockerd, d.Netns)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(Tool(t, "containerd"))+":"+filepath.Dir(dockerd)+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.proc = cmd
	dead := make(chan struct{})
	go func() { _ = cmd.Wait(); close(dead) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-dead:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-dead
		}
		log.Close()
		_ = exec.Command("ip", "netns", "del", d.Netns).Run()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cannot remove %s: %v", dir, err)
		}
		d.removeGroups()
	})
	for end := time.Now().Add(60 * time.Second); d.Docker("version").Code != 0; time.Sleep(50 * time.Millisecond) {
		select {
		case <-dead:
		default:
			if time.Now().Before(end) {
				continue
			}
		}
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("dockerd does not come up:\n%s", text)
	}
	return d
}

// removeGroups removes dockerd's group from every hierarchy, and those that it
// and its BuildKit made inside. What was killed leaves its group in a moment.
func (d *Docker) removeGroups() {
	var err error
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err = removeGroups(d.Netns); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		d.t.Errorf("cannot remove dockerd's control groups: %v", err)
	}
}

// removeGroups removes the control groups of that name below the root of every
// hierarchy, with the groups inside them, which have to be empty.
func removeGroups(name string) error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		tops, _ := filepath.Glob(pattern + name)
		for _, top := range tops {
			var groups []string
			err := filepath.WalkDir(top, func(p string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					groups = append(groups, p)
				}
				return err
			})
			for _, g := range slices.Backward(groups) {
				err = errors.Join(err, os.Remove(g))
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Host is the address of its API.
func (d *Docker) Host() string { return "unix://" + d.Socket }

// Pid is dockerd's process.
func (d *Docker) Pid() int { return d.proc.Process.Pid }

// Docker runs the distribution's docker CLI against it; `build` is BuildKit's.
func (d *Docker) Docker(args ...string) Result {
	return run(d.env(), "", d.cli, append([]string{"-H", d.Host()}, args...)...)
}

// Build is `docker build` by BuildKit, with a standard input.
func (d *Docker) Build(stdin string, args ...string) Result {
	return run(d.env(), stdin, d.cli, append([]string{"-H", d.Host(), "build"}, args...)...)
}

func (d *Docker) env() []string {
	return []string{"DOCKER_CONFIG=" + d.Dir, "DOCKER_BUILDKIT=1", "DOCKER_HOST=", "BUILDKIT_PROGRESS=plain"}
}

// MustDocker is Docker that fails the test on any exit code but 0.
func (d *Docker) MustDocker(args ...string) string {
	d.t.Helper()
	r := d.Docker(args...)
	if r.Code != 0 {
		d.t.Fatalf("dockerd: docker %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Out()
}

// ListenIn listens on a TCP address in a named network namespace: a server of
// the test's that an engine reaches on its own loopback.
func ListenIn(t testing.TB, netns, addr string) net.Listener {
	t.Helper()
	ns, err := os.Open("/run/netns/" + netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var l net.Listener
	err = sys.OnThread(func(*sys.Thread) error {
		if err := vnetns.Set(vnetns.NsHandle(ns.Fd())); err != nil {
			return err
		}
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatalf("cannot listen on %s in %s: %v", addr, netns, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}
