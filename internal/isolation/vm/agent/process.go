package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// process is one process that was started on request.
type process struct {
	agent *Agent
	head  wire.Header // epoch and id
	pid   int
	main  bool
	stop  context.CancelFunc      // of a Files request, which is no process; nil: a process
	ended chan syscall.WaitStatus // from the reaper, buffered
	ooms  uint64                  // the guest's count of OOM kills when it started

	stdin *wire.Inbox     // nil: none
	out   [3]*wire.Outbox // by stream; nil: no such stream
	tty   *os.File        // master end; nil: no terminal
	input *os.File        // where stdin goes: a pipe or tty
	reads []*output       // where the output comes from
	pumps chan struct{}   // one token for each output that has ended
}

// grace is how long an exec'd process's output is waited for after its end:
// a grandchild may hold the pipe for ever.
const grace = time.Second

// start runs a process and answers with its pid; its streams begin after the answer.
func (a *Agent) start(h wire.Header, want *isolation.Process) (reply any, after func(), err error) {
	p := &process{agent: a, head: wire.Header{Epoch: h.Epoch, ID: h.ID}, main: wire.Op(h.Sub) == wire.OpStart,
		ended: make(chan syscall.WaitStatus, 1), pumps: make(chan struct{}, 3)}
	if p.main {
		if err := a.enter(ready, running, "start the main process"); err != nil {
			return nil, nil, err
		}
		defer func() {
			if err != nil { // it may be tried again
				_ = a.enter(running, ready, "")
			}
		}()
	} else if err := a.enter(running, running, "exec a process"); err != nil {
		return nil, nil, err
	}
	ends, err := p.prepare(want)
	if err != nil {
		return nil, nil, err
	}
	defer ends.close()
	if !p.main {
		want = a.room.inherit(want)
	}
	if p.main {
		if err := a.room.attach(); err != nil {
			p.close()
			return nil, nil, err
		}
	}
	l, err := plan(a.room.root, want)
	if err == nil && p.main {
		err = a.room.furnish(want, ends.console())
	} else if err == nil {
		err = checkWorkdir(a.room.root, want.Cwd)
	}
	if err != nil {
		p.close()
		return nil, nil, err
	}
	if err := ends.give(l.uid); err != nil {
		p.close()
		return nil, nil, failed("give the process its stdio", err)
	}
	p.ooms = a.room.group.oomKills()

	// A process is in pids before it can end, so that its end is not lost.
	if p.main {
		err = a.room.begin(l, ends, func(pid int) {
			a.reaping.Lock()
			p.pid = pid
			a.pids[pid] = p
			a.reaping.Unlock()
		})
	} else {
		err = a.room.enter(l, ends, func(program *sys.Program, o sys.CloneOptions) (*sys.Child, error) {
			a.reaping.Lock()
			defer a.reaping.Unlock()
			child, err := program.Clone(o)
			if err == nil {
				p.pid = child.Pid
				a.pids[child.Pid] = p
			}
			return child, err
		})
	}
	if err != nil {
		a.reaping.Lock()
		if a.pids[p.pid] == p {
			delete(a.pids, p.pid)
		}
		a.reaping.Unlock()
		p.close()
		return nil, nil, explain(err, l)
	}
	a.mu.Lock()
	if a.epoch == h.Epoch {
		a.procs[h.ID] = p
	} else {
		p.orphan()
	}
	a.mu.Unlock()
	return wire.Started{PID: p.pid}, p.pump, nil
}

// ends are the child's ends of its stdio.
type ends struct {
	in, out, err *os.File
	terminal     bool
}

func (e *ends) files() []*os.File { return []*os.File{e.in, e.out, e.err} }

// console is the terminal; nil without one.
func (e *ends) console() *os.File {
	if e.terminal {
		return e.in
	}
	return nil
}

func (e *ends) close() {
	for _, f := range e.files() {
		if f != nil {
			f.Close()
		}
	}
}

// give makes the ends the user's own, so that /dev/stdout can be opened again
// by whoever the process runs as. /dev/null belongs to all.
func (e *ends) give(uid uint32) error {
	for _, f := range e.files() {
		if f == nil || f.Name() == os.DevNull {
			continue
		}
		if err := f.Chown(int(uid), -1); err != nil {
			return err
		}
		if e.terminal {
			return nil // the three are one
		}
	}
	return nil
}

// prepare makes the streams and the child's ends of them.
func (p *process) prepare(want *isolation.Process) (e *ends, err error) {
	e = &ends{terminal: want.Terminal}
	defer func() {
		if err != nil {
			e.close()
			p.close()
			err = failed("make the stdio of a process", err)
		}
	}()
	conn, epoch, id := p.agent.conn, p.head.Epoch, p.head.ID
	if want.Stdin {
		p.stdin = wire.NewInbox(conn, epoch, id, wire.Stdin)
	}
	p.out[wire.Stdout] = wire.NewOutbox(conn, epoch, id, wire.Stdout)
	if want.Terminal {
		p.tty, e.in, err = sys.OpenPTYIn(p.agent.room.pts)
		if err != nil {
			return e, err
		}
		if want.Rows > 0 || want.Cols > 0 {
			if err := sys.SetWinsize(p.tty, want.Rows, want.Cols); err != nil {
				return e, err
			}
		}
		e.out, e.err = e.in, e.in
		p.input = p.tty
		p.reads = []*output{{f: p.tty, to: p.out[wire.Stdout]}}
		return e, nil
	}
	p.out[wire.Stderr] = wire.NewOutbox(conn, epoch, id, wire.Stderr)
	if want.Stdin {
		e.in, p.input, err = os.Pipe()
	} else {
		e.in, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	}
	if err != nil {
		return e, err
	}
	var r *os.File
	if r, e.out, err = os.Pipe(); err != nil {
		return e, err
	}
	p.reads = append(p.reads, &output{f: r, to: p.out[wire.Stdout]})
	if r, e.err, err = os.Pipe(); err != nil {
		return e, err
	}
	p.reads = append(p.reads, &output{f: r, to: p.out[wire.Stderr]})
	return e, nil
}

