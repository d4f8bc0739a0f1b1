package wire

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// HeaderLen is the length of a frame's header and of the preamble.
const HeaderLen = 16

// preamble is no valid header: its check bytes are wrong by construction
// (TestPreambleIsNoHeader). Line ends and high bytes show a transport that translates.
var preamble = [HeaderLen]byte{0x89, 'P', 'R', 'O', 'A', '\r', '\n', 0x1a, '\n', 0x00, 0xff, 'w', 'i', 'r', 'e', 0x01}

// Type is the type of a frame.
type Type uint8

// The types, see the package comment.
const (
	TypeHello Type = 1 + iota
	TypeRequest
	TypeReply
	TypeError
	TypeData
	TypeEOF
	TypeCredit
	TypeRefuse
	TypeExited
	typeEnd
)

// More is set in Sub of a Request or Reply that goes on in another frame.
const More = 0x80

// The streams of a process.
const (
	Stdin  = 0
	Stdout = 1
	Stderr = 2
)

// ErrViolation is the kind of every error that means: the peer broke the
// protocol. Nothing that it said afterwards is believed.
var ErrViolation = errors.New("protocol violation")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrViolation, fmt.Sprintf(format, args...))
}

// Header is what stands before a payload.
type Header struct {
	Epoch  uint32
	Type   Type
	Sub    uint8
	ID     uint32
	Length uint32
}

// limit is the longest payload of a frame.
func (h *Header) limit() uint32 {
	switch h.Type {
	case TypeRequest, TypeReply, TypeData:
		return MaxData
	case TypeHello, TypeError, TypeExited:
		return MaxNote
	case TypeCredit:
		return 4
	default:
		return 0
	}
}

// as is the header of a frame of type t on the same stream.
func (h Header) as(t Type) Header {
	h.Type = t
	return h
}

// Append appends the encoded header to b.
func (h Header) Append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, HeaderLen)...)
	h.put(b[at:])
	return b
}

func (h *Header) put(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], h.Epoch)
	b[4], b[5] = byte(h.Type), h.Sub
	le.PutUint32(b[8:], h.ID)
	le.PutUint32(b[12:], h.Length)
	le.PutUint16(b[6:], check(b))
}

// check sums a header without its own two bytes. The start value makes a
// header of zeros invalid.
func check(b []byte) uint16 {
	sum := uint32(0x50a7)
	for i := 0; i < HeaderLen; i++ {
		if i != 6 && i != 7 {
			sum = sum*31 + uint32(b[i])
		}
	}
	return uint16(sum ^ sum>>16)
}

// parse reads a header. It allocates nothing and believes no length beyond the type's limit.
func (h *Header) parse(b []byte) error {
	le := binary.LittleEndian
	if le.Uint16(b[6:]) != check(b) {
		return violation("bad check in header % x", b[:HeaderLen])
	}
	*h = Header{Epoch: le.Uint32(b), Type: Type(b[4]), Sub: b[5], ID: le.Uint32(b[8:]), Length: le.Uint32(b[12:])}
	if h.Type == 0 || h.Type >= typeEnd {
		return violation("unknown frame type %d", h.Type)
	}
	if h.Length > h.limit() {
		return violation("frame of type %d with %d bytes, limit %d", h.Type, h.Length, h.limit())
	}
	return nil
}

// Conn reads and writes frames on a byte stream. One goroutine may read; any
// number may send.
type Conn struct {
	rw io.ReadWriteCloser
	r  *bufio.Reader
	// lenient makes a reader that lost its place look for the next preamble
	// instead of failing: the agent's half.
	lenient bool
	synced  bool
	left    uint32 // of the current payload

	partial *partial // the reader's

	parts sync.Mutex // one message of several frames at a time; above mu
	mu    sync.Mutex // one frame at a time; held across the write, which only a peer that stopped reading can stall
	epoch uint32
	out   []byte
}

// NewConn frames rw. A lenient reader skips to the next preamble when it is out
// of place, a strict one fails with [ErrViolation].
func NewConn(rw io.ReadWriteCloser, lenient bool) *Conn {
	// Payloads longer than the buffer are read past it, straight to where they go.
	return &Conn{rw: rw, r: bufio.NewReaderSize(rw, 4096), lenient: lenient}
}

// Reset forgets a half-read frame: the peer went away and another may come.
func (c *Conn) Reset() {
	c.r.Reset(c.rw)
	c.synced, c.left, c.partial = false, 0, nil
}

// Close closes the byte stream.
func (c *Conn) Close() error { return c.rw.Close() }

// SetEpoch begins a new epoch: frames of every other one are refused by Send.
func (c *Conn) SetEpoch(epoch uint32) {
	c.mu.Lock()
	c.epoch = epoch
	c.mu.Unlock()
}

