package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"proa/internal/isolation"

	"github.com/containerd/errdefs"
)

// Client is the host's half of one connection. Its methods can be called by
// many goroutines. What the agent sends is bounded in memory: a Window per
// output stream that the caller asked for, and one message.
//
// A violation of the protocol closes the connection. Afterwards every method
// fails with errdefs.ErrUnavailable and every Running.Wait returns.
type Client struct {
	conn   *Conn
	closed chan struct{} // closed when the reader has ended

	mu       sync.Mutex // guards what follows; never held across I/O
	epoch    uint32     // 0 until Hello
	next     uint32     // id of the last request
	calls    map[uint32]*call
	procs    map[uint32]*process
	greeting chan result // not nil while a greeting waits for its answer
	reading  bool
	err      error // why the reader has ended
}

// call is one request under way.
type call struct {
	op     Op
	done   chan result // one result, buffered
	gone   bool        // nobody waits any more; the reply is still to come
	forget func(result)
}

type result struct {
	payload []byte
	err     error
}

// NewClient speaks to an agent over rw, and owns rw from now on. Nothing is sent before Hello.
func NewClient(rw io.ReadWriteCloser) *Client {
	return &Client{
		conn:   NewConn(rw, false),
		closed: make(chan struct{}),
		calls:  map[uint32]*call{},
		procs:  map[uint32]*process{},
	}
}

// Hello greets the agent and waits until it answers, which it does as soon as
// the guest is up. It is called once, before anything else. A different
// version is errdefs.ErrFailedPrecondition.
func (c *Client) Hello(ctx context.Context) (*Welcome, error) { return c.hello(ctx, false) }

// Resume is Hello for a guest that was restored from memory: it ends whatever
// the agent was reading when it was frozen. Processes of an earlier connection
// lose their streams.
func (c *Client) Resume(ctx context.Context) (*Welcome, error) { return c.hello(ctx, true) }

func (c *Client) hello(ctx context.Context, resume bool) (*Welcome, error) {
	c.mu.Lock()
	if c.reading {
		c.mu.Unlock()
		return nil, fmt.Errorf("cannot greet the guest agent twice: %w", errdefs.ErrFailedPrecondition)
	}
	c.reading = true
	for c.epoch == 0 {
		c.epoch = rand.Uint32()
	}
	epoch := c.epoch
	c.greeting = make(chan result, 1)
	greeting := c.greeting
	c.mu.Unlock()

	c.conn.SetEpoch(epoch)
	go c.read()
	if resume {
		if err := c.conn.flush(); err != nil {
			return nil, c.broken("greet the guest agent")
		}
	}
	if err := c.conn.SendMessage(Header{Epoch: epoch, Type: TypeHello}, Greeting{Version: Version, Epoch: epoch}); err != nil {
		return nil, c.broken("greet the guest agent")
	}
	var r result
	select {
	case r = <-greeting:
	case <-c.closed:
		return nil, c.fail("greet the guest agent", nil)
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot greet the guest agent: no answer: %w", context.Cause(ctx))
	}
	var w Welcome
	if err := DecodeJSON(r.payload, &w); err != nil {
		c.Close()
		return nil, fmt.Errorf("cannot greet the guest agent: %w", err)
	}
	if w.Version != Version {
		c.Close()
		return nil, fmt.Errorf("cannot talk to the guest agent: it speaks version %d of the protocol, this program %d: %w", w.Version, Version, errdefs.ErrFailedPrecondition)
	}
	return &w, nil
}

// Setup makes the guest's root, network and limits. It is called once.
func (c *Client) Setup(ctx context.Context, s *Setup) error {
	_, err := c.do(ctx, OpSetup, "set up the guest", s)
	return err
}

// Start runs the main process. It returns after the exec, or an
// *isolation.StartError that says why there was none. When the main process
// ends, everything else in the guest is killed, as the end of a container's
// first process does.
func (c *Client) Start(ctx context.Context, p *isolation.Process, stdio isolation.Stdio) (isolation.Running, error) {
	return c.run(ctx, OpStart, "start", p, stdio)
}

// Exec runs one more process, after Start. Same errors as Start.
func (c *Client) Exec(ctx context.Context, p *isolation.Process, stdio isolation.Stdio) (isolation.Running, error) {
	return c.run(ctx, OpExec, "exec", p, stdio)
}

// Stats reads what the guest's kernel counts.
func (c *Client) Stats(ctx context.Context) (*GuestStats, error) {
	b, err := c.do(ctx, OpStats, "read the guest's statistics", nil)
	if err != nil {
		return nil, err
	}
	var s GuestStats
	return &s, DecodeJSON(b, &s)
}

