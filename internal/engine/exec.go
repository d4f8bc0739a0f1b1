package engine

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"proa/internal/event"
	"proa/internal/isolation"
	"proa/internal/isolation/userdb"
	"proa/internal/rootfs"
	"proa/internal/shim"
	"proa/internal/sys"
)

// What is remembered of exec'd processes of a container that do not run: the
// newest keptExecs for any time, as clients ask for the exit code after the
// end, and all others for keptExecTime, up to mostExecs.
const (
	keptExecs    = 64
	keptExecTime = 5 * time.Minute
	mostExecs    = 8192
)

// resizeWait is how long a resize waits for the start of its process: clients
// send the terminal's size while the start is under way (moby, daemon/resize.go).
const resizeWait = 10 * time.Second

// execution is one exec'd process. The box's mu guards what changes.
type execution struct {
	id      string
	number  int // order of creation within the engine's life
	req     container.ExecCreateRequest
	started bool
	running bool
	up      chan struct{} // closed when its start has succeeded or failed
	at      time.Time     // of its creation, then of its end
	code    *int
	pid     int
}

// ExecCreate prepares one more process in a running container.
func (e *Engine) ExecCreate(ctx context.Context, ref string, r container.ExecCreateRequest) (string, error) {
	b, err := e.find(ref)
	if err != nil {
		return "", err
	}
	if len(r.Cmd) == 0 {
		return "", invalid("No exec command specified")
	}
	if _, err := detachKeys(r.DetachKeys); err != nil {
		return "", invalid("Invalid escape keys (%s) provided", r.DetachKeys)
	}
	for _, kv := range r.Env {
		if name, _, _ := strings.Cut(kv, "="); name == "" {
			return "", invalid("invalid environment variable: %s", kv)
		}
	}
	if r.WorkingDir != "" && r.WorkingDir[0] != '/' {
		return "", invalid("the working directory %q is invalid, it needs to be an absolute path", r.WorkingDir)
	}
	if err := mayExec(b.snap.Load()); err != nil {
		return "", err
	}
	if r.User != "" {
		if err := e.knowsUser(ctx, b, r.User); err != nil {
			return "", err
		}
	}
	x := &execution{id: newID(), req: r, up: make(chan struct{})}
	var old []string
	c := b.change(func(_ *record, l *live) {
		l.execCount++
		x.number, x.at = l.execCount, e.cfg.Now()
		l.execs[x.id] = x
		old = l.dropOldExecs(x.at)
	})
	e.mu.Lock()
	e.execs[x.id] = b.id
	for _, id := range old {
		delete(e.execs, id)
	}
	e.mu.Unlock()
	e.emitDetail(c, event.ContainerExecCreate, commandLine(r.Cmd), x.id)
	return x.id, nil
}

// knowsUser refuses a user or group that the container's own databases do not
// have, in Docker's words. A VM's agent looks; one of an older engine cannot,
// and then the start of the process says it.
func (e *Engine) knowsUser(ctx context.Context, b *box, user string) error {
	c := b.snap.Load()
	if c.Kind == isolation.VM {
		sh, err := b.shim()
		if err != nil {
			return err
		}
		err = sh.Files(ctx, &rootfs.Request{Op: rootfs.OpUser, User: user}, nil, io.Discard)
		if errdefs.IsNotFound(err) {
			return invalid("%w", err)
		}
		return nil
	}
	pidfd, err := sys.OpenPid(c.Pid)
	if err != nil {
		return notRunning(c) // it has ended just now
	}
	defer pidfd.Close()
	root, err := sys.RootOf(pidfd)
	if err != nil {
		return notRunning(c)
	}
	defer root.Close()
	if _, _, _, _, err := userdb.Lookup(root, user, nil); err != nil {
		return invalid("%w", err)
	}
	return nil
}

func mayExec(c *Container) error {
	switch c.State {
	case Running:
		return nil
	case Paused:
		return conflict("container %s is paused, unpause the container before exec", c.ID)
	case Restarting:
		return conflict("container %s is restarting, wait until the container is running", c.ID)
	}
	return notRunning(c)
}

