package shim

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"proa/internal/rootfs"
	"proa/internal/shim/wire"
)

// Files carries out one operation on the files of an instance that the host
// must not touch: a VM's. in and out are its streams and may be nil. It works
// from Create on, also before Start, until the instance is shut down; with
// isolation.Spec.Hold that is not before Delete. Errors keep the kinds of
// rootfs.Tree.Serve; a container's shim answers errdefs.ErrNotImplemented,
// because the engine reads a container's files itself.
func (s *Shim) Files(ctx context.Context, r *rootfs.Request, in io.Reader, out io.Writer) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := interruptible(ctx, conn)
	defer stop()
	if _, err := ask(conn, &wire.Request{Op: wire.Files, Files: r, Streams: wire.Streams{Stdin: in != nil, Stdout: out != nil}}); err != nil {
		return s.explain(ctx, wire.Files, err)
	}
	failed := make(chan error, 1)
	if in != nil {
		go func() { // it ends with the conversation or with in
			err := send(conn, in)
			failed <- err
			if err != nil {
				conn.Close() // so that half an input is not taken for a whole one
			}
		}()
	}
	err = receive(conn, out)
	select {
	case inErr := <-failed:
		if inErr != nil {
			return fmt.Errorf("cannot read what is to be written: %w", inErr)
		}
	default:
	}
	if err != nil {
		return s.explain(ctx, wire.Files, err)
	}
	return nil
}

// send carries in to the shim and returns an error of in; one of the
// conversation is its reader's.
func send(conn *wire.Conn, in io.Reader) error {
	buf := make([]byte, wire.MaxData)
	for {
		n, err := in.Read(buf)
		if n > 0 && conn.Data(wire.Stdin, buf[:n]) != nil {
			return nil
		}
		if err == io.EOF {
			_ = conn.Data(wire.Stdin, nil)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// receive carries output until the reply that ends the operation.
func receive(conn *wire.Conn, out io.Writer) error {
	for {
		kind, b, err := conn.Next()
		if err != nil {
			return err
		}
		switch kind {
		case wire.Stdout:
			if out == nil {
				continue
			}
			if _, err := out.Write(b); err != nil {
				return fmt.Errorf("cannot deliver files: %w", err)
			}
		case wire.Tells:
			var r wire.Reply
			if err := wire.Decode(b, &r); err != nil {
				return err
			}
			if r.Error != nil {
				return r.Error
			}
			return nil
		default:
			return fmt.Errorf("unexpected frame of kind %d: %w", kind, errdefs.ErrInternal)
		}
	}
}

// Layer writes what the instance has written so far as an uncompressed OCI layer
// tar (rootfs.WriteLayer), its processes held still meanwhile. A VM must have
// been started with isolation.Spec.Hold for this to work after the end of its
// main process; then Delete ends it.
func (s *Shim) Layer(ctx context.Context, w io.Writer) error {
	return s.Files(ctx, &rootfs.Request{Op: rootfs.OpLayer, Still: true}, nil, w)
}