// maxListed bounds a list of processes; the agent stops there as well.
const maxListed = 4096

// Processes lists the guest's processes without kernel threads and the agent.
func (c *Client) Processes(ctx context.Context) ([]isolation.ProcessInfo, error) {
	b, err := c.do(ctx, OpProcesses, "list the guest's processes", nil)
	if err != nil {
		return nil, err
	}
	// One by one: "{}" costs the agent three bytes and us forty times as much.
	d := json.NewDecoder(bytes.NewReader(b))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, violation("malformed list of processes")
	}
	list := []isolation.ProcessInfo{}
	for d.More() {
		if len(list) == maxListed {
			return nil, violation("list of more than %d processes", maxListed)
		}
		var p isolation.ProcessInfo
		if err := d.Decode(&p); err != nil {
			return nil, violation("malformed list of processes: %v", err)
		}
		list = append(list, p)
	}
	return list, nil
}

// SetTime sets the guest's clock.
func (c *Client) SetTime(ctx context.Context, t time.Time) error {
	_, err := c.do(ctx, OpSetTime, "set the guest's clock", t.UnixNano())
	return err
}

// Ping asks for a sign of life and returns how long it took.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	_, err := c.do(ctx, OpPing, "ping the guest agent", nil)
	return time.Since(begin), err
}

// Update changes limits while the guest runs.
func (c *Client) Update(ctx context.Context, l Limits) error {
	_, err := c.do(ctx, OpUpdate, "change the guest's limits", l)
	return err
}

// Shutdown kills what still runs, writes everything to the disk and makes it
// read-only. When it returns nil the disk is clean and the guest is about to
// power off.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.do(ctx, OpShutdown, "shut down the guest", nil)
	return err
}

// Closed is closed when the connection has ended, for whatever reason.
func (c *Client) Closed() <-chan struct{} { return c.closed }

// Err says why the connection has ended; nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and everything that waits on it.
func (c *Client) Close() error {
	err := c.conn.Close()
	c.mu.Lock()
	reading := c.reading
	c.reading = true // no Hello any more
	c.mu.Unlock()
	if !reading {
		c.end(io.ErrClosedPipe)
	}
	<-c.closed
	return err
}

// fail gives an error of the connection its words and kind.
func (c *Client) fail(what string, err error) error {
	if err == nil {
		err = c.Err()
	}
	return fmt.Errorf("cannot %s: the connection to the guest agent has ended (%w): %w", what, err, errdefs.ErrUnavailable)
}

// broken is for a write that failed: the reader knows better why.
func (c *Client) broken(what string) error {
	c.conn.Close()
	<-c.closed
	return c.fail(what, nil)
}

// begin registers a request and returns its id.
func (c *Client) begin(k *call, p *process) (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return 0, fmt.Errorf("the connection to the guest agent has ended (%w): %w", c.err, errdefs.ErrUnavailable)
	case c.epoch == 0:
		return 0, fmt.Errorf("the guest agent was not greeted: %w", errdefs.ErrFailedPrecondition)
	case len(c.calls) >= MaxPending:
		return 0, fmt.Errorf("the guest agent has not answered %d requests: %w", len(c.calls), errdefs.ErrUnavailable)
	case p != nil && len(c.procs) >= MaxProcesses:
		return 0, fmt.Errorf("%d processes are running already: %w", len(c.procs), errdefs.ErrResourceExhausted)
	}
	c.next++
	c.calls[c.next] = k
	if p != nil {
		p.attach(c, c.next)
		c.procs[c.next] = p
	}
	return c.next, nil
}

// drop forgets a request that was never sent.
func (c *Client) drop(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, id)
	delete(c.procs, id)
}

func (c *Client) do(ctx context.Context, op Op, what string, arg any) ([]byte, error) {
	_, b, err := c.request(ctx, &call{op: op, done: make(chan result, 1)}, nil, what, arg)
	return b, err
}

