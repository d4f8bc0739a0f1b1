package engine

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// Many exec'd processes at once: each is started, and how each ended can be
// asked for afterwards, whatever came in between.
func TestManyExecsAtOnce(t *testing.T) {
	var mu sync.Mutex
	skew := time.Duration(0)
	w := newWorld(t, func(c *Config) {
		c.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(skew)
		}
	})
	ctx := context.Background()
	id := w.create("sleep 1000")
	w.start(id)
	const many = 3 * keptExecs
	var ids []string
	for range many { // all are created before the first is started
		x, err := w.ExecCreate(ctx, id, container.ExecCreateRequest{Cmd: []string{"sh", "-c", "exit 3"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, x)
	}
	var all sync.WaitGroup
	for _, x := range ids {
		all.Go(func() {
			if _, err := w.ExecStart(ctx, x, ExecStartOptions{Detach: true}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	w.eventually("all have ended with 3", func() bool {
		for _, x := range ids {
			if got, err := w.ExecGet(ctx, x); err != nil || got.ExitCode == nil || *got.ExitCode != 3 {
				return false
			}
		}
		return true
	})
	mu.Lock()
	skew = 2 * keptExecTime
	mu.Unlock()
	if _, err := w.ExecCreate(ctx, id, container.ExecCreateRequest{Cmd: []string{"true"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ExecGet(ctx, ids[0]); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("the first is remembered for ever: %v", err)
	}
}
