package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/shim/wire"
	"proa/internal/sys"
)

// accept takes conversations until the listener is closed.
func (s *server) accept(listener *os.File) {
	for {
		f, err := sys.AcceptUnix(listener)
		if err != nil {
			if errors.Is(err, os.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: they come back
			continue
		}
		uid, err := sys.PeerUID(f)
		if err != nil || uid != uint32(os.Geteuid()) && uid != 0 {
			f.Close()
			continue
		}
		s.talks.Add(1)
		go func() {
			defer s.talks.Done()
			defer f.Close()
			s.converse(wire.NewConn(f))
		}()
	}
}

// converse answers requests until the other side has no more, or one of them
// turns the conversation into a carrier of streams.
func (s *server) converse(conn *wire.Conn) {
	for {
		_ = conn.File().SetReadDeadline(time.Now().Add(requestLimit))
		var req wire.Request
		kind, b, err := conn.Next()
		if err != nil {
			return
		}
		if kind == wire.Asks {
			err = wire.Decode(b, &req)
		} else {
			err = fmt.Errorf("cannot take a frame of kind %d for a request", kind)
		}
		if err != nil {
			reply(conn, &wire.Reply{}, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument))
			return
		}
		_ = conn.File().SetReadDeadline(time.Time{})
		switch req.Op {
		case wire.Attach:
			s.attach(conn, &req)
			return
		case wire.Exec:
			s.exec(conn, &req)
			return
		case wire.Files:
			s.files(conn, &req)
			return
		}
		var r wire.Reply
		err = s.answer(conn, &req, &r)
		if errors.Is(err, errHungUp) || !reply(conn, &r, err) {
			return
		}
	}
}

// reply sends a reply; false if nobody is there to get it.
func reply(conn *wire.Conn, r *wire.Reply, err error) bool {
	r.Version, r.Error = wire.Version, wire.NewError(err)
	_ = conn.File().SetWriteDeadline(time.Now().Add(requestLimit))
	ok := conn.Send(wire.Tells, r) == nil
	_ = conn.File().SetWriteDeadline(time.Time{})
	return ok
}

// errHungUp says that who asked has gone.
var errHungUp = errors.New("hung up")

// await waits for a channel, or until the asker closes the conversation: the
// engine may die and come back any number of times while an instance runs.
func await(conn *wire.Conn, done ...<-chan struct{}) error {
	hung := make(chan struct{})
	over := make(chan struct{})
	go func() {
		defer close(over)
		// Nothing may come now, so whatever ends this read ends the conversation.
		if _, _, err := conn.Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
			close(hung)
		}
	}()
	var second <-chan struct{}
	if len(done) > 1 {
		second = done[1]
	}
	err := error(nil)
	select {
	case <-done[0]:
	case <-second:
	case <-hung:
		err = errHungUp
	}
	_ = conn.File().SetReadDeadline(time.Unix(1, 0))
	<-over
	_ = conn.File().SetReadDeadline(time.Time{})
	return err
}

// answer carries one request out.
func (s *server) answer(conn *wire.Conn, req *wire.Request, r *wire.Reply) error {
	ctx := context.Background() // what was begun is finished, whoever listens
	switch req.Op {
	case wire.Hello:
		s.mu.Lock()
		defer s.mu.Unlock()
		r.Shim, r.Phase = os.Getpid(), s.phase
		if s.inst != nil {
			r.Pid = s.inst.Pid()
		}
		return nil
	case wire.Create:
		if err := await(conn, s.created); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.createErr != nil {
			s.once.Do(func() { close(s.deleted) }) // somebody knows, so the shim may go
			return s.createErr
		}
		r.Pid = s.inst.Pid()
		return nil
	case wire.Start:
		return s.start(ctx)
	case wire.Delete:
		s.once.Do(func() { close(s.deleted) })
		<-s.gone
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.deleteErr
	case wire.Wait:
		return s.wait(conn, req.Exec, r)
	case wire.Signal:
		p, err := s.process(req.Exec)
		if err != nil {
			return err
		}
		return p.Signal(ctx, req.Signal)
	case wire.Resize:
		p, err := s.process(req.Exec)
		if err != nil {
			return err
		}
		return p.Resize(ctx, req.Rows, req.Cols)
	}
	inst, err := s.running()
	if err != nil {
		return fmt.Errorf("cannot %s: %w", req.Op, err)
	}
	switch req.Op {
	case wire.Pause:
		return s.pause(wire.Running, wire.Paused, func() error { return inst.Pause(ctx) })
	case wire.Resume:
		return s.pause(wire.Paused, wire.Running, func() error { return inst.Resume(ctx) })
	case wire.Stats:
		r.Stats, err = inst.Stats(ctx)
		return err
	case wire.Usage:
		r.Usage, err = s.bill.read(ctx, inst)
		return err
	case wire.Top:
		r.Top, err = inst.Processes(ctx)
		return err
	case wire.Update:
		if req.Resources == nil {
			return fmt.Errorf("cannot update: no limits are given: %w", errdefs.ErrInvalidArgument)
		}
		return inst.Update(ctx, req.Resources)
	}
	return fmt.Errorf("cannot %s: this shim speaks version %d of the protocol and does not know it: %w", req.Op, wire.Version, errdefs.ErrNotImplemented)
}

