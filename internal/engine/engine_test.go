package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"proa/internal/filters"
	"proa/internal/isolation"
)

func TestLife(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	since := time.Now()
	id := w.create("echo out; echo err >&2; exit 42", func(r *CreateRequest) { r.Name = "first" })
	if c := w.get("first"); c.State != Created || c.ID != id || !c.UserNS || c.Path != "sh" {
		t.Errorf("after create: %+v", c)
	}
	w.start(id)
	if code := w.wait(id, "not-running"); code != 42 {
		t.Errorf("exit code %d", code)
	}
	c := w.get(id[:10])
	if c.State != Exited || c.ExitCode != 42 || c.Pid != 0 || c.FinishedAt.Before(c.StartedAt) {
		t.Errorf("after the exit: %+v", c)
	}
	if got := w.logs(id); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("log: %q", got)
	}
	w.start(id) // and once more
	w.wait(id, "not-running")
	if err := w.Rename(ctx, "first", "second"); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(ctx, "second", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get(ctx, id); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "No such container: ") {
		t.Errorf("after the removal: %v", err)
	}
	ch, err := w.Events(ctx, since, time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for m := range ch {
		got = append(got, string(m.Action))
		if m.Action == "die" && m.Attributes["exitCode"] != "42" {
			t.Errorf("die says %v", m.Attributes)
		}
	}
	if want := "create connect start die disconnect connect start die disconnect rename destroy"; strings.Join(got, " ") != want {
		t.Errorf("events: %s, want %s", strings.Join(got, " "), want)
	}
}

func TestNamesAreUnique(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			_, err := w.Create(context.Background(), CreateRequest{Name: "same", Config: &container.Config{Image: "box"}})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errdefs.IsConflict(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Errorf("%d containers have one name", made)
	}
}

