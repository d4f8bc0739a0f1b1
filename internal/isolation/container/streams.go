package container

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// streams are the ends of one process's standard descriptors.
type streams struct {
	stdio  isolation.Stdio
	stdin  bool        // there is one
	theirs [3]*os.File // for the child; closed after its start
	ours   [3]*os.File // pipes: stdin's writing end, stdout's and stderr's reading ends
	master *os.File    // terminal

	output  sync.WaitGroup
	drained chan struct{}
	once    sync.Once
}

// leftover is how long an exec'd process's output is read after its end when
// another process holds the pipe, as Docker does.
const leftover = time.Second

// connect makes the ends for a process. master and terminal are those of a
// terminal that exists already; they are taken over.
func (c *instance) connect(p *isolation.Process, stdio isolation.Stdio, user who, master, terminal *os.File) (s *streams, err error) {
	s = &streams{stdio: stdio, stdin: p.Stdin && stdio.Stdin != nil, master: master, drained: make(chan struct{})}
	s.theirs[0] = terminal
	defer func() {
		if err != nil {
			s.closeTheirs()
			s.closeOurs()
		}
	}()
	// What a process opens by the name /dev/stdout has to be its own.
	uid, gid := c.hostUID(user.uid), c.hostGID(user.gid)
	if p.Terminal {
		if s.master == nil {
			if s.master, s.theirs[0], err = sys.OpenPTYIn(c.pts); err != nil {
				return nil, err
			}
		}
		s.theirs[1], s.theirs[2] = s.theirs[0], s.theirs[0]
		if err := sys.ChownUser(s.theirs[0], uid); err != nil {
			return nil, err
		}
		if p.Rows != 0 || p.Cols != 0 {
			if err := sys.SetWinsize(s.master, p.Rows, p.Cols); err != nil {
				return nil, err
			}
		}
		return s, nil
	}
	for i := range s.theirs {
		if i == 0 && !s.stdin {
			// The container's own: the host's could be given another mode from inside.
			s.theirs[0], err = sys.Dup(sys.RawFD(c.null), "null")
		} else if s.ours[i], s.theirs[i], err = sys.Pipe(i == 0); err == nil {
			err = sys.Chown(s.theirs[i], uid, gid)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// begin starts to copy.
func (s *streams) begin() {
	if s.master != nil {
		s.copyOut(s.stdio.Stdout, s.master)
		if s.stdin {
			go func() { _, _ = io.Copy(onlyWriter{s.master}, s.stdio.Stdin) }()
		}
	} else {
		if s.ours[0] != nil {
			go func() {
				_, _ = io.Copy(onlyWriter{s.ours[0]}, s.stdio.Stdin)
				_ = s.ours[0].Close()
			}()
		}
		s.copyOut(s.stdio.Stdout, s.ours[1])
		s.copyOut(s.stdio.Stderr, s.ours[2])
	}
	go func() {
		s.output.Wait()
		close(s.drained)
	}()
}

// onlyWriter hides ReadFrom, which would splice from a socket and so block a
// thread.
type onlyWriter struct{ io.Writer }

// onlyReader hides WriteTo, which *os.File offers to sockets.
type onlyReader struct{ io.Reader }

// copyOut reads until nobody holds the other end. When the writer fails the
// process must not be stopped by a full pipe: the rest is thrown away.
func (s *streams) copyOut(w io.Writer, r *os.File) {
	s.output.Add(1)
	go func() {
		defer s.output.Done()
		defer r.Close()
		if w == nil {
			w = io.Discard
		}
		if _, err := io.Copy(onlyWriter{w}, onlyReader{r}); err != nil {
			_, _ = io.Copy(io.Discard, onlyReader{r})
		}
	}()
}

// drain waits until the output has been delivered. What holds the pipe of the
// main process died with it; of an exec'd one something may go on to live.
func (s *streams) drain(ctx context.Context, main bool) error {
	var limit <-chan time.Time
	if !main {
		t := time.NewTimer(leftover)
		defer t.Stop()
		limit = t.C
	}
	select {
	case <-s.drained:
	case <-limit:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.closeOurs()
	<-s.drained
	return nil
}

func (s *streams) closeTheirs() {
	for i, f := range s.theirs {
		if f != nil && (i == 0 || f != s.theirs[0]) {
			_ = f.Close()
		}
	}
	s.theirs = [3]*os.File{}
}

// closeOurs ends copying; it can be called more than once.
func (s *streams) closeOurs() {
	s.once.Do(func() {
		for _, f := range append(s.ours[:], s.master) {
			if f != nil {
				_ = f.Close()
			}
		}
	})
}