// running gives the instance if its main process runs.
func (s *server) running() (isolation.Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main == nil || s.phase == wire.Exited {
		return nil, fmt.Errorf("it is %s: %w", s.phase, errdefs.ErrFailedPrecondition)
	}
	return s.inst, nil
}

// pause moves between two phases if do succeeds.
func (s *server) pause(from, to wire.Phase, do func() error) error {
	s.mu.Lock()
	phase := s.phase
	s.mu.Unlock()
	if phase != from {
		return fmt.Errorf("cannot go on to %s: it is %s: %w", to, phase, errdefs.ErrConflict)
	}
	if err := do(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == from {
		s.phase = to
	}
	return nil
}

// process finds a running process: the main one, or an exec'd one by its id.
func (s *server) process(exec string) (isolation.Running, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if exec == "" {
		switch {
		case s.phase == wire.Exited:
			return nil, fmt.Errorf("cannot reach the main process: it has ended: %w", errdefs.ErrNotFound)
		case s.main == nil:
			return nil, fmt.Errorf("cannot reach the main process: it is %s: %w", s.phase, errdefs.ErrFailedPrecondition)
		}
		return s.main, nil
	}
	e := s.execs[exec]
	if e == nil || e.running == nil {
		return nil, fmt.Errorf("cannot find exec %q: %w", exec, errdefs.ErrNotFound)
	}
	return e.running, nil
}

// wait answers with an exit, however long it takes.
func (s *server) wait(conn *wire.Conn, exec string, r *wire.Reply) error {
	done, e := (<-chan struct{})(s.exited), (*execution)(nil)
	if exec != "" {
		s.mu.Lock()
		e = s.execs[exec]
		s.mu.Unlock()
		if e == nil {
			return fmt.Errorf("cannot find exec %q: %w", exec, errdefs.ErrNotFound)
		}
		done = e.ended
	}
	if err := await(conn, done, s.gone); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case e != nil:
		exit := e.exit
		r.Exit = &exit
	case s.phase == wire.Exited, s.phase == wire.Failed:
		exit := s.exit
		r.Exit = &exit
	default: // removed without having run
		r.Exit = &isolation.Exit{At: time.Now(), Error: "it was removed before it was started"}
	}
	return nil
}

// attach makes the conversation a carrier of the main process's streams.
func (s *server) attach(conn *wire.Conn, req *wire.Request) {
	c := &client{conn: conn, streams: req.Streams, ready: make(chan struct{}), left: make(chan struct{})}
	if !s.out.attach(c) {
		reply(conn, &wire.Reply{}, fmt.Errorf("cannot attach: it has ended: %w", errdefs.ErrFailedPrecondition))
		return
	}
	ok := reply(conn, &wire.Reply{}, nil)
	close(c.ready)
	if ok {
		var in sink
		if s.in != nil && req.Streams.Stdin {
			in = s.in
		}
		feed(conn, in)
	}
	s.out.detach(c)
}

// sink takes input.
type sink interface {
	Write([]byte) (int, error)
	end()
}

// feed carries input until the conversation ends. What a process no longer
// wants, or never wanted, is dropped.
func feed(conn *wire.Conn, in sink) {
	for {
		kind, b, err := conn.Next()
		if err != nil || kind != wire.Stdin {
			return
		}
		switch {
		case in == nil:
		case len(b) == 0:
			in.end()
		default:
			_, _ = in.Write(b)
		}
	}
}
