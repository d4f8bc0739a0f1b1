package engine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// childEnv makes the test binary an engine that kills itself at a step: its
// value is "<step> <dir> <shim>".
const childEnv = "PROA_TEST_ENGINE_CHILD"

// killedChild leads one container through its life. At the step with that
// number, counted from 1, the process kills itself as SIGKILL from outside would.
func killedChild(arg string) int {
	parts := strings.Fields(arg)
	at, err := strconv.Atoi(parts[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	n := 0
	onStep = func(name string) {
		if n++; n == at {
			fmt.Println(name)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	code := 3
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "child", F: func(t *testing.T) {
		w := openWorld(t, parts[1], parts[2])
		defer w.close()
		ctx := context.Background()
		id := w.create("touch /v/x; sleep 0.1; exit 6", func(r *CreateRequest) {
			r.Host.NetworkMode = "bridge"
			r.Config.Volumes = map[string]struct{}{"/v": {}}
		})
		w.start(id)
		if code := w.wait(id, "not-running"); code != 6 {
			t.Errorf("exit code %d", code)
		}
		if err := w.Remove(ctx, id, RemoveOptions{Volumes: true}); err != nil {
			t.Error(err)
		}
		// --rm takes another way out.
		id = w.create("true", func(r *CreateRequest) { r.Host.AutoRemove = true })
		w.start(id)
		w.wait(id, "removed")
		// A step has no record at all.
		s := w.shell("true")
		s.Network = isolation.NetworkBridge
		if out, exit, _ := w.runStep(s); exit.Code != 0 {
			t.Errorf("%+v %s", exit, out)
		}
	}}}, nil, nil)
	return code
}

// An engine that is killed at any step of create, start, exit and remove
// leaves nothing that the next engine and a removal do not take away.
func TestKilledAtEveryStep(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: an engine needs root")
	}
	bin, err := shimBinary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "proa-engine")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.RemoveTree(dir)
	w := openWorld(t, dir, bin)
	w.load("box")
	w.close()
	before := inventory(t, dir)
	for n := 1; ; n++ {
		if n > 60 {
			t.Fatal("the child does not come to an end")
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", childEnv, n, dir, bin))
		out, err := cmd.Output()
		if err == nil {
			if n < 15 {
				t.Errorf("only %d steps were met", n-1)
			}
			break
		}
		at := strings.TrimSpace(string(out))
		if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the child was to be killed at step %d, and: %v\n%s", n, err, out)
		}
		w := openWorld(t, dir, bin)
		for _, b := range w.boxes() {
			c := b.snap.Load()
			if c.State == Exited && !c.StartedAt.IsZero() && c.ExitCode != 6 && c.ExitCode != 0 {
				t.Errorf("killed at %q: exited with %d (%s)", at, c.ExitCode, c.Error)
			}
			if err := w.Remove(context.Background(), b.id, RemoveOptions{Force: true, Volumes: true}); err != nil {
				t.Errorf("killed at %q: %v", at, err)
			}
		}
		if held, err := w.images.Leases(context.Background()); err != nil || len(held) != 0 {
			t.Errorf("killed at %q: leases %v, %v", at, held, err)
		}
		w.close()
		var left []string
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if left = difference(before, inventory(t, dir)); len(left) == 0 {
				break
			}
		}
		if len(left) > 0 {
			t.Errorf("killed at %q, left behind:\n%s\nthe engine said:\n%s", at, strings.Join(left, "\n"), w.log)
		}
	}
}

// reopen gives the containers to a new engine.
func (w *world) reopen(edit ...func(*Config)) {
	w.t.Helper()
	bin, err := shimBinary()
	if err != nil {
		w.t.Fatal(err)
	}
	w.close()
	t := w.t
	*w = *openWorld(t, w.dir, bin, edit...)
}

