package engine

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	bolt "go.etcd.io/bbolt"

	"proa/internal/isolation"
	"proa/internal/shim"
)

// lostCode is the exit code of a container whose end nobody saw because the
// host went down; Docker reports the same.
const lostCode = 255

// reconcile makes records, instances and leftovers agree when an engine starts.
// The order matters: first what each record says and what there is of it, then
// what belongs to no record, and only then anything is started.
func (e *Engine) reconcile(ctx context.Context) error {
	var recs []record
	err := e.cfg.DB.View(func(tx *bolt.Tx) error {
		return records.ForEach(tx, func(_ string, r record) error { recs = append(recs, r); return nil })
	})
	if err != nil {
		return fmt.Errorf("cannot read container records: %w", err)
	}
	for _, r := range recs {
		b := newBox(r)
		e.byID[r.ID] = b
		e.byName[r.Name] = r.ID
	}
	half, err := e.halfRemoved()
	if err != nil {
		return err
	}
	adoptedIDs := map[string]bool{}
	booting := map[*box]bool{} // containers that do not run, and whether they did just before
	for id, b := range e.byID {
		if volumes, ok := half[id]; ok {
			b.change(func(r *record, _ *live) { r.State = Removing })
			if err := e.erase(ctx, b, volumes); err != nil {
				e.cfg.Log.Error("cannot finish a removal", "id", short(id), "err", err)
			}
			continue
		}
		wasAlive := b.rec.State.alive() || b.rec.State == Restarting
		adopted, err := e.recover(ctx, b)
		if err != nil {
			return err
		}
		if adopted {
			adoptedIDs[id] = true
			continue
		}
		booting[b] = wasAlive
	}
	e.dropLeftovers(ctx, adoptedIDs)
	if err := e.cfg.Network.Reconcile(ctx, adoptedIDs); err != nil {
		return err
	}
	for b, wasAlive := range booting {
		e.boot(ctx, b, wasAlive)
	}
	return e.saves.flush()
}

// halfRemoved finds removals that were begun, and whether volumes go as well.
func (e *Engine) halfRemoved() (map[string]bool, error) {
	entries, err := os.ReadDir(e.containersDir())
	if err != nil {
		return nil, fmt.Errorf("cannot read the containers' directories: %w", err)
	}
	out := map[string]bool{}
	for _, entry := range entries {
		if id, volumes, marked := goneMarker(entry.Name()); marked {
			out[id] = volumes
		}
	}
	return out, nil
}

// recover finds out what became of one container and tells whether it runs.
func (e *Engine) recover(ctx context.Context, b *box) (bool, error) {
	e.showMounts(ctx, b)
	b.change(func(r *record, l *live) {
		if r.Host.LogConfig.Type != "none" {
			l.logPath = e.logPath(r.ID)
		}
	})
	wasAlive := b.rec.State.alive()
	if wasAlive && b.rec.BootID != e.bootID {
		e.lost(b, isolation.Exit{Code: lostCode, At: e.cfg.Now(), Error: "the host was restarted"})
		parent := resourcesOf(b.rec.Host, e.cfg.CgroupParent).CgroupParent
		if sh, err := e.findShim(ctx, b.id); err == nil {
			e.destroy(b.id, parent, sh) // the boot id lies, but it shall not have two lives
		}
		e.sweep(b.id, parent)
		return false, nil
	}
	sh, err := e.findShim(ctx, b.id)
	if err == nil {
		return e.adopt(ctx, b, sh), nil
	}
	if !errdefs.IsNotFound(err) {
		if ctx.Err() != nil {
			return false, err
		}
		e.cfg.Log.Error("a shim cannot be reached; its instance is killed", "id", short(b.id), "err", err)
	}
	if !wasAlive && !e.hasShimDir(b.id) {
		return false, nil
	}
	exit, err := e.cfg.Shims.Exit(b.id)
	switch {
	case err == nil && (wasAlive || b.rec.FinishedAt.Before(exit.At)):
		e.lost(b, exit)
	case err == nil: // booked already; only the directory was still there
	case wasAlive:
		e.lost(b, shim.Killed())
	}
	e.sweep(b.id, resourcesOf(b.rec.Host, e.cfg.CgroupParent).CgroupParent)
	return false, nil
}

// adopt takes over a shim that an earlier engine started.
func (e *Engine) adopt(ctx context.Context, b *box, sh *shim.Shim) bool {
	phase, pid, err := sh.State(ctx)
	if err != nil {
		e.cfg.Log.Warn("a shim does not answer", "id", short(b.id), "err", err)
		phase = "failed"
	}
	state := Running
	switch phase {
	case "running", "exited": // an exit is booked by the watch
	case "paused":
		if b.rec.State == Paused {
			state = Paused
		} else if err := sh.Resume(ctx); err != nil { // the engine had it held, see Commit
			e.cfg.Log.Warn("a container that nobody paused does not go on", "id", short(b.id), "err", err)
			state = Paused
		}
	default:
		// The engine died in the middle of a start, whose client never got an
		// answer: it has not happened.
		e.destroy(b.id, resourcesOf(b.rec.Host, e.cfg.CgroupParent).CgroupParent, sh)
		if b.rec.State.alive() {
			e.lost(b, shim.Killed())
		}
		return false
	}
	r := &run{done: make(chan struct{})}
	b.change(func(rec *record, l *live) {
		if !rec.State.alive() { // the record was not saved in time
			rec.StartedAt, rec.BootID, rec.ExitCode, rec.Error = e.cfg.Now().UTC(), e.bootID, 0, ""
		}
		rec.State, rec.Pid, rec.Usage = state, pid, nil
		l.shim, l.run = sh, r
		if ep, err := e.cfg.Network.Endpoint(rec.ID); err == nil {
			l.takeNetwork(rec, ep)
		}
	})
	e.saves.later(b, nil)
	e.watch(b, sh, r)
	e.watchHealth(b, r)
	return true
}

