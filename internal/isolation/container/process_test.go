package container_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// sleeper is a running container that does nothing.
func sleeper(t testing.TB, root string, change func(*isolation.Spec)) isolation.Instance {
	t.Helper()
	s := newSpec(t, root, "sleep", "1000")
	if change != nil {
		change(s)
	}
	i := create(t, s)
	_, err := i.Start(context20(t), isolation.Stdio{})
	must(t, err)
	return i
}

func command(args ...string) *isolation.Process {
	return &isolation.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: defaults}
}

// A megabyte goes in and comes out, and the end of the input arrives.
func TestStreams(t *testing.T) {
	root := busybox(t)
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	check := func(start func(io isolation.Stdio) (isolation.Running, error)) {
		t.Helper()
		var out, errs output
		r, err := start(isolation.Stdio{Stdin: bytes.NewReader(data), Stdout: &out, Stderr: &errs})
		must(t, err)
		exit, err := r.Wait(context20(t))
		if err != nil || exit.Code != 6 || out.String() != string(data) || errs.String() != "done\n" {
			t.Errorf("%+v %v: %d bytes, %q", exit, err, len(out.String()), errs.String())
		}
	}
	s := newSpec(t, root, "sh", "-c", "cat; echo done >&2; exit 6")
	s.Process.Stdin = true
	i := create(t, s)
	check(func(io isolation.Stdio) (isolation.Running, error) { return i.Start(context20(t), io) })
	p := command("sh", "-c", "cat; echo done >&2; exit 6")
	p.Stdin = true
	j := sleeper(t, root, nil)
	check(func(io isolation.Stdio) (isolation.Running, error) { return j.Exec(context20(t), p, io) })
}

// failing is a client that went away.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWriterThatFails(t *testing.T) {
	i := create(t, newSpec(t, busybox(t), "sh", "-c", "head -c 1000000 /dev/zero; exit 4"))
	r, err := i.Start(context20(t), isolation.Stdio{Stdout: failing{}})
	must(t, err)
	if exit, err := r.Wait(context20(t)); err != nil || exit.Code != 4 {
		t.Errorf("%+v %v", exit, err)
	}
}

func TestExec(t *testing.T) {
	root := busybox(t)
	i := sleeper(t, root, nil)
	script := `id -u; for n in user mnt pid net ipc uts cgroup; do test "$(readlink /proc/self/ns/$n)" = "$(readlink /proc/1/ns/$n)" || echo other $n; done
		grep CapEff /proc/self/status; cat /proc/self/cgroup | cut -d: -f3 | sort -u; echo $HOME; echo > /dev/stdout`
	if out, exit := execIn(t, i, command("sh", "-c", script)); exit.Code != 0 || out != "0\nCapEff:\t00000000800405fb\n/\n/root\n\n" {
		t.Errorf("%q %+v", out, exit)
	}
	// Three descriptors and no more, in the main process and in this one, whose
	// fourth is the directory that it reads.
	if out, _ := execIn(t, i, command("ls", "/proc/1/fd", "/proc/self/fd")); out != "/proc/1/fd:\n0\n1\n2\n\n/proc/self/fd:\n0\n1\n2\n3\n" {
		t.Errorf("%q", out)
	}
	p := command("id", "-un")
	p.User = "app"
	if out, _ := execIn(t, i, p); out != "app\n" {
		t.Errorf("%q", out)
	}
	for want, p := range map[isolation.StartKind]*isolation.Process{
		isolation.StartNotFound: command("nothing"), isolation.StartNotAllowed: command("/etc/passwd"),
		isolation.StartFailed: {Args: []string{"id"}, User: "nobody-here"},
	} {
		if _, err := i.Exec(context20(t), p, isolation.Stdio{}); startKind(err) != want {
			t.Errorf("%q: %v", p.Args, err)
		}
	}
	cwd := command("true")
	cwd.Cwd = "/not/there"
	if _, err := i.Exec(context20(t), cwd, isolation.Stdio{}); startKind(err) != isolation.StartNotFound {
		t.Error(err)
	}
	list, err := i.Processes(context20(t))
	if err != nil || len(list) != 1 {
		t.Errorf("%+v %v", list, err)
	}
}

// A grandchild that holds the pipe delays the end by a second and no more.
func TestExecLeavesAChild(t *testing.T) {
	i := sleeper(t, busybox(t), nil)
	begin := time.Now()
	out, exit := execIn(t, i, command("sh", "-c", "echo here; sleep 100 & exit 3"))
	if took := time.Since(begin); out != "here\n" || exit.Code != 3 || took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("%q %+v after %v", out, exit, took)
	}
}

