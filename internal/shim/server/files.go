package server

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"proa/internal/rootfs"
	"proa/internal/shim/wire"
)

// filer is an instance whose files only it can reach.
type filer interface {
	Files(ctx context.Context, r *rootfs.Request, in io.Reader, out io.Writer) error
}

// files carries out an operation on the instance's files; the conversation
// carries its streams. The end of the conversation cancels it.
func (s *server) files(conn *wire.Conn, req *wire.Request) {
	inst, err := s.filer(req)
	if !reply(conn, &wire.Reply{}, err) || err != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, w := io.Pipe()
	var in io.Reader
	if req.Streams.Stdin {
		in = r
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		feed(conn, &pipeSink{w})
		_ = w.CloseWithError(errHungUp) // unless it was ended
		cancel()
	}()
	err = inst.Files(ctx, req.Files, in, &filesOut{conn})
	_ = r.CloseWithError(errHungUp) // lets feed go on
	reply(conn, &wire.Reply{}, err)
	_ = conn.Close()
	<-fed
}

func (s *server) filer(req *wire.Request) (filer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.Files == nil {
		return nil, fmt.Errorf("cannot reach files: no operation is given: %w", errdefs.ErrInvalidArgument)
	}
	if s.inst == nil || s.phase == wire.Deleting || s.phase == wire.Exited && !s.spec.Hold {
		return nil, fmt.Errorf("cannot %s files: the instance is %s: %w", req.Files.Op, s.phase, errdefs.ErrFailedPrecondition)
	}
	f, ok := s.inst.(filer)
	if !ok {
		return nil, fmt.Errorf("cannot %s files by the shim, the host can: %w", req.Files.Op, errdefs.ErrNotImplemented)
	}
	return f, nil
}

// pipeSink is a pipe as a sink of input.
type pipeSink struct{ *io.PipeWriter }

func (p *pipeSink) end() { _ = p.Close() }

// filesOut is an operation's output.
type filesOut struct{ conn *wire.Conn }

func (o *filesOut) Write(p []byte) (int, error) {
	if err := o.conn.Data(wire.Stdout, p); err != nil {
		return 0, errors.Join(errHungUp, err)
	}
	return len(p), nil
}
