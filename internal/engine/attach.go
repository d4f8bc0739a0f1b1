package engine

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"proa/internal/event"
	"proa/internal/shim"
)

// errDetached ends a copy because the detach keys were typed.
var errDetached = errors.New("detached")

// Attachment carries streams between a client and one process.
type Attachment struct {
	tty        bool
	streams    shim.Streams
	closeStdin bool   // the end of the client's input is the end of the process's
	inputEnds  bool   // ... and of the attachment (AttachOptions.EndsWithInput)
	keys       []byte // detach keys; nil: none
	logs       func(ctx context.Context, stdout, stderr io.Writer) error
	ended      func(*shim.Stream) // at the end of Run, if the process ended under it
	detached   func()

	got  chan struct{} // closed when the next two are set
	once sync.Once
	st   *shim.Stream
	err  error
}

// deliver gives a waiting attachment its stream, or the reason why there is none.
func (a *Attachment) deliver(st *shim.Stream, err error) {
	taken := false
	a.once.Do(func() {
		a.st, a.err, taken = st, err, true
		close(a.got)
	})
	if !taken && st != nil {
		st.Close()
	}
}

// Attach prepares to carry the main process's streams, before or after its
// start; nothing is lost between Attach and Run. The caller must end it with
// Run or Close.
func (e *Engine) Attach(ctx context.Context, ref string, o AttachOptions) (*Attachment, error) {
	keys, err := detachKeys(o.DetachKeys)
	if err != nil {
		return nil, err
	}
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	c := b.snap.Load()
	switch c.State {
	case Paused:
		return nil, conflict("container %s is paused, unpause the container before attach", b.id)
	case Restarting:
		return nil, conflict("container %s is restarting, wait until the container is running", b.id)
	case Removing, Dead:
		return nil, conflict("cannot attach to container %s: it is being removed", b.id)
	}
	a := &Attachment{
		tty: c.Config.Tty, got: make(chan struct{}),
		streams:    shim.Streams{Stdin: o.Stdin && c.Config.OpenStdin, Stdout: o.Stdout, Stderr: o.Stderr && !c.Config.Tty},
		closeStdin: c.Config.StdinOnce && !c.Config.Tty, inputEnds: o.EndsWithInput,
		detached: func() { e.emit(b.snap.Load(), event.ContainerDetach) },
	}
	if c.Config.Tty {
		a.keys = keys
	}
	if o.Logs {
		a.logs = func(ctx context.Context, stdout, stderr io.Writer) error {
			return e.replay(ctx, b, o, stdout, stderr)
		}
	}
	e.emit(c, event.ContainerAttach)
	if !o.Stream {
		a.deliver(nil, nil)
		return a, nil
	}
	b.mu.Lock()
	sh := b.live.shim
	if sh == nil {
		b.live.pending = append(b.live.pending, a)
	}
	b.mu.Unlock()
	if sh != nil {
		st, err := sh.Attach(ctx, a.streams)
		if errdefs.IsFailedPrecondition(err) || errdefs.IsUnavailable(err) {
			st, err = nil, nil // it has just ended: nothing more will come
		}
		if err != nil {
			return nil, err
		}
		a.deliver(st, nil)
	}
	return a, nil
}

// linkAttached connects who attached before the start; later ones find the
// shim themselves.
func (e *Engine) linkAttached(ctx context.Context, b *box, sh *shim.Shim) {
	var waiting []*Attachment
	b.mu.Lock()
	b.live.shim = sh
	waiting, b.live.pending = b.live.pending, nil
	b.mu.Unlock()
	for _, a := range waiting {
		select {
		case <-a.got:
			continue // given up
		default:
		}
		a.deliver(sh.Attach(ctx, a.streams))
	}
}

// refuseAttached ends all that wait for a start which will not be.
func (e *Engine) refuseAttached(b *box) {
	var waiting []*Attachment
	b.mu.Lock()
	waiting, b.live.pending = b.live.pending, nil
	b.mu.Unlock()
	for _, a := range waiting {
		a.deliver(nil, nil)
	}
}

// TTY says whether the process has a terminal: then there is one raw stream.
func (a *Attachment) TTY() bool { return a.tty }

// TakesInput says whether Run reads its stdin.
func (a *Attachment) TakesInput() bool { return a.streams.Stdin }

// Close gives up an attachment that will not be run.
func (a *Attachment) Close() error {
	a.deliver(nil, nil)
	if a.st != nil {
		return a.st.Close()
	}
	return nil
}

