package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// bill is what the instance has taken of the host. It is read on demand while
// the instance runs, and once between the end of the main process and the
// removal, when all that ran is counted and nothing is lost yet.
type bill struct {
	mu     sync.Mutex // also keeps a reading and the removal apart
	start  time.Time
	closed bool
	last   *isolation.Usage // read before the removal
}

// begin says that the main process was executed at t.
func (b *bill) begin(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.start = t
}

// read gives what was taken so far.
func (b *bill) read(ctx context.Context, inst isolation.Instance) (*isolation.Usage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reading(ctx, inst)
}

// total is the reading after the end; nil if the main process never ran.
func (b *bill) total(ctx context.Context, inst isolation.Instance, end time.Time) (*isolation.Usage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.start.IsZero() {
		return nil, nil
	}
	u, err := b.reading(ctx, inst)
	if u == nil {
		return nil, err
	}
	if u.Ended = end; end.Before(u.Started) {
		u.Started = end // it ended before its start was reported
	}
	b.last = u
	return u, err
}

// close is called before the instance is removed: an instance that is killed by
// its removal has its last reading here.
func (b *bill) close(ctx context.Context, inst isolation.Instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && b.last == nil && !b.start.IsZero() {
		b.last, _ = b.reading(ctx, inst)
	}
	b.closed = true
}

func (b *bill) reading(ctx context.Context, inst isolation.Instance) (*isolation.Usage, error) {
	if b.closed {
		if b.last == nil {
			return nil, errors.New("cannot read what the instance has taken: it is removed")
		}
		return b.last, nil
	}
	u, err := inst.Usage(ctx)
	if err != nil {
		return nil, err
	}
	u.Started = b.start
	// The processes of the instance are children of this one, whose figures
	// hold those of all that it has waited for.
	own, err1 := sys.StoredBytes(0)
	u.StoredBytes += own
	cpu, err2 := sys.CPUTime()
	u.ShimCPUNanos = uint64(cpu)
	if u.ShimMemoryPeak, err = sys.MemoryPeak(0); err != nil || err1 != nil || err2 != nil {
		return u, fmt.Errorf("cannot read what the shim has taken: %w", errors.Join(err, err1, err2))
	}
	return u, nil
}
