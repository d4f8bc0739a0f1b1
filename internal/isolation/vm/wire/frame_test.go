package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
)

// memory is a byte stream to read from and nothing to write to.
type memory struct {
	io.Reader
	io.Writer
}

func (memory) Close() error { return nil }

func reader(b []byte, lenient bool) *Conn {
	return NewConn(memory{bytes.NewReader(b), io.Discard}, lenient)
}

func frame(h Header, payload string) []byte {
	h.Length = uint32(len(payload))
	b := h.Append(nil)
	if h.Type == TypeHello {
		b = append(preamble[:], b...)
	}
	return append(b, payload...)
}

func TestPreambleIsNoHeader(t *testing.T) {
	var h Header
	if err := h.parse(preamble[:]); !errors.Is(err, ErrViolation) {
		t.Errorf("the preamble parses as %+v", h)
	}
	if err := h.parse(make([]byte, HeaderLen)); !errors.Is(err, ErrViolation) {
		t.Errorf("zeros parse as %+v", h)
	}
}

func TestHeaderSurvives(t *testing.T) {
	want := Header{Epoch: 0xdeadbeef, Type: TypeData, Sub: 2, ID: 7, Length: MaxData}
	var got Header
	if err := got.parse(want.Append(nil)); err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	b := want.Append(nil)
	for i := range b {
		b[i] ^= 0x10
		if err := got.parse(b); err == nil && i != 6 && i != 7 {
			t.Errorf("a wrong bit in byte %d is not seen", i)
		}
		b[i] ^= 0x10
	}
}

func TestLimits(t *testing.T) {
	for typ := range typeEnd {
		h := Header{Type: typ}
		if h.limit() > MaxData {
			t.Errorf("a frame of type %d may hold %d bytes", typ, h.limit())
		}
		h.Length = h.limit() + 1
		var got Header
		if err := got.parse(h.Append(nil)); !errors.Is(err, ErrViolation) {
			t.Errorf("type %d with %d bytes: %v", typ, h.Length, err)
		}
	}
}

func TestSync(t *testing.T) {
	hello := frame(Header{Epoch: 5, Type: TypeHello}, "{}")
	for name, noise := range map[string][]byte{
		"none":              nil,
		"text":              []byte("Linux version 6.1\r\n"),
		"half a preamble":   preamble[:9],
		"frame cut in two":  frame(Header{Type: TypeData, ID: 1}, strings.Repeat("x", 100))[:50],
		"zeros":             make([]byte, HeaderLen+MaxData),
		"almost a preamble": append(bytes.Clone(preamble[:15]), 9),
	} {
		for _, lenient := range []bool{false, true} {
			h, err := reader(append(bytes.Clone(noise), hello...), lenient).Next()
			if err != nil || h.Type != TypeHello || h.Epoch != 5 {
				t.Errorf("%s: %+v %v", name, h, err)
			}
		}
	}
	if _, err := reader(make([]byte, maxNoise+100), false).Next(); !errors.Is(err, ErrViolation) {
		t.Errorf("endless noise: %v", err)
	}
}

func TestLenientReaderFindsItsPlaceAgain(t *testing.T) {
	b := frame(Header{Epoch: 1, Type: TypeHello}, "{}")
	b = append(b, frame(Header{Epoch: 1, Type: TypeRequest, ID: 1}, "{")...)
	b = append(b, "garbage of some length, longer than a header"...)
	b = append(b, frame(Header{Epoch: 2, Type: TypeHello}, "{}")...)
	c := reader(b, true)
	var epochs []uint32
	for {
		h, err := c.Next()
		if err != nil {
			break
		}
		epochs = append(epochs, h.Epoch)
	}
	if len(epochs) != 3 || epochs[2] != 2 {
		t.Errorf("epochs seen: %v", epochs)
	}
}

