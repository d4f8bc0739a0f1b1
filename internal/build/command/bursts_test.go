package command

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil/types"
)

// line counts the writes to a connection.
type line struct {
	net.Conn
	writes [][]byte
}

func (w *line) Write(p []byte) (int, error) {
	w.writes = append(w.writes, bytes.Clone(p))
	return len(p), nil
}

func (w *line) all() string { return string(bytes.Join(w.writes, nil)) }

func TestCork(t *testing.T) {
	w, c := &line{}, &cork{}
	conn := c.around(w)
	say := func(text string) {
		t.Helper()
		if n, err := conn.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatalf("wrote %d bytes of %d: %v", n, len(text), err)
		}
	}
	say("a")
	say("b")
	if len(w.writes) != 2 {
		t.Fatalf("%d writes without a cork, want 2", len(w.writes))
	}
	want := "ab"
	c.put()
	c.put() // two bursts at once
	for i := range 1000 {
		text := fmt.Sprintf("%0100d", i)
		want += text
		say(text)
	}
	c.pull()
	if n := len(w.writes) - 2; n != 100_000/corked || w.all() == want {
		t.Fatalf("%d writes of a burst of 100 kB, and the rest out already: %v", n, w.all() == want)
	}
	c.pull()
	say("c")
	if got := w.all(); got != want+"c" {
		t.Fatal("bytes were lost or changed places")
	}
	c.put()
	big := string(make([]byte, 3*corked))
	say("d")
	say(big)
	c.pull()
	if got := w.all(); got != want+"cd"+big {
		t.Fatal("bytes were lost or changed places around a large write")
	}
}

// told is a stream that keeps what was sent.
type told struct {
	filesync.FileSync_DiffCopyServer
	sent []string
}

func (s *told) SendMsg(m any) error {
	p := m.(*types.Packet)
	name := p.Type.String()
	if p.Stat != nil {
		name = p.Stat.Path
	}
	s.sent = append(s.sent, name)
	return nil
}

func TestInBursts(t *testing.T) {
	s := &told{}
	b := &inBursts{FileSync_DiffCopyServer: s, cork: &cork{}}
	var want []string
	send := func(p *types.Packet, name string, out int) {
		t.Helper()
		if err := b.SendMsg(p); err != nil {
			t.Fatal(err)
		}
		if want = append(want, name); len(s.sent) != out {
			t.Fatalf("%d packets went out after %q, want %d", len(s.sent), name, out)
		}
	}
	for i := range burst {
		name := fmt.Sprint(i)
		send(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: name}}, name, 0)
	}
	send(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "one more"}}, "one more", burst+1)
	send(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "held"}}, "held", burst+1)
	send(&types.Packet{Type: types.PACKET_DATA}, "PACKET_DATA", burst+3)
	send(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "last"}}, "last", burst+3)
	send(&types.Packet{Type: types.PACKET_STAT}, "PACKET_STAT", burst+5)
	if !slices.Equal(s.sent, want) {
		t.Fatalf("sent %q, want %q", s.sent, want)
	}
}