// close closes our ends.
func (p *process) close() {
	if p.input != nil {
		p.input.Close()
	}
	for _, o := range p.reads {
		o.f.Close()
	}
}

// orphan takes the process's streams away: nobody reads or writes them any more.
func (p *process) orphan() {
	for _, o := range p.out {
		if o != nil {
			o.End(wire.ErrStale)
		}
	}
	if p.stop != nil {
		p.stop()
		p.stdin.End(wire.ErrStale)
	} else if p.stdin != nil {
		p.stdin.End(io.EOF)
	}
}

// pump carries the stdio until the process has ended and tells of its end.
func (p *process) pump() {
	for _, o := range p.reads {
		p.agent.background(func() {
			defer func() { p.pumps <- struct{}{} }()
			// Output that nobody wants is read and dropped: the process must not block on it.
			_ = o.to.SendFrom(o, make([]byte, wire.HeaderLen+wire.MaxData), true)
		})
	}
	if p.stdin != nil {
		p.agent.background(func() {
			// An error: the process reads no more, or the host is gone.
			_ = p.stdin.Deliver(p.input)
			if p.tty == nil {
				p.input.Close()
			}
		})
	}
	p.agent.background(func() { p.finish(<-p.ended) })
}

// finish waits for the output after the end of a process and reports both.
func (p *process) finish(ws syscall.WaitStatus) {
	a, at := p.agent, time.Now()
	x := wire.Exited{At: at.UnixNano()}
	if ws.Signaled() {
		x.Signal = int(ws.Signal())
		x.Code = 128 + x.Signal
	} else {
		x.Code = ws.ExitStatus()
	}
	// A shell answers 137 for the child that it lost.
	x.OOMKilled = x.Code == 128+int(syscall.SIGKILL) && a.room.group.oomKills() > p.ooms
	if p.main {
		_ = a.enter(running, ended, "")
		a.killAll()
	}
	late := time.AfterFunc(grace, func() {
		for _, o := range p.reads {
			o.hurry()
		}
	})
	for range p.reads {
		<-p.pumps
	}
	late.Stop()
	if p.stdin != nil {
		p.stdin.End(io.EOF)
	}
	a.mu.Lock()
	if a.procs[p.head.ID] == p {
		delete(a.procs, p.head.ID)
	}
	a.mu.Unlock()
	p.close()
	head := p.head
	head.Type = wire.TypeExited
	_ = a.conn.SendMessage(head, x)
}

// killAll kills every process but us, as the end of a pid namespace's first
// process does behind the other wall.
func (a *Agent) killAll() {
	if a.options.KillAll {
		_ = syscall.Kill(-1, syscall.SIGKILL) // ESRCH: there was none
	}
}

// output reads what a process writes. When it is hurried it gives what is there
// already and then ends, even if somebody still holds the other end.
type output struct {
	f    *os.File
	to   *wire.Outbox
	late atomic.Bool
	rest int // bytes that may still come when late
}

// hurry is called once, by another goroutine than Read.
func (o *output) hurry() {
	o.rest = wire.Window // a pipe holds less
	o.late.Store(true)
	_ = o.f.SetReadDeadline(time.Unix(1, 0)) // wakes a Read that waits
}

func (o *output) Read(b []byte) (int, error) {
	if !o.late.Load() {
		n, err := o.f.Read(b)
		switch {
		case errors.Is(err, syscall.EIO): // a terminal whose last process has gone
			return n, io.EOF
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		}
	}
	_ = o.f.SetReadDeadline(time.Time{})
	raw, err := o.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	if err := raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return true
	}); err != nil {
		return 0, err
	}
	if n <= 0 || o.rest <= 0 {
		return 0, io.EOF
	}
	o.rest -= n
	return n, nil
}

// running finds a process that has not been reaped and calls f with its pid,
// which stays valid meanwhile.
func (a *Agent) running(id uint32, what string, f func(p *process) error) error {
	a.mu.Lock()
	p := a.procs[id]
	a.mu.Unlock()
	gone := &wire.Failure{Kind: wire.FailGone, Step: what, Why: "the process has ended"}
	if p == nil {
		return gone
	}
	if p.stop != nil {
		p.stop()
		return nil
	}
	a.reaping.Lock()
	defer a.reaping.Unlock()
	if a.pids[p.pid] != p {
		return gone
	}
	return f(p)
}

func (a *Agent) signal(s *wire.Signal) error {
	return a.running(s.Process, "signal a process", func(p *process) error {
		if err := syscall.Kill(p.pid, syscall.Signal(s.Signal)); err != nil {
			return failed("signal a process", err)
		}
		return nil
	})
}

func (a *Agent) resize(r *wire.Resize) error {
	return a.running(r.Process, "resize a terminal", func(p *process) error {
		if p.tty == nil {
			return &wire.Failure{Kind: wire.FailInvalid, Step: "resize a terminal", Why: "the process has no terminal"}
		}
		return sys.SetWinsize(p.tty, r.Rows, r.Cols)
	})
}

func failed(step string, err error) error {
	return &isolation.StartError{Kind: isolation.StartFailed, Step: step, Why: err.Error()}
}
