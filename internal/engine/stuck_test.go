package engine

import (
	"context"
	"syscall"
	"testing"
	"time"
)

// A shim that stands still (kill -STOP) holds up nobody: lists answer at once,
// and stop, kill and rm -f end the container in bounded time.
func TestStuckShim(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	short := time.Second
	for name, end := range map[string]func(id string) error{
		"stop": func(id string) error { return w.Stop(ctx, id, StopOptions{Timeout: &short}) },
		"kill": func(id string) error { return w.Kill(ctx, id, "") },
		"rm":   func(id string) error { return w.Remove(ctx, id, RemoveOptions{Force: true}) },
	} {
		id := w.create("sleep 1000")
		w.start(id)
		b, err := w.find(id)
		if err != nil {
			t.Fatal(err)
		}
		sh, err := b.shim()
		if err != nil {
			t.Fatal(err)
		}
		pid := w.get(id).Pid
		if err := syscall.Kill(sh.Pid(), syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := w.List(ctx, ListOptions{All: true}); err != nil || time.Since(begin) > time.Second {
			t.Errorf("list took %v: %v", time.Since(begin), err)
		}
		if err := w.Kill(ctx, id, "USR1"); err == nil {
			t.Error("a signal was passed on by a stopped shim")
		}
		if err := end(id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begin); took > 4*answerLimit {
			t.Errorf("%s took %v", name, took)
		}
		w.eventually(name+": its process is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
		_ = syscall.Kill(sh.Pid(), syscall.SIGCONT)
	}
}