// dropOldExecs forgets those that ended, or were created and never started,
// long enough ago, and returns their ids.
func (l *live) dropOldExecs(now time.Time) (old []string) {
	for id, x := range l.execs {
		behind := l.execCount - x.number
		if !x.running && behind > keptExecs && (behind > mostExecs || now.Sub(x.at) > keptExecTime) {
			delete(l.execs, id)
			old = append(old, id)
		}
	}
	return old
}

// endExecs ends the processes of a run that is over: Docker knows neither those
// that were never started any longer, nor lets a later run start them.
func (e *Engine) endExecs(b *box) {
	var never []string
	var running []*execution
	b.change(func(_ *record, l *live) {
		for id, x := range l.execs {
			switch {
			case !x.started:
				delete(l.execs, id)
				never = append(never, id)
			case x.running:
				running = append(running, x)
			}
		}
	})
	e.mu.Lock()
	for _, id := range never {
		delete(e.execs, id)
	}
	e.mu.Unlock()
	for _, x := range running {
		e.execEnded(b, x, 137) // killed with the container
	}
}

// dropExecs forgets the exec ids of a container that is gone.
func (e *Engine) dropExecs(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for x, owner := range e.execs {
		if owner == id {
			delete(e.execs, x)
		}
	}
}

// findExec looks an exec'd process up by its full id.
func (e *Engine) findExec(id string) (*box, *execution, error) {
	e.mu.RLock()
	b := e.byID[e.execs[id]]
	e.mu.RUnlock()
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if x := b.live.execs[id]; x != nil {
			return b, x, nil
		}
	}
	return nil, nil, refusef(errdefs.ErrNotFound, "No such exec instance: %s", id)
}

// ExecMayStart tells why a start of the process would be refused before its
// streams begin: it is unknown, or its container is paused or does not run.
// That it was started before is ExecStart's to say.
func (e *Engine) ExecMayStart(execID string) error {
	b, _, err := e.findExec(execID)
	if err != nil {
		return err
	}
	return mayExec(b.snap.Load())
}

// ExecStart starts it. Detached: the Attachment is nil. A process that cannot
// be started gives an error that wraps *isolation.StartError, and its ExitCode
// is 126 or 127.
func (e *Engine) ExecStart(ctx context.Context, execID string, o ExecStartOptions) (*Attachment, error) {
	b, x, err := e.findExec(execID)
	if err != nil {
		return nil, err
	}
	if err := mayExec(b.snap.Load()); err != nil {
		return nil, err
	}
	sh, err := b.shim()
	if err != nil {
		return nil, err
	}
	p, err := e.execProcess(b, x.req, o)
	if err != nil {
		return nil, err
	}
	if err := b.claim(x); err != nil {
		return nil, err
	}
	defer close(x.up)
	var streams shim.Streams
	if !o.Detach {
		streams = shim.Streams{Stdin: x.req.AttachStdin, Stdout: x.req.AttachStdout, Stderr: x.req.AttachStderr && !x.req.Tty && !o.Tty}
	}
	p.Stdin = streams.Stdin
	st, err := sh.Exec(context.WithoutCancel(ctx), x.id, p, streams)
	if err != nil {
		failure, code := startFailure("failed to exec in container", err)
		if code == startFailed {
			code = 126 // as Docker: it was there and could not be invoked
		}
		e.execEnded(b, x, code)
		return nil, failure
	}
	b.change(func(_ *record, _ *live) { x.pid = st.Pid })
	e.emitDetail(b.snap.Load(), event.ContainerExecStart, commandLine(x.req.Cmd), x.id)
	if o.Detach {
		e.work.Go(func() {
			e.awaitExec(b, x, sh)
			st.Close()
		})
		return nil, nil
	}
	e.work.Go(func() { e.awaitExec(b, x, sh) })
	return e.execAttachment(b, x, st, streams), nil
}

// claim makes the caller the one who starts x.
func (b *box) claim(x *execution) (err error) {
	b.change(func(_ *record, _ *live) {
		switch {
		case x.code != nil:
			err = conflict("Error: Exec command %s has already run", x.id)
		case x.started:
			err = conflict("Error: Exec command %s is already running", x.id)
		default:
			x.started, x.running = true, true
		}
	})
	return err
}