// Messages of several frames: assembled, bounded, not mixed.
func TestMessages(t *testing.T) {
	read := func(b []byte) ([]byte, error) {
		c := reader(append(frame(Header{Type: TypeHello}, "{}"), b...), false)
		for {
			h, err := c.Next()
			if err != nil {
				return nil, err
			}
			if h.Type == TypeHello {
				continue
			}
			m, done, err := c.Message(h)
			if err != nil || done {
				return m, err
			}
		}
	}
	var sent bytes.Buffer
	c := NewConn(memory{nil, &sent}, false)
	long := strings.Repeat("0123456789", 20000)
	if err := c.SendMessage(Header{Type: TypeRequest, Sub: uint8(OpStart), ID: 3}, long); err != nil {
		t.Fatal(err)
	}
	got, err := read(sent.Bytes())
	var s string
	if err != nil || json.Unmarshal(got, &s) != nil || s != long {
		t.Errorf("%d bytes came back: %v", len(got), err)
	}
	if err := c.SendMessage(Header{Type: TypeRequest, Sub: uint8(OpStart), ID: 3}, strings.Repeat("x", MaxRequest)); err == nil {
		t.Error("a request beyond the limit was sent")
	}
	part := frame(Header{Type: TypeReply, Sub: uint8(OpStats) | More, ID: 1}, strings.Repeat("x", 8000))
	if _, err := read(bytes.Repeat(part, 3)); !errors.Is(err, ErrViolation) {
		t.Errorf("an endless reply: %v", err)
	}
	other := frame(Header{Type: TypeReply, Sub: uint8(OpStats), ID: 2}, "x")
	if _, err := read(append(part, other...)); !errors.Is(err, ErrViolation) {
		t.Errorf("two replies mixed: %v", err)
	}
}

// FuzzReader: whatever arrives, a reader neither panics nor keeps more than the limits.
func FuzzReader(f *testing.F) {
	hello := frame(Header{Epoch: 1, Type: TypeHello}, `{"version":1}`)
	f.Add(hello, true)
	f.Add(append(bytes.Clone(hello), frame(Header{Epoch: 1, Type: TypeReply, Sub: 1, ID: 1}, "{}")...), false)
	f.Add(append(bytes.Clone(hello), frame(Header{Epoch: 1, Type: TypeRequest, Sub: 2 | More, ID: 1}, "{}")...), true)
	f.Add(append(bytes.Clone(hello), frame(Header{Epoch: 1, Type: TypeCredit, ID: 1}, "\xff\xff\xff\xff")...), true)
	f.Add(append(bytes.Clone(hello), (&Header{Type: TypeData, Length: 1 << 31}).Append(nil)...), true)
	f.Fuzz(func(t *testing.T, b []byte, lenient bool) {
		c := reader(b, lenient)
		in, out := NewInbox(c, 1, 1, Stdout), NewOutbox(c, 1, 1, Stdin)
		for frames := 0; ; frames++ {
			h, err := c.Next()
			if err != nil {
				return
			}
			if h.Length > MaxData {
				t.Fatalf("a frame of %d bytes", h.Length)
			}
			if frames > len(b)/HeaderLen {
				t.Fatal("more frames than bytes")
			}
			switch h.Type {
			case TypeRequest, TypeReply:
				m, _, err := c.Message(h)
				if err != nil {
					return
				}
				if len(m) > h.messageLimit() {
					t.Fatalf("a message of %d bytes", len(m))
				}
			case TypeData:
				if err := in.Receive(h); err != nil {
					return
				}
				if len(in.ring) > Window {
					t.Fatalf("%d bytes held", len(in.ring))
				}
			case TypeCredit:
				b, err := c.Payload()
				if err == nil {
					_ = out.Grant(b)
				}
				if out.credit > Window {
					t.Fatalf("credit of %d", out.credit)
				}
			case TypeHello:
				b, _ := c.Payload()
				_ = DecodeJSON(b, new(Welcome))
			}
		}
	})
}
