package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"proa/internal/client"
)

// errDetached says that the person pressed the detach keys.
var errDetached = errors.New("detached")

// session joins this terminal (or these pipes) to the streams of one process.
type session struct {
	app                   *app
	c                     *client.Client
	tty                   bool
	stdin, stdout, stderr bool
	keys                  []byte
	resize                func(rows, cols int)

	conn     *client.Conn
	output   chan error // one value when the output has ended
	detach   chan struct{}
	undo     func()
	undoOnce sync.Once
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// begin starts the copying; the terminal becomes raw when there is one.
func (s *session) begin(conn *client.Conn) error {
	s.conn, s.output, s.detach = conn, make(chan error, 1), make(chan struct{})
	s.undo = func() {}
	if s.tty && s.stdin && isTerminal(s.app.in) {
		fd := int(s.app.in.Fd())
		old, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("cannot put the terminal into raw mode: %w", err)
		}
		resized := make(chan os.Signal, 1)
		signal.Notify(resized, syscall.SIGWINCH)
		go func() {
			for range resized {
				s.sizeTerminal()
			}
		}()
		s.undo = func() {
			signal.Stop(resized)
			close(resized)
			_ = term.Restore(fd, old)
		}
	}
	go func() {
		out, errw := io.Discard, io.Discard
		if s.stdout {
			out = s.app.out
		}
		if s.stderr {
			errw = s.app.err
		}
		var err error
		if s.tty {
			_, err = io.Copy(out, conn)
		} else {
			err = client.Demux(conn, out, errw)
		}
		s.output <- err
	}()
	if s.stdin {
		go func() {
			var in io.Reader = s.app.in
			if s.tty && len(s.keys) > 0 {
				in = &detachReader{r: in, keys: s.keys}
			}
			_, err := io.Copy(conn, in)
			if errors.Is(err, errDetached) {
				close(s.detach)
				return
			}
			_ = conn.CloseWrite()
		}()
	}
	return nil
}

// sizeTerminal tells the process the size of this terminal.
func (s *session) sizeTerminal() {
	if !s.tty || !isTerminal(s.app.in) {
		return
	}
	if cols, rows, err := term.GetSize(int(s.app.in.Fd())); err == nil && s.resize != nil {
		s.resize(rows, cols)
	}
}

// end waits until the output has ended or the person detached.
func (s *session) end() (detached bool, err error) {
	select {
	case err = <-s.output:
		return false, err
	case <-s.detach:
		return true, nil
	}
}

// restore gives the terminal back; it can be called twice.
func (s *session) restore() {
	s.undoOnce.Do(func() {
		if s.undo != nil {
			s.undo()
		}
	})
}

// detachReader ends with errDetached when the keys come in one after another.
type detachReader struct {
	r    io.Reader
	keys []byte
	held int // how many of keys have come so far
}

func (d *detachReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var one [1]byte
	// A terminal hands over few bytes at a time: reading one by one costs
	// nothing that a person could feel, and keeps the keys exact.
	if _, err := d.r.Read(one[:]); err != nil {
		return 0, err
	}
	if one[0] == d.keys[d.held] {
		d.held++
		if d.held == len(d.keys) {
			return 0, errDetached
		}
		return 0, nil
	}
	n := copy(p, d.keys[:d.held])
	d.held = 0
	if one[0] == d.keys[0] {
		d.held = 1
	} else if n < len(p) {
		p[n] = one[0]
		n++
	}
	return n, nil
}

// parseDetachKeys reads "ctrl-p,ctrl-q" or "a,ctrl-x"; empty means none.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		if len(k) == 1 {
			keys = append(keys, k[0])
			continue
		}
		rest, ok := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		if !ok || len(rest) != 1 || !(rest[0] >= 'a' && rest[0] <= 'z' || strings.Contains("@[\\]^_", rest)) {
			return nil, fmt.Errorf("cannot read --detach-keys %q: %q is neither a character nor ctrl-CHARACTER", s, k)
		}
		keys = append(keys, rest[0]&0x1f)
	}
	return keys, nil
}

// forwardSignals passes this process's signals on by name until stop is
// called. Without a terminal ctrl-C arrives here, not in the container.
func (a *app) forwardSignals(send func(name string), tty bool) (stop func()) {
	ch := make(chan os.Signal, 16)
	names := map[os.Signal]string{
		syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT", syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
		syscall.SIGINT: "INT",
	}
	for sig := range names {
		signal.Notify(ch, sig)
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-ch:
				send(names[sig])
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
	}
}