// findShim finds the shim of an earlier engine. One that is just ending, or
// was just killed, may still take a connection and not answer, so an error
// that is not a clear no is asked about again for a while.
func (e *Engine) findShim(ctx context.Context, id string) (*shim.Shim, error) {
	const pause, tries = 20 * time.Millisecond, 100
	for try := 1; ; try++ {
		sh, err := e.cfg.Shims.Find(ctx, id)
		if err == nil || errdefs.IsNotFound(err) || try == tries || ctx.Err() != nil {
			return sh, err
		}
		time.Sleep(pause)
	}
}

// lost books an end that no engine saw.
func (e *Engine) lost(b *box, exit isolation.Exit) {
	c := b.change(func(r *record, _ *live) {
		r.State, r.Pid, r.FinishedAt, r.ExitCode, r.OOMKilled, r.Error = Exited, 0, exit.At.UTC(), exit.Code, exit.OOMKilled, exit.Error
		r.Usage = exit.Usage
	})
	e.saves.later(b, nil)
	e.emitDie(c)
}

func (e *Engine) hasShimDir(id string) bool {
	ids, err := e.cfg.Shims.List()
	if err != nil {
		return false
	}
	for _, have := range ids {
		if have == id {
			return true
		}
	}
	return false
}

// showMounts fills in the mount points of a container that was not made in
// this engine's life.
func (e *Engine) showMounts(ctx context.Context, b *box) {
	b.change(func(r *record, l *live) {
		l.points = nil
		for _, m := range r.Mounts {
			path := ""
			if m.Type == mount.TypeVolume {
				if v, err := e.cfg.Volumes.Get(ctx, m.Volume); err == nil {
					path = v.Mountpoint
				}
			}
			l.points = append(l.points, m.point(path))
		}
	})
}

// dropLeftovers removes what belongs to no record: shims, directories, leases.
func (e *Engine) dropLeftovers(ctx context.Context, live map[string]bool) {
	known := func(id string) bool { return e.byID[id] != nil }
	if ids, err := e.cfg.Shims.List(); err != nil {
		e.cfg.Log.Error("cannot look for shims", "err", err)
	} else {
		for _, id := range ids {
			if live[id] {
				continue
			}
			if sh, err := e.findShim(ctx, id); err == nil {
				e.destroy(id, e.parentOf(id), sh)
			} else {
				e.sweep(id, e.parentOf(id))
			}
		}
	}
	e.removeOrphans(e.containersDir(), known)
	e.removeOrphans(e.runDir(""), func(id string) bool { return live[id] })
	if held, err := e.cfg.Images.Leases(ctx); err != nil {
		e.cfg.Log.Error("cannot look for leases", "err", err)
	} else {
		for h := range held {
			if id, ours := strings.CutPrefix(h, "container/"); ours && !known(id) {
				if err := e.cfg.Images.Unlease(ctx, nil, h); err != nil {
					e.cfg.Log.Error("cannot end a lease without a holder", "holder", h, "err", err)
				}
			}
		}
	}
	users, err := e.cfg.Volumes.Holders(ctx)
	if err != nil {
		e.cfg.Log.Error("cannot look for holders of volumes", "err", err)
	}
	for _, list := range users {
		for _, h := range list {
			if id, ours := strings.CutPrefix(h, "container/"); ours && !known(id) {
				if err := e.cfg.Volumes.Release(ctx, nil, h); err != nil {
					e.cfg.Log.Error("cannot release a volume without a holder", "holder", h, "err", err)
				}
			}
		}
	}
}

// boot decides what becomes of a container that does not run when an engine
// starts: it is removed (--rm), started by its policy, or left alone.
func (e *Engine) boot(ctx context.Context, b *box, wasAlive bool) {
	var r record
	b.read(func(rec *record, _ *live) { r = *rec })
	if r.State == Restarting {
		b.change(func(rec *record, _ *live) { rec.State = Exited })
		r.State = Exited
	}
	started := !r.StartedAt.IsZero()
	switch {
	case r.State != Exited && r.State != Created:
		return
	case r.Host.AutoRemove && started:
		b.change(func(rec *record, _ *live) { rec.State = Removing })
		if err := e.erase(ctx, b, true); err != nil {
			e.cfg.Log.Error("cannot remove a container that has ended", "id", short(b.id), "err", err)
		}
	case started && wantsBoot(r.Host.RestartPolicy, r.ExitCode, r.RestartCount, r.StoppedByUser, wasAlive):
		b.change(func(rec *record, _ *live) { rec.State = Restarting })
		e.planRestart(b, 0)
	}
}