// Run copies until the process has ended and its output is delivered, the
// detach keys were typed (nil as well), a writer failed, or ctx ended. A nil
// stdin sends nothing; the end of stdin reaches the process where Docker lets
// it. A read of stdin may still be under way when Run returns: the caller ends
// it by closing what it reads from.
func (a *Attachment) Run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) error {
	defer a.Close()
	if a.logs != nil {
		if err := a.logs(ctx, stdout, stderr); err != nil {
			return err
		}
	}
	select {
	case <-a.got:
	case <-ctx.Done():
		return ctx.Err()
	}
	if a.err != nil || a.st == nil {
		return a.err
	}
	st := a.st
	defer context.AfterFunc(ctx, func() { st.Close() })()
	input := make(chan error, 1)
	if stdin != nil && (a.streams.Stdin || a.inputEnds) {
		go func() {
			if err := a.copyStdin(st, stdin); errors.Is(err, errDetached) || a.inputEnds {
				input <- errDetached
				st.Close()
			}
		}()
	}
	err := st.Copy(stdout, stderr)
	select {
	case <-input:
		a.detached()
		return nil
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && a.ended != nil {
		a.ended(st)
	}
	return err
}

// copyStdin carries the client's input until its end, the detach keys, or the
// end of the process.
func (a *Attachment) copyStdin(st *shim.Stream, stdin io.Reader) error {
	if !a.streams.Stdin {
		_, err := io.Copy(io.Discard, stdin)
		return err
	}
	var r io.Reader = stdin
	if len(a.keys) > 0 {
		r = &escape{r: stdin, keys: a.keys}
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{st}, struct{ io.Reader }{r}, make([]byte, 16<<10))
	if errors.Is(err, errDetached) {
		return err
	}
	if a.closeStdin {
		return st.CloseWrite()
	}
	return err
}

// escape reads until the detach keys come, each typed alone as a terminal
// sends them, and gives everything else on.
type escape struct {
	r    io.Reader
	keys []byte
	at   int    // how many keys have matched
	held []byte // to be given before the next read
}

func (x *escape) Read(p []byte) (int, error) {
	if len(x.held) > 0 {
		n := copy(p, x.held)
		x.held = x.held[n:]
		return n, nil
	}
	n, err := x.r.Read(p)
	if n == 1 && p[0] == x.keys[x.at] {
		x.at++
		if x.at == len(x.keys) {
			return 0, errDetached
		}
		return 0, err // hold it back: it may be the beginning
	}
	if x.at > 0 && n > 0 { // it was not: give what was held, then this
		x.held = append(append(x.held, x.keys[:x.at]...), p[:n]...)
		x.at = 0
		if n == 1 && p[0] == x.keys[0] { // "ctrl-p ctrl-p ctrl-q"
			x.held = x.held[:len(x.held)-1]
			x.at = 1
		}
		n = copy(p, x.held)
		x.held = x.held[n:]
	}
	return n, err
}

// detachKeys reads Docker's "ctrl-p,ctrl-q" into the bytes that a terminal
// sends. A single character is itself; names are "DEL" and "ctrl-" with one of
// a-z @ [ \ ] ^ _, in this case alone (moby/term, ascii.go).
func detachKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{16, 17}, nil
	}
	var out []byte
	for _, k := range strings.Split(s, ",") {
		c, ctrl := strings.CutPrefix(k, "ctrl-")
		switch {
		case len(k) == 1:
			out = append(out, k[0])
		case ctrl && len(c) == 1 && (c[0] >= 'a' && c[0] <= 'z' || strings.Contains(`@[\]^_`, c)):
			out = append(out, c[0]&0x1f)
		case k == "DEL":
			out = append(out, 127)
		default:
			return nil, invalid("Invalid detach keys (%s) provided", s)
		}
	}
	return out, nil
}

// replay writes what was logged so far.
func (e *Engine) replay(ctx context.Context, b *box, o AttachOptions, stdout, stderr io.Writer) error {
	lines, err := e.Logs(ctx, b.id, LogsOptions{Stdout: o.Stdout, Stderr: o.Stderr, Tail: -1})
	if err != nil {
		return err
	}
	for l, err := range lines {
		if err != nil {
			return err
		}
		w := stdout
		if l.Stream == "stderr" {
			w = stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(l.Text); err != nil {
			return err
		}
	}
	return nil
}
