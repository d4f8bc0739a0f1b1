package server

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"proa/internal/isolation"
	"proa/internal/logs"
	"proa/internal/shim/wire"
)

// errNoProcess is what opening a process that has ended gives.
const errNoProcess = syscall.ESRCH

// output carries the main process's output: first to the log, then to every
// attached client. A client that reads slowly holds the process back as soon
// as its socket is full, because `run IMAGE cat big | slow` must lose nothing;
// one that goes away stops counting at that moment.
type output struct {
	log     *logs.Writer
	clients atomic.Pointer[[]*client] // copied on write: carrying output takes no lock
	limit   atomic.Int64              // nanoseconds that one frame may take; 0: any time

	mu    sync.Mutex // guards changes of clients and ended
	ended bool
}

// client is one attached conversation.
type client struct {
	conn    *wire.Conn
	streams wire.Streams
	ready   chan struct{} // closed after its reply was sent: output comes after
	left    chan struct{} // closed when it no longer counts
	once    sync.Once
}

func newOutput(log *logs.Writer) *output {
	o := &output{log: log}
	o.clients.Store(new([]*client))
	return o
}

// attach adds a client; false after the end.
func (o *output) attach(c *client) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return false
	}
	next := append((*o.clients.Load())[:len(*o.clients.Load()):len(*o.clients.Load())], c)
	o.clients.Store(&next)
	return true
}

// detach forgets a client and wakes a write to it.
func (o *output) detach(c *client) {
	c.once.Do(func() { close(c.left) })
	_ = c.conn.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	var next []*client
	for _, other := range *o.clients.Load() {
		if other != c {
			next = append(next, other)
		}
	}
	o.clients.Store(&next)
}

// hurry gives each frame from now on, also those under way, so much time.
func (o *output) hurry(limit time.Duration) {
	o.limit.Store(int64(limit))
	for _, c := range *o.clients.Load() {
		_ = c.conn.File().SetWriteDeadline(time.Now().Add(limit))
	}
}

// end tells the exit to the clients that are there and lets them go.
func (o *output) end(e isolation.Exit) {
	o.mu.Lock()
	o.ended = true
	clients := *o.clients.Load()
	o.mu.Unlock()
	for _, c := range clients {
		<-c.ready
		_ = c.conn.File().SetWriteDeadline(time.Now().Add(farewell))
		_ = c.conn.Send(wire.Ended, e)
		o.detach(c)
	}
}

// stream gives the driver's end of stdout or stderr.
func (o *output) stream(kind wire.Kind) *outStream {
	name := "stdout"
	if kind == wire.Stderr {
		name = "stderr"
	}
	return &outStream{o: o, kind: kind, log: o.log.Stream(name)}
}

// outStream is one stream of the main process.
type outStream struct {
	o    *output
	kind wire.Kind
	log  *logs.Stream
}

// Write carries one piece. It never fails: the process goes on without readers.
func (w *outStream) Write(p []byte) (int, error) {
	_, _ = w.log.Write(p)
	for _, c := range *w.o.clients.Load() {
		if w.kind == wire.Stdout && !c.streams.Stdout || w.kind == wire.Stderr && !c.streams.Stderr {
			continue
		}
		select {
		case <-c.ready:
		case <-c.left:
			continue
		}
		if limit := w.o.limit.Load(); limit > 0 {
			_ = c.conn.File().SetWriteDeadline(time.Now().Add(time.Duration(limit)))
		}
		if c.conn.Data(w.kind, p) != nil {
			w.o.detach(c)
		}
	}
	return len(p), nil
}

// ReadFrom carries all of r through one buffer, allocated once.
func (w *outStream) ReadFrom(r io.Reader) (int64, error) { return carry(w, r) }

// carry copies all of r to w, which never fails.
func carry(w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, wire.MaxData)
	var total int64
	for {
		n, err := r.Read(buf)
		if n > 0 {
			total += int64(n)
			_, _ = w.Write(buf[:n])
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// input is the main process's standard input: a pipe that attached clients
// write into and whose reading end the driver gets.
type input struct {
	reader *os.File

	mu     sync.Mutex // guards writer's replacement by nil, not writes to it
	writer *os.File
}

func newInput() (*input, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe for the input: %w", err)
	}
	return &input{reader: r, writer: w}, nil
}

// Write blocks while the process does not read.
func (i *input) Write(b []byte) (int, error) {
	i.mu.Lock()
	w := i.writer
	i.mu.Unlock()
	if w == nil {
		return 0, io.ErrClosedPipe
	}
	return w.Write(b)
}

// end is the end of the input, once.
func (i *input) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.writer != nil {
		_ = i.writer.Close()
		i.writer = nil
	}
}

// close ends the input and wakes who still reads or writes it.
func (i *input) close() {
	i.end()
	_ = i.reader.Close()
}