// request sends a request and waits for its reply or ctx. A reply that comes
// after ctx has ended goes to k.forget.
func (c *Client) request(ctx context.Context, k *call, p *process, what string, arg any) (uint32, []byte, error) {
	if err := ctx.Err(); err != nil {
		return 0, nil, fmt.Errorf("cannot %s: %w", what, context.Cause(ctx))
	}
	id, err := c.begin(k, p)
	if err != nil {
		return 0, nil, fmt.Errorf("cannot %s: %w", what, err)
	}
	if err := c.conn.SendMessage(Header{Epoch: c.epoch, Type: TypeRequest, Sub: uint8(k.op), ID: id}, arg); err != nil {
		c.drop(id)
		select {
		case <-c.closed:
			return 0, nil, c.fail(what, nil)
		default:
			return 0, nil, fmt.Errorf("cannot %s: %w", what, err)
		}
	}
	select {
	case r := <-k.done:
		return id, r.payload, c.explain(what, r.err)
	case <-c.closed:
		return 0, nil, c.fail(what, nil)
	case <-ctx.Done():
	}
	c.mu.Lock()
	select {
	case r := <-k.done: // it came just now
		c.mu.Unlock()
		return id, r.payload, c.explain(what, r.err)
	default:
	}
	k.gone = true
	c.mu.Unlock()
	return 0, nil, fmt.Errorf("cannot %s: no answer from the guest agent: %w", what, context.Cause(ctx))
}

// explain turns a Failure into the error that callers know.
func (c *Client) explain(what string, err error) error {
	var f *Failure
	if !errors.As(err, &f) {
		return err
	}
	switch f.Kind {
	case FailNotFound, FailNotAllowed, FailFailed:
		return &isolation.StartError{Kind: isolation.StartKind(f.Kind), Step: f.Step, Why: f.Why}
	case FailGone:
		return fmt.Errorf("cannot %s: %s: %w", what, f.Why, errdefs.ErrNotFound)
	case FailInvalid:
		return fmt.Errorf("cannot %s: %s: %w", what, f.Why, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("cannot %s: %s: %s: %w", what, f.Step, f.Why, errdefs.ErrUnknown)
}

// read is the connection's reader; it never waits for anything but the stream.
func (c *Client) read() {
	for {
		h, err := c.conn.Next()
		if err == nil {
			err = c.handle(h)
		}
		if err != nil {
			c.conn.Close()
			c.end(err)
			return
		}
	}
}

// end wakes all who wait. Called once.
func (c *Client) end(err error) {
	c.mu.Lock()
	c.err = err
	procs := c.procs
	c.procs = map[uint32]*process{}
	c.mu.Unlock()
	for _, p := range procs {
		p.abort(err)
	}
	close(c.closed)
}

func (c *Client) handle(h Header) error {
	c.mu.Lock()
	epoch, greeting, next := c.epoch, c.greeting, c.next
	c.mu.Unlock()
	if h.Epoch != epoch {
		return nil // what a frozen guest still had to say to somebody else
	}
	if h.Type == TypeHello {
		b, err := c.conn.Payload()
		if err != nil {
			return err
		}
		if greeting == nil {
			return violation("a greeting that nobody asked for")
		}
		c.mu.Lock()
		c.greeting = nil
		c.mu.Unlock()
		greeting <- result{payload: b}
		return nil
	}
	if h.ID == 0 || h.ID > next {
		return violation("frame of type %d for %d, which was never asked for", h.Type, h.ID)
	}
	switch h.Type {
	case TypeReply, TypeError:
		return c.reply(h)
	case TypeData, TypeEOF, TypeCredit, TypeRefuse, TypeExited:
		c.mu.Lock()
		p := c.procs[h.ID]
		c.mu.Unlock()
		if p == nil && (h.Type == TypeCredit || h.Type == TypeRefuse) {
			return nil // it crossed with the process's end
		}
		if p == nil {
			return violation("frame of type %d for %d, which is no running process", h.Type, h.ID)
		}
		return p.handle(h)
	}
	return violation("frame of type %d from an agent", h.Type)
}

// reply hands a reply to the one who waits.
func (c *Client) reply(h Header) error {
	c.mu.Lock()
	k := c.calls[h.ID]
	c.mu.Unlock()
	if k == nil {
		return violation("second reply to request %d", h.ID)
	}
	var r result
	if h.Type == TypeReply {
		if Op(h.Sub&^More) != k.op {
			return violation("reply to request %d says op %d, not %d", h.ID, h.Sub&^More, k.op)
		}
		b, done, err := c.conn.Message(h)
		if err != nil || !done {
			return err
		}
		r.payload = b
	} else {
		b, err := c.conn.Payload()
		if err != nil {
			return err
		}
		f := new(Failure)
		if err := DecodeJSON(b, f); err != nil {
			return err
		}
		r.err = f
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, h.ID)
	if r.err != nil {
		delete(c.procs, h.ID)
	}
	if !k.gone {
		k.done <- r
	} else if k.forget != nil {
		go k.forget(r)
	}
	return nil
}

// killed is the signal for a process whose start nobody waited for.
const killed = int(syscall.SIGKILL)
