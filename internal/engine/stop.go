package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/event"
	"proa/internal/shim"
)

// killLimit is how long a killed instance may take to be gone before its shim
// is killed as well: longer than a shim waits for an attached reader that stands
// still (10 s).
const killLimit = 15 * time.Second

// answerLimit is how long a shim may take to pass a signal on. One that is
// stopped or stuck must not hold up whoever wants its container to end.
const answerLimit = 3 * time.Second

// sendSignal sends a signal to the instance and gives up on a shim that does not answer.
func sendSignal(ctx context.Context, sh *shim.Shim, sig int) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return sh.Signal(ctx, sig)
}

// Stop signals, waits, kills. One that does not run gives errdefs.ErrNotModified.
func (e *Engine) Stop(ctx context.Context, ref string, o StopOptions) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	stopped, err := e.stopRun(ctx, b, o, false)
	if err != nil {
		return err
	}
	if !stopped {
		return refusef(errdefs.ErrNotModified, "container %s is not running", short(b.id))
	}
	e.emit(b.snap.Load(), event.ContainerStop)
	return nil
}

// stopRun ends the run of b, if there is one, and tells whether there was. For
// a restart by hand the policy and --rm keep out.
func (e *Engine) stopRun(ctx context.Context, b *box, o StopOptions, restarting bool) (bool, error) {
	c := b.snap.Load()
	name := o.Signal
	if name == "" {
		name = c.Config.StopSignal
	}
	if name == "" {
		name = "TERM"
	}
	sig, err := parseSignal(name)
	if err != nil {
		return false, err
	}
	if c.State == Restarting {
		if given, err := e.giveUpRestart(ctx, b); given || err != nil {
			return true, err
		}
		return e.stopRun(ctx, b, o, restarting) // it was started meanwhile
	}
	sh, err := b.shim()
	if err != nil {
		return false, nil
	}
	var r *run
	b.change(func(rec *record, l *live) {
		r = l.run
		rec.StoppedByUser = true
		l.stopping = l.stopping || restarting
	})
	if r == nil {
		return false, nil
	}
	if err := e.saves.save(b); err != nil {
		return false, err
	}
	wait := defaultStop * time.Second
	switch {
	case o.Timeout != nil:
		wait = *o.Timeout
	case c.Config.StopTimeout != nil:
		wait = time.Duration(*c.Config.StopTimeout) * time.Second
	}
	e.emit(c, event.ContainerKill, strconv.Itoa(sig))
	if err := sendSignal(ctx, sh, sig); err != nil && !gone(err) {
		if ctx.Err() == nil && !errdefs.IsInvalidArgument(err) {
			return true, e.killRun(ctx, b) // no signal reaches it by its shim
		}
		return false, fmt.Errorf("cannot stop container: %s: %w", b.id, err)
	}
	if c.State == Paused {
		if err := e.thaw(ctx, b, sh); err != nil {
			return false, fmt.Errorf("cannot resume container %s to stop it: %w", b.id, err)
		}
	}
	var limit <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		limit = t.C
	}
	select {
	case <-r.done:
		return true, nil
	case <-ctx.Done():
		return false, fmt.Errorf("cannot wait for container %s to stop: %w", short(b.id), ctx.Err())
	case <-limit:
	}
	return true, e.killRun(ctx, b)
}

// killRun ends the run of b the hard way and waits until it is in the books.
func (e *Engine) killRun(ctx context.Context, b *box) error {
	var r *run
	b.read(func(_ *record, l *live) { r = l.run })
	sh, err := b.shim()
	if err != nil || r == nil {
		return nil
	}
	paused := b.snap.Load().State == Paused
	e.emit(b.snap.Load(), event.ContainerKill, strconv.Itoa(int(syscall.SIGKILL)))
	if err := sendSignal(ctx, sh, int(syscall.SIGKILL)); err != nil && !gone(err) {
		e.cfg.Log.Warn("cannot kill a container by signal; killing its shim", "id", short(b.id), "err", err)
		sh.Kill() // its instance dies with it
	} else if paused {
		if err := e.thaw(ctx, b, sh); err != nil {
			e.cfg.Log.Warn("cannot resume a killed container", "id", short(b.id), "err", err)
		}
	}
	t := time.NewTimer(killLimit)
	defer t.Stop()
	for range 2 {
		select {
		case <-r.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("cannot wait for container %s to be killed: %w", short(b.id), ctx.Err())
		case <-t.C:
			e.cfg.Log.Warn("a killed container goes on; killing its shim", "id", short(b.id))
			sh.Kill()
			t.Reset(destroyLimit)
		}
	}
	return refusef(errdefs.ErrUnavailable, "container %s does not end although it was killed", short(b.id))
}

// thaw lets a paused container meet the signal that it got.
func (e *Engine) thaw(ctx context.Context, b *box, sh *shim.Shim) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if err := sh.Resume(ctx); err != nil && !gone(err) {
		return err
	}
	b.change(func(r *record, _ *live) {
		if r.State == Paused {
			r.State = Running
		}
	})
	return nil
}

// giveUpRestart ends the pause between two runs. False: there is none any more.
func (e *Engine) giveUpRestart(ctx context.Context, b *box) (bool, error) {
	if err := b.lock(ctx); err != nil {
		return false, err
	}
	defer b.unlock()
	if b.snap.Load().State != Restarting {
		return false, nil
	}
	e.unplan(b)
	b.change(func(r *record, l *live) {
		r.State, r.StoppedByUser = Exited, true
		l.tell(WaitResult{ExitCode: r.ExitCode}, false)
	})
	return true, e.saves.save(b)
}

