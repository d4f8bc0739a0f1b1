package api

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"proa/internal/sys"
)

// Content types of Docker's streams.
const (
	rawStream         = "application/vnd.docker.raw-stream"
	multiplexedStream = "application/vnd.docker.multiplexed-stream"
)

// multiplexer writes Docker's frames: stream number, three zero bytes, length
// as big endian, data. Streams of one connection share its lock.
type multiplexer struct {
	mu *sync.Mutex
	w  io.Writer
	id byte
}

// multiplex makes the two writers of one connection.
func multiplex(w io.Writer) (stdout, stderr io.Writer) {
	mu := new(sync.Mutex)
	return &multiplexer{mu, w, 1}, &multiplexer{mu, w, 2}
}

func (m *multiplexer) Write(p []byte) (int, error) {
	var h [8]byte
	h[0] = m.id
	binary.BigEndian.PutUint32(h[4:], uint32(len(p)))
	m.mu.Lock()
	defer m.mu.Unlock()
	bufs := net.Buffers{h[:], p}
	w := m.w
	if conn, ok := w.(*hijacked); ok {
		conn.awaitHead()
		w = conn.Conn // takes both in one call
	}
	n, err := bufs.WriteTo(w)
	return max(0, int(n)-len(h)), err
}

// hijacked is a connection that has left HTTP.
type hijacked struct {
	net.Conn
	mu   sync.Mutex // held while r is read: finish follows on whoever read before
	r    *bufio.Reader
	head sync.Once     // done when the client has the head
	eof  sync.Once     // done at the end of the client's input
	quit chan struct{} // closed by finish
	gone func()        // called when the client has hung up; set before the first Read
}

// headLimit is how long output waits for a client to read the head.
const headLimit = time.Second

// awaitHead waits until the client has read the head, so that a client which
// reads it with a buffer finds nothing else in there, however quick the process
// and however slow the client is. It is noticed on unix sockets only; on others
// nothing is waited for.
func (h *hijacked) awaitHead() {
	h.head.Do(func() {
		pause := 20 * time.Microsecond
		for end := time.Now().Add(headLimit); time.Now().Before(end); time.Sleep(pause) {
			if n, err := sys.Unread(h.Conn); n == 0 || err != nil {
				return
			}
			pause = min(2*pause, time.Millisecond)
		}
	})
}

func (h *hijacked) Write(p []byte) (int, error) {
	h.awaitHead()
	return h.Conn.Write(p)
}

// Read reads the client's input. Its end may be a half-close or the client's
// own end, which from then on is looked for.
func (h *hijacked) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, err := h.r.Read(p)
	if err != nil {
		h.eof.Do(func() { go h.watch() })
	}
	return n, err
}

// watchTime is how often a client that sends nothing more is looked at.
const watchTime = 500 * time.Millisecond

// watch calls gone when the client has hung up: a process that writes nothing
// would keep the connection for ever.
func (h *hijacked) watch() {
	c, ok := h.Conn.(syscall.Conn)
	if !ok || h.gone == nil {
		return
	}
	t := time.NewTicker(watchTime)
	defer t.Stop()
	for {
		if gone, err := sys.HungUp(c); gone || err != nil {
			h.gone()
			return
		}
		select {
		case <-t.C:
		case <-h.quit:
			return
		}
	}
}

// farewell is how long a client may take to hang up after the end of its stream.
const farewell = 5 * time.Second

// finish tells the client that nothing more comes and waits until it hangs up.
// Unread input must not be in the socket when it is closed: the
// kernel would send a reset, and what was written last would be lost.
func (h *hijacked) finish() {
	close(h.quit)
	if cw, ok := h.Conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		_ = h.Conn.SetReadDeadline(time.Now().Add(farewell))
		_, _ = io.Copy(io.Discard, h)
	}
	_ = h.Conn.Close()
}

// hijack leaves HTTP: the head goes out in a write of its own, then the
// connection is the stream. A client that asked for an upgrade gets 101 and
// the stream's type; another one 200 and the type that all versions had.
func (c *call) hijack(tty bool) (*hijacked, error) {
	conn, rw, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		if errors.Is(err, http.ErrNotSupported) {
			return nil, bad("cannot leave HTTP on this connection: HTTP/1.1 is needed")
		}
		return nil, err
	}
	c.started = true
	_ = conn.SetDeadline(noDeadline)
	var head bytes.Buffer
	if _, upgrade := c.Request.Header["Upgrade"]; upgrade {
		head.WriteString("HTTP/1.1 101 UPGRADED\r\nContent-Type: " + c.streamType(tty) + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n")
	} else {
		head.WriteString("HTTP/1.1 200 OK\r\nContent-Type: " + rawStream + "\r\n")
	}
	_ = engineHeaders(c.Header()).Write(&head) // a buffer takes it
	head.WriteString("\r\n")
	if _, err := conn.Write(head.Bytes()); err != nil {
		conn.Close()
		return nil, err
	}
	return &hijacked{Conn: conn, r: rw.Reader, quit: make(chan struct{})}, nil
}

// outputs are the two ends of a process's output on the connection: frames,
// or for a client that expects a terminal one raw stream without stderr.
func (h *hijacked) outputs(tty bool) (stdout, stderr io.Writer) {
	if tty {
		return h, nil
	}
	return multiplex(h)
}

// streamType is what a client of this version expects for a process.
func (c *call) streamType(tty bool) string {
	if tty || c.version < 42 {
		return rawStream
	}
	return multiplexedStream
}
