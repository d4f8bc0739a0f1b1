package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A shim that stands still (kill -STOP) holds up nobody: lists answer, and
// stop, kill and rm -f end the container.
func TestStuckShim(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	short := time.Second
	var done sync.WaitGroup
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
		// Each thread stops on its own, a moment after the signal was sent.
		w.eventually(name+": its shim is stopped", func() bool { return stopped(t, sh.Pid()) })
		done.Go(func() {
			if _, err := w.List(ctx, ListOptions{All: true}); err != nil {
				t.Errorf("list: %v", err)
			}
			if err := w.Kill(ctx, id, "USR1"); err == nil {
				t.Errorf("%s: a signal was passed on by a stopped shim", name)
			}
			if err := end(id); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		defer func() {
			w.eventually(name+": its process is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
			_ = syscall.Kill(sh.Pid(), syscall.SIGCONT)
		}()
	}
	done.Wait()
}

// stopped reports whether every thread of a process is stopped (proc(5): the
// state is the field behind the name in parentheses).
func stopped(t *testing.T, pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		t.Fatalf("the threads of process %d: %v", pid, err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		if _, after, _ := strings.Cut(string(b), ") "); !strings.HasPrefix(after, "T") {
			return false
		}
	}
	return true
}
