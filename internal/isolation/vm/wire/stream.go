package wire

import (
	"encoding/binary"
	"io"
	"sync"
)

// Inbox is the receiving end of one stream: at most Window bytes wait in it.
// The connection's reader fills it and never waits; Deliver empties it.
type Inbox struct {
	conn *Conn
	head Header // epoch, process and stream of its frames

	mu   sync.Mutex // guards what follows; never held across I/O
	more sync.Cond  // on mu: bytes came, or the end
	// ring holds n bytes from r on. Only the reader replaces it, so the part
	// that Deliver is writing stays valid while it does.
	ring    []byte
	r, n    int
	owed    int   // delivered bytes whose credit was not returned yet
	used    int   // bytes the peer sent without having got credit back
	end     error // io.EOF at the end of the stream, or why there will be no end
	refused bool
}

// NewInbox makes the receiving end of stream sub of process id.
func NewInbox(conn *Conn, epoch, id uint32, sub uint8) *Inbox {
	in := &Inbox{conn: conn, head: Header{Epoch: epoch, ID: id, Sub: sub}}
	in.more.L = &in.mu
	return in
}

// Receive takes the payload of a Data frame from the connection. More than the
// window, or data after the end, is a violation.
func (in *Inbox) Receive(h Header) error {
	n := int(h.Length)
	in.mu.Lock()
	if in.end == io.EOF {
		in.mu.Unlock()
		return violation("data after the end of stream %d/%d", in.head.ID, in.head.Sub)
	}
	if in.used+n > Window {
		in.mu.Unlock()
		return violation("%d bytes beyond the window of stream %d/%d", in.used+n-Window, in.head.ID, in.head.Sub)
	}
	in.used += n
	if in.refused || in.end != nil {
		in.mu.Unlock()
		return nil // nobody wants it; Next skips it
	}
	in.grow(in.n + n)
	at := (in.r + in.n) % max(len(in.ring), 1)
	first := in.ring[at:min(at+n, len(in.ring))]
	rest := in.ring[:n-len(first)]
	in.mu.Unlock()

	// The free part of the ring belongs to the reader alone.
	if err := in.conn.readFull(first); err != nil {
		return err
	}
	if err := in.conn.readFull(rest); err != nil {
		return err
	}
	in.mu.Lock()
	in.n += n
	in.mu.Unlock()
	in.more.Signal()
	return nil
}

// grow makes room for want bytes; called with mu held, by the reader only.
func (in *Inbox) grow(want int) {
	if want <= len(in.ring) {
		return
	}
	size := max(4096, len(in.ring))
	for size < want {
		size *= 2
	}
	bigger := make([]byte, size)
	n := copy(bigger, in.ring[in.r:min(in.r+in.n, len(in.ring))])
	copy(bigger[n:], in.ring[:in.n-n])
	in.ring, in.r = bigger, 0
}

// End marks the end of the stream: io.EOF, or the error that makes it end.
// What came before is still delivered on io.EOF. Only the first call counts.
func (in *Inbox) End(err error) {
	in.mu.Lock()
	if in.end == nil {
		in.end = err
	}
	in.mu.Unlock()
	in.more.Broadcast()
}

// Deliver writes the stream to w until its end, returning credit on the way,
// and returns nil after EOF. If w fails the peer is told that nobody reads any
// more, the rest is dropped, and w's error is returned.
func (in *Inbox) Deliver(w io.Writer) error {
	for {
		in.mu.Lock()
		for in.n == 0 && in.end == nil {
			in.more.Wait()
		}
		if in.n == 0 || (in.end != nil && in.end != io.EOF) {
			end := in.end
			in.ring = nil
			in.mu.Unlock()
			if end == io.EOF {
				return nil
			}
			return end
		}
		chunk := in.ring[in.r:min(in.r+in.n, len(in.ring))]
		in.mu.Unlock()

		_, err := w.Write(chunk)
		if err != nil {
			in.Refuse()
			return err
		}
		in.mu.Lock()
		in.n -= len(chunk)
		in.r = (in.r + len(chunk)) % len(in.ring)
		in.owed += len(chunk)
		give := 0
		if in.owed >= Window/2 && in.end == nil {
			give, in.owed = in.owed, 0
			in.used -= give
		}
		in.mu.Unlock()
		if give > 0 {
			var b [4]byte
			binary.LittleEndian.PutUint32(b[:], uint32(give))
			if err := in.conn.Send(in.head.as(TypeCredit), b[:]); err != nil {
				return err
			}
		}
	}
}

