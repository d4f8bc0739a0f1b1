package api

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
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
	n, err := bufs.WriteTo(m.w)
	return max(0, int(n)-len(h)), err
}

// hijacked is a connection that has left HTTP.
type hijacked struct {
	net.Conn
	r *bufio.Reader
}

func (h *hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }

// CloseWrite tells the client that nothing more comes.
func (h *hijacked) CloseWrite() {
	if cw, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
}

// hijack leaves HTTP. A client that asked for an upgrade gets 101, an older
// one 200; then the connection is the stream.
func (c *call) hijack(contentType string) (*hijacked, error) {
	conn, rw, err := http.NewResponseController(c.ResponseWriter).Hijack()
	if err != nil {
		if errors.Is(err, http.ErrNotSupported) {
			return nil, bad("cannot leave HTTP on this connection: HTTP/1.1 is needed")
		}
		return nil, err
	}
	c.started = true
	_ = conn.SetDeadline(noDeadline)
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if c.Request.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return nil, err
	}
	return &hijacked{conn, rw.Reader}, nil
}

// streamType is what a client of this version expects for a process.
func (c *call) streamType(tty bool) string {
	if tty || c.version < 42 {
		return rawStream
	}
	return multiplexedStream
}
