package server

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/shim/wire"
)

// keepEnded is how many exits of exec'd processes are remembered: more than can
// end between the reply to an exec and the engine's question how it ended.
const keepEnded = 1024

// execution is one exec'd process.
type execution struct {
	running isolation.Running // nil while it is started, and after the end
	exit    isolation.Exit
	ended   chan struct{} // closed when exit is set
}

// exec starts a process and makes the conversation a carrier of its streams.
// The process goes on if the conversation ends.
func (s *server) exec(conn *wire.Conn, req *wire.Request) {
	e, inst, err := s.enlist(req)
	if err != nil {
		reply(conn, &wire.Reply{}, err)
		return
	}
	c := &client{conn: conn, streams: req.Streams, ready: make(chan struct{}), left: make(chan struct{})}
	stdio := isolation.Stdio{}
	if req.Streams.Stdout {
		stdio.Stdout = &execStream{c, wire.Stdout}
	}
	if req.Streams.Stderr && !req.Process.Terminal {
		stdio.Stderr = &execStream{c, wire.Stderr}
	}
	var in *input
	if req.Process.Stdin && req.Streams.Stdin {
		if in, err = newInput(); err == nil {
			stdio.Stdin = in.reader
		}
	}
	ctx := context.Background()
	var running isolation.Running
	if err == nil {
		running, err = inst.Exec(ctx, req.Process, stdio)
	}
	if err != nil {
		if in != nil {
			in.close()
		}
		s.mu.Lock()
		delete(s.execs, req.Exec)
		s.mu.Unlock()
		c.leave()
		close(c.ready)
		reply(conn, &wire.Reply{}, err)
		return
	}
	s.mu.Lock()
	e.running = running
	s.mu.Unlock()
	if !reply(conn, &wire.Reply{Pid: running.Pid()}, nil) {
		c.leave()
	}
	close(c.ready)

	fed := make(chan struct{})
	go func() {
		defer close(fed)
		if in != nil {
			feed(conn, in)
			in.end() // nobody can attach to an exec'd process again
		} else {
			feed(conn, nil)
		}
		c.leave()
	}()
	exit, err := running.Wait(ctx)
	if err != nil {
		exit = isolation.Exit{Code: 125, At: time.Now(), Error: err.Error()}
	}
	if in != nil {
		in.close()
	}
	s.mu.Lock()
	e.exit, e.running = exit, nil
	s.ended = append(s.ended, req.Exec)
	if len(s.ended) > keepEnded {
		delete(s.execs, s.ended[0])
		s.ended = append(s.ended[:0], s.ended[1:]...)
	}
	s.mu.Unlock()
	close(e.ended)
	_ = conn.File().SetWriteDeadline(time.Now().Add(farewell))
	_ = conn.Send(wire.Ended, exit)
	_ = conn.Close()
	<-fed
}

// enlist takes an id for a process that is about to be started.
func (s *server) enlist(req *wire.Request) (*execution, isolation.Instance, error) {
	inst, err := s.running()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot exec: %w", err)
	}
	if req.Process == nil || req.Exec == "" {
		return nil, nil, fmt.Errorf("cannot exec: an id and a process are needed: %w", errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.execs[req.Exec] != nil {
		return nil, nil, fmt.Errorf("cannot exec %q: the id is taken: %w", req.Exec, errdefs.ErrAlreadyExists)
	}
	e := &execution{ended: make(chan struct{})}
	s.execs[req.Exec] = e
	return e, inst, nil
}

// leave says that a client no longer counts and wakes a write to it.
func (c *client) leave() {
	c.once.Do(func() { close(c.left) })
}

// execStream is one output stream of an exec'd process.
type execStream struct {
	c    *client
	kind wire.Kind
}

// Write carries one piece; a reader that is gone gets nothing and stops nothing.
func (w *execStream) Write(p []byte) (int, error) {
	<-w.c.ready
	select {
	case <-w.c.left:
	default:
		if w.c.conn.Data(w.kind, p) != nil {
			w.c.leave()
		}
	}
	return len(p), nil
}

// ReadFrom carries all of r through one buffer, allocated once.
func (w *execStream) ReadFrom(r io.Reader) (int64, error) { return carry(w, r) }
