package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/network"
	"proa/internal/shim"
	"proa/internal/state"
	"proa/internal/sys"
	"proa/internal/volume"
)

// TestMain puts the tests into a mount namespace of their own: they mount
// images, and some of them are killed while they do.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 {
		if err := sys.PrivateMounts(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if step := os.Getenv(childEnv); step != "" {
		os.Exit(killedChild(step))
	}
	code := m.Run()
	if shimDir != "" {
		os.RemoveAll(shimDir)
	}
	os.Exit(code)
}

// shimDir is where the shim was built for these tests.
var shimDir string

// world is a whole engine over real rooms, with a bridge, a table, a cgroup
// and ids of its own.
type world struct {
	*Engine
	t      testing.TB
	dir    string
	db     *state.DB
	images *image.Store
	net    *network.Manager
	vols   *volume.Store
	log    *bytes.Buffer
}

// worldName makes names that no other test process has.
func worldName(dir string) string {
	return fmt.Sprintf("pe%x", hashOf(dir))
}

func hashOf(s string) uint32 {
	h := uint32(2166136261)
	for _, c := range []byte(s) {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

var shimBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "proa-engine-test")
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

// openWorld opens an engine below dir. Opening the same dir again is a restart.
func openWorld(t testing.TB, dir, shimBin string, edit ...func(*Config)) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{t: t, dir: dir, log: &bytes.Buffer{}}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	data, run := filepath.Join(dir, "data"), filepath.Join(dir, "run")
	name := worldName(dir)
	w.db, err = state.Open(filepath.Join(data, "proa.db"))
	must(err)
	w.images, err = image.Open(ctx, image.Config{Root: filepath.Join(data, "image"), Mounts: filepath.Join(run, "image"), DB: w.db})
	must(err)
	w.vols, err = volume.Open(filepath.Join(data, "volumes"), w.db)
	must(err)
	must(os.MkdirAll(filepath.Join(run, "shim"), 0o700))
	third := hashOf(dir) >> 8 & 0xff
	w.net, err = network.Open(ctx, network.Config{
		Bridge: name, Table: name, Subnet: fmt.Sprintf("10.%d.%d.0/24", 230+hashOf(dir)%20, third), Subnet6: "none",
		Dir: filepath.Join(run, "network"), Linger: -1,
	})
	must(err)
	cfg := Config{
		DataRoot: data, ExecRoot: run, DB: w.db, Images: w.images, Volumes: w.vols, Network: w.net,
		Shims:        &shim.Starter{Binary: shimBin, Dir: filepath.Join(run, "shim")},
		Events:       event.New(1000),
		Log:          slog.New(slog.NewTextHandler(w.log, nil)),
		CgroupParent: "/" + name, BootID: "this boot",
		SubidFiles: []string{filepath.Join(dir, "subuid"), filepath.Join(dir, "subgid")},
	}
	for _, f := range edit {
		f(&cfg)
	}
	w.Engine, err = Open(ctx, cfg)
	must(err)
	return w
}

// close lets go of everything; containers go on.
func (w *world) close() {
	w.t.Helper()
	for _, f := range []func() error{w.Engine.Close, w.net.Close, w.images.Close, w.db.Close} {
		if err := f(); err != nil {
			w.t.Error(err)
		}
	}
}

