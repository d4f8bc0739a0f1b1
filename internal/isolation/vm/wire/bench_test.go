package wire

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"proa/internal/isolation"
)

// sockets is a pair of unix sockets, which is what a virtio-serial port is on the host's side.
func sockets(b *testing.B) (ours, theirs net.Conn) {
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	defer os.Remove(path)
	if ours, err = net.Dial("unix", path); err != nil {
		b.Fatal(err)
	}
	if theirs, err = l.Accept(); err != nil {
		b.Fatal(err)
	}
	return ours, theirs
}

func benchClient(b *testing.B, size int64) *Client {
	ours, theirs := sockets(b)
	go func() {
		p := &peer{Conn: NewConn(theirs, true)}
		var o *Outbox
		for {
			h, err := p.Next()
			if err != nil {
				return
			}
			switch h.Type {
			case TypeHello:
				p.SetEpoch(h.Epoch)
				p.epoch = h.Epoch
				_ = p.SendMessage(Header{Epoch: h.Epoch, Type: TypeHello}, Welcome{Version: Version})
			case TypeRequest:
				_ = p.SendMessage(Header{Epoch: p.epoch, Type: TypeReply, Sub: h.Sub, ID: h.ID}, Started{PID: 1})
				if Op(h.Sub) == OpExec {
					o = NewOutbox(p.Conn, p.epoch, h.ID, Stdout)
					go func() {
						_ = o.SendFrom(io.LimitReader(zeros{}, size), make([]byte, HeaderLen+MaxData), false)
						_ = p.SendMessage(Header{Epoch: p.epoch, Type: TypeExited, ID: h.ID}, Exited{})
					}()
				}
			case TypeCredit:
				payload, _ := p.Payload()
				_ = o.Grant(payload)
			}
		}
	}()
	c := NewClient(ours)
	b.Cleanup(func() { c.Close(); theirs.Close() })
	if _, err := c.Hello(context.Background()); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkOutput is the throughput of one output stream over a unix socket.
func BenchmarkOutput(b *testing.B) {
	const size = 1 << 20
	c := benchClient(b, int64(b.N)*size)
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	r, err := c.Exec(context.Background(), &isolation.Process{}, isolation.Stdio{Stdout: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := r.Wait(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPing is one request and its reply.
func BenchmarkPing(b *testing.B) {
	c := benchClient(b, 0)
	b.ReportAllocs()
	for range b.N {
		if _, err := c.Ping(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