func TestExecDiesWithContainer(t *testing.T) {
	root := busybox(t)
	s := newSpec(t, root, "sleep", "1000")
	i := create(t, s)
	main, err := i.Start(context20(t), isolation.Stdio{})
	must(t, err)
	r, err := i.Exec(context20(t), command("sleep", "1000"), isolation.Stdio{})
	must(t, err)
	must(t, main.Signal(context20(t), int(syscall.SIGKILL)))
	if exit, err := r.Wait(context20(t)); err != nil || exit.Code != 137 {
		t.Errorf("%+v %v", exit, err)
	}
	_, err = main.Wait(context20(t))
	must(t, err)
	if _, err := i.Exec(context20(t), command("true"), isolation.Stdio{}); err == nil {
		t.Error("an exec into a dead container succeeded")
	}
	must(t, i.Delete(context20(t)))
	must(t, i.Delete(context20(t)))
	if _, err := i.Exec(context20(t), command("true"), isolation.Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func TestTerminal(t *testing.T) {
	root := busybox(t)
	script := `tty; stty size; test -c /dev/console && echo console; stat -c %u $(tty); test -t 0 && test -t 1 && test -t 2 && echo 3; trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done`
	check := func(start func(*isolation.Process, isolation.Stdio) (isolation.Running, error), want string) {
		t.Helper()
		p := command("sh", "-c", script)
		p.Terminal, p.Stdin, p.Rows, p.Cols, p.User = true, true, 33, 77, "app"
		var out output
		in, _, err := os.Pipe()
		must(t, err)
		defer in.Close()
		r, err := start(p, isolation.Stdio{Stdin: in, Stdout: &out})
		must(t, err)
		out.await(t, "ready")
		must(t, r.Resize(context20(t), 44, 99))
		exit, err := r.Wait(context20(t))
		if got := strings.ReplaceAll(out.String(), "\r", ""); err != nil || exit.Code != 0 || got != want {
			t.Errorf("%+v %v %q, want %q", exit, err, got, want)
		}
	}
	check(func(p *isolation.Process, io isolation.Stdio) (isolation.Running, error) {
		s := newSpec(t, root)
		s.Process = *p
		return create(t, s).Start(context20(t), io)
	}, "/dev/pts/0\n33 77\nconsole\n1000\n3\nready\n44 99\n")
	i := sleeper(t, root, nil)
	check(func(p *isolation.Process, io isolation.Stdio) (isolation.Running, error) {
		return i.Exec(context20(t), p, io)
	},
		"/dev/pts/0\n33 77\n1000\n3\nready\n44 99\n")
	r, err := i.Exec(context20(t), command("true"), isolation.Stdio{})
	must(t, err)
	if err := r.Resize(context20(t), 1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	_, err = r.Wait(context20(t))
	must(t, err)
}

// What is typed arrives, and ^C is a signal to the foreground.
func TestTerminalInput(t *testing.T) {
	s := newSpec(t, busybox(t), "sh", "-c", "trap 'echo interrupted; exit 9' INT; read line; echo got $line; while :; do sleep 0.05; done")
	s.Process.Terminal, s.Process.Stdin = true, true
	i := create(t, s)
	var out output
	r, w := io.Pipe()
	defer w.Close()
	main, err := i.Start(context20(t), isolation.Stdio{Stdin: r, Stdout: &out})
	must(t, err)
	_, _ = w.Write([]byte("hello\n"))
	out.await(t, "got hello")
	_, _ = w.Write([]byte{3})
	if exit, err := main.Wait(context20(t)); err != nil || exit.Code != 9 || !strings.Contains(out.String(), "interrupted") {
		t.Errorf("%+v %v %q", exit, err, out.String())
	}
}

func TestWaitIsCancelled(t *testing.T) {
	i := sleeper(t, busybox(t), nil)
	r, err := i.Exec(context20(t), command("sleep", "1000"), isolation.Stdio{})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Wait(ctx); err != context.DeadlineExceeded {
		t.Error(err)
	}
}

// Many at once do not disturb each other.
func TestAtOnce(t *testing.T) {
	root := busybox(t)
	i := sleeper(t, root, nil)
	errs := make(chan error)
	const n = 16
	for k := range n {
		go func() {
			var out output
			want := fmt.Sprintf("number %d\n", k)
			r, err := i.Exec(context.Background(), command("echo", "number", fmt.Sprint(k)), isolation.Stdio{Stdout: &out})
			if err == nil {
				if _, err = r.Wait(context.Background()); err == nil && out.String() != want {
					err = fmt.Errorf("%q, want %q", out.String(), want)
				}
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
