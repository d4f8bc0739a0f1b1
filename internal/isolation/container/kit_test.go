package container_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/container"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// The tests make real containers of a busybox root. They use their own control
// group parent, directory and id range.
const (
	idHost   = 700_000_000
	idSize   = 65536
	defaults = 0xa80405fb &^ (1<<27 | 1<<13 | 1<<29) // Docker's capabilities without MKNOD, NET_RAW and AUDIT_WRITE
)

var maskedPaths = []string{
	"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// busybox makes a root directory with busybox and all its names.
func busybox(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is missing: apt-get install busybox-static")
	}
	// Not t.TempDir, which fails when a container's user cannot look into it: 0700.
	root := filepath.Join(t.TempDir(), "image")
	for _, d := range []string{"bin", "etc", "tmp", "var/data", "home/app", "root"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, os.Chmod(root, 0o755))
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o1777))
	b, err := os.ReadFile(program)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755))
	out, err := exec.Command(program, "--list").Output()
	must(t, err)
	for _, name := range strings.Fields(string(out)) {
		if name != "busybox" {
			must(t, os.Symlink("busybox", filepath.Join(root, "bin", name)))
		}
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\napp:x:1000:\nextra:x:1234:app\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/not-executable"), []byte("#!/bin/sh\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "bin/not-a-format"), []byte{1, 2, 3, 4, 5, 6, 7, 8}, 0o755))
	must(t, os.Chown(filepath.Join(root, "home/app"), 1000, 1000))
	return root
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSpec is a full container of the root, as the engine would ask for one.
func newSpec(t testing.TB, root string, args ...string) *isolation.Spec {
	t.Helper()
	id := make([]byte, 32)
	_, _ = rand.Read(id)
	image, err := sys.CloneTree(nil, root, false)
	must(t, err)
	t.Cleanup(func() { _ = image.Close() })
	dir := t.TempDir()
	return &isolation.Spec{
		ID: hex.EncodeToString(id), Kind: isolation.Container, Hostname: "box", Dir: dir,
		Process: isolation.Process{
			Args: args, Env: []string{"PATH=/usr/local/bin:/bin"}, Cwd: "/", Capabilities: defaults,
		},
		Root: isolation.Root{Image: isolation.File(sys.RawFD(image)), Upper: filepath.Join(dir, "rw"), Volatile: true},
		Mounts: []isolation.Mount{
			{Type: isolation.MountTmpfs, Target: "/dev/shm", Size: 64 << 20, Mode: 0o1777, Options: "nosuid,nodev,noexec"},
		},
		Resources: isolation.Resources{CgroupParent: "proa-test-container", Pids: 4096},
		Network:   isolation.Network{Mode: isolation.NetworkNone},
		Sysctls:   map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 65535"},
		Namespaces: isolation.Namespaces{
			User: true, UIDs: isolation.IDMap{{Host: idHost, Size: idSize}}, GIDs: isolation.IDMap{{Host: idHost, Size: idSize}},
			PID: true, IPC: true, UTS: true, Net: true, Cgroup: true,
		},
		MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
	}
}

// bind adds a bind mount of a path of the host.
func bind(t testing.TB, s *isolation.Spec, source, target string, change func(*isolation.Mount)) {
	t.Helper()
	f, err := sys.OpenPath(source)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	m := isolation.Mount{Type: isolation.MountBind, Source: isolation.File(sys.RawFD(f)), Origin: source, Target: target, Idmap: s.Namespaces.User}
	if change != nil {
		change(&m)
	}
	s.Mounts = append(s.Mounts, m)
}

// output is a buffer for two goroutines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// await waits until the output has want in it.
func (o *output) await(t testing.TB, want string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(o.String(), want); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("output never had %q: %q", want, o.String())
		}
	}
}

func context20(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// create makes the container and sees to its end.
func create(t testing.TB, s *isolation.Spec) isolation.Instance {
	t.Helper()
	d := &container.Driver{Warn: func(w string) { t.Log("warning:", w) }}
	i, err := d.Create(context20(t), s)
	must(t, err)
	t.Cleanup(func() {
		if err := i.Delete(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := cgroup.Open(s.Resources.CgroupParent + "/" + s.ID); err == nil {
			t.Error("the control group is still there")
		}
	})
	return i
}

// run runs the container to its end and returns what it wrote.
func run(t testing.TB, s *isolation.Spec, stdin string) (stdout, stderr string, exit isolation.Exit) {
	t.Helper()
	i := create(t, s)
	var out, errs output
	io := isolation.Stdio{Stdout: &out, Stderr: &errs}
	if s.Process.Stdin {
		io.Stdin = strings.NewReader(stdin)
	}
	r, err := i.Start(context20(t), io)
	must(t, err)
	exit, err = r.Wait(context20(t))
	must(t, err)
	return out.String(), errs.String(), exit
}

// shell runs a shell script in a container of root and wants it to succeed.
func shell(t testing.TB, root, script string, change func(*isolation.Spec)) string {
	t.Helper()
	s := newSpec(t, root, "sh", "-c", script)
	if change != nil {
		change(s)
	}
	out, errs, exit := run(t, s, "")
	if exit.Code != 0 {
		t.Fatalf("exit %d: %s%s", exit.Code, out, errs)
	}
	return out
}

// execIn runs one more process and returns what it wrote.
func execIn(t testing.TB, i isolation.Instance, p *isolation.Process) (string, isolation.Exit) {
	t.Helper()
	var out output
	r, err := i.Exec(context20(t), p, isolation.Stdio{Stdout: &out, Stderr: &out})
	must(t, err)
	exit, err := r.Wait(context20(t))
	must(t, err)
	return out.String(), exit
}

// startKind is the kind of a start error, "" for any other error.
func startKind(err error) isolation.StartKind {
	var se *isolation.StartError
	if errors.As(err, &se) {
		return se.Kind
	}
	return ""
}

var _ io.Writer = (*output)(nil)
