package steps_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"proa/internal/build/step"
	"proa/internal/builder/steps"
	"proa/internal/engine"
	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/isolation"
	"proa/internal/network"
	"proa/internal/shim"
	"proa/internal/state"
	"proa/internal/sys"
	"proa/internal/volume"
)

// TestMain puts the tests into a mount namespace of their own, as an engine
// and its builder share one.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 {
		if err := sys.PrivateMounts(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if shimDir != "" {
		os.RemoveAll(shimDir)
	}
	os.Exit(code)
}

var shimDir string

var shimBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "proa-steps-test")
	if err != nil {
		return "", err
	}
	shimDir = dir
	bin := filepath.Join(dir, "proa-shim")
	cmd := exec.Command("go", "build", "-o", bin, "proa/cmd/proa-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

// site is a real engine that serves steps on a socket, and BuildKit's executor
// at the other end.
type site struct {
	*step.Executor
	t      testing.TB
	dir    string
	name   string
	engine *engine.Engine
	images *image.Store
	conn   *grpc.ClientConn
	log    *bytes.Buffer
	kind   isolation.Kind // of steps
	nets   *network.Manager
}

func newSite(t testing.TB, edit ...func(*engine.Config)) *site {
	t.Helper()
	return openSite(t, isolation.Container, edit...)
}

func openSite(t testing.TB, kind isolation.Kind, edit ...func(*engine.Config)) *site {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: an engine needs root")
	}
	bin, err := shimBinary()
	must(t, err)
	dir, err := os.MkdirTemp("", "proa-steps") // short: sockets lie below it
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	ctx := context.Background()
	h := 0
	for _, c := range dir {
		h = h*31 + int(c)
	}
	s := &site{t: t, dir: dir, name: fmt.Sprintf("ps%x", h&0xffffffff), log: &bytes.Buffer{}, kind: kind}
	data, run := filepath.Join(dir, "data"), filepath.Join(dir, "run")
	db, err := state.Open(filepath.Join(data, "proa.db"))
	must(t, err)
	s.images, err = image.Open(ctx, image.Config{Root: filepath.Join(data, "image"), Mounts: filepath.Join(run, "image"), DB: db})
	must(t, err)
	vols, err := volume.Open(filepath.Join(data, "volumes"), db)
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(run, "shim"), 0o700))
	nets, err := network.Open(ctx, network.Config{
		Bridge: s.name, Table: s.name, Subnet: fmt.Sprintf("10.%d.%d.0/24", 210+h>>8&15, h&0xff), Subnet6: "none",
		Dir: filepath.Join(run, "network"), Linger: -1,
	})
	must(t, err)
	s.nets = nets
	cfg := engine.Config{
		DataRoot: data, ExecRoot: run, DB: db, Images: s.images, Volumes: vols, Network: nets,
		Shims: &shim.Starter{Binary: bin, Dir: filepath.Join(run, "shim")}, Events: event.New(100),
		Log: slog.New(slog.NewTextHandler(s.log, nil)), CgroupParent: "/" + s.name, BootID: "this boot",
		SubidFiles: []string{filepath.Join(dir, "subuid"), filepath.Join(dir, "subgid")},
	}
	for _, f := range edit {
		f(&cfg)
	}
	s.engine, err = engine.Open(ctx, cfg)
	must(t, err)
	listener, err := net.Listen("unix", filepath.Join(dir, "engine.sock"))
	must(t, err)
	srv := grpc.NewServer()
	steps.Register(srv, s.engine, kind)
	go func() { _ = srv.Serve(listener) }()
	s.dial()
	t.Cleanup(func() {
		s.conn.Close()
		srv.Stop()
		for _, f := range []func() error{s.engine.Close, nets.Close, s.images.Close, db.Close} {
			if err := f(); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("the engine said:\n%s", s.log)
		}
		if err := sys.RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	_, err = s.images.Import(ctx, busybox(t), "box", nil, "", "")
	must(t, err)
	return s
}

// dial makes a connection as a builder does.
func (s *site) dial() {
	s.t.Helper()
	var err error
	s.conn, err = grpc.NewClient("unix://"+filepath.Join(s.dir, "engine.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(s.t, err)
	s.Executor = step.New(s.conn)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// busybox is a root of busybox with all its names.
func busybox(t testing.TB) io.Reader {
	t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is not installed: %v", err)
	}
	names, err := exec.Command("/bin/busybox", "--list").Output()
	must(t, err)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h tar.Header, data []byte) {
		h.Size, h.ModTime = int64(len(data)), time.Unix(1000, 0)
		must(t, tw.WriteHeader(&h))
		_, err := tw.Write(data)
		must(t, err)
	}
	for _, d := range []string{"bin/", "etc/", "home/", "srv/"} {
		add(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, box)
	for _, n := range strings.Fields(string(names)) {
		if n != "busybox" {
			add(tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
		}
	}
	add(tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\n"))
	add(tar.Header{Name: "srv/seed", Mode: 0o644}, []byte("from the image\n"))
	must(t, tw.Close())
	return &buf
}

// files are mounts as BuildKit holds them. They count who has them.
type files struct {
	mounts []mount.Mount
	held   int
}

func (f *files) Mount(context.Context, bool) (executor.MountableRef, error) { return ref{f}, nil }

type ref struct{ f *files }

func (r ref) Mount() ([]mount.Mount, func() error, error) {
	r.f.held++
	return r.f.mounts, func() error { r.f.held--; return nil }, nil
}

func (ref) IdentityMapping() *user.IdentityMapping { return nil }

func bind(path string, options ...string) *files {
	return &files{mounts: []mount.Mount{{Type: "bind", Source: path, Options: append([]string{"rbind"}, options...)}}}
}

// layer is a directory that an overlay over the test image is written to.
type layer struct {
	*files
	upper string
}

// lower is where the test image is mounted, until the test ends.
func (s *site) lower() string {
	s.t.Helper()
	ctx := context.Background()
	img, err := s.images.Get(ctx, "box")
	must(s.t, err)
	tree, err := s.images.Mount(ctx, img.ID.String())
	must(s.t, err)
	s.t.Cleanup(func() { tree.Close() })
	disk, err := s.images.Disk(ctx, img.ID.String())
	must(s.t, err)
	return filepath.Join(s.dir, "run", "image", disk.ChainID.Encoded())
}

func (s *site) layer() layer {
	s.t.Helper()
	dir, err := os.MkdirTemp(s.dir, "snap")
	must(s.t, err)
	below, err := sys.OpenPath(s.lower())
	must(s.t, err)
	defer below.Close()
	made, err := sys.WritableLayer(dir, below)
	must(s.t, err)
	must(s.t, made.Close())
	return layer{&files{mounts: []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + s.lower(), "upperdir=" + dir + "/upper", "workdir=" + dir + "/work",
	}}}}, filepath.Join(dir, "upper")}
}

// lines collects output and lets others wait for it.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) Close() error { return nil }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lines) waitFor(t testing.TB, what string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(l.String(), what); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q never came, but %q", what, l)
		}
	}
}

