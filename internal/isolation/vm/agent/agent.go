// Package agent is the first process of a VM: it mounts the image, brings up
// the network, starts processes and carries their stdio, reaps orphans and
// powers off. It owns everything inside the guest that is not the user's; it
// never decides anything: what it does, the shim asked for over vm/wire.
//
// It must be small and start quickly, because under emulation every page and
// every initialised package is waited for. It must not die, because the kernel
// dies with it: a panic in a request becomes that request's error, and signals
// are ignored.
//
// The initramfs that it starts from holds:
//
//	/init                the program (cmd/proa-agent)
//	/dev/console c 5 1, /dev/null c 1 3   Go's runtime opens /dev/null where there is no console
//	/proc /sys /dev /newroot              empty directories (made if missing)
//	/modules.txt         one module a line, "path [parameters]", in the order of loading (optional)
//
// Words of the kernel command line that it understands:
//
//	proa.off=reset       end by a reset instead of ACPI power-off (a VMM started with -no-reboot ends on it)
//	proa.port=NAME       another port name than wire.PortName
package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/rootfs"
	"proa/internal/sys"
)

// Agent serves one guest. Make it with New.
type Agent struct {
	conn    *wire.Conn
	options Options
	welcome wire.Welcome
	slots   chan struct{} // requests being handled

	// reaping guards the pids: a pid that is looked up under it cannot be
	// reaped, and so not be reused, before it is let go. Order: reaping, then mu.
	reaping sync.Mutex
	pids    map[int]*process

	mu    sync.Mutex // guards what follows; never held across I/O
	epoch uint32
	procs map[uint32]*process // by id, of the current epoch
	state state
	disk  *os.File // mount of the writable layer's file system
	files *files   // what Files requests work on; nil before Setup

	// room is set once, by Setup, before the state says so. A process is
	// started in it by one request at a time.
	room *room
}

// state is how far the guest has come.
type state int

const (
	fresh   state = iota // nothing mounted
	ready                // set up, no main process yet
	running              // the main process runs
	ended                // it has ended
	down                 // shutting down
)

var stateNames = [...]string{"not set up", "set up, with no main process", "running", "left by its main process", "shutting down"}

// Options are what differs between a guest and a test.
type Options struct {
	// Wait is how long to wait before reading again after the host has hung
	// up: a port stays, and another host process may open its end. Zero: Serve
	// returns instead.
	Wait time.Duration
	// KillAll makes the end of the main process kill every other process. Only
	// for process 1 of a pid namespace.
	KillAll bool
	// Forget are files of the initramfs that only the boot needed; they are
	// removed before the root is switched, because they lie in memory.
	Forget []string
	// Cgroups is where cgroup version 2 is to be mounted, the user's group below
	// it; empty: no group is made, and nothing can be limited.
	Cgroups string
	// PowerOff ends the machine after Shutdown was answered.
	PowerOff func()
	// Welcome is what the host is told of the boot.
	Welcome wire.Welcome
	// Warn takes one line about something that could not be had.
	Warn func(string)
}

// New makes an agent that serves rw. It reaps all children of the process from
// now on, so the process must not wait for any itself.
func New(rw io.ReadWriteCloser, o Options) *Agent {
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.PowerOff == nil {
		o.PowerOff = func() {}
	}
	o.Welcome.Version = wire.Version
	o.Welcome.Kernel = sys.KernelRelease()
	a := &Agent{
		conn:    wire.NewConn(rw, true),
		options: o,
		slots:   make(chan struct{}, 32),
		pids:    map[int]*process{},
		procs:   map[uint32]*process{},
	}
	a.background(a.reap)
	return a
}

// background runs f. A panic in it is told and survived: with the first
// process ends the kernel, and everything of the user's in it.
func (a *Agent) background(f func()) {
	go func() {
		defer func() {
			if r := recover(); r != nil {
				a.options.Warn(fmt.Sprintf("panic: %v\n%s", r, debug.Stack()))
			}
		}()
		f()
	}()
}

// Serve reads and handles frames. It returns when the host has hung up and
// Options.Wait is zero.
func (a *Agent) Serve() error {
	for {
		h, err := a.conn.Next()
		if err == nil {
			err = a.frame(h)
		}
		switch {
		case err == nil:
		case errors.Is(err, wire.ErrViolation):
			a.options.Warn("ignored a frame: " + err.Error())
		case a.options.Wait == 0:
			return err
		default:
			// A port whose host end is closed reads as ended, again and again.
			a.conn.Reset()
			time.Sleep(a.options.Wait)
		}
	}
}

// frame handles one frame; it waits for nothing but the stream and, when the
// host has many requests under way, for one of them.
func (a *Agent) frame(h wire.Header) error {
	if h.Type == wire.TypeHello {
		return a.hello()
	}
	a.mu.Lock()
	current, p := h.Epoch == a.epoch, a.procs[h.ID]
	a.mu.Unlock()
	if !current {
		return nil
	}
	switch h.Type {
	case wire.TypeRequest:
		b, done, err := a.conn.Message(h)
		if err != nil || !done {
			return err
		}
		a.slots <- struct{}{}
		a.background(func() {
			defer func() { <-a.slots }()
			a.request(h, b)
		})
	case wire.TypeData, wire.TypeEOF:
		if p == nil || p.stdin == nil || h.Sub != wire.Stdin {
			return nil // it crossed with the process's end
		}
		if h.Type == wire.TypeEOF {
			p.stdin.End(io.EOF)
			return nil
		}
		return p.stdin.Receive(h)
	case wire.TypeCredit, wire.TypeRefuse:
		var o *wire.Outbox
		if p != nil && int(h.Sub) < len(p.out) {
			o = p.out[h.Sub]
		}
		if o == nil {
			return nil
		}
		if h.Type == wire.TypeRefuse {
			o.End(io.ErrClosedPipe)
			return nil
		}
		b, err := a.conn.Payload()
		if err != nil {
			return err
		}
		return o.Grant(b)
	}
	return nil
}

