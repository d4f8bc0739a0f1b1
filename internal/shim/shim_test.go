package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/logs"
	"proa/internal/rootfs"
	"proa/internal/shim"
	"proa/internal/shim/server"
)

// The test program is also the shim: what differs from proa-shim is the driver,
// which runs ordinary processes of the host.
func TestMain(m *testing.M) {
	if os.Args[0] == "proa-shim" {
		os.Exit(server.Main(os.Args, map[isolation.Kind]isolation.Driver{isolation.Container: driver{}}))
	}
	if os.Args[0] == "engine" {
		engine(os.Args[1])
	}
	os.Exit(m.Run())
}

type driver struct{}

func (driver) Create(_ context.Context, spec *isolation.Spec) (isolation.Instance, error) {
	if spec.Hostname == "refused" {
		return nil, fmt.Errorf("cannot create %q: %w", spec.Hostname, errdefs.ErrFailedPrecondition)
	}
	if err := os.WriteFile(filepath.Join(spec.Dir, "left"), nil, 0o600); err != nil {
		return nil, err
	}
	if f := spec.Root.Image.Open("image"); f != nil {
		b := make([]byte, 5)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "image" {
			return nil, fmt.Errorf("wrong file handed over: %q %w", b, err)
		}
	}
	return &instance{spec: spec}, nil
}

type instance struct {
	spec *isolation.Spec
	mu   sync.Mutex
	run  []*running
}

func (i *instance) Pid() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.run) == 0 {
		return 1 << 29
	}
	return i.run[0].Pid()
}

func (i *instance) Start(_ context.Context, s isolation.Stdio) (isolation.Running, error) {
	return i.start(&i.spec.Process, s)
}

func (i *instance) Exec(_ context.Context, p *isolation.Process, s isolation.Stdio) (isolation.Running, error) {
	return i.start(p, s)
}

func (i *instance) start(p *isolation.Process, s isolation.Stdio) (isolation.Running, error) {
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Stdin, s.Stdout, s.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, &isolation.StartError{Kind: isolation.StartNotFound, Step: fmt.Sprintf("exec %q", p.Args[0]), Why: err.Error()}
	}
	r := &running{cmd}
	i.mu.Lock()
	i.run = append(i.run, r)
	i.mu.Unlock()
	return r, nil
}

