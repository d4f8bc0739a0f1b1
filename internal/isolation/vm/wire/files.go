package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/rootfs"
)

// Files has the agent carry out one operation on the files of the guest's root,
// with in and out as its streams; in may be nil. It is possible from Setup to
// Shutdown, before the main process was started and after it has ended. Errors
// are those of rootfs.Tree.Serve; what the guest says is shown without control
// characters. When it returns, out is not written to any more, so it waits for a
// write that is under way.
func (c *Client) Files(ctx context.Context, r *rootfs.Request, in io.Reader, out io.Writer) error {
	what := string(r.Op) + " files of the guest"
	ends := &fileEnds{in: in, out: out}
	p := &process{client: c, exited: make(chan struct{}), wants: &isolation.Process{Stdin: true, Terminal: true}}
	p.stdio.Stdout = ends
	if in != nil {
		p.stdio.Stdin = ends
	}
	cancel := func() { _ = p.Signal(context.WithoutCancel(ctx), killed) } // an error: it has ended
	k := &call{op: OpFiles, done: make(chan result, 1), forget: func(r result) {
		if r.err == nil {
			cancel()
		}
	}}
	if _, _, err := c.request(ctx, k, p, what, r); err != nil {
		p.abort(err)
		return err
	}
	go p.feed()
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	_, err := p.Wait(ctx)
	ends.close()
	// What went wrong on this side is the reason of what went wrong on the other.
	if own := ends.failed(); own != nil {
		return fmt.Errorf("cannot %s: %w", what, own)
	}
	if err == nil && p.failure != nil {
		err = p.failure.files()
	}
	return err
}

// fileEnds are the caller's streams, and what failed of them first.
type fileEnds struct {
	in  io.Reader
	out io.Writer

	mu  sync.Mutex // guards err
	err error

	writing sync.Mutex // held across a write to out; guards over
	over    bool       // out is not the request's any more
}

// close lets go of out: what still comes is dropped.
func (e *fileEnds) close() {
	e.writing.Lock()
	defer e.writing.Unlock()
	e.over = true
}

func (e *fileEnds) Read(b []byte) (int, error) {
	n, err := e.in.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		e.note(err)
	}
	return n, err
}

func (e *fileEnds) Write(b []byte) (int, error) {
	e.writing.Lock()
	defer e.writing.Unlock()
	if e.over || e.out == nil {
		return len(b), nil
	}
	n, err := e.out.Write(b)
	if err != nil {
		e.note(err)
	}
	return n, err
}

func (e *fileEnds) note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err == nil {
		e.err = err
	}
}

func (e *fileEnds) failed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// fileKinds are the kinds of errors that a Files request can end with.
var fileKinds = []struct {
	kind FailureKind
	err  error
}{
	{FailNoFile, errdefs.ErrNotFound}, {FailBad, errdefs.ErrInvalidArgument}, {FailRefused, errdefs.ErrFailedPrecondition},
	{FailFull, errdefs.ErrResourceExhausted}, {FailUnknown, errdefs.ErrNotImplemented},
}

// maxWhy bounds the reason of a failed Files request in bytes: paths may be long.
const maxWhy = 4 << 10

// FilesFailure makes the error of a Files request ready to travel.
func FilesFailure(op rootfs.Op, err error) *Failure {
	f := &Failure{Kind: FailFailed, Step: string(op) + " files", Why: err.Error()}
	if len(f.Why) > maxWhy {
		f.Why = f.Why[:maxWhy] + "..."
	}
	for _, k := range fileKinds {
		if errors.Is(err, k.err) {
			f.Kind = k.kind
			break
		}
	}
	return f
}

// files turns the failure of a Files request into the error that it was.
func (f *Failure) files() error {
	why := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, f.Why)
	for _, k := range fileKinds {
		if f.Kind == k.kind {
			return &fileError{why, k.err}
		}
	}
	return &fileError{why, errdefs.ErrUnknown}
}

// fileError is an error of the guest with its kind, whose words it has already.
type fileError struct {
	why  string
	kind error
}

func (e *fileError) Error() string { return e.why }
func (e *fileError) Unwrap() error { return e.kind }
