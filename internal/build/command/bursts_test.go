package command

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/metadata"

	"proa/internal/build/unchanged"
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
	sent   []string
	header metadata.MD
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

func (s *told) SendHeader(md metadata.MD) error {
	s.header = md
	return nil
}

// A directory that is in a state which the builder knows is told in a header;
// of any other each file is told.
func TestDirectoryAsItWas(t *testing.T) {
	walk := func(known []string, names ...string) (sent []string, answer string) {
		t.Helper()
		q, request := unchanged.Ask(known), metadata.MD{}
		q.Put(request)
		s := &told{}
		b := &inBursts{FileSync_DiffCopyServer: s, cork: &cork{}, asked: unchanged.From(request)}
		for _, n := range names {
			if err := b.SendMsg(&types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: n}}); err != nil {
				t.Fatal(err)
			}
		}
		for _, end := range []types.Packet_PacketType{types.PACKET_STAT, types.PACKET_FIN} {
			if err := b.SendMsg(&types.Packet{Type: end}); err != nil {
				t.Fatal(err)
			}
		}
		return s.sent, q.Answered(s.header)
	}
	sumOf := func(names ...string) string {
		t.Helper()
		var sum unchanged.Sum
		for _, n := range names {
			if err := sum.Add(&types.Stat{Path: n}); err != nil {
				t.Fatal(err)
			}
		}
		return sum.String()
	}
	many := make([]string, 2*burst)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	all := append(slices.Clone(many), "PACKET_STAT", "PACKET_FIN")
	sum := sumOf(many...)
	for name, known := range map[string][]string{"nothing": nil, "another": {sumOf("x")}} {
		if sent, answer := walk(known, many...); answer != "" || !slices.Equal(sent, all) {
			t.Fatalf("asked about %s: sent %q, answered %q", name, sent, answer)
		}
	}
	if sent, answer := walk([]string{sumOf("x"), sum}, many...); answer != sum || !slices.Equal(sent, []string{"PACKET_FIN"}) {
		t.Fatalf("sent %q of a directory with sum %s that has sum %s", sent, sum, answer)
	}
	for name, changed := range map[string][]string{
		"one less":  many[1:],
		"one more":  append(slices.Clone(many), "z"),
		"one other": append(slices.Clone(many[:len(many)-1]), "z"),
		"joined":    append([]string{"01"}, many[2:]...),
	} {
		if sent, answer := walk([]string{sum}, changed...); answer != "" || len(sent) != len(changed)+2 {
			t.Errorf("%s: sent %d packets of %d files, answered %q", name, len(sent), len(changed), answer)
		}
	}
	// Who was asked about a directory does not learn its sum.
	q, request := unchanged.Ask([]string{sum}), metadata.MD{}
	q.Put(request)
	if slices.Contains(unchanged.From(request), sum) {
		t.Error("a question gives the sum away")
	}
}
