package engine

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// Usage is what the latest run of a container has taken of the host.
type Usage struct {
	ID, Name string
	Kind     isolation.Kind
	Running  bool
	isolation.Usage
	// Disk is what the container holds on disk now, in bytes of blocks: its
	// writable layer or its VM's disk, and its log, from all runs so far.
	Disk int64
}

// Usage reads what a container takes while it runs, and gives the last reading
// of its run afterwards. A container that was never started, and one whose shim
// was killed before it could read, is errdefs.ErrFailedPrecondition.
func (e *Engine) Usage(ctx context.Context, ref string) (*Usage, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	u, err := e.usage(ctx, b)
	if err != nil {
		return nil, err
	}
	if u.Disk, err = sys.DiskUsage(ctx, e.dir(b.id)); err != nil {
		return nil, fmt.Errorf("cannot measure the disk of container %s: %w", short(b.id), err)
	}
	return u, nil
}

// usage is Usage without the disk.
func (e *Engine) usage(ctx context.Context, b *box) (*Usage, error) {
	c := b.snap.Load()
	u := &Usage{ID: c.ID, Name: c.Name, Kind: c.Kind}
	var run *run
	b.read(func(_ *record, l *live) { run = l.run })
	if sh, err := b.shim(); err == nil {
		live, err := sh.Usage(ctx)
		if err == nil {
			u.Usage, u.Running = *live, true
			return u, nil
		}
		if !gone(err) || run == nil {
			return nil, fmt.Errorf("cannot read the use of container %s: %w", short(b.id), err)
		}
		// It is just ending; the reading comes with its end.
		select {
		case <-run.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var last *isolation.Usage
	b.read(func(r *record, _ *live) { last = r.Usage })
	if last == nil {
		why := "its shim was killed before it could read"
		if c.StartedAt.IsZero() {
			why = "it was never started"
		}
		return nil, refusef(errdefs.ErrFailedPrecondition, "there is no reading of what container %s has taken: %s", short(b.id), why)
	}
	u.Usage = *last
	return u, nil
}
