package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"proa/internal/isolation"
	"proa/internal/shim"
)

// box holds one container: its record, and what there is of it while it runs.
//
// op is held by the one operation that takes the container from state to state
// (start, the end of a run, remove, rename, pause, update); it is a channel and
// not a mutex because such an operation does I/O and a caller may give up
// waiting. Signals, streams, statistics and all readers go past it. mu guards
// the memory below it, is never held across I/O, and each change under it ends
// with a new snapshot.
type box struct {
	id   string
	op   chan struct{}
	snap atomic.Pointer[Container]

	mu   sync.Mutex
	rec  record
	live live
	gone bool // removed: nothing may be saved any more
}

// live is what is known of a container beyond its record.
type live struct {
	shim    *shim.Shim // nil: no instance
	run     *run       // nil: no run
	points  []container.MountPoint
	logPath string

	endpoint                map[string]*network.EndpointSettings
	ports                   network.PortMap
	resolv, hosts, hostname string

	execs     map[string]*execution
	execCount int
	endCheck  func() // ends the health check under way; nil without one
	waiters   []*waiter
	told      []told        // answers that publish delivers
	pending   []*Attachment // attached before the start
	service   *service      // a guest that serves the files of a VM that does not run
	backoff   backoff
	unplan    func() bool // stops the planned restart
	planned   int         // number of the plan that is valid
	stopping  bool        // a restart by hand is under way: the policy keeps out
}

// run is one life of the instance, from start to exit.
type run struct {
	done chan struct{} // closed when its end is in the books
	exit isolation.Exit
}

func newBox(r record) *box {
	b := &box{id: r.ID, op: make(chan struct{}, 1), rec: r}
	b.live.execs = map[string]*execution{}
	b.snap.Store(b.rec.snapshot(&b.live))
	return b
}

// lock takes op or gives up with ctx.
func (b *box) lock(ctx context.Context) error {
	select {
	case b.op <- struct{}{}:
		return nil
	default:
	}
	select {
	case b.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot wait for what container %s is busy with: %w", short(b.id), ctx.Err())
	}
}

func (b *box) unlock() { <-b.op }

// change edits the record and what is known of it, and publishes the result.
func (b *box) change(edit func(r *record, l *live)) *Container {
	b.mu.Lock()
	defer b.mu.Unlock()
	edit(&b.rec, &b.live)
	return b.publish()
}

// publish shows the present state to readers, and only then to who waits for
// it: a waiter that looks must see what it was told of. The caller holds mu.
func (b *box) publish() *Container {
	c := b.rec.snapshot(&b.live)
	b.snap.Store(c)
	for _, t := range b.live.told {
		t.w.ch <- t.r // has room for the one value that it gets
		close(t.w.ch)
	}
	b.live.told = nil
	return c
}

// read looks at the record and what is known of it.
func (b *box) read(look func(r *record, l *live)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	look(&b.rec, &b.live)
}

// step moves to another state if the table allows it.
func (b *box) step(to State, edit func(r *record, l *live)) (*Container, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.rec.State.canBecome(b.id, to); err != nil {
		return nil, err
	}
	b.rec.State = to
	if edit != nil {
		edit(&b.rec, &b.live)
	}
	return b.publish(), nil
}

// shim is the instance's shim, or an error if it does not run.
func (b *box) shim() (*shim.Shim, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live.shim == nil || !b.rec.State.alive() {
		return nil, notRunning(b.snap.Load())
	}
	return b.live.shim, nil
}

// letGo stops all that waits for the container in this process.
func (b *box) letGo() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live.unplan != nil {
		b.live.unplan()
		b.live.unplan = nil
	}
	b.live.planned++
	if b.live.shim != nil {
		b.live.shim.Close()
	}
}

// waiter is one registered Wait.
type waiter struct {
	removed bool // waits for the removal, not for an exit
	ch      chan WaitResult
}

// Wait registers at once and returns a channel that gets exactly one value
// when the condition is met ("" means not-running); it is closed without one
// when ctx ends.
func (e *Engine) Wait(ctx context.Context, ref string, cond container.WaitCondition) (<-chan WaitResult, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	w := &waiter{ch: make(chan WaitResult, 1), removed: cond == container.WaitConditionRemoved}
	switch cond {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, invalid("invalid condition: %q", cond)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.rec.State
	if b.gone || !w.removed && cond != container.WaitConditionNextExit && !s.alive() && s != Restarting {
		w.ch <- WaitResult{ExitCode: b.rec.ExitCode}
		close(w.ch)
		return w.ch, nil
	}
	b.live.waiters = append(b.live.waiters, w)
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for i, o := range b.live.waiters {
			if o == w {
				b.live.waiters = append(b.live.waiters[:i:i], b.live.waiters[i+1:]...)
				close(w.ch)
				return
			}
		}
	})
	return w.ch, nil
}

// told is the answer to one waiter.
type told struct {
	w *waiter
	r WaitResult
}

// tell answers waiters, with the next publish: those for an exit, or all when
// it is removed. It is called from change and step.
func (l *live) tell(r WaitResult, removed bool) {
	kept := l.waiters[:0]
	for _, w := range l.waiters {
		if w.removed && !removed {
			kept = append(kept, w)
			continue
		}
		l.told = append(l.told, told{w, r})
	}
	clear(l.waiters[len(kept):])
	l.waiters = kept
}

// up is how long the run lasted.
func (r *record) up() time.Duration {
	if r.StartedAt.IsZero() || r.FinishedAt.Before(r.StartedAt) {
		return 0
	}
	return r.FinishedAt.Sub(r.StartedAt)
}
