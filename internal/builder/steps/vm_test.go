package steps_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"proa/internal/engine"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
)

// machines gives an engine VMs, emulated: what KVM does here is another matter.
func machines(t testing.TB) func(*engine.Config) {
	t.Helper()
	kernel := os.Getenv("PROA_TEST_KERNEL")
	if kernel == "" {
		kernel = "../../../.cache/kernel"
	}
	if _, err := os.Stat(filepath.Join(kernel, "boot")); err != nil {
		t.Fatalf("there is no guest kernel: run make setup (%v)", err)
	}
	agent := filepath.Join(t.TempDir(), "proa-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "proa/cmd/proa-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const jailUser = 64999
	f, err := machine.Open(machine.Config{Dir: agent + ".vm", KernelDirs: []string{kernel}, Agent: agent, Accelerator: "tcg", UID: jailUser, GID: jailUser})
	must(t, err)
	return func(c *engine.Config) { c.Machines = f }
}

// snaps are snapshots of the engine's own snapshotter, as a builder has them.
type snaps struct {
	*site
	ctx context.Context
}

func (s *site) snapshots() *snaps {
	s.t.Helper()
	ctx := context.Background()
	l, err := s.images.LeaseManager().Create(ctx, leases.WithID("build"))
	must(s.t, err)
	p := &snaps{s, leases.WithLease(ctx, l.ID)}
	m, err := s.images.Snapshots().Prepare(p.ctx, "base-", "")
	must(s.t, err)
	_, err = s.images.Snapshots().ApplyTar(p.ctx, m, busybox(s.t))
	must(s.t, err)
	must(s.t, s.images.Snapshots().Commit(p.ctx, "base", "base-"))
	return p
}

// on gives an active snapshot.
func (p *snaps) on(parent, key string) *files {
	p.t.Helper()
	m, err := p.images.Snapshots().Prepare(p.ctx, key, parent)
	must(p.t, err)
	return &files{mounts: m}
}

// names commits an active snapshot and lists its files, mounted, that begin
// with a prefix.
func (p *snaps) commit(key, name string) string {
	p.t.Helper()
	must(p.t, p.images.Snapshots().Commit(p.ctx, name, key))
	m, err := p.images.Snapshots().View(p.ctx, name+"-view", name)
	must(p.t, err)
	return m[0].Source
}

// A step in a VM: what it mounts comes in, what it wrote comes out, as behind
// the other wall, to the byte.
func TestVM(t *testing.T) {
	s := openSite(t, isolation.VM, machines(t))
	p := s.snapshots()
	src := filepath.Join(s.dir, "src")
	must(t, os.MkdirAll(filepath.Join(src, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "sub/file"), []byte("context\n"), 0o640))
	secret := filepath.Join(s.dir, "secret")
	must(t, os.WriteFile(secret, []byte("hidden"), 0o400))
	must(t, os.Chown(secret, 1000, 1001))
	cache := filepath.Join(s.dir, "cache", "upper")
	must(t, os.MkdirAll(filepath.Join(cache, "old"), 0o755))
	must(t, os.WriteFile(filepath.Join(cache, "old/gone"), []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(cache, "kept"), []byte("kept\n"), 0o644))

	stage := s.layer()
	m := sh(`set -e
		test -e /dev/kmsg && echo a device too many
		id -un; hostname; cat /ctx/sub/file; ! touch /ctx/x 2>/dev/null; cat /one
		stat -c '%u:%g %a' /run/secrets/key; cat /run/secrets/key; echo
		cat /cache/kept; echo new >/cache/new; rm -r /cache/old; echo changed >/cache/kept; chown 7:8 /cache/new
		cat /stage/srv/seed; echo mine >/stage/srv/mine; touch /memory/x
		wc -l </etc/hosts; ! echo x >>/etc/hosts
		mkdir /made; echo text >/made/file; chown 1000:1001 /made/file; chmod 4711 /made/file; rm /srv/seed; ln -s x /made/link
		ip -4 -o addr show eth0 | grep -c inet`)
	m.NetMode = pb.NetMode_UNSET
	mounts := []executor.Mount{
		{Src: bind(src, "ro"), Dest: "/ctx", Readonly: true},
		{Src: bind(src, "ro"), Selector: "sub/file", Dest: "/one", Readonly: true},
		{Src: bind(secret, "ro"), Dest: "/run/secrets/key", Readonly: true},
		{Src: bind(cache, "rw"), Dest: "/cache"},
		{Src: stage, Dest: "/stage"},
		{Src: &files{mounts: []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}}, Dest: "/memory"},
	}
	root := p.on("base", "run-")
	began := time.Now()
	out, err := s.run(root, m, mounts...)
	t.Logf("a step in a VM took %v", time.Since(began).Round(10*time.Millisecond))
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"root\nbuildkitsandbox\ncontext\ncontext\n1000:1001 400\nhidden\nkept\nfrom the image\n", "Read-only file system", "\n1\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	for path, want := range map[string]string{filepath.Join(cache, "new"): "new\n", filepath.Join(cache, "kept"): "changed\n", filepath.Join(stage.upper, "srv/mine"): "mine\n"} {
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%s: %q %v", path, b, err)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(cache, "new"), &st); err != nil || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("owner in the cache: %d:%d %v", st.Uid, st.Gid, err)
	}
	if _, err := os.Lstat(filepath.Join(cache, "old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was removed from the cache: %v", err)
	}
	if left := s.left(); len(left) > 0 || root.held != 0 || stage.held != 0 {
		t.Errorf("left behind: %q", left)
	}
	at := p.commit("run-", "run")
	must(t, syscall.Lstat(filepath.Join(at, "made/file"), &st))
	if st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != 0o4711 {
		t.Errorf("%+v", st)
	}
	if _, err := os.Lstat(filepath.Join(at, "srv/seed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a deleted file: %v", err)
	}

	// The same step behind the other wall leaves the same names.
	c := openSite(t, isolation.Container)
	q := c.snapshots()
	must(t, os.WriteFile(filepath.Join(cache, "kept"), []byte("kept\n"), 0o644))
	must(t, os.MkdirAll(filepath.Join(cache, "old"), 0o755))
	mounts[4].Src = c.layer()
	c.mustRun(q.on("base", "run-"), m, mounts...)
	if a, b := tree(t, at), tree(t, q.commit("run-", "run")); !slices.Equal(a, b) {
		t.Errorf("in a VM %q\nin a container %q", a, b)
	}

	// How it ends, and what it wrote until then.
	m = sh("echo half >/half; exit 3")
	var exit *gateway.ExitError
	if out, err := s.run(p.on("run", "fail-"), m); !errors.As(err, &exit) || exit.ExitCode != 3 {
		t.Errorf("%v %s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(p.commit("fail-", "fail"), "half")); err != nil || string(b) != "half\n" {
		t.Errorf("%q %v", b, err)
	}
}