// execAttachment carries the streams of a process that was just started.
func (e *Engine) execAttachment(b *box, x *execution, st *shim.ExecStream, streams shim.Streams) *Attachment {
	a := &Attachment{
		tty: x.req.Tty, streams: streams, closeStdin: !x.req.Tty, got: make(chan struct{}),
		ended: func(s *shim.Stream) {
			if exit, ok := s.Exit(); ok {
				e.execEnded(b, x, exit.Code)
			}
		},
		detached: func() {
			e.emit(b.snap.Load(), event.ContainerExecDetach, x.id)
		},
	}
	if x.req.Tty {
		a.keys, _ = detachKeys(x.req.DetachKeys)
	}
	a.deliver(st.Stream, nil)
	return a
}

// awaitExec books the end of an exec'd process, also when its client has left.
func (e *Engine) awaitExec(b *box, x *execution, sh *shim.Shim) {
	exit, err := sh.ExecWait(e.life, x.id)
	if e.life.Err() != nil {
		return
	}
	if err != nil { // the container ended, and the process with it
		exit.Code = 137
	}
	e.execEnded(b, x, exit.Code)
}

// execEnded books an exit code once.
func (e *Engine) execEnded(b *box, x *execution, code int) {
	first := false
	c := b.change(func(_ *record, _ *live) {
		if first = x.code == nil; first {
			x.code, x.running, x.at = &code, false, e.cfg.Now()
		}
	})
	if first {
		e.emit(c, event.ContainerExecDie, x.id, strconv.Itoa(code))
	}
}

// execProcess makes the process of an exec: as the main one, except for what
// the request says.
func (e *Engine) execProcess(b *box, r container.ExecCreateRequest, o ExecStartOptions) (*isolation.Process, error) {
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })
	spec, err := buildSpec(&rec, parts{hostname: e.host, ids: e.ids})
	if err != nil {
		return nil, err
	}
	p := spec.Process
	p.Args, p.Terminal, p.Stdin = r.Cmd, r.Tty, r.AttachStdin
	p.Rows, p.Cols = o.Rows, o.Cols
	if r.ConsoleSize != nil && o.Rows == 0 && o.Cols == 0 {
		p.Rows, p.Cols = uint16(r.ConsoleSize[0]), uint16(r.ConsoleSize[1])
	}
	base := *rec.Config
	base.Tty = r.Tty
	p.Env = overlayEnv(environ(&base, spec.Hostname), r.Env)
	if r.WorkingDir != "" {
		p.Cwd = cwd(r.WorkingDir)
	}
	if r.User != "" {
		p.User = r.User
	}
	if p.Seccomp, err = seccompOf(rec.Host); err != nil {
		return nil, err
	}
	if r.Privileged {
		p.Capabilities, p.Seccomp = allCaps, nil
	}
	if rec.Kind == isolation.VM {
		p.Seccomp = nil
	}
	return &p, nil
}

// ExecResize sets the size of an exec'd process's terminal.
func (e *Engine) ExecResize(ctx context.Context, execID string, rows, cols uint16) error {
	b, x, err := e.findExec(execID)
	if err != nil {
		return err
	}
	if err := mayExec(b.snap.Load()); err != nil {
		return err
	}
	t := time.NewTimer(resizeWait)
	defer t.Stop()
	select {
	case <-x.up:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errors.New("timeout waiting for exec session ready")
	}
	running := false
	b.read(func(*record, *live) { running = x.running })
	if !running {
		return refusef(errdefs.ErrNotFound, "exec %s is not running", execID)
	}
	if !x.req.Tty {
		return nil // as Docker: there is nothing that has a size
	}
	sh, err := b.shim()
	if err != nil {
		return err
	}
	return sh.ExecResize(ctx, x.id, rows, cols)
}

// ExecGet finds an exec'd process by its id.
func (e *Engine) ExecGet(ctx context.Context, execID string) (*Exec, error) {
	b, x, err := e.findExec(execID)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return &Exec{ID: x.id, ContainerID: b.id, Request: x.req, Running: x.running, ExitCode: x.code, Pid: x.pid}, nil
}