// Refuse tells the peer that nobody will read the stream any more and drops
// what still comes.
func (in *Inbox) Refuse() {
	in.mu.Lock()
	already := in.refused || in.end != nil
	in.refused = true
	in.n, in.r = 0, 0
	in.mu.Unlock()
	if !already {
		// An error here is an error of the connection, which its reader reports.
		_ = in.conn.Send(in.head.as(TypeRefuse), nil)
	}
}

// Outbox is the sending end of one stream. Its writer waits while the peer has
// given no credit.
type Outbox struct {
	conn *Conn
	head Header // epoch, process and stream of its frames

	mu     sync.Mutex // guards what follows; never held across I/O
	more   sync.Cond  // on mu: credit came, or the end
	credit int
	end    error // io.ErrClosedPipe after Refuse, or what the stream was ended with
}

// NewOutbox makes the sending end of stream sub of process id.
func NewOutbox(conn *Conn, epoch, id uint32, sub uint8) *Outbox {
	o := &Outbox{conn: conn, head: Header{Epoch: epoch, ID: id, Sub: sub}, credit: Window}
	o.more.L = &o.mu
	return o
}

// Grant takes the payload of a Credit frame. More room than the window is a violation.
func (o *Outbox) Grant(payload []byte) error {
	if len(payload) != 4 {
		return violation("credit of %d bytes length", len(payload))
	}
	n := binary.LittleEndian.Uint32(payload)
	o.mu.Lock()
	defer o.mu.Unlock()
	if n > Window || o.credit+int(n) > Window {
		return violation("credit beyond the window of stream %d/%d", o.head.ID, o.head.Sub)
	}
	o.credit += int(n)
	o.more.Signal()
	return nil
}

// End makes every further send fail with err. Only the first call counts.
func (o *Outbox) End(err error) {
	o.mu.Lock()
	if o.end == nil {
		o.end = err
	}
	o.mu.Unlock()
	o.more.Broadcast()
}

// Refused says whether the stream was ended, by the peer or by End.
func (o *Outbox) Refused() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end != nil
}

// take waits for credit and returns how much of want may be sent now.
func (o *Outbox) take(want int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.credit == 0 && o.end == nil {
		o.more.Wait()
	}
	if o.end != nil {
		return 0, o.end
	}
	n := min(want, o.credit)
	o.credit -= n
	return n, nil
}

// SendFrom sends what r gives until r ends or fails, then EOF. buf is where it
// works, more than HeaderLen bytes; frames are at most that long. drain says
// what happens when the peer refuses: true goes on reading r and drops it (an
// output that nobody watches must not block its process), false returns.
// The error of r is returned unless it is io.EOF.
func (o *Outbox) SendFrom(r io.Reader, buf []byte, drain bool) error {
	buf = buf[:min(len(buf), HeaderLen+MaxData)]
	for {
		n, rerr := r.Read(buf[HeaderLen:])
		// The header is written over bytes that were sent already.
		for sent := 0; sent < n; {
			k, err := o.take(n - sent)
			if err == nil {
				err = o.conn.sendInPlace(o.head.as(TypeData), buf[sent:sent+HeaderLen+k])
			}
			if err != nil {
				if !drain {
					return err
				}
				o.End(err)
				break
			}
			sent += k
		}
		if rerr != nil {
			if err := o.conn.Send(o.head.as(TypeEOF), nil); err != nil && !drain {
				return err
			}
			if rerr == io.EOF {
				return nil
			}
			return rerr
		}
	}
}