// tree lists what there is, with what a layer keeps of it but times and contents.
func tree(t *testing.T, dir string) (out []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if strings.HasPrefix(rel, "bin/") {
			return nil
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		out = append(out, strings.Join([]string{rel, fi.Mode().String(), itoa(st.Uid), itoa(st.Gid)}, " "))
		return nil
	}))
	return out
}

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// What cannot be in a VM is said by name, before anything boots; a machine that
// is cancelled while it boots goes.
func TestVMRefuses(t *testing.T) {
	s := openSite(t, isolation.VM, machines(t))
	p := s.snapshots()
	agent, err := net.Listen("unix", filepath.Join(s.dir, "agent"))
	must(t, err)
	defer agent.Close()
	began := time.Now()
	root := p.on("base", "a-")
	if out, err := s.run(root, sh("true"), executor.Mount{Src: bind(filepath.Join(s.dir, "agent")), Dest: "/agent"}); err == nil || !strings.Contains(err.Error(), "--mount=type=ssh") {
		t.Errorf("%v %s", err, out)
	}
	m := sh("true")
	m.NetMode = pb.NetMode_HOST
	if out, err := s.run(root, m); err == nil || !strings.Contains(err.Error(), "--network host") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := s.run(p.on("", "b-"), sh("true")); err == nil || !strings.Contains(err.Error(), "no layers") {
		t.Errorf("%v %s", err, out)
	}
	written := p.on("base", "c-")
	for _, o := range written.mounts[0].Options {
		if up, ok := strings.CutPrefix(o, "upperdir="); ok {
			must(t, os.WriteFile(filepath.Join(up, "x"), nil, 0o644))
		}
	}
	if out, err := s.run(written, sh("true")); err == nil || !strings.Contains(err.Error(), "written") {
		t.Errorf("%v %s", err, out)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Logf("refusals took %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(500*time.Millisecond, cancel)
	if _, err := s.Run(ctx, "", executor.Mount{Src: root}, nil, executor.ProcessInfo{Meta: sh("sleep 1000")}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "data/containers")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