// Next returns the next frame's header; what is left of the payload before it
// is skipped. Errors are those of the stream, or [ErrViolation].
func (c *Conn) Next() (Header, error) {
	var h Header
	if c.left > 0 {
		if _, err := c.r.Discard(int(c.left)); err != nil {
			return h, err
		}
		c.left = 0
	}
	for {
		if !c.synced {
			if err := c.sync(); err != nil {
				return h, err
			}
		}
		var b [HeaderLen]byte
		if _, err := io.ReadFull(c.r, b[:]); err != nil {
			return h, err
		}
		greeted := b == preamble
		if greeted {
			if _, err := io.ReadFull(c.r, b[:]); err != nil {
				return h, err
			}
		}
		err := h.parse(b[:])
		if greeted {
			c.partial = nil
		}
		if err == nil && greeted != (h.Type == TypeHello) {
			err = violation("hello and preamble do not belong together (frame type %d)", h.Type)
		}
		if err == nil {
			c.left = h.Length
			return h, nil
		}
		if !c.lenient {
			return h, err
		}
		c.synced = false
	}
}

// maxNoise is how much a strict reader skips before the first preamble: what a
// guest may have had under way when it was frozen, generously.
const maxNoise = 4 << 20

// sync skips to the next preamble and leaves it unread.
func (c *Conn) sync() error {
	for skipped := 0; ; skipped++ {
		b, err := c.r.Peek(HeaderLen)
		if err != nil {
			return err
		}
		if [HeaderLen]byte(b) == preamble {
			c.synced = true
			return nil
		}
		if !c.lenient && skipped >= maxNoise {
			return violation("no greeting within %d bytes", maxNoise)
		}
		c.r.Discard(1)
	}
}

// Payload reads the whole payload of the current frame.
func (c *Conn) Payload() ([]byte, error) {
	b := make([]byte, c.left)
	return b, c.readFull(b)
}

// readFull fills b from the current payload, which must be long enough.
func (c *Conn) readFull(b []byte) error {
	n, err := io.ReadFull(c.r, b)
	c.left -= uint32(n)
	return err
}

// ErrStale says that a frame was not sent because the peer has greeted anew
// since its stream or request began.
var ErrStale = errors.New("the connection has a new epoch")

// Send writes one frame in one write. h.Length is set here.
func (c *Conn) Send(h Header, payload []byte) error {
	h.Length = uint32(len(payload))
	if h.Length > h.limit() {
		return fmt.Errorf("cannot send a frame of %d bytes: limit is %d", h.Length, h.limit())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.Epoch != c.epoch {
		return ErrStale
	}
	b := c.out[:0]
	if h.Type == TypeHello {
		b = append(b, preamble[:]...)
	}
	b = append(h.Append(b), payload...)
	if cap(b) <= 4096 {
		c.out = b // small ones are reused; a large one is not kept
	}
	_, err := c.rw.Write(b)
	return err
}

// sendInPlace writes a frame whose payload already stands behind HeaderLen free
// bytes of b, without copying it.
func (c *Conn) sendInPlace(h Header, b []byte) error {
	h.Length = uint32(len(b) - HeaderLen)
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.Epoch != c.epoch {
		return ErrStale
	}
	h.put(b)
	_, err := c.rw.Write(b)
	return err
}

// SendMessage sends v as JSON, in as many frames as it needs.
func (c *Conn) SendMessage(h Header, v any) error {
	b := []byte{}
	if v != nil {
		var err error
		if b, err = json.Marshal(v); err != nil {
			return fmt.Errorf("cannot encode a message: %w", err)
		}
	}
	if len(b) > h.messageLimit() {
		return fmt.Errorf("cannot send a message of %d bytes: limit is %d", len(b), h.messageLimit())
	}
	if h.Type != TypeRequest && h.Type != TypeReply {
		return c.Send(h, b)
	}
	c.parts.Lock()
	defer c.parts.Unlock()
	for ; len(b) > MaxData; b = b[MaxData:] {
		part := h
		part.Sub |= More
		if err := c.Send(part, b[:MaxData]); err != nil {
			return err
		}
	}
	return c.Send(h, b)
}

// messageLimit is the longest message of a type, all its frames together.
func (h *Header) messageLimit() int {
	switch {
	case h.Type == TypeRequest:
		return MaxRequest
	case h.Type == TypeReply && Op(h.Sub&^More) == OpProcesses:
		return MaxReply
	default:
		return MaxNote
	}
}

// Message reads the current Request or Reply frame. done is false while parts
// are missing; id and op of the parts must agree.
func (c *Conn) Message(h Header) (b []byte, done bool, err error) {
	if p := c.partial; p != nil && (p.head.ID != h.ID || p.head.Type != h.Type || p.head.Sub|More != h.Sub|More) {
		return nil, false, violation("message %d began before message %d was complete", h.ID, p.head.ID)
	}
	if c.partial == nil {
		c.partial = &partial{head: h}
	}
	p := c.partial
	if len(p.b)+int(h.Length) > h.messageLimit() {
		return nil, false, violation("message %d is longer than %d bytes", h.ID, h.messageLimit())
	}
	at := len(p.b)
	p.b = append(p.b, make([]byte, h.Length)...)
	if err := c.readFull(p.b[at:]); err != nil {
		return nil, false, err
	}
	if h.Sub&More != 0 {
		return nil, false, nil
	}
	c.partial = nil
	return p.b, true, nil
}

// partial is a message of which parts are missing.
type partial struct {
	head Header
	b    []byte
}

// flush ends whatever frame the peer may think it is in the middle of.
func (c *Conn) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.rw.Write(make([]byte, HeaderLen+MaxData))
	return err
}

// DecodeJSON decodes a payload and makes malformed JSON a violation.
func DecodeJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return violation("malformed message: %v", err)
	}
	return nil
}