func TestStartFailuresLeaveNothing(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	before := inventory(t, w.dir)
	for _, c := range []struct {
		cmd  string
		code int
		kind isolation.StartKind
		text string
	}{
		{"nosuch", 127, isolation.StartNotFound, "executable file not found"},
		{"/nosuch/x", 127, isolation.StartNotFound, "no such file or directory"},
		{"/etc", 126, isolation.StartNotAllowed, "permission denied"},
		{"/etc/passwd", 126, isolation.StartNotAllowed, "permission denied"},
	} {
		id := w.create("", func(r *CreateRequest) {
			r.Config.Cmd = []string{c.cmd}
			r.Host.NetworkMode = "bridge"
		})
		err := w.Start(ctx, id)
		var s *isolation.StartError
		if !errors.As(err, &s) || s.Kind != c.kind || !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.cmd, err)
		}
		if got := w.get(id); got.State != Created || got.ExitCode != c.code || got.Error == "" {
			t.Errorf("%s: %s with %d (%s)", c.cmd, got.State, got.ExitCode, got.Error)
		}
		if err := w.Remove(ctx, id, RemoveOptions{}); err != nil {
			t.Error(err)
		}
	}
	// With --rm the failed container goes by itself, and who waits is told.
	id := w.create("", func(r *CreateRequest) { r.Config.Cmd, r.Host.AutoRemove = []string{"nosuch"}, true })
	ch, err := w.Wait(ctx, id, "removed")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(ctx, id); err == nil {
		t.Error("a missing program was started")
	}
	if r := <-ch; r.ExitCode != 127 {
		t.Errorf("wait says %+v", r)
	}
	if left := difference(before, inventory(t, w.dir)); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func TestStopKillAndPause(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("trap 'echo asked; exit 7' USR1; echo ready; while :; do sleep 0.05; done", func(r *CreateRequest) { r.Config.StopSignal = "SIGUSR1" })
	for err, want := range map[error]func(error) bool{
		w.Stop(ctx, id, StopOptions{}): errdefs.IsNotModified, w.Kill(ctx, id, ""): errdefs.IsConflict, w.Pause(ctx, id): errdefs.IsConflict,
	} {
		if !want(err) {
			t.Errorf("on a container that does not run: %v", err)
		}
	}
	w.start(id)
	if err := w.Start(ctx, id); !errdefs.IsNotModified(err) {
		t.Errorf("a second start: %v", err)
	}
	if err := w.Remove(ctx, id, RemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("remove of a running one: %v", err)
	}
	w.eventually("the handler is set", func() bool { return strings.Contains(w.logs(id), "ready") })
	if err := w.Pause(ctx, id); err != nil {
		t.Fatal(err)
	}
	if c := w.get(id); c.State != Paused {
		t.Errorf("paused: %s", c.State)
	}
	if _, err := w.ExecCreate(ctx, id, container.ExecCreateRequest{Cmd: []string{"true"}}); !errdefs.IsConflict(err) {
		t.Errorf("exec in a paused one: %v", err)
	}
	time.Sleep(50 * time.Millisecond)
	if err := w.Stop(ctx, id, StopOptions{}); err != nil { // a paused one can be stopped
		t.Fatal(err)
	}
	if c := w.get(id); c.State != Exited || c.ExitCode != 7 || !c.StoppedByUser {
		t.Errorf("stopped: %+v", c)
	}
	w.start(id)
	short := 50 * time.Millisecond
	deaf := w.create("trap '' TERM; while :; do sleep 0.05; done")
	w.start(deaf)
	time.Sleep(100 * time.Millisecond)
	if err := w.Stop(ctx, deaf, StopOptions{Timeout: &short}); err != nil {
		t.Fatal(err)
	}
	if c := w.get(deaf); c.ExitCode != 137 {
		t.Errorf("a deaf one ends with %d", c.ExitCode)
	}
	if err := w.Restart(ctx, id, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Kill(ctx, id, "KILL"); err != nil {
		t.Fatal(err)
	}
	if c := w.get(id); c.State != Exited || c.ExitCode != 137 {
		t.Errorf("killed: %s, %d", c.State, c.ExitCode)
	}
}

func TestAttachBeforeStart(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("cat; echo end >&2", func(r *CreateRequest) { r.Config.OpenStdin, r.Config.StdinOnce = true, true })
	at, err := w.Attach(ctx, id, AttachOptions{Stdin: true, Stdout: true, Stderr: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	done := make(chan error, 1)
	go func() { done <- at.Run(ctx, strings.NewReader(strings.Repeat("0123456789\n", 20000)), &out, &errOut) }()
	w.start(id)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the attachment does not end")
	}
	if out.Len() != 220000 || errOut.String() != "end\n" {
		t.Errorf("%d bytes, %q", out.Len(), errOut.String())
	}
	if code := w.wait(id, "not-running"); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("sleep 100", func(r *CreateRequest) { r.Config.Env = []string{"A=main"} })
	w.start(id)
	run := func(req container.ExecCreateRequest) (string, *Exec, error) {
		t.Helper()
		req.AttachStdout, req.AttachStderr = true, true
		x, err := w.ExecCreate(ctx, id, req)
		if err != nil {
			t.Fatal(err)
		}
		at, err := w.ExecStart(ctx, x, ExecStartOptions{})
		var out bytes.Buffer
		if err == nil {
			err = at.Run(ctx, nil, &out, &out)
		}
		ex, gerr := w.ExecGet(ctx, x)
		if gerr != nil {
			t.Fatal(gerr)
		}
		return out.String(), ex, err
	}
	out, ex, err := run(container.ExecCreateRequest{Cmd: []string{"sh", "-c", "echo $A $B $PWD; id -u; exit 3"}, Env: []string{"B=exec"}, WorkingDir: "/tmp", User: "app"})
	if err != nil || out != "main exec /tmp\n1000\n" {
		t.Errorf("%q, %v", out, err)
	}
	if ex.ExitCode == nil || *ex.ExitCode != 3 || ex.Running {
		t.Errorf("at the end of the stream: %+v", ex)
	}
	for cmd, code := range map[string]int{"nosuch": 127, "/etc": 126} {
		_, ex, err := run(container.ExecCreateRequest{Cmd: []string{cmd}})
		var s *isolation.StartError
		if !errors.As(err, &s) || ex.ExitCode == nil || *ex.ExitCode != code {
			t.Errorf("%s: %v, %+v", cmd, err, ex)
		}
	}
	x, err := w.ExecCreate(ctx, id, container.ExecCreateRequest{Cmd: []string{"sh", "-c", "exit 9"}})
	if err != nil {
		t.Fatal(err)
	}
	if at, err := w.ExecStart(ctx, x, ExecStartOptions{Detach: true}); err != nil || at != nil {
		t.Fatalf("%v, %v", at, err)
	}
	w.eventually("the detached exec ends", func() bool {
		ex, err := w.ExecGet(ctx, x)
		return err == nil && ex.ExitCode != nil && *ex.ExitCode == 9
	})
	if _, err := w.ExecStart(ctx, x, ExecStartOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("a second start: %v", err)
	}
	if _, err := w.ExecGet(ctx, "nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown exec: %v", err)
	}
}

func TestVolumesAndBinds(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	host := filepath.Join(w.dir, "host")
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	id := w.create("cat /data/seed; touch /data/new /b/mine /made/x; ls /b; cat /proc/self/uid_map", func(r *CreateRequest) {
		r.Config.Volumes = map[string]struct{}{"/data": {}}
		r.Host.Binds = []string{host + ":/b", filepath.Join(w.dir, "absent") + ":/made", "kept:/kept"}
	})
	w.start(id)
	if code := w.wait(id, "not-running"); code != 0 {
		t.Fatalf("exit code %d: %s", code, w.logs(id))
	}
	out := w.logs(id)
	if !strings.HasPrefix(out, "from the image\nmine\n") || strings.Contains(out, "4294967295") {
		t.Errorf("inside: %q", out)
	}
	fi, err := os.Stat(filepath.Join(host, "mine"))
	if err != nil || ownerOf(fi) != 0 {
		t.Errorf("the file outside: %v, owner %d", err, ownerOf(fi))
	}
	var anon string
	for _, m := range w.get(id).Mounts {
		if m.Type == mount.TypeVolume && m.Name != "kept" {
			anon = m.Name
		}
	}
	if v, err := w.vols.Get(ctx, anon); err != nil || !v.Anonymous {
		t.Fatalf("the image's volume: %+v, %v", v, err)
	}
	if err := w.vols.Remove(ctx, "kept", false); !errdefs.IsConflict(err) {
		t.Errorf("a used volume can be removed: %v", err)
	}
	if err := w.Remove(ctx, id, RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.vols.Get(ctx, anon); !errdefs.IsNotFound(err) {
		t.Errorf("the anonymous volume is still there: %v", err)
	}
	if _, err := w.vols.Get(ctx, "kept"); err != nil {
		t.Errorf("the named volume went as well: %v", err)
	}
	if _, err := w.Create(ctx, CreateRequest{Config: &container.Config{Image: "box"}, Host: &container.HostConfig{
		Mounts: []mount.Mount{{Type: mount.TypeBind, Source: filepath.Join(w.dir, "nowhere"), Target: "/x"}},
	}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "bind source path does not exist") {
		t.Errorf("--mount of nothing: %v", err)
	}
}

// A mount whose file system cannot be idmapped, and what shares the host's
// namespaces, falls back to the host's user namespace with a warning; strict
// refuses.
func TestUserNamespaceFallback(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	for name, h := range map[string]*container.HostConfig{
		"mount of /proc": {NetworkMode: "none", Binds: []string{"/proc:/hostproc:ro"}},
		"--network host": {NetworkMode: "host"},
		"--pid host":     {NetworkMode: "none", PidMode: "host"},
		"--privileged":   {NetworkMode: "none", Privileged: true},
	} {
		res, err := w.Create(ctx, CreateRequest{Config: &container.Config{Image: "box", Cmd: []string{"cat", "/proc/self/uid_map"}}, Host: h})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], name[strings.LastIndex(name, " ")+1:]) {
			t.Errorf("%s: warnings %q", name, res.Warnings)
		}
		if c := w.get(res.ID); c.UserNS || len(c.Warnings) != 1 {
			t.Errorf("%s: %+v", name, c)
		}
		if err := w.Start(ctx, res.ID); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.wait(res.ID, "not-running")
		if out := w.logs(res.ID); !strings.Contains(out, "4294967295") {
			t.Errorf("%s: uid map %q", name, out)
		}
	}
	w.Engine.cfg.UserNS = "strict"
	_, err := w.Create(ctx, CreateRequest{Config: &container.Config{Image: "box"}, Host: &container.HostConfig{Privileged: true}})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "strict") {
		t.Errorf("strict: %v", err)
	}
}

