package wire

import (
	"context"
	"io"
	"sync"
	"time"

	"proa/internal/isolation"
)

// process is one process in the guest as the host sees it; it is the
// isolation.Running that Start and Exec return.
type process struct {
	client *Client
	id     uint32
	stdio  isolation.Stdio
	wants  *isolation.Process

	// Set by attach, before anything of the process can arrive.
	in  *Outbox   // nil: no stdin
	out [3]*Inbox // by stream; nil: no such stream
	pid int       // set by Start's reply

	delivered sync.WaitGroup // one per output
	exited    chan struct{}  // closed after exit or lost was set
	exit      isolation.Exit
	failure   *Failure // of a Files request
	lost      error    // the connection ended first
}

func (c *Client) run(ctx context.Context, op Op, what string, wants *isolation.Process, stdio isolation.Stdio) (isolation.Running, error) {
	p := &process{client: c, wants: wants, stdio: stdio, exited: make(chan struct{})}
	k := &call{op: op, done: make(chan result, 1)}
	k.forget = func(r result) {
		if r.err == nil {
			// It was started for somebody who has given up.
			_ = p.Signal(context.Background(), killed)
		}
	}
	_, b, err := c.request(ctx, k, p, what+" a process", wants)
	if err != nil {
		p.abort(err)
		return nil, err
	}
	var s Started
	if err := DecodeJSON(b, &s); err != nil {
		c.conn.Close()
		return nil, err
	}
	p.pid = s.PID
	if p.in != nil {
		go p.feed()
	}
	return p, nil
}

// attach gives the process its id and streams; called with the client's mu held.
func (p *process) attach(c *Client, id uint32) {
	p.id = id
	open := func(sub uint8, w io.Writer) {
		in := NewInbox(c.conn, c.epoch, id, sub)
		p.out[sub] = in
		p.delivered.Add(1)
		go func() {
			defer p.delivered.Done()
			if w == nil {
				w = io.Discard
			}
			// An error is either the writer's, who knows it, or the connection's, which Wait reports.
			_ = in.Deliver(w)
		}()
	}
	open(Stdout, p.stdio.Stdout)
	if !p.wants.Terminal {
		open(Stderr, p.stdio.Stderr)
	}
	if p.wants.Stdin {
		p.in = NewOutbox(c.conn, c.epoch, id, Stdin)
	}
}

// feed sends stdin until it ends or the process no longer reads. It may hang in
// a Read of the caller's stdin after the process has ended, as any copy from a
// reader without a deadline must.
func (p *process) feed() {
	r := p.stdio.Stdin
	if r == nil {
		r = eof{}
	}
	_ = p.in.SendFrom(r, make([]byte, HeaderLen+16<<10), false)
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// handle takes one frame of the process; called by the connection's reader.
func (p *process) handle(h Header) error {
	switch h.Type {
	case TypeData, TypeEOF:
		if h.Sub == Stdin || int(h.Sub) >= len(p.out) || p.out[h.Sub] == nil {
			return violation("data on stream %d/%d, which is no output", h.ID, h.Sub)
		}
		if h.Type == TypeData {
			return p.out[h.Sub].Receive(h)
		}
		p.out[h.Sub].End(io.EOF)
	case TypeCredit, TypeRefuse:
		if h.Sub != Stdin || p.in == nil {
			return violation("credit on stream %d/%d, which is no input", h.ID, h.Sub)
		}
		if h.Type == TypeRefuse {
			p.in.End(io.ErrClosedPipe)
			return nil
		}
		b, err := p.client.conn.Payload()
		if err != nil {
			return err
		}
		return p.in.Grant(b)
	case TypeExited:
		b, err := p.client.conn.Payload()
		if err != nil {
			return err
		}
		var x Exited
		if err := DecodeJSON(b, &x); err != nil {
			return err
		}
		if x.Code < 0 || x.Code > 255 || x.Signal < 0 || x.Signal > 64 {
			return violation("process %d ended with code %d, signal %d", h.ID, x.Code, x.Signal)
		}
		c := p.client
		c.mu.Lock()
		started := c.calls[h.ID] == nil
		delete(c.procs, h.ID)
		c.mu.Unlock()
		if !started {
			return violation("process %d ended before it was started", h.ID)
		}
		p.failure = x.Failure
		p.exit = isolation.Exit{Code: x.Code, Signal: x.Signal, OOMKilled: x.OOMKilled, At: time.Now()} // the guest has a clock of its own
		p.finish(nil, io.EOF)
	}
	return nil
}

// abort ends a process that will never report its end.
func (p *process) abort(err error) {
	p.finish(err, err)
}

func (p *process) finish(lost, end error) {
	for _, in := range p.out {
		if in != nil {
			in.End(end)
		}
	}
	if p.in != nil {
		p.in.End(io.ErrClosedPipe)
	}
	p.client.mu.Lock()
	defer p.client.mu.Unlock()
	select {
	case <-p.exited:
	default:
		p.lost = lost
		close(p.exited)
	}
}

// Pid is the process id in the guest.
func (p *process) Pid() int { return p.pid }

// Signal sends a signal; errdefs.ErrNotFound after the process has ended.
func (p *process) Signal(ctx context.Context, sig int) error {
	_, err := p.client.do(ctx, OpSignal, "signal a process of the guest", Signal{Process: p.id, Signal: sig})
	return err
}

// Resize sets the size of the terminal; errdefs.ErrNotFound after the process has ended.
func (p *process) Resize(ctx context.Context, rows, cols uint16) error {
	_, err := p.client.do(ctx, OpResize, "resize a terminal of the guest", Resize{Process: p.id, Rows: rows, Cols: cols})
	return err
}

// Wait returns after the process has ended and its output was delivered. If the
// connection ends first the error is errdefs.ErrUnavailable.
func (p *process) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-p.exited:
	case <-ctx.Done():
		return isolation.Exit{}, context.Cause(ctx)
	}
	if p.lost != nil {
		return isolation.Exit{}, p.client.fail("wait for a process of the guest", p.lost)
	}
	done := make(chan struct{})
	go func() {
		p.delivered.Wait()
		close(done)
	}()
	select {
	case <-done:
		return p.exit, nil
	case <-ctx.Done():
		return isolation.Exit{}, context.Cause(ctx)
	}
}
