package wire

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/rootfs"
)

// What an agent says of a Files request is believed in form only: errors lose
// control characters and keep their kind, nonsense ends the connection, and a
// flood is held back as for a process.
func TestFilesOfHostileAgent(t *testing.T) {
	reply := func(p *peer, h Header) { p.reply(h, Started{}) }
	for name, c := range map[string]struct {
		say func(p *peer, h Header)
		is  func(error) bool
		has string
	}{
		"no such file": {func(p *peer, h Header) {
			reply(p, h)
			p.send(Header{Type: TypeExited, ID: h.ID}, []byte(`{"failure":{"kind":"no-file","step":"x","why":"gone\u001b[2J\u0000\n"}}`))
		}, errdefs.IsNotFound, "gone?[2J??"},
		"unknown kind": {func(p *peer, h Header) {
			reply(p, h)
			p.send(Header{Type: TypeExited, ID: h.ID}, []byte(`{"failure":{"kind":"whatever"}}`))
		}, errdefs.IsUnknown, ""},
		"refused": {func(p *peer, h Header) {
			p.send(Header{Type: TypeError, ID: h.ID}, []byte(`{"kind":"state","step":"x","why":"not now"}`))
		}, errdefs.IsFailedPrecondition, "not now"},
		"flood": {func(p *peer, h Header) {
			reply(p, h)
			flood(p, Header{Type: TypeData, Sub: Stdout, ID: h.ID}, make([]byte, 16<<10))
		}, func(err error) bool { return errors.Is(err, ErrViolation) }, ""},
		"data on stderr": {func(p *peer, h Header) {
			reply(p, h)
			p.send(Header{Type: TypeData, Sub: Stderr, ID: h.ID}, []byte("x"))
		}, func(err error) bool { return errors.Is(err, ErrViolation) }, ""},
		"end that is not JSON": {func(p *peer, h Header) {
			reply(p, h)
			p.send(Header{Type: TypeExited, ID: h.ID}, []byte("[["))
		}, func(err error) bool { return errors.Is(err, ErrViolation) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, func(p *peer) {
				c.say(p, p.next())
				io.Copy(io.Discard, p.rw)
			})
			out := io.Writer(io.Discard)
			if name == "flood" {
				out = until(client.Closed()) // a reader that stands still
			}
			err := client.Files(soon(t), &rootfs.Request{Op: rootfs.OpGet, Path: "/x"}, nil, out)
			if !c.is(err) || !strings.Contains(err.Error(), c.has) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// until is a writer that stands still until a channel is closed.
type until <-chan struct{}

func (u until) Write(b []byte) (int, error) { <-u; return len(b), nil }

// The caller's own streams explain their failures, and a failure of the agent
// is bounded when it is made.
func TestFilesStreams(t *testing.T) {
	client := dial(t, func(p *peer) {
		h := p.next()
		p.reply(h, Started{})
		io.Copy(io.Discard, p.rw)
	})
	broken := errors.New("broken pipe of the caller")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := client.Files(ctx, &rootfs.Request{Op: rootfs.OpPut}, iotest.ErrReader(broken), nil)
	if !errors.Is(err, broken) {
		t.Errorf("an input that fails: %v", err)
	}
	f := FilesFailure(rootfs.OpGet, errors.Join(errdefs.ErrNotFound, errors.New(strings.Repeat("x", 100_000))))
	if f.Kind != FailNoFile || len(f.Why) > maxWhy+3 {
		t.Errorf("kind %s, %d bytes", f.Kind, len(f.Why))
	}
	var b bytes.Buffer
	c := NewConn(struct {
		io.Reader
		io.Writer
		io.Closer
	}{nil, &b, nopCloser{}}, false)
	if err := c.SendMessage(Header{Type: TypeExited}, Exited{Failure: f}); err != nil {
		t.Errorf("the longest failure does not fit into its frame: %v", err)
	}
}

// FuzzFailure: whatever an agent says at the end of a Files request, it becomes
// an error that prints on one line.
func FuzzFailure(f *testing.F) {
	f.Add([]byte(`{"failure":{"kind":"no-file","step":"x","why":"gone"}}`))
	f.Add([]byte(`{"failure":{"why":"\u001b]0;x\u0007\u202e"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var x Exited
		if DecodeJSON(b, &x) != nil || x.Failure == nil {
			return
		}
		text := x.Failure.files().Error()
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u202e' }) {
			t.Errorf("%q", text)
		}
	})
}