func TestNewEngineAdopts(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	signal := filepath.Join(w.dir, "go")
	if err := os.Mkdir(signal, 0o755); err != nil {
		t.Fatal(err)
	}
	long := w.create("echo before; until cat /go/on; do sleep 0.02; done; echo after; exit 11", func(r *CreateRequest) { r.Host.Binds = []string{signal + ":/go"} })
	brief := w.create("sleep 0.2; exit 12")
	gone := w.create("sleep 0.2; exit 13", func(r *CreateRequest) { r.Host.AutoRemove = true })
	paused := w.create("sleep 100")
	for _, id := range []string{long, brief, gone, paused} {
		w.start(id)
	}
	if err := w.Pause(ctx, paused); err != nil {
		t.Fatal(err)
	}
	pid := w.get(long).Pid
	w.Engine.stop() // from here on this engine sees nothing
	time.Sleep(500 * time.Millisecond)
	w.reopen()
	if c := w.get(long); c.State != Running || c.Pid != pid {
		t.Errorf("the one that runs on: %s, %d instead of %d", c.State, c.Pid, pid)
	}
	if c := w.get(paused); c.State != Paused {
		t.Errorf("the paused one: %s", c.State)
	}
	w.wait(brief, "not-running")
	if c := w.get(brief); c.State != Exited || c.ExitCode != 12 {
		t.Errorf("the one that ended in between: %s, %d", c.State, c.ExitCode)
	}
	if u, err := w.Usage(ctx, brief); err != nil || u.CPUNanos == 0 || u.Ended.Sub(u.Started) < 200*time.Millisecond {
		t.Errorf("its bill: %+v, %v", u, err)
	}
	w.eventually("--rm is kept", func() bool { _, err := w.Get(ctx, gone); return err != nil })
	if err := os.WriteFile(filepath.Join(signal, "on"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if code := w.wait(long, "not-running"); code != 11 {
		t.Errorf("exit code %d", code)
	}
	// Its two streams are two pipes: cat's complaint can come first.
	if out := w.logs(long); !strings.Contains("\n"+out, "\nbefore\n") || !strings.HasSuffix(out, "after\n") {
		t.Errorf("log: %q", out)
	}
	if err := w.Unpause(ctx, paused); err != nil {
		t.Error(err)
	}
}

func TestShimKilledWhileNoEngineRuns(t *testing.T) {
	w := newWorld(t)
	id := w.create("sleep 100")
	w.start(id)
	b, err := w.find(id)
	if err != nil {
		t.Fatal(err)
	}
	sh, err := b.shim()
	if err != nil {
		t.Fatal(err)
	}
	pid, shimPid := w.get(id).Pid, sh.Pid()
	w.Engine.stop()
	if err := syscall.Kill(shimPid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.reopen()
	if c := w.get(id); c.State != Exited || c.ExitCode != 137 || !strings.Contains(c.Error, "shim") {
		t.Errorf("%s, %d, %q", c.State, c.ExitCode, c.Error)
	}
	w.eventually("its process is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	w.start(id) // and it can live again
}

func TestShimKilledUnderTheEngine(t *testing.T) {
	w := newWorld(t)
	id := w.create("sleep 100")
	w.start(id)
	b, _ := w.find(id)
	sh, err := b.shim()
	if err != nil {
		t.Fatal(err)
	}
	pid := w.get(id).Pid
	sh.Kill()
	if code := w.wait(id, "not-running"); code != 137 {
		t.Errorf("exit code %d", code)
	}
	w.eventually("its process is gone", func() bool { return syscall.Kill(pid, 0) != nil })
}

// A new boot id means that the host went down: what ran is exited, and restart
// policies decide.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	ids := map[string]string{}
	for _, c := range []struct {
		name, policy string
		stop         bool
	}{{"none", "no", false}, {"always", "always", false}, {"always-stopped", "always", true}, {"unless", "unless-stopped", false}, {"unless-stopped", "unless-stopped", true}, {"failure", "on-failure", false}} {
		id := w.create("sleep 100", func(r *CreateRequest) {
			r.Name, r.Host.RestartPolicy = c.name, container.RestartPolicy{Name: container.RestartPolicyMode(c.policy)}
		})
		ids[c.name] = id
		w.start(id)
		if c.stop {
			if err := w.Kill(ctx, id, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	never := w.create("sleep 100", func(r *CreateRequest) { r.Name, r.Host.RestartPolicy.Name = "never-started", "always" })
	removed := w.create("sleep 100", func(r *CreateRequest) { r.Host.AutoRemove = true })
	w.start(removed)
	w.reopen(func(c *Config) { c.BootID = "another" })
	for name, runs := range map[string]bool{"none": false, "always": true, "always-stopped": true, "unless": true, "unless-stopped": false, "failure": true} {
		if runs {
			w.eventually(name+" runs again", func() bool { return w.get(ids[name]).State == Running })
		} else if c := w.get(ids[name]); c.State != Exited {
			t.Errorf("%s: %s", name, c.State)
		}
	}
	if c := w.get(ids["none"]); c.ExitCode != 255 || c.Error == "" {
		t.Errorf("exit code %d, %q", c.ExitCode, c.Error)
	}
	if c := w.get(never); c.State != Created {
		t.Errorf("one that was never started: %s", c.State)
	}
	if _, err := w.Get(ctx, removed); err == nil {
		t.Error("a container with --rm outlived the host")
	}
}