func TestRestartPolicyAndBackoff(t *testing.T) {
	var mu sync.Mutex
	var pauses []time.Duration
	w := newWorld(t, func(c *Config) {
		c.After = func(d time.Duration, f func()) func() bool { // the clock runs at once
			mu.Lock()
			pauses = append(pauses, d)
			mu.Unlock()
			return time.AfterFunc(0, f).Stop
		}
	})
	id := w.create("echo run; exit 5", func(r *CreateRequest) {
		r.Host.RestartPolicy = container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}
	})
	w.start(id)
	w.eventually("it gives up", func() bool { c := w.get(id); return c.State == Exited && c.RestartCount == 3 })
	if n := strings.Count(w.logs(id), "run\n"); n != 4 {
		t.Errorf("it ran %d times", n)
	}
	mu.Lock()
	got := slices.Clone(pauses)
	mu.Unlock()
	if want := []time.Duration{firstBackoff, 2 * firstBackoff, 4 * firstBackoff}; !slices.Equal(got, want) {
		t.Errorf("pauses %v, want %v", got, want)
	}
	always := w.create("exit 0", func(r *CreateRequest) { r.Host.RestartPolicy.Name = "always" })
	w.start(always)
	w.eventually("it restarts", func() bool { return w.get(always).RestartCount > 2 })
	w.eventually("it can be stopped", func() bool {
		err := w.Stop(context.Background(), always, StopOptions{})
		return err == nil || errdefs.IsNotModified(err)
	})
	time.Sleep(300 * time.Millisecond)
	if c := w.get(always); c.State != Exited || !c.StoppedByUser {
		t.Errorf("stopped by hand: %s", c.State)
	}
}