// hello begins an epoch. Processes of the one before go on without streams:
// whoever was watching them is gone.
func (a *Agent) hello() error {
	b, err := a.conn.Payload()
	if err != nil {
		return err
	}
	var g wire.Greeting
	if err := wire.DecodeJSON(b, &g); err != nil {
		return err
	}
	a.mu.Lock()
	old := a.procs
	a.procs = map[uint32]*process{}
	a.epoch = g.Epoch
	a.mu.Unlock()
	a.conn.SetEpoch(g.Epoch)
	for _, p := range old {
		p.orphan()
	}
	w := a.options.Welcome
	w.Epoch = g.Epoch
	// In the background: the reader must not wait for a host that does not read.
	a.background(func() {
		_ = a.conn.SendMessage(wire.Header{Epoch: g.Epoch, Type: wire.TypeHello}, w)
	})
	return nil
}

// request handles one request and answers it.
func (a *Agent) request(h wire.Header, b []byte) {
	head := wire.Header{Epoch: h.Epoch, Type: wire.TypeReply, Sub: h.Sub, ID: h.ID}
	reply, after, err := a.perform(h, b)
	if err != nil {
		head.Type = wire.TypeError
		reply = failureOf(err)
	}
	// An error of the connection is the reader's to notice.
	_ = a.conn.SendMessage(head, reply)
	if after != nil {
		after()
	}
}

// perform carries out one request. after runs when the reply was sent.
func (a *Agent) perform(h wire.Header, b []byte) (reply any, after func(), err error) {
	defer func() {
		if r := recover(); r != nil {
			a.options.Warn(fmt.Sprintf("panic: %v\n%s", r, debug.Stack()))
			reply, after, err = nil, nil, fmt.Errorf("cannot handle request %d: panic: %v", h.Sub, r)
		}
	}()
	switch wire.Op(h.Sub) {
	case wire.OpSetup:
		var s wire.Setup
		if err := wire.DecodeJSON(b, &s); err != nil {
			return nil, nil, err
		}
		return nil, nil, a.setup(&s)
	case wire.OpStart, wire.OpExec:
		var p isolation.Process
		if err := wire.DecodeJSON(b, &p); err != nil {
			return nil, nil, err
		}
		return a.start(h, &p)
	case wire.OpSignal:
		var s wire.Signal
		if err := wire.DecodeJSON(b, &s); err != nil {
			return nil, nil, err
		}
		return nil, nil, a.signal(&s)
	case wire.OpResize:
		var r wire.Resize
		if err := wire.DecodeJSON(b, &r); err != nil {
			return nil, nil, err
		}
		return nil, nil, a.resize(&r)
	case wire.OpStats:
		reply, err = a.stats()
		return reply, nil, err
	case wire.OpProcesses:
		reply, err = processes()
		return reply, nil, err
	case wire.OpSetTime:
		var nanos int64
		if err := wire.DecodeJSON(b, &nanos); err != nil {
			return nil, nil, err
		}
		return nil, nil, sys.SetClock(time.Unix(0, nanos))
	case wire.OpUpdate:
		var l wire.Limits
		if err := wire.DecodeJSON(b, &l); err != nil {
			return nil, nil, err
		}
		return nil, nil, a.update(l)
	case wire.OpFiles:
		var r rootfs.Request
		if err := wire.DecodeJSON(b, &r); err != nil {
			return nil, nil, err
		}
		return a.serveFiles(h, &r)
	case wire.OpPing:
		return nil, nil, nil
	case wire.OpShutdown:
		return nil, a.options.PowerOff, a.shutdown()
	}
	return nil, nil, &wire.Failure{Kind: wire.FailInvalid, Step: "handle a request", Why: fmt.Sprintf("unknown request %d", h.Sub)}
}

// failureOf makes an error ready to travel.
func failureOf(err error) *wire.Failure {
	var f *wire.Failure
	var s *isolation.StartError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &s):
		return &wire.Failure{Kind: wire.FailureKind(s.Kind), Step: s.Step, Why: s.Why}
	}
	return &wire.Failure{Kind: wire.FailFailed, Step: "carry out the request", Why: err.Error()}
}

// update changes the limits of the user's processes.
func (a *Agent) update(l wire.Limits) error {
	if err := a.enter(running, running, "change the limits"); err != nil {
		return err
	}
	return a.room.group.limit(l)
}

// enter moves from one state to the next, or says why that is not possible.
func (a *Agent) enter(from, to state, what string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state != from {
		return &wire.Failure{Kind: wire.FailInvalid, Step: what, Why: "the guest is " + stateNames[a.state] + ", not " + stateNames[from]}
	}
	a.state = to
	return nil
}

// reap waits for every child for ever, the orphans that became ours included.
func (a *Agent) reap() {
	for range children() {
		for {
			var ws syscall.WaitStatus
			a.reaping.Lock()
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			var p *process
			if pid > 0 && (ws.Exited() || ws.Signaled()) {
				p = a.pids[pid]
				delete(a.pids, pid)
			}
			a.reaping.Unlock()
			if p != nil {
				p.ended <- ws
			}
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 {
				break
			}
		}
	}
}