// sh is a RUN of a script.
func sh(script string) executor.Meta {
	return executor.Meta{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin"}, Cwd: "/", NetMode: pb.NetMode_NONE}
}

// run runs a step to its end and returns all that it wrote.
func (s *site) run(root executor.Mountable, m executor.Meta, mounts ...executor.Mount) (string, error) {
	s.t.Helper()
	out := new(lines)
	_, err := s.Run(s.t.Context(), "", executor.Mount{Src: root}, mounts, executor.ProcessInfo{Meta: m, Stdout: out, Stderr: out}, nil)
	return out.String(), err
}

// mustRun is run for what has to succeed.
func (s *site) mustRun(root executor.Mountable, m executor.Meta, mounts ...executor.Mount) string {
	s.t.Helper()
	out, err := s.run(root, m, mounts...)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// left names what steps left on the host: directories, control groups, links.
func (s *site) left() []string {
	var out []string
	for _, glob := range []string{s.dir + "/run/run/*", s.dir + "/run/shim/*", s.dir + "/run/network/*/lease.json", "/sys/fs/cgroup/*/" + s.name + "/*", "/sys/fs/cgroup/" + s.name + "/*"} {
		found, _ := filepath.Glob(glob)
		for _, f := range found {
			if fi, err := os.Stat(f); err == nil && (fi.IsDir() || strings.HasSuffix(f, ".json")) {
				out = append(out, f)
			}
		}
	}
	return out
}
