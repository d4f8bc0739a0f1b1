package proatest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Wire is one connection to an API's unix socket, on which a test writes and
// reads the bytes of HTTP itself: what comes in which read is what it looks at.
type Wire struct {
	*net.UnixConn
	t testing.TB
}

// wireLimit is how long a whole conversation may take.
const wireLimit = 2 * time.Minute

// NewWire connects to a socket. The connection is closed when the test ends.
func NewWire(t testing.TB, socket string) *Wire {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(wireLimit)); err != nil {
		t.Fatal(err)
	}
	return &Wire{c, t}
}

// Upgrade are the headers of a client that wants the connection.
var Upgrade = []string{"Connection", "Upgrade", "Upgrade", "tcp"}

// Ask writes a request in one write. A body is JSON with its length unless
// header (name, value, ...) says something else; an empty value leaves one out.
func (w *Wire) Ask(method, path, body string, header ...string) {
	w.t.Helper()
	if _, err := w.Write(RequestBytes(method, path, body, header...)); err != nil {
		w.t.Fatal(err)
	}
}

// RequestBytes are the bytes of a request of HTTP/1.1, as Ask writes them.
func RequestBytes(method, path, body string, header ...string) []byte {
	h := textproto.MIMEHeader{}
	if body != "" {
		h.Set("Content-Type", "application/json")
	}
	if body != "" || method == "POST" {
		h.Set("Content-Length", strconv.Itoa(len(body)))
	}
	for i := 0; i+1 < len(header); i += 2 {
		h.Del(header[i])
		if header[i+1] != "" {
			h.Set(header[i], header[i+1])
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: docker\r\n", method, path)
	_ = http.Header(h).Write(&b) // a buffer takes it
	b.WriteString("\r\n" + body)
	return b.Bytes()
}

// Head reads until the empty line, as a client with a buffer does, and gives
// the status, the headers and what came behind them in the same reads.
func (w *Wire) Head() (status int, header http.Header, behind []byte) {
	w.t.Helper()
	var all []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := w.Read(buf)
		all = append(all, buf[:n]...)
		if head, rest, ok := bytes.Cut(all, []byte("\r\n\r\n")); ok {
			line, fields, _ := strings.Cut(string(head), "\r\n")
			_, code, _ := strings.Cut(line, " ")
			code, _, _ = strings.Cut(code, " ")
			if status, err = strconv.Atoi(code); err != nil {
				w.t.Fatalf("no status in %q", line)
			}
			h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(fields + "\r\n\r\n"))).ReadMIMEHeader()
			if err != nil {
				w.t.Fatalf("cannot read the head %q: %v", head, err)
			}
			return status, http.Header(h), rest
		}
		if err != nil {
			w.t.Fatalf("no head: %v after %q", err, all)
		}
	}
}

// Rest reads to the end of the stream.
func (w *Wire) Rest() []byte {
	w.t.Helper()
	b, err := io.ReadAll(w.UnixConn)
	if err != nil {
		w.t.Fatalf("the stream breaks off: %v after %q", err, b)
	}
	return b
}

// EndInput half-closes: nothing more is sent.
func (w *Wire) EndInput() {
	w.t.Helper()
	if err := w.CloseWrite(); err != nil {
		w.t.Fatal(err)
	}
}

// Frames splits Docker's multiplexed stream into what each stream brought.
func Frames(b []byte) (stdout, stderr string, err error) {
	var out [3]strings.Builder
	for len(b) > 0 {
		if len(b) < 8 || b[0] < 1 || b[0] > 2 || !bytes.Equal(b[1:4], []byte{0, 0, 0}) {
			return "", "", fmt.Errorf("no frame: %q", b)
		}
		n := int(binary.BigEndian.Uint32(b[4:]))
		if len(b) < 8+n {
			return "", "", errors.New("a frame is cut")
		}
		out[b[0]].Write(b[8 : 8+n])
		b = b[8+n:]
	}
	return out[1].String(), out[2].String(), nil
}
