package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/shim/wire"
)

// Stream carries the input and output of one process. While it is open and not
// read, the process is held back once about 200 KiB are under way: nothing is
// lost, and a client that goes away must be noticed by closing the Stream.
type Stream struct {
	id   string
	conn *wire.Conn

	mu   sync.Mutex
	exit *isolation.Exit
}

// ExecStream is a Stream of an exec'd process.
type ExecStream struct {
	*Stream
	Pid int // on the host (container) or in the guest (VM)
}

// Attach carries the main process's streams, from now on; before Start that
// means from the first byte. errdefs.ErrFailedPrecondition after the exit.
// ctx only bounds the attaching.
func (s *Shim) Attach(ctx context.Context, streams Streams) (*Stream, error) {
	st, _, err := s.stream(ctx, &wire.Request{Op: wire.Attach, Streams: streams})
	return st, err
}

// Exec starts one more process under an id of the caller's. With no streams it
// runs detached; the ExecStream then still tells its exit. Errors as of Start.
// ctx only bounds the start.
func (s *Shim) Exec(ctx context.Context, exec string, p *isolation.Process, streams Streams) (*ExecStream, error) {
	st, reply, err := s.stream(ctx, &wire.Request{Op: wire.Exec, Exec: exec, Process: p, Streams: streams})
	if err != nil {
		return nil, err
	}
	return &ExecStream{Stream: st, Pid: reply.Pid}, nil
}

func (s *Shim) stream(ctx context.Context, req *wire.Request) (*Stream, *wire.Reply, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := interruptible(ctx, conn)
	reply, err := ask(conn, req)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, nil, s.explain(ctx, req.Op, err)
	}
	return &Stream{id: s.id, conn: conn}, reply, nil
}

// Next gives the next piece of output; data is valid until the next call.
// io.EOF: the process has ended and everything was delivered; Exit is set.
// errdefs.ErrUnavailable: the shim ended before it said so.
func (s *Stream) Next() (stderr bool, data []byte, err error) {
	for {
		kind, b, err := s.conn.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return false, nil, fmt.Errorf("cannot read the output of %q: its shim ended: %w", s.id, errdefs.ErrUnavailable)
		case err != nil:
			return false, nil, fmt.Errorf("cannot read the output of %q: %w", s.id, err)
		}
		switch kind {
		case wire.Stdout, wire.Stderr:
			if len(b) == 0 {
				continue
			}
			return kind == wire.Stderr, b, nil
		case wire.Ended:
			var e isolation.Exit
			if err := wire.Decode(b, &e); err != nil {
				return false, nil, err
			}
			s.mu.Lock()
			s.exit = &e
			s.mu.Unlock()
			return false, nil, io.EOF
		default:
			return false, nil, fmt.Errorf("cannot read the output of %q: unexpected frame of kind %d", s.id, kind)
		}
	}
}

// Copy copies output until the process has ended, a writer fails or the Stream
// is closed. A nil writer discards.
func (s *Stream) Copy(stdout, stderr io.Writer) error {
	for {
		isErr, b, err := s.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w := stdout
		if isErr {
			w = stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("cannot deliver output: %w", err)
		}
	}
}

// Wait reads away what is left of the output and returns the exit.
func (s *Stream) Wait() (isolation.Exit, error) {
	for {
		if e, ok := s.Exit(); ok {
			return e, nil
		}
		if _, _, err := s.Next(); err != nil && !errors.Is(err, io.EOF) {
			return isolation.Exit{}, err
		}
	}
}

// Exit is how the process ended; false until Next gave io.EOF.
func (s *Stream) Exit() (isolation.Exit, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exit == nil {
		return isolation.Exit{}, false
	}
	return *s.exit, true
}

// Write sends input. It blocks while the process does not read.
func (s *Stream) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if err := s.conn.Data(wire.Stdin, b); err != nil {
		return 0, fmt.Errorf("cannot send input to %q: %w", s.id, err)
	}
	return len(b), nil
}

// CloseWrite ends the process's input.
func (s *Stream) CloseWrite() error {
	if err := s.conn.Data(wire.Stdin, nil); err != nil {
		return fmt.Errorf("cannot end the input of %q: %w", s.id, err)
	}
	return nil
}

// Close detaches: neither the process nor its input ends by it. It wakes a
// Next or Write that blocks.
func (s *Stream) Close() error { return s.conn.Close() }
