package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/shim/wire"
	"proa/internal/sys"
)

// ID is the instance's id.
func (s *Shim) ID() string { return s.id }

// Pid is the process id of the shim itself.
func (s *Shim) Pid() int { return s.pid }

// Close gives up what this process holds of the shim and leaves the shim as it
// is. A Wait that is under way ends with an error.
func (s *Shim) Close() {
	s.closed.Do(func() { _ = s.pidfd.Close() })
}

// State asks where the instance is in its life, and its pid on the host (of
// the first process or the VMM; 0 before it is created).
func (s *Shim) State(ctx context.Context) (Phase, int, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Hello})
	if err != nil {
		return "", 0, err
	}
	return r.Phase, r.Pid, nil
}

// Create waits until the instance is created and returns its pid on the host.
// After an error of the driver nothing is left, and the shim ends.
func (s *Shim) Create(ctx context.Context) (int, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Create})
	if err != nil {
		return 0, err
	}
	return r.Pid, nil
}

// Start runs the main process. An error that wraps *isolation.StartError says
// why it could not be executed; the instance is then removed and the shim ends.
func (s *Shim) Start(ctx context.Context) error { return s.order(ctx, &wire.Request{Op: wire.Start}) }

// Signal sends a signal by its Linux number to the main process.
// errdefs.ErrNotFound: it has ended; errdefs.ErrFailedPrecondition: not started.
func (s *Shim) Signal(ctx context.Context, sig int) error {
	return s.order(ctx, &wire.Request{Op: wire.Signal, Signal: sig})
}

// Resize sets the size of the main process's terminal.
func (s *Shim) Resize(ctx context.Context, rows, cols uint16) error {
	return s.order(ctx, &wire.Request{Op: wire.Resize, Rows: rows, Cols: cols})
}

// Pause stops every process of the instance.
func (s *Shim) Pause(ctx context.Context) error { return s.order(ctx, &wire.Request{Op: wire.Pause}) }

// Resume lets a paused instance go on.
func (s *Shim) Resume(ctx context.Context) error { return s.order(ctx, &wire.Request{Op: wire.Resume}) }

// Stats reads the instance's use of the host.
func (s *Shim) Stats(ctx context.Context) (*isolation.Stats, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Stats})
	if err != nil {
		return nil, err
	}
	return r.Stats, nil
}

// Usage reads what the running instance has taken of the host. Afterwards it
// is in its Exit. errdefs.ErrNotImplemented: the shim is older than this.
func (s *Shim) Usage(ctx context.Context) (*isolation.Usage, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Usage})
	if err != nil {
		return nil, err
	}
	return r.Usage, nil
}

// Top lists the instance's processes.
func (s *Shim) Top(ctx context.Context) ([]isolation.ProcessInfo, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Top})
	if err != nil {
		return nil, err
	}
	return r.Top, nil
}

// Update changes limits of a running instance; zero fields stay as they are.
func (s *Shim) Update(ctx context.Context, r *isolation.Resources) error {
	return s.order(ctx, &wire.Request{Op: wire.Update, Resources: r})
}

// ExecSignal sends a signal to an exec'd process.
func (s *Shim) ExecSignal(ctx context.Context, exec string, sig int) error {
	return s.order(ctx, &wire.Request{Op: wire.Signal, Exec: exec, Signal: sig})
}

// ExecResize sets the size of an exec'd process's terminal.
func (s *Shim) ExecResize(ctx context.Context, exec string, rows, cols uint16) error {
	return s.order(ctx, &wire.Request{Op: wire.Resize, Exec: exec, Rows: rows, Cols: cols})
}

// ExecWait waits for an exec'd process, also one that an earlier engine
// started. A shim remembers the last 1024 that ended; errdefs.ErrNotFound else.
func (s *Shim) ExecWait(ctx context.Context, exec string) (isolation.Exit, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Wait, Exec: exec})
	if err != nil {
		return isolation.Exit{}, err
	}
	return *r.Exit, nil
}

// Wait returns when the main process has ended, its output is delivered and
// the exit record is written. Removing the instance may still go on: Gone
// waits for that. A shim that was killed gives Exit{Code: 137, Error: "shim was killed"}.
func (s *Shim) Wait(ctx context.Context) (isolation.Exit, error) {
	r, err := s.request(ctx, &wire.Request{Op: wire.Wait})
	if err == nil {
		return *r.Exit, nil
	}
	if !errors.Is(err, errdefs.ErrUnavailable) {
		return isolation.Exit{}, err
	}
	// The shim ended under us, or before.
	if err := s.Gone(ctx); err != nil {
		return isolation.Exit{}, err
	}
	e, err := readExit(s.dir)
	if errdefs.IsNotFound(err) {
		return Killed(), nil
	}
	return e, err
}

// Gone returns when the shim has ended: then nothing of the instance is left,
// unless the shim was killed.
func (s *Shim) Gone(ctx context.Context) error {
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot wait for shim %q: %w", s.id, ctx.Err())
	}
}

// Delete kills what runs of the instance, has the driver remove everything and
// waits until the shim has ended. It may be called in any phase, and twice.
func (s *Shim) Delete(ctx context.Context) error {
	_, err := s.request(ctx, &wire.Request{Op: wire.Delete})
	if err != nil && !errors.Is(err, errdefs.ErrUnavailable) {
		return err
	}
	return s.Gone(ctx)
}

// Kill ends the shim itself, the hard way. Its instance dies with it; Sweep
// removes what is left.
func (s *Shim) Kill() { _ = sys.PidfdSignal(s.pidfd, syscall.SIGKILL) }

// order is a request whose reply carries nothing.
func (s *Shim) order(ctx context.Context, req *wire.Request) error {
	_, err := s.request(ctx, req)
	return err
}

// request has one conversation of one question. A shim that does not run, or
// ends before it answers, is errdefs.ErrUnavailable.
func (s *Shim) request(ctx context.Context, req *wire.Request) (*wire.Reply, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := interruptible(ctx, conn)
	defer stop()
	reply, err := ask(conn, req)
	if err != nil {
		return nil, s.explain(ctx, req.Op, err)
	}
	return reply, nil
}

// explain gives an error of a conversation its kind.
func (s *Shim) explain(ctx context.Context, op wire.Op, err error) error {
	var told *wire.Error
	if errors.As(err, &told) {
		return told // said by the shim, complete as it is
	}
	if ctx.Err() != nil {
		return fmt.Errorf("cannot %s %q: %w", op, s.id, ctx.Err())
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("cannot %s %q: its shim ended: %w", op, s.id, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("cannot %s %q: %w", op, s.id, err)
}

// dial connects to the shim; one that does not run is errdefs.ErrUnavailable.
func (s *Shim) dial(ctx context.Context) (*wire.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cannot reach shim %q: %w", s.id, err)
	}
	f, err := sys.DialUnix(filepath.Join(s.dir, "sock"))
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("cannot reach shim %q: it does not run: %w", s.id, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("cannot reach shim %q: %w", s.id, err)
	}
	return wire.NewConn(f), nil
}

// interruptible ends a conversation when ctx ends, until stop is called.
func interruptible(ctx context.Context, conn *wire.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.File().SetDeadline(time.Unix(1, 0)) })
}

// cause prefers the reason why a conversation was interrupted.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// ask sends one request and reads its reply.
func ask(conn *wire.Conn, req *wire.Request) (*wire.Reply, error) {
	req.Version = wire.Version
	if err := conn.Send(wire.Asks, req); err != nil {
		return nil, err
	}
	var reply wire.Reply
	if err := conn.Receive(wire.Tells, &reply); err != nil {
		return nil, err
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	return &reply, nil
}
