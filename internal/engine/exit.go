package engine

import (
	"context"
	"os"
	"strconv"
	"time"

	"proa/internal/event"
	"proa/internal/isolation"
	"proa/internal/shim"
)

// destroyLimit is how long an instance may take to be removed before its shim
// is killed.
const destroyLimit = 30 * time.Second

// watch waits for the end of a run and books it.
func (e *Engine) watch(b *box, sh *shim.Shim, r *run) {
	e.work.Go(func() {
		exit, err := sh.Wait(e.life)
		if e.life.Err() != nil {
			return // the next engine will find it
		}
		if err != nil {
			// The shim is there but does not speak: without it nobody keeps the
			// instance, so both end.
			e.cfg.Log.Error("lost a shim", "id", short(b.id), "err", err)
			sh.Kill()
			exit = shim.Killed()
		}
		e.ended(b, sh, r, exit)
	})
}

// ended books the end of a run: first what readers and waiters see, then what
// it leaves behind, then what follows (restart, removal).
func (e *Engine) ended(b *box, sh *shim.Shim, r *run, exit isolation.Exit) {
	if b.lock(e.life) != nil {
		return
	}
	defer b.unlock()
	var again time.Duration
	var restart, remove bool
	var parent string
	r.exit = exit
	c := b.change(func(rec *record, l *live) {
		rec.Pid, rec.FinishedAt, rec.ExitCode, rec.OOMKilled, rec.Error = 0, exit.At.UTC(), exit.Code, exit.OOMKilled, exit.Error
		rec.Usage = exit.Usage
		parent = resourcesOf(rec.Host, e.cfg.CgroupParent).CgroupParent
		rec.State = Exited
		if wantsRestart(rec.Host.RestartPolicy, exit.Code, rec.RestartCount, rec.StoppedByUser) && !l.stopping {
			rec.State, restart = Restarting, true
			again = l.backoff.after(rec.up())
		}
		remove = rec.Host.AutoRemove && !l.stopping
		l.shim, l.run = nil, nil
		l.tell(WaitResult{ExitCode: exit.Code, Error: exit.Error}, false)
	})
	e.endExecs(b)
	e.emitDie(c)
	step("exit: seen")
	e.cleanUp(b, sh, parent)
	step("exit: cleaned up")
	close(r.done)

	switch {
	case remove:
		if _, err := b.step(Removing, nil); err != nil {
			e.cfg.Log.Error("cannot remove a container after its end", "id", short(b.id), "err", err)
			return
		}
		if err := e.erase(context.WithoutCancel(e.life), b, true); err != nil {
			e.cfg.Log.Error("cannot remove a container after its end", "id", short(b.id), "err", err)
		}
		return
	case restart:
		e.planRestart(b, again)
	}
	// The exit record may go once the books are on disk.
	e.saves.later(b, func() {
		if err := e.forget(b.id); err != nil {
			e.cfg.Log.Error("cannot forget a shim", "id", short(b.id), "err", err)
		}
	})
}

// cleanUp gives back what a run held: the instance, its network, its directory.
// sh is nil when its shim has ended already.
func (e *Engine) cleanUp(b *box, sh *shim.Shim, parent string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.life), destroyLimit)
	defer cancel()
	if sh != nil {
		if err := sh.Gone(ctx); err != nil {
			e.cfg.Log.Warn("a shim does not end; killing it", "id", short(b.id), "err", err)
			sh.Kill()
		}
		sh.Close()
	}
	if err := e.cfg.Shims.Sweep(parent, b.id); err != nil {
		e.cfg.Log.Error("cannot remove what an instance left", "id", short(b.id), "err", err)
	}
	e.keepNetworkFiles(b)
	if err := e.cfg.Network.Release(ctx, b.id); err != nil {
		e.cfg.Log.Error("cannot release the network of a container", "id", short(b.id), "err", err)
	}
	if err := os.RemoveAll(e.runDir(b.id)); err != nil {
		e.cfg.Log.Error("cannot remove an instance's directory", "id", short(b.id), "err", err)
	}
	c := b.change(func(_ *record, l *live) { l.forgetNetwork() })
	b.read(func(r *record, _ *live) { e.emitNetwork(r, event.NetworkDisconnect) })
	e.emitMounts(c, false)
}

// forget removes the directory of an ended shim, unless the container runs
// again under the same id.
func (e *Engine) forget(id string) error {
	e.mu.RLock()
	b := e.byID[id]
	e.mu.RUnlock()
	if b == nil {
		return nil // the removal did it
	}
	select {
	case b.op <- struct{}{}:
		defer b.unlock()
	default:
		return nil // busy: a start makes the directory anew, a removal removes it
	}
	var lives bool
	b.read(func(_ *record, l *live) { lives = l.shim != nil })
	if lives {
		return nil
	}
	return e.cfg.Shims.Forget(id)
}

// planRestart starts b again after a pause, unless somebody is quicker.
func (e *Engine) planRestart(b *box, pause time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.live.planned++
	plan := b.live.planned
	b.live.unplan = e.cfg.After(pause, func() {
		e.work.Go(func() { e.restartByPolicy(b, plan) })
	})
}

// unplan forgets a planned restart. The caller holds op.
func (e *Engine) unplan(b *box) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live.unplan != nil {
		b.live.unplan()
		b.live.unplan = nil
	}
	b.live.planned++
}

func (e *Engine) restartByPolicy(b *box, plan int) {
	if b.lock(e.life) != nil {
		return
	}
	defer b.unlock()
	valid := false
	b.read(func(r *record, l *live) {
		valid = l.planned == plan && !r.State.alive() && r.State != Removing && r.State != Dead
		if valid {
			l.unplan = nil
		}
	})
	if !valid || e.life.Err() != nil {
		return
	}
	b.change(func(r *record, _ *live) { r.RestartCount++ })
	err := e.start(e.life, b)
	if err == nil {
		return
	}
	e.cfg.Log.Warn("cannot restart a container", "id", short(b.id), "err", err)
	var again time.Duration
	var restart bool
	b.change(func(r *record, l *live) {
		if r.State == Exited && wantsRestart(r.Host.RestartPolicy, r.ExitCode, r.RestartCount, r.StoppedByUser) {
			r.State, restart = Restarting, true
			again = l.backoff.after(0)
		}
	})
	if restart {
		e.planRestart(b, again)
	}
}

// emitDie tells of an end.
func (e *Engine) emitDie(c *Container) {
	if c.OOMKilled {
		e.emit(c, event.ContainerOOM)
	}
	e.emit(c, event.ContainerDie, strconv.Itoa(c.ExitCode), strconv.Itoa(int(c.FinishedAt.Sub(c.StartedAt).Seconds())))
}
