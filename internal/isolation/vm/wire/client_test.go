package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"proa/internal/isolation"

	"github.com/containerd/errdefs"
)

// peer is a scripted agent: it answers the greeting and then does what a test says.
type peer struct {
	*Conn
	t     *testing.T
	epoch uint32
}

func dial(t testing.TB, serve func(p *peer)) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	c := NewClient(ours)
	t.Cleanup(func() { c.Close() })
	go func() {
		defer theirs.Close()
		p := &peer{Conn: NewConn(theirs, true)}
		h, err := p.Next()
		if err != nil {
			return
		}
		p.epoch = h.Epoch
		p.SetEpoch(h.Epoch)
		_ = p.SendMessage(Header{Epoch: h.Epoch, Type: TypeHello}, Welcome{Version: Version, Epoch: h.Epoch})
		serve(p)
	}()
	if _, err := c.Hello(soon(t)); err != nil {
		t.Fatal(err)
	}
	return c
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// send writes a frame without any of the checks that Conn makes.
func (p *peer) send(h Header, payload []byte) {
	h.Epoch, h.Length = p.epoch, uint32(len(payload))
	_, _ = p.rw.Write(append(h.Append(nil), payload...))
}

func (p *peer) reply(h Header, v any) {
	b, _ := json.Marshal(v)
	p.send(Header{Type: TypeReply, Sub: h.Sub, ID: h.ID}, b)
}

// next is the next request.
func (p *peer) next() Header {
	for {
		h, err := p.Next()
		if err != nil || h.Type == TypeRequest {
			return h
		}
	}
}