func (i *instance) Pause(context.Context) error  { return i.signal(syscall.SIGSTOP) }
func (i *instance) Resume(context.Context) error { return i.signal(syscall.SIGCONT) }
func (i *instance) Stats(context.Context) (*isolation.Stats, error) {
	return &isolation.Stats{Pids: 7}, nil
}
func (i *instance) Usage(context.Context) (*isolation.Usage, error) {
	return &isolation.Usage{CPUNanos: 42}, nil
}
func (i *instance) Processes(context.Context) ([]isolation.ProcessInfo, error) {
	return []isolation.ProcessInfo{{PID: i.Pid(), Command: "x"}}, nil
}
func (i *instance) Update(_ context.Context, r *isolation.Resources) error {
	if r.Pids == 13 {
		return fmt.Errorf("13 pids: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
func (i *instance) Delete(context.Context) error {
	_ = i.signal(syscall.SIGKILL)
	err := os.Remove(filepath.Join(i.spec.Dir, "left"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}

// Files answers with what it was given, or the error that the path names.
func (i *instance) Files(ctx context.Context, r *rootfs.Request, in io.Reader, out io.Writer) error {
	switch r.Path {
	case "/missing":
		return fmt.Errorf("no such path: %w", errdefs.ErrNotFound)
	case "/hang":
		<-ctx.Done()
		return ctx.Err()
	}
	if _, err := fmt.Fprintf(out, "%s:", r.Op); err != nil || in == nil {
		return err
	}
	_, err := io.Copy(out, in)
	return err
}

func (i *instance) signal(sig syscall.Signal) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, r := range i.run {
		_ = syscall.Kill(-r.cmd.Process.Pid, sig)
	}
	return nil
}

type running struct{ cmd *exec.Cmd }

func (r *running) Pid() int { return r.cmd.Process.Pid }
func (r *running) Signal(_ context.Context, sig int) error {
	return r.cmd.Process.Signal(syscall.Signal(sig))
}
func (r *running) Resize(context.Context, uint16, uint16) error { return nil }
func (r *running) Wait(context.Context) (isolation.Exit, error) {
	_ = r.cmd.Wait()
	ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	e := isolation.Exit{Code: ws.ExitStatus(), At: time.Now()}
	if ws.Signaled() {
		e.Signal, e.Code = int(ws.Signal()), 128+int(ws.Signal())
	}
	return e, nil
}

// house is one test's starter and spec.
type house struct {
	*shim.Starter
	spec *isolation.Spec
	t    *testing.T
}

func newHouse(t *testing.T, args ...string) *house {
	dir := t.TempDir()
	return &house{
		Starter: &shim.Starter{Binary: "/proc/self/exe", Dir: filepath.Join(dir, "shim")},
		spec: &isolation.Spec{
			ID: "aaaa", Kind: isolation.Container, Dir: dir,
			Process: isolation.Process{Args: args, Stdin: true},
			Log:     isolation.Log{Driver: "json-file", Path: filepath.Join(dir, "log"), MaxBytes: 1 << 20, MaxFiles: 50},
		},
		t: t,
	}
}

func (h *house) create(files ...*os.File) *shim.Shim {
	h.t.Helper()
	s, err := h.Start(h.t.Context(), h.spec, files)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Kill)
	if _, err := s.Create(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *house) start() *shim.Shim {
	h.t.Helper()
	s := h.create()
	if err := s.Start(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *house) logged() string {
	h.t.Helper()
	var b strings.Builder
	for l, err := range logs.Read(h.t.Context(), h.spec.Log.Path, logs.ReadOptions{Tail: -1, Stdout: true, Stderr: true}) {
		if err != nil {
			h.t.Fatal(err)
		}
		b.Write(l.Text)
	}
	return b.String()
}

func (h *house) exit(s *shim.Shim) isolation.Exit {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	e, err := s.Wait(ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

func (h *house) gone(s *shim.Shim) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Gone(ctx); err != nil {
		h.t.Fatal(err)
	}
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func TestRun(t *testing.T) {
	h := newHouse(t, "/bin/sh", "-c", "read x; echo out $x; echo err $x >&2; exit 7")
	image, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteString("image"); err != nil {
		t.Fatal(err)
	}
	files := shim.NewFiles()
	h.spec.Root.Image = files.Add(image)
	s := h.create(files...)
	phase, _, err := s.State(t.Context())
	want(t, "phase", fmt.Sprint(phase, err), "created<nil>")
	st, err := s.Attach(t.Context(), shim.Streams{Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(st, "hello\n"); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := st.Copy(&out, &errs); err != nil {
		t.Fatal(err)
	}
	want(t, "stdout", out.String(), "out hello\n")
	want(t, "stderr", errs.String(), "err hello\n")
	e, ok := st.Exit()
	want(t, "exit of the stream", fmt.Sprint(e.Code, ok), "7 true")
	want(t, "exit of wait", h.exit(s).Code, 7)
	h.gone(s)
	rec, err := h.Exit("aaaa")
	want(t, "record", fmt.Sprint(rec.Code, err), "7 <nil>")
	if u := rec.Usage; u == nil || u.CPUNanos != 42 || u.Started.IsZero() || !u.Ended.Equal(rec.At) || u.Ended.Before(u.Started) || u.ShimCPUNanos == 0 || u.ShimMemoryPeak == 0 {
		t.Fatalf("last reading %+v", u)
	}
	if _, err := os.Stat(filepath.Join(h.spec.Dir, "left")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the driver did not delete")
	}
	if _, err := h.Find(t.Context(), "aaaa"); !errdefs.IsNotFound(err) {
		t.Fatalf("found an ended shim: %v", err)
	}
	if log := h.logged(); log != "out hello\nerr hello\n" && log != "err hello\nout hello\n" {
		t.Fatalf("log %q", log)
	}
	if err := h.Forget("aaaa"); err != nil {
		t.Fatal(err)
	}
	ids, err := h.List()
	want(t, "left", fmt.Sprint(ids, err), "[] <nil>")
}

func TestErrorsKeepTheirKind(t *testing.T) {
	h := newHouse(t, "/no/such/program")
	s := h.create()
	if err := s.Signal(t.Context(), 15); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("signal before start: %v", err)
	}
	err := s.Start(t.Context())
	var start *isolation.StartError
	if !errors.As(err, &start) || start.Kind != isolation.StartNotFound {
		t.Fatalf("start: %v", err)
	}
	e := h.exit(s)
	want(t, "exit", e.Code, 127)
	if e.Usage != nil {
		t.Fatalf("a bill of what never ran: %+v", e.Usage)
	}
	h.gone(s)
	if err := s.Signal(t.Context(), 15); !errdefs.IsUnavailable(err) {
		t.Fatalf("signal after the end: %v", err)
	}

	h = newHouse(t, "/bin/true")
	h.spec.Hostname = "refused"
	s, err = h.Start(t.Context(), h.spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "cannot create") {
		t.Fatalf("create: %v", err)
	}
	h.gone(s)
	rec, err := h.Exit("aaaa")
	want(t, "record of a failed create", fmt.Sprint(rec.Code, err), "125 <nil>")

	if _, err := h.Start(t.Context(), &isolation.Spec{ID: "../x"}, nil); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("an id that climbs: %v", err)
	}
}

func TestControl(t *testing.T) {
	h := newHouse(t, "/bin/sleep", "100")
	s := h.start()
	ctx := t.Context()
	if err := s.Start(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("second start: %v", err)
	}
	if _, err := h.Start(ctx, h.spec, nil); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("second shim: %v", err)
	}
	stats, err := s.Stats(ctx)
	want(t, "stats", fmt.Sprint(stats.Pids, err), "7 <nil>")
	usage, err := s.Usage(ctx)
	want(t, "usage", fmt.Sprint(usage.CPUNanos, usage.Started.IsZero(), usage.Ended.IsZero(), err), "42 false true <nil>")
	top, err := s.Top(ctx)
	want(t, "top", fmt.Sprint(len(top), err), "1 <nil>")
	if err := s.Update(ctx, &isolation.Resources{Pids: 13}); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("update: %v", err)
	}
	if err := s.Update(ctx, &isolation.Resources{Pids: 14}); err != nil {
		t.Fatal(err)
	}
	if err := s.Resume(ctx); !errdefs.IsConflict(err) {
		t.Fatalf("resume of one that runs: %v", err)
	}
	if err := s.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	phase, pid, err := s.State(ctx)
	want(t, "phase", fmt.Sprint(phase, err), "paused<nil>")
	// The signal is sent when Pause returns; the process stops when it next runs.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if strings.Contains(string(b), ") T ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not stopped: %s", b)
		}
	}
	if err := s.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	// A shim takes no orders by signal.
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE} {
		if err := syscall.Kill(s.Pid(), sig); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Resize(ctx, 24, 80); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(ctx, 15); err != nil {
		t.Fatal(err)
	}
	want(t, "exit", h.exit(s).Code, 143)
	h.gone(s)
}

func TestExec(t *testing.T) {
	h := newHouse(t, "/bin/sleep", "100")
	s := h.start()
	ctx := t.Context()
	ex, err := s.Exec(ctx, "e1", &isolation.Process{Args: []string{"/bin/cat"}, Stdin: true}, shim.Streams{Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = ex.Write(big)
		_ = ex.CloseWrite()
	}()
	var out bytes.Buffer
	if err := ex.Copy(&out, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), big) {
		t.Fatalf("cat gave %d of %d bytes", out.Len(), len(big))
	}
	if e, ok := ex.Exit(); !ok || e.Code != 0 {
		t.Fatalf("exit %v %v", e, ok)
	}
	e, err := s.ExecWait(ctx, "e1")
	want(t, "remembered", fmt.Sprint(e.Code, err), "0 <nil>")

	// Its conversation may end; the process goes on.
	mark := filepath.Join(h.spec.Dir, "mark")
	ex, err = s.Exec(ctx, "e2", &isolation.Process{Args: []string{"/bin/sh", "-c", "sleep 0.3; echo x; echo y > \"$0\"; exit 3", mark}}, shim.Streams{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	ex.Close()
	e, err = s.ExecWait(ctx, "e2")
	want(t, "exit of a detached exec", fmt.Sprint(e.Code, err), "3 <nil>")
	if _, err := os.Stat(mark); err != nil {
		t.Fatal(err)
	}
	var start *isolation.StartError
	if _, err = s.Exec(ctx, "e3", &isolation.Process{Args: []string{"/no"}}, shim.Streams{}); !errors.As(err, &start) {
		t.Fatalf("exec of nothing: %v", err)
	}
	ex, err = s.Exec(ctx, "e4", &isolation.Process{Args: []string{"/bin/sleep", "100"}}, shim.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ExecSignal(ctx, "e4", 9); err != nil {
		t.Fatal(err)
	}
	e, err = ex.Wait()
	want(t, "signalled exec", fmt.Sprint(e.Code, err), "137 <nil>")
	if err := s.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	want(t, "exit after delete", h.exit(s).Code, 137)
}

func TestKilledShim(t *testing.T) {
	h := newHouse(t, "/bin/sleep", "100")
	s := h.start()
	_, pid, err := s.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Attach(t.Context(), shim.Streams{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan isolation.Exit)
	go func() { waited <- h.exit(s) }()
	time.Sleep(50 * time.Millisecond)
	s.Kill()
	e := <-waited
	want(t, "exit", fmt.Sprint(e.Code, " ", e.Error), "137 shim was killed")
	if _, _, err := st.Next(); !errdefs.IsUnavailable(err) {
		t.Fatalf("stream of a killed shim: %v", err)
	}
	if _, err := h.Find(t.Context(), "aaaa"); !errdefs.IsNotFound(err) {
		t.Fatalf("found: %v", err)
	}
	if _, err := h.Exit("aaaa"); !errdefs.IsNotFound(err) {
		t.Fatalf("record: %v", err)
	}
	for i := 0; syscall.Kill(pid, 0) == nil; i++ {
		if i > 200 {
			t.Fatal("the process outlived its shim")
		}
		time.Sleep(10 * time.Millisecond)
	}
	// The same id can be used again.
	h.spec.Process.Args = []string{"/bin/true"}
	want(t, "second life", h.exit(h.start()).Code, 0)
}

// An engine that comes back finds a shim in the middle of its output; nothing
// is lost for the log, and nothing blocks while nobody listens.
func TestFoundAgain(t *testing.T) {
	h := newHouse(t, "/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 5")
	s := h.start()
	st, err := s.Attach(t.Context(), shim.Streams{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := st.Next(); err != nil {
		t.Fatal(err)
	}
	st.Close() // the engine is gone, without a word
	for range 3 {
		found, err := h.Find(t.Context(), "aaaa")
		if errdefs.IsNotFound(err) {
			break // was too fast
		}
		if err != nil {
			t.Fatal(err)
		}
		want(t, "pid of the shim", found.Pid(), s.Pid())
		if st, err := found.Attach(t.Context(), shim.Streams{Stdout: true}); err == nil {
			_, _, _ = st.Next()
			st.Close()
		}
		found.Close()
	}
	want(t, "exit", h.exit(s).Code, 5)
	lines := strings.Split(strings.TrimSuffix(h.logged(), "\n"), "\n")
	want(t, "lines", len(lines), 20000)
	for i, l := range lines {
		if l != fmt.Sprint("line ", i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
}

// A reader that is slow slows the process down and loses nothing.
func TestSlowReader(t *testing.T) {
	h := newHouse(t, "/bin/sh", "-c", "head -c 4000000 /dev/zero; echo -n end")
	h.spec.Log.Driver = "none"
	s := h.create()
	st, err := s.Attach(t.Context(), shim.Streams{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	phase, _, err := s.State(t.Context())
	want(t, "phase while nobody reads", fmt.Sprint(phase, err), "running<nil>")
	var total int
	for {
		_, b, err := st.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += len(b)
		time.Sleep(100 * time.Microsecond)
	}
	want(t, "bytes", total, 4000003)
	want(t, "exit", h.exit(s).Code, 0)
}

// Operations on files carry their streams, keep the kind of their error, and
// are possible before the start; after the end only if the spec says hold.
func TestFiles(t *testing.T) {
	h := newHouse(t, "true")
	h.spec.Hold = true
	s := h.create()
	big := strings.Repeat("x", 1<<20)
	ask := func(r rootfs.Request, in io.Reader) (string, error) {
		var out strings.Builder
		err := s.Files(t.Context(), &r, in, &out)
		return out.String(), err
	}
	for _, when := range []string{"before the start", "after the end"} {
		if out, err := ask(rootfs.Request{Op: rootfs.OpPut}, strings.NewReader(big)); err != nil || out != "put:"+big {
			t.Errorf("%s: %d bytes, %v", when, len(out), err)
		}
		if out, err := ask(rootfs.Request{Op: rootfs.OpGet}, nil); err != nil || out != "get:" {
			t.Errorf("%s: %q, %v", when, out, err)
		}
		if _, err := ask(rootfs.Request{Path: "/missing"}, nil); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", when, err)
		}
		if when == "before the start" {
			if err := s.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.exit(s)
		}
	}
	var layer strings.Builder
	if err := s.Layer(t.Context(), &layer); err != nil || layer.String() != "layer:" {
		t.Errorf("%q, %v", layer.String(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := s.Files(ctx, &rootfs.Request{Path: "/hang"}, nil, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	failing := io.MultiReader(strings.NewReader(big), iotest.ErrReader(errors.New("broken input")))
	if _, err := ask(rootfs.Request{Op: rootfs.OpPut}, failing); err == nil || !strings.Contains(err.Error(), "broken input") {
		t.Errorf("an input that fails: %v", err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.gone(s)
	if _, err := ask(rootfs.Request{Op: rootfs.OpGet}, nil); !errdefs.IsUnavailable(err) {
		t.Errorf("after the removal: %v", err)
	}
}
