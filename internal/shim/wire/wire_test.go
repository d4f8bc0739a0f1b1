package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// pair is two ends of a pipe as conversations: what one writes the other reads.
func pair(t testing.TB) (*Conn, *Conn) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return NewConn(r), NewConn(w)
}

func TestFrames(t *testing.T) {
	r, w := pair(t)
	big := bytes.Repeat([]byte("0123456789"), 10_000)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Data(Stdout, big); err != nil {
			t.Error(err)
		}
		if err := w.Data(Stdin, nil); err != nil {
			t.Error(err)
		}
		if err := w.Send(Asks, &Request{Version: 1, Op: Exec, Process: &isolation.Process{Args: []string{strings.Repeat("x", 1<<20)}}}); err != nil {
			t.Error(err)
		}
		w.Close()
	})
	var got []byte
	for len(got) < len(big) {
		kind, b, err := r.Next()
		if err != nil || kind != Stdout || len(b) > MaxData {
			t.Fatal(kind, len(b), err)
		}
		got = append(got, b...)
	}
	if !bytes.Equal(got, big) {
		t.Fatal("other bytes")
	}
	if kind, b, err := r.Next(); kind != Stdin || len(b) != 0 || err != nil {
		t.Fatal(kind, b, err)
	}
	var req Request
	if err := r.Receive(Asks, &req); err != nil || req.Op != Exec || len(req.Process.Args[0]) != 1<<20 {
		t.Fatal(req.Op, err)
	}
	if _, _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}
	wg.Wait()
}

// A Docker client takes output frames as they are.
func TestFramesAreDockers(t *testing.T) {
	r, w := pair(t)
	go func() { _ = w.Data(Stderr, []byte("oops\n")) }()
	b := make([]byte, 13)
	if _, err := io.ReadFull(r.File(), b); err != nil || string(b) != "\x02\x00\x00\x00\x00\x00\x00\x05oops\n" {
		t.Fatalf("%q %v", b, err)
	}
}

// A message is refused by its header, before memory is taken for it.
func TestFramesAreBounded(t *testing.T) {
	for _, h := range [][8]byte{
		{0, 0, 0, 0, 0, 1, 0, 0}, {16, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, {3, 0, 0, 0, 0, 0, 0, 1}, {16, 1, 0, 0, 0, 0, 0, 1}, {'G', 'E', 'T', ' ', '/', ' ', 'H', 'T'},
	} {
		r, w := pair(t)
		go func() { _, _ = w.File().Write(h[:]) }()
		if _, _, err := r.Next(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%v: %v", h, err)
		}
	}
	r, w := pair(t)
	go func() {
		_, _ = w.File().Write([]byte{16, 0, 0, 0, 0, 0x7f, 0, 0, 'x'})
		w.Close()
	}()
	if _, _, err := r.Next(); err != io.ErrUnexpectedEOF || cap(r.in) > 4*MaxData {
		t.Errorf("a claim of 8 MiB and one byte: %v, %d bytes taken", err, cap(r.in))
	}
	if err := w.Send(Asks, &Request{Exec: strings.Repeat("x", MaxControl)}); err == nil {
		t.Error("a message too large was sent")
	}
}

func TestErrorsTravel(t *testing.T) {
	start := &isolation.StartError{Kind: isolation.StartNotAllowed, Step: `exec "/x"`, Why: "permission denied"}
	for _, err := range []error{
		fmt.Errorf("a: %w", errdefs.ErrNotFound), fmt.Errorf("b: %w", errdefs.ErrConflict), fmt.Errorf("c: %w", start),
		fmt.Errorf("d: %w: %w", start, errdefs.ErrInvalidArgument), errors.New("plain"),
	} {
		r, w := pair(t)
		go func() { _ = w.Send(Tells, &Reply{Error: NewError(err)}) }()
		var got Reply
		if e := r.Receive(Tells, &got); e != nil {
			t.Fatal(e)
		}
		if got.Error.Error() != err.Error() {
			t.Errorf("text %q, want %q", got.Error, err)
		}
		for _, k := range kinds {
			if errors.Is(got.Error, k.err) != errors.Is(err, k.err) {
				t.Errorf("%q: kind %s came or went", err, k.name)
			}
		}
		var a, b *isolation.StartError
		if errors.As(err, &a) != errors.As(got.Error, &b) || a != nil && *a != *b {
			t.Errorf("%q: start error %v", err, b)
		}
	}
	if NewError(nil) != nil {
		t.Error("no error became one")
	}
}

func FuzzNext(f *testing.F) {
	frame := func(kind Kind, b string) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{byte(kind), 0, 0, 0}, uint32(len(b))), b...)
	}
	f.Add(frame(Asks, `{"v":1,"op":"exec","exec":"a","process":{"args":["x"],"seccomp":"AAAA"}}`))
	f.Add(append(frame(Stdin, "abc"), frame(Asks, `{"op":`+strings.Repeat("[", 20000))...))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Skip(err)
		}
		defer r.Close()
		go func() {
			_, _ = w.Write(in)
			w.Close()
		}()
		c := NewConn(r)
		total := 0
		for {
			kind, b, err := c.Next()
			if err != nil {
				return
			}
			if total += 8 + len(b); total > len(in) {
				t.Fatalf("%d bytes out of %d", total, len(in))
			}
			if kind == Asks {
				var req Request
				if Decode(b, &req) == nil {
					var again Request
					var buf bytes.Buffer
					if _, err := fmt.Fprintf(&buf, "%v", req); err != nil || Decode(b, &again) != nil {
						t.Fatal("decodes once only")
					}
				}
			}
		}
	})
}