// Each lie ends the connection with ErrViolation, wakes everybody and costs little memory.
func TestHostileAgent(t *testing.T) {
	chunk := make([]byte, 16<<10)
	for name, lie := range map[string]func(p *peer, start Header){
		"header cut short by garbage": func(p *peer, _ Header) { p.rw.Write(bytes.Repeat([]byte("garbage "), 1000)) },
		"length beyond the limit": func(p *peer, h Header) {
			p.rw.Write(Header{Epoch: p.epoch, Type: TypeReply, Sub: h.Sub, ID: h.ID, Length: 1 << 30}.Append(nil))
		},
		"unknown type":               func(p *peer, h Header) { p.send(Header{Type: 77, ID: h.ID}, nil) },
		"a request":                  func(p *peer, h Header) { p.send(Header{Type: TypeRequest, Sub: 1, ID: h.ID}, []byte("{}")) },
		"reply never asked for":      func(p *peer, _ Header) { p.send(Header{Type: TypeReply, ID: 999}, []byte("{}")) },
		"second reply":               func(p *peer, h Header) { p.reply(h, Started{PID: 5}); p.reply(h, Started{PID: 6}) },
		"reply of another kind":      func(p *peer, h Header) { p.send(Header{Type: TypeReply, Sub: 9, ID: h.ID}, []byte("{}")) },
		"error that is not JSON":     func(p *peer, h Header) { p.send(Header{Type: TypeError, ID: h.ID}, []byte("no")) },
		"endless reply":              func(p *peer, h Header) { flood(p, Header{Type: TypeReply, Sub: h.Sub | More, ID: h.ID}, chunk) },
		"data of an unknown process": func(p *peer, _ Header) { p.send(Header{Type: TypeData, Sub: Stdout, ID: 999}, chunk) },
		"data on stdin":              func(p *peer, h Header) { p.send(Header{Type: TypeData, Sub: Stdin, ID: h.ID}, chunk) },
		"data on an unknown stream":  func(p *peer, h Header) { p.send(Header{Type: TypeData, Sub: 9, ID: h.ID}, chunk) },
		"data after the end of a stream": func(p *peer, h Header) {
			p.send(Header{Type: TypeEOF, Sub: Stdout, ID: h.ID}, nil)
			p.send(Header{Type: TypeData, Sub: Stdout, ID: h.ID}, chunk)
		},
		"flood without credit": func(p *peer, h Header) {
			p.reply(h, Started{PID: 5})
			flood(p, Header{Type: TypeData, Sub: Stdout, ID: h.ID}, chunk)
		},
		"flood before the reply": func(p *peer, h Header) { flood(p, Header{Type: TypeData, Sub: Stderr, ID: h.ID}, chunk) },
		"too much credit": func(p *peer, h Header) {
			p.send(Header{Type: TypeCredit, Sub: Stdin, ID: h.ID}, binary.LittleEndian.AppendUint32(nil, Window))
		},
		"credit of another length": func(p *peer, h Header) { p.send(Header{Type: TypeCredit, Sub: Stdin, ID: h.ID}, []byte{1}) },
		"credit for an output":     func(p *peer, h Header) { p.send(Header{Type: TypeCredit, Sub: Stdout, ID: h.ID}, []byte{1, 0, 0, 0}) },
		"end before the start":     func(p *peer, h Header) { p.send(Header{Type: TypeExited, ID: h.ID}, []byte("{}")) },
		"impossible exit code": func(p *peer, h Header) {
			p.reply(h, Started{PID: 5})
			p.send(Header{Type: TypeExited, ID: h.ID}, []byte(`{"code":-1}`))
		},
		"end that is not JSON": func(p *peer, h Header) {
			p.reply(h, Started{PID: 5})
			p.send(Header{Type: TypeExited, ID: h.ID}, []byte(strings.Repeat("[", 9000)))
		},
		"second greeting": func(p *peer, _ Header) { p.rw.Write(frame(Header{Epoch: p.epoch, Type: TypeHello}, "{}")) },
		"preamble before another frame": func(p *peer, h Header) {
			p.rw.Write(append(preamble[:], frame(Header{Epoch: p.epoch, Type: TypeEOF, ID: h.ID}, "")...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c := dial(t, func(p *peer) {
				lie(p, p.next())
				io.Copy(io.Discard, p.rw)
			})
			r, err := c.Start(soon(t), &isolation.Process{Args: []string{"x"}, Stdin: true}, isolation.Stdio{Stdin: blocked{}, Stdout: blocked{}, Stderr: blocked{}})
			if err == nil {
				_, err = r.Wait(soon(t))
			}
			if !errdefs.IsUnavailable(err) || !errors.Is(err, ErrViolation) {
				t.Errorf("got %v", err)
			}
			select {
			case <-c.Closed():
			case <-time.After(10 * time.Second):
				t.Fatal("the connection lives on")
			}
			if !errors.Is(c.Err(), ErrViolation) {
				t.Errorf("closed because of %v", c.Err())
			}
			if _, err := c.Ping(soon(t)); !errdefs.IsUnavailable(err) {
				t.Errorf("ping afterwards: %v", err)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 3<<20 {
				t.Errorf("the lie cost %d bytes of memory", grown)
			}
		})
	}
}

func flood(p *peer, h Header, chunk []byte) {
	h.Epoch, h.Length = p.epoch, uint32(len(chunk))
	b := append(h.Append(nil), chunk...)
	for range 1000 { // 16 MB
		if _, err := p.rw.Write(b); err != nil {
			return
		}
	}
}

// blocked never delivers and never has anything.
type blocked struct{}

var never = make(chan struct{})

func (blocked) Write([]byte) (int, error) { <-never; return 0, nil }
func (blocked) Read([]byte) (int, error)  { <-never; return 0, nil }

func TestHostileGreetingsAndLists(t *testing.T) {
	ours, theirs := net.Pipe()
	c := NewClient(ours)
	defer c.Close()
	go func() {
		io.ReadFull(theirs, make([]byte, 2*HeaderLen))
		theirs.Write(bytes.Repeat([]byte{0x89}, maxNoise+4096))
		io.Copy(io.Discard, theirs)
	}()
	if _, err := c.Hello(soon(t)); !errors.Is(err, ErrViolation) {
		t.Errorf("noise instead of a greeting: %v", err)
	}
	for name, text := range map[string]string{
		"endless": "[" + strings.Repeat("{},", 100000) + "{}]",
		"no list": "7",
		"broken":  "[{",
	} {
		c := dial(t, func(p *peer) {
			h := p.next()
			_ = p.SendMessage(Header{Epoch: p.epoch, Type: TypeReply, Sub: h.Sub, ID: h.ID}, json.RawMessage(text))
			if name == "broken" {
				p.send(Header{Type: TypeReply, Sub: h.Sub, ID: h.ID}, []byte(text))
			}
			io.Copy(io.Discard, p.rw)
		})
		if _, err := c.Processes(soon(t)); !errors.Is(err, ErrViolation) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVersionAndDeadline(t *testing.T) {
	ours, theirs := net.Pipe()
	c := NewClient(ours)
	go func() {
		p := &peer{Conn: NewConn(theirs, true)}
		h, _ := p.Next()
		p.SetEpoch(h.Epoch)
		_ = p.SendMessage(Header{Epoch: h.Epoch, Type: TypeHello}, Welcome{Version: Version + 1})
		io.Copy(io.Discard, theirs)
	}()
	if _, err := c.Hello(soon(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another version: %v", err)
	}
	// An agent that never answers.
	ours, silent := net.Pipe()
	defer silent.Close()
	go io.Copy(io.Discard, silent)
	c = NewClient(ours)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Hello(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	c.Close()
	if _, err := c.Stats(soon(t)); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
}

// A request whose asker has given up does not break the connection when its
// answer comes; a process that was started for nobody is killed.
func TestGivingUp(t *testing.T) {
	release, signalled := make(chan struct{}), make(chan Signal, 1)
	c := dial(t, func(p *peer) {
		start := p.next()
		<-release
		p.reply(start, Started{PID: 9})
		p.send(Header{Type: TypeData, Sub: Stdout, ID: start.ID}, []byte("for nobody"))
		h := p.next()
		b, _, _ := p.Message(h)
		var s Signal
		_ = json.Unmarshal(b, &s)
		p.reply(h, nil)
		p.send(Header{Type: TypeExited, ID: start.ID}, []byte(`{"code":137,"signal":9}`))
		signalled <- s
		p.reply(p.next(), nil)
		io.Copy(io.Discard, p.rw)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Start(ctx, &isolation.Process{}, isolation.Stdio{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	close(release)
	if s := <-signalled; s.Signal != 9 || s.Process != 1 {
		t.Errorf("%+v", s)
	}
	if _, err := c.Ping(soon(t)); err != nil {
		t.Error(err)
	}
}

// One reader that stands still delays neither another stream nor a request.
func TestNoHeadOfLineBlocking(t *testing.T) {
	const lots = 4 << 20
	c := dial(t, func(p *peer) {
		var mu sync.Mutex
		outs := map[uint32]*Outbox{}
		for {
			h, err := p.Next()
			if err != nil {
				return
			}
			switch h.Type {
			case TypeRequest:
				p.reply(h, Started{PID: int(h.ID)})
				if Op(h.Sub) != OpExec {
					continue
				}
				o := NewOutbox(p.Conn, p.epoch, h.ID, Stdout)
				mu.Lock()
				outs[h.ID] = o
				mu.Unlock()
				go func() {
					_ = o.SendFrom(io.LimitReader(zeros{}, lots), make([]byte, HeaderLen+MaxData), false)
					_ = p.Send(Header{Epoch: p.epoch, Type: TypeEOF, Sub: Stderr, ID: h.ID}, nil)
					_ = p.SendMessage(Header{Epoch: p.epoch, Type: TypeExited, ID: h.ID}, Exited{Code: 3})
				}()
			case TypeCredit:
				b, _ := p.Payload()
				mu.Lock()
				_ = outs[h.ID].Grant(b)
				mu.Unlock()
			}
		}
	})
	gate := make(chan struct{})
	stuck := &gated{gate: gate}
	slow, err := c.Exec(soon(t), &isolation.Process{}, isolation.Stdio{Stdout: stuck})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		var n count
		quick, err := c.Exec(soon(t), &isolation.Process{}, isolation.Stdio{Stdout: &n})
		if err != nil {
			t.Fatal(err)
		}
		if x, err := quick.Wait(soon(t)); err != nil || x.Code != 3 || n != lots {
			t.Fatalf("%+v %v, %d bytes", x, err, n)
		}
		if _, err := c.Ping(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := slow.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the slow one ended: %v", err)
	}
	close(gate)
	if x, err := slow.Wait(soon(t)); err != nil || x.Code != 3 || stuck.n != lots {
		t.Errorf("%+v %v, %d bytes", x, err, stuck.n)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

type count int

func (c *count) Write(b []byte) (int, error) { *c += count(len(b)); return len(b), nil }

type gated struct {
	gate chan struct{}
	n    int
}

func (g *gated) Write(b []byte) (int, error) { <-g.gate; g.n += len(b); return len(b), nil }

// A writer that fails makes the agent stop, and the process's end is still reported.
func TestFailingWriter(t *testing.T) {
	refused := make(chan uint8, 4)
	c := dial(t, func(p *peer) {
		h := p.next()
		p.reply(h, Started{PID: 1})
		p.send(Header{Type: TypeData, Sub: Stdout, ID: h.ID}, []byte("x"))
		for {
			f, err := p.Next()
			if err != nil {
				return
			}
			if f.Type == TypeRefuse {
				refused <- f.Sub
				p.send(Header{Type: TypeData, Sub: Stdout, ID: h.ID}, []byte("under way already"))
				p.send(Header{Type: TypeEOF, Sub: Stdout, ID: h.ID}, nil)
				p.send(Header{Type: TypeExited, ID: h.ID}, []byte(`{"code":1}`))
			}
		}
	})
	r, err := c.Exec(soon(t), &isolation.Process{Terminal: true}, isolation.Stdio{Stdout: broken{}})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := r.Wait(soon(t)); err != nil || x.Code != 1 || <-refused != Stdout {
		t.Errorf("%+v %v", x, err)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

// The ring keeps order and content whatever the sizes are.
func TestInboxKeepsBytes(t *testing.T) {
	pr, pw := io.Pipe()
	recv := NewConn(struct {
		io.Reader
		io.WriteCloser
	}{pr, nopCloser{io.Discard}}, true)
	send := NewConn(nopStream{pw}, true)
	in, out := NewInbox(recv, 0, 1, Stdout), NewOutbox(send, 0, 1, Stdout)
	var want, got bytes.Buffer
	for i := range 30000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	go func() {
		src := want.Bytes()
		_, _ = pw.Write(frame(Header{Type: TypeHello}, ""))
		// Odd sizes, so that the ring's end is met everywhere; credit is granted as it is used.
		_ = out.SendFrom(&granting{bytes.NewReader(src), out}, make([]byte, HeaderLen+7001), false)
	}()
	done := make(chan error)
	go func() { done <- in.Deliver(&dawdling{w: &got}) }()
	for {
		h, err := recv.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Type == TypeEOF {
			in.End(io.EOF)
			break
		}
		if h.Type != TypeData {
			continue
		}
		for in.room() < int(h.Length) {
			time.Sleep(time.Millisecond)
		}
		if err := in.Receive(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d of %d bytes, %v", got.Len(), want.Len(), err)
	}
}

func (in *Inbox) room() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return Window - in.used
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

type nopStream struct{ io.WriteCloser }

func (nopStream) Read([]byte) (int, error) { return 0, io.EOF }

// granting returns to the sender what it has used.
type granting struct {
	r io.Reader
	o *Outbox
}

func (g *granting) Read(b []byte) (int, error) {
	g.o.mu.Lock()
	g.o.credit = Window
	g.o.mu.Unlock()
	return g.r.Read(b)
}

type dawdling struct {
	w io.Writer
	n int
}

func (d *dawdling) Write(b []byte) (int, error) {
	if d.n++; d.n%3 == 0 {
		time.Sleep(time.Millisecond)
	}
	return d.w.Write(b)
}