// newWorld is a world for one test, removed with all that is in it at the end.
func newWorld(t testing.TB, edit ...func(*Config)) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: an engine needs root")
	}
	bin, err := shimBinary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "proa-engine") // short: sockets lie below it
	if err != nil {
		t.Fatal(err)
	}
	w := openWorld(t, dir, bin, edit...)
	t.Cleanup(func() {
		for _, b := range w.boxes() {
			if err := w.Remove(context.Background(), b.id, RemoveOptions{Force: true, Volumes: true}); err != nil {
				t.Error(err)
			}
		}
		w.close()
		if t.Failed() {
			t.Logf("the engine said:\n%s", w.log)
		}
		if err := sys.RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	w.load("box")
	return w
}

// load imports a tiny image with busybox in it, once.
func (w *world) load(ref string) {
	w.t.Helper()
	ctx := context.Background()
	if _, err := w.images.Get(ctx, ref); err == nil {
		return
	}
	if _, err := w.images.Import(ctx, busyboxTar(w.t), ref, []string{"CMD [\"/bin/sh\"]"}, "", ""); err != nil {
		w.t.Fatal(err)
	}
}

func busyboxTar(t testing.TB) io.Reader {
	t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("skipped: busybox-static is not installed: %v", err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(h *tar.Header, data []byte) {
		h.Size, h.ModTime = int64(len(data)), time.Unix(1, 0)
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "tmp/", "data/"} {
		add(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Mode: 0o755}, box)
	for _, n := range []string{"sh", "true", "false", "sleep", "echo", "cat", "id", "touch", "kill", "ls", "hostname", "seq"} {
		add(&tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil)
	}
	add(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"))
	add(&tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\napp:x:1000:\n"))
	add(&tar.Header{Name: "data/seed", Mode: 0o644}, []byte("from the image\n"))
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

// create makes a container of the test image that runs a shell script.
func (w *world) create(script string, edit ...func(*CreateRequest)) string {
	w.t.Helper()
	r := CreateRequest{
		Config: &container.Config{Image: "box", Cmd: []string{"sh", "-c", script}},
		Host:   &container.HostConfig{NetworkMode: "none"},
	}
	for _, f := range edit {
		f(&r)
	}
	res, err := w.Create(context.Background(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return res.ID
}

func (w *world) start(id string) {
	w.t.Helper()
	if err := w.Start(context.Background(), id); err != nil {
		w.t.Fatal(err)
	}
}

// wait waits for a condition, for at most 20 s.
func (w *world) wait(id string, cond container.WaitCondition) int {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ch, err := w.Wait(ctx, id, cond)
	if err != nil {
		w.t.Fatal(err)
	}
	r, ok := <-ch
	if !ok {
		w.t.Fatalf("container %s: %q did not come; it is %+v", short(id), cond, w.get(id).State)
	}
	return r.ExitCode
}

func (w *world) get(id string) *Container {
	w.t.Helper()
	c, err := w.Get(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// logs gives all that a container wrote.
func (w *world) logs(id string) string {
	w.t.Helper()
	lines, err := w.Logs(context.Background(), id, LogsOptions{Stdout: true, Stderr: true, Tail: -1})
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for l, err := range lines {
		if err != nil {
			w.t.Fatal(err)
		}
		out.Write(l.Text)
	}
	return out.String()
}

// eventually waits until ok says yes, for at most 20 s.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("it never happened: %s", what)
}

// inventory names everything of this world that is in the host, one per line:
// files, mounts, links, cgroups, processes. Images are left out.
func inventory(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	for _, d := range []string{"data/containers", "data/volumes", "run"} {
		_ = filepath.WalkDir(filepath.Join(dir, d), func(p string, e os.DirEntry, err error) error {
			if err != nil {
				return nil
			}
			rel, _ := filepath.Rel(dir, p)
			if e.IsDir() && (rel == "run/image" || strings.HasPrefix(rel, "run/image/")) {
				return filepath.SkipDir
			}
			if rel != "run/network/bridge.json" {
				out = append(out, "file "+rel)
			}
			return nil
		})
	}
	name := worldName(dir)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if strings.Contains(l, dir) && !strings.Contains(l, "/run/image/") {
			out = append(out, "mount "+l)
		}
	}
	links, _ := os.ReadDir("/sys/class/net")
	for _, l := range links {
		if strings.HasPrefix(l.Name(), name) {
			out = append(out, "link "+l.Name())
		}
	}
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/" + name + "/*")
	more, _ := filepath.Glob("/sys/fs/cgroup/" + name + "/*")
	for _, p := range append(tops, more...) {
		if fi, err := os.Stat(p); err == nil && fi.IsDir() {
			out = append(out, "cgroup "+p)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		raw, _ := os.ReadFile(p)
		if bytes.Contains(raw, []byte(dir+"/run/shim/")) {
			out = append(out, "process "+strings.ReplaceAll(string(raw), "\x00", " "))
		}
	}
	sort.Strings(out)
	return out
}

// difference names what is in after and not in before.
func difference(before, after []string) []string {
	have := map[string]bool{}
	for _, b := range before {
		have[b] = true
	}
	var out []string
	for _, a := range after {
		if !have[a] {
			out = append(out, a)
		}
	}
	return out
}

func ownerOf(fi os.FileInfo) int {
	if fi == nil {
		return -1
	}
	return int(fi.Sys().(*syscall.Stat_t).Uid)
}