// gone says that the process or its shim has ended already.
func gone(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || errdefs.IsFailedPrecondition(err)
}

// Kill sends one signal ("KILL", "SIGTERM", "9"; "" is SIGKILL). One that does
// not run gives errdefs.ErrConflict. After SIGKILL it waits for the end.
func (e *Engine) Kill(ctx context.Context, ref, signal string) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	if signal == "" {
		signal = "KILL"
	}
	sig, err := parseSignal(signal)
	if err != nil {
		return err
	}
	c := b.snap.Load()
	sh, err := b.shim()
	if err != nil {
		return conflict("cannot kill container: %s: container %s is not running", ref, b.id)
	}
	stop := c.Config.StopSignal
	if stop == "" {
		stop = "TERM"
	}
	if want, _ := parseSignal(stop); sig == int(syscall.SIGKILL) || sig == want {
		b.change(func(r *record, _ *live) { r.StoppedByUser = true })
		if err := e.saves.save(b); err != nil {
			return err
		}
	}
	if sig == int(syscall.SIGKILL) {
		return e.killRun(ctx, b)
	}
	e.emit(c, event.ContainerKill, strconv.Itoa(sig))
	err = sendSignal(ctx, sh, sig)
	if gone(err) {
		return conflict("cannot kill container: %s: container %s is not running", ref, b.id)
	}
	return err
}

// Restart stops it if it runs and starts it.
func (e *Engine) Restart(ctx context.Context, ref string, o StopOptions) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	stopped, err := e.stopRun(ctx, b, o, true)
	if err != nil {
		return err
	}
	if stopped {
		e.emit(b.snap.Load(), event.ContainerStop)
	}
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	b.change(func(r *record, l *live) { r.RestartCount, l.backoff = 0, backoff{} })
	err = e.start(ctx, b)
	b.change(func(_ *record, l *live) { l.stopping = false })
	if err != nil {
		return err
	}
	e.emit(b.snap.Load(), event.ContainerRestart)
	return nil
}

// Pause stops every process of a running container.
func (e *Engine) Pause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, Running, Paused, event.ContainerPause)
}

// Unpause lets a paused container go on.
func (e *Engine) Unpause(ctx context.Context, ref string) error {
	return e.freeze(ctx, ref, Paused, Running, event.ContainerUnpause)
}

func (e *Engine) freeze(ctx context.Context, ref string, from, to State, row *event.Row) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	c := b.snap.Load()
	switch {
	case c.State == to && to == Paused:
		return conflict("container %s is already paused", b.id)
	case c.State != from && to == Paused:
		return notRunning(c)
	case c.State != from:
		return conflict("container %s is not paused", b.id)
	}
	sh, err := b.shim()
	if err != nil {
		return err
	}
	if to == Paused {
		err = sh.Pause(ctx)
	} else {
		err = sh.Resume(ctx)
	}
	if err != nil {
		return err
	}
	if c, err = b.step(to, nil); err != nil {
		return errors.Join(err, sh.Resume(ctx))
	}
	b.read(func(_ *record, l *live) {
		if to == Paused && l.endCheck != nil {
			l.endCheck()
		}
	})
	if to == Paused { // the record alone tells it from a container that the engine holds still
		err = e.saves.save(b)
	} else {
		e.saves.later(b, nil)
	}
	e.emit(c, row)
	return err
}

// Resize sets the size of the main process's terminal.
func (e *Engine) Resize(ctx context.Context, ref string, rows, cols uint16) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	sh, err := b.shim()
	if err != nil {
		return err
	}
	if b.snap.Load().Config.Tty { // without a terminal nothing has a size, which Docker does not mind
		if err := sh.Resize(ctx, rows, cols); err != nil {
			return err
		}
	}
	e.emit(b.snap.Load(), event.ContainerResize, strconv.Itoa(int(rows)), strconv.Itoa(int(cols)))
	return nil
}

// Rename gives a container another name; a taken one is errdefs.ErrConflict.
func (e *Engine) Rename(ctx context.Context, ref, name string) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	if len(name) > 0 && name[0] == '/' {
		name = name[1:]
	}
	if err := checkName(name); err != nil {
		return err
	}
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	old := b.snap.Load()
	if old.State == Removing || old.State == Dead {
		return conflict("cannot rename container %s: it is being removed", short(b.id))
	}
	if old.Name == name {
		return invalid("Renaming a container with the same name as its current name")
	}
	e.mu.Lock()
	if owner, taken := e.byName[name]; taken {
		e.mu.Unlock()
		return nameTaken(name, owner)
	}
	e.byName[name] = b.id
	e.mu.Unlock()
	c := b.change(func(r *record, _ *live) { r.Name = name })
	err = e.saves.save(b)
	if err != nil {
		c = b.change(func(r *record, _ *live) { r.Name = old.Name })
	}
	e.mu.Lock()
	if err != nil {
		delete(e.byName, name)
	} else {
		delete(e.byName, old.Name)
	}
	e.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cannot rename container %s: %w", short(b.id), err)
	}
	e.emit(c, event.ContainerRename, "/"+old.Name)
	return nil
}