// Readers never wait for a container, however busy it is.
func TestReadersDoNotBlock(t *testing.T) {
	w := newWorld(t)
	id := w.create("sleep 100")
	b, err := w.find(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.lock(context.Background()); err != nil { // an operation that hangs
		t.Fatal(err)
	}
	defer b.unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := w.Start(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a start beside it: %v", err)
	}
	if _, err := w.Get(context.Background(), id); err != nil {
		t.Error(err)
	}
	if list, err := w.List(context.Background(), ListOptions{All: true}); err != nil || len(list) != 1 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestListFilters(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	a := w.create("exit 3", func(r *CreateRequest) { r.Name, r.Config.Labels = "alpha", map[string]string{"k": "v", "x": "1"} })
	time.Sleep(2 * time.Millisecond)
	b := w.create("sleep 100", func(r *CreateRequest) {
		r.Name, r.Config.Labels = "beta", map[string]string{"k": "w"}
		r.Host.NetworkMode = "bridge"
		r.Host.Binds = []string{"vol:/v"}
	})
	w.start(a)
	w.start(b)
	w.wait(a, "not-running")
	for _, c := range []struct {
		all     bool
		filters map[string][]string
		want    string
	}{
		{false, nil, "beta"},
		{true, nil, "beta alpha"},
		{true, map[string][]string{"name": {"alp"}}, "alpha"},
		{true, map[string][]string{"name": {"^/beta$"}}, "beta"},
		{true, map[string][]string{"id": {a[:6]}}, "alpha"},
		{true, map[string][]string{"label": {"k"}}, "beta alpha"},
		{true, map[string][]string{"label": {"k=v", "x"}}, "alpha"},
		{true, map[string][]string{"label": {"k=v", "k=w"}}, ""},
		{false, map[string][]string{"status": {"exited"}}, "alpha"},
		{false, map[string][]string{"status": {"exited", "running"}}, "beta alpha"},
		{true, map[string][]string{"exited": {"3"}}, "alpha"},
		{false, map[string][]string{"exited": {"3"}}, ""},
		{false, map[string][]string{"before": {"beta"}}, ""},
		{true, map[string][]string{"name": {"("}}, ""},
		{false, map[string][]string{"exited": {"0"}}, ""},
		{true, map[string][]string{"ancestor": {"box"}}, "beta alpha"},
		{true, map[string][]string{"ancestor": {"other"}}, ""},
		{true, map[string][]string{"network": {"bridge"}}, "beta"},
		{true, map[string][]string{"volume": {"vol"}}, "beta"},
		{true, map[string][]string{"volume": {"/v"}}, "beta"},
		{true, map[string][]string{"before": {"beta"}}, "alpha"},
		{true, map[string][]string{"since": {"alpha"}}, "beta"},
		{true, map[string][]string{"isolation": {"vm"}}, ""},
		{true, map[string][]string{"health": {"none"}, "name": {"beta"}}, "beta"},
	} {
		list, err := w.List(ctx, ListOptions{All: c.all, Filters: filters.Of(c.filters)})
		var names []string
		for _, x := range list {
			names = append(names, x.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%v %v: %q, %v; want %q", c.all, c.filters, got, err, c.want)
		}
	}
	for _, bad := range []map[string][]string{{"bogus": {"x"}}, {"bogus": {}}, {"status": {"flying"}}, {"exited": {"x"}}, {"health": {"x"}}, {"label!": {"x"}}} {
		if _, err := w.List(ctx, ListOptions{Filters: filters.Of(bad)}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if n := w.Count(); n.Total != 2 || n.Running != 1 || n.Stopped != 1 {
		t.Errorf("%+v", n)
	}
}

func TestStatsTopAndUpdate(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("sleep 100 & sleep 100")
	w.start(id)
	s, err := w.Stats(ctx, id)
	if err != nil || s.Pids == 0 || s.SystemCPU == 0 || s.OnlineCPUs == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	w.eventually("two sleeps are seen", func() bool {
		list, err := w.Top(ctx, id)
		return err == nil && len(list) >= 2
	})
	if _, err := w.Update(ctx, id, container.UpdateConfig{Resources: container.Resources{Memory: 64 << 20}}); err != nil {
		t.Fatal(err)
	}
	if s, err := w.Stats(ctx, id); err != nil || s.MemoryLimit != 64<<20 {
		t.Errorf("memory limit %d, %v", s.MemoryLimit, err)
	}
	if _, err := w.Update(ctx, id, container.UpdateConfig{Resources: container.Resources{BlkioWeight: 10}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an update that cannot be: %v", err)
	}
	if err := w.Kill(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	if s, err := w.Stats(ctx, id); err != nil || s.Pids != 0 {
		t.Errorf("of a stopped one: %+v, %v", s, err)
	}
}

// The bill is there while it runs and stays with the record, over a restart of
// the engine, until the next run.
func TestUsage(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	id := w.create("head -c 3000000 /dev/urandom > /file; sync; cat; exit 3", func(r *CreateRequest) { r.Config.OpenStdin = true })
	if _, err := w.Usage(ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of one that never ran: %v", err)
	}
	w.start(id)
	w.eventually("what it writes is seen", func() bool {
		u, err := w.Usage(ctx, id)
		return err == nil && u.Running && u.Ended.IsZero() && u.Processes > 0 && u.StoredBytes > 3e6 && u.Disk > 3e6
	})
	if err := w.Kill(ctx, id, "KILL"); err != nil {
		t.Fatal(err)
	}
	w.wait(id, "not-running")
	u, err := w.Usage(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if u.Running || u.CPUNanos == 0 || u.MemoryPeak < 3e6 || u.StoredBytes < 3e6 || u.StoredBytes > 6e6 || u.Disk < 3e6 || u.Disk > 6e6 ||
		u.Processes != 0 || u.Kernel == "" || u.Emulated || u.ShimCPUNanos == 0 || u.ShimMemoryPeak == 0 || !u.Ended.After(u.Started) {
		t.Errorf("%+v", u)
	}
	w.reopen()
	if again, err := w.Usage(ctx, id); err != nil || again.Usage != u.Usage {
		t.Errorf("after a restart of the engine: %+v, %v; before: %+v", again, err, u)
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	id := w.create("touch /ok; sleep 100", func(r *CreateRequest) {
		r.Config.Healthcheck = &container.HealthConfig{Test: []string{"CMD-SHELL", "echo checking; cat /ok"}, Interval: 50 * time.Millisecond, Retries: 2}
	})
	w.start(id)
	w.eventually("it is healthy", func() bool { h := w.get(id).Health; return h != nil && h.Status == container.Healthy })
	x, err := w.ExecCreate(context.Background(), id, container.ExecCreateRequest{Cmd: []string{"busybox", "rm", "/ok"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ExecStart(context.Background(), x, ExecStartOptions{Detach: true}); err != nil {
		t.Fatal(err)
	}
	w.eventually("it is unhealthy", func() bool { return w.get(id).Health.Status == container.Unhealthy })
	h := w.get(id).Health
	if last := h.Log[len(h.Log)-1]; last.ExitCode != 1 || !strings.Contains(last.Output, "checking\n") {
		t.Errorf("the last check: %+v", last)
	}
}

func TestPrune(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	running := w.create("sleep 100")
	w.start(running)
	kept := w.create("true", func(r *CreateRequest) { r.Config.Labels = map[string]string{"keep": ""} })
	gone := w.create("busybox dd if=/dev/zero of=/big bs=1024 count=2048")
	w.start(gone)
	w.wait(gone, "not-running")
	res, err := w.Prune(ctx, filters.Of(map[string][]string{"label!": {"keep"}}))
	if err != nil || !slices.Equal(res.Deleted, []string{gone}) || res.Reclaimed < 2<<20 {
		t.Errorf("%+v, %v", res, err)
	}
	w.get(kept)
	if _, err := w.Prune(ctx, filters.Of(map[string][]string{"bogus": {"x"}})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bogus filter: %v", err)
	}
	if res, err := w.Prune(ctx, filters.Of(map[string][]string{"until": {"1h"}})); err != nil || len(res.Deleted) != 0 {
		t.Errorf("until: %+v, %v", res, err)
	}
}
