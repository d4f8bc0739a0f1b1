// Package server is the shim process: it keeps one instance from its creation
// to its removal, carries the main process's output to the log and to whoever
// is attached, answers the engine, and writes down how it ended. It outlives
// the engine. It never decides: it restarts nothing and knows no names.
//
// Goroutines: one accepts, one for each conversation, one creates the instance
// (life), one waits for the main process (life as well), and those that the
// driver needs. All end with the process.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/logs"
	"proa/internal/shim/wire"
	"proa/internal/sys"
)

// Descriptors that the engine hands over, besides those that the spec names.
const (
	listenerFD = 3
	specFD     = 4
)

// Times that bound what others can make a shim wait for.
const (
	requestLimit = 15 * time.Second // for the rest of a conversation's next request
	farewell     = 2 * time.Second  // for conversations to end after the instance is gone
	orphanLimit  = 30 * time.Second // for somebody to ask why Create failed
	drainLimit   = 10 * time.Second // for an attached reader that stands still after the exit
)

// server is the one instance of this process and all that is known of it.
type server struct {
	dir     string
	spec    *isolation.Spec
	driver  isolation.Driver
	log     *logs.Writer
	out     *output
	in      *input
	created chan struct{} // closed when Create of the driver has returned
	exited  chan struct{} // closed when exit is set and recorded
	gone    chan struct{} // closed when nothing of the instance is left
	deleted chan struct{} // closed by the first request to delete
	bill    bill
	talks   sync.WaitGroup
	once    sync.Once // guards closing deleted

	mu        sync.Mutex // guards what follows; never held across a driver's call
	phase     wire.Phase
	inst      isolation.Instance
	createErr error
	main      isolation.Running
	exit      isolation.Exit
	execs     map[string]*execution
	ended     []string // ids of execs that have ended, oldest first
	deleteErr error    // why the driver could not remove everything
}

// Main runs the shim of one instance and returns its exit code. Its arguments
// are the shim's directory; the rest it gets as descriptors.
func Main(args []string, drivers map[isolation.Kind]isolation.Driver) int {
	if err := run(args, drivers); err != nil {
		fmt.Fprintf(os.Stderr, "proa-shim: %v\n", err)
		return 1
	}
	return 0
}

// settleTime is when a start is surely over.
const settleTime = time.Second

func run(args []string, drivers map[isolation.Kind]isolation.Driver) error {
	if len(args) != 2 || !filepath.IsAbs(args[1]) {
		return errors.New("is started by proad, one for each container; it has no use by hand")
	}
	if err := sys.CloseOnExecFrom(listenerFD); err != nil {
		return err
	}
	listener, err := sys.Nonblocking(listenerFD, "listener")
	if err != nil {
		return err
	}
	spec, err := readSpec(specFD)
	if err != nil {
		return err
	}
	driver := drivers[spec.Kind]
	if driver == nil {
		return fmt.Errorf("cannot make an instance of kind %q", spec.Kind)
	}
	// Who stops a machine sends SIGTERM to all; instances end when the engine
	// says so. Caught and not ignored, because ignoring is inherited by exec.
	signal.Notify(make(chan os.Signal, 1))

	s := &server{
		dir: args[1], spec: spec, driver: driver, phase: wire.Creating, execs: map[string]*execution{},
		created: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}), deleted: make(chan struct{}),
	}
	if s.log, err = logs.Create(spec.Log); err != nil {
		return err
	}
	s.out = newOutput(s.log)
	if spec.Process.Stdin {
		if s.in, err = newInput(); err != nil {
			return err
		}
	}
	// A start is over before a first collection would pay; from then on the
	// shim is idle nearly always, and a small heap is what matters.
	time.AfterFunc(settleTime, func() {
		debug.SetGCPercent(25)
		debug.FreeOSMemory()
	})
	go s.accept(listener)
	s.live()
	_ = listener.Close()
	s.leave()
	return nil
}

func readSpec(fd uintptr) (*isolation.Spec, error) {
	f := os.NewFile(fd, "spec")
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("cannot read the spec: %w", err)
	}
	spec := new(isolation.Spec)
	if err := json.Unmarshal(text, spec); err != nil {
		return nil, fmt.Errorf("cannot decode the spec: %w", err)
	}
	return spec, nil
}

// live is the life of the instance. It returns when nothing of it is left.
func (s *server) live() {
	ctx := context.Background()
	making, giveUp := context.WithCancel(ctx) // given up only by a delete that comes while it is made
	go func() {
		select {
		case <-s.deleted:
			giveUp()
		case <-s.created:
		}
	}()
	inst, err := s.driver.Create(making, s.spec)
	s.mu.Lock()
	s.inst, s.createErr, s.phase = inst, err, wire.Created
	if err != nil {
		s.phase = wire.Failed
	}
	s.mu.Unlock()
	if err != nil {
		// The engine is asking, or it died meanwhile and the next one reads the record.
		s.mu.Lock()
		s.exit = isolation.Exit{Code: 125, At: time.Now(), Error: err.Error()}
		s.mu.Unlock()
		s.record(s.exit)
		close(s.created)
		select {
		case <-s.deleted:
		case <-time.After(orphanLimit):
		}
		close(s.gone)
		return
	}
	close(s.created)
	idle := time.AfterFunc(500*time.Millisecond, debug.FreeOSMemory) // what starting took is not needed again
	defer idle.Stop()
	select {
	case <-s.exited: // ran and ended, or could not be started
		if s.spec.Hold {
			<-s.deleted
		}
	case <-s.deleted:
		s.mu.Lock()
		running := s.main != nil || s.phase == wire.Starting
		if !running {
			s.phase = wire.Deleting
		}
		s.mu.Unlock()
		if running {
			// Killed by the driver; what it wrote and how it ended is still taken.
			if err := s.delete(ctx); err == nil {
				<-s.exited
			}
		}
	}
	err = s.delete(ctx)
	s.mu.Lock()
	s.deleteErr = err
	s.mu.Unlock()
	close(s.gone)
}

// delete has the driver remove the instance. It is tried again, because what
// remains would remain for good.
func (s *server) delete(ctx context.Context) error {
	s.bill.close(ctx, s.inst)
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		err := s.inst.Delete(ctx)
		if err == nil || wait > 2*time.Second {
			return err
		}
		fmt.Fprintf(os.Stderr, "proa-shim: cannot remove the instance: %v\n", err)
		time.Sleep(wait)
	}
}

// leave gives conversations the time to say their last words.
func (s *server) leave() {
	done := make(chan struct{})
	go func() {
		s.talks.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(farewell):
	}
}

// start runs the main process and begins to wait for it.
func (s *server) start(ctx context.Context) error {
	s.mu.Lock()
	if s.phase != wire.Created {
		phase, err := s.phase, s.createErr
		s.mu.Unlock()
		if err != nil {
			return err
		}
		return fmt.Errorf("cannot start: it is %s: %w", phase, errdefs.ErrFailedPrecondition)
	}
	s.phase = wire.Starting
	inst := s.inst
	s.mu.Unlock()

	stdio := isolation.Stdio{Stdout: s.out.stream(wire.Stdout)}
	if !s.spec.Process.Terminal {
		stdio.Stderr = s.out.stream(wire.Stderr)
	}
	if s.in != nil {
		stdio.Stdin = s.in.reader
	}
	main, err := inst.Start(ctx, stdio)
	if err != nil {
		e := isolation.Exit{Code: 125, At: time.Now(), Error: err.Error()}
		var start *isolation.StartError
		if errors.As(err, &start) {
			switch start.Kind {
			case isolation.StartNotFound:
				e.Code = 127
			case isolation.StartNotAllowed:
				e.Code = 126
			}
		}
		s.finish(e)
		return err
	}
	s.mu.Lock()
	s.main, s.phase = main, wire.Running
	s.mu.Unlock()
	s.bill.begin(time.Now())
	go s.hurry(inst.Pid())
	go func() {
		e, err := main.Wait(ctx)
		if err != nil {
			e = isolation.Exit{Code: 125, At: time.Now(), Error: err.Error()}
		}
		s.finish(e)
	}()
	return nil
}

// hurry bounds, once the instance's first process is dead, how long an
// attached reader that stands still can hold the last output back.
func (s *server) hurry(pid int) {
	f, err := sys.OpenPid(pid)
	if err == nil {
		_ = sys.PidfdWait(f)
		f.Close()
		s.out.hurry(drainLimit)
	} else if errors.Is(err, errNoProcess) {
		s.out.hurry(drainLimit)
	}
}

// finish writes down how the main process ended, then tells everybody.
func (s *server) finish(e isolation.Exit) {
	if s.in != nil {
		s.in.close()
	}
	err := s.log.Close()
	if err != nil {
		fmt.Fprintf(os.Stderr, "proa-shim: %v\n", err)
	}
	if e.Usage, err = s.bill.total(context.Background(), s.inst, e.At); err != nil {
		fmt.Fprintf(os.Stderr, "proa-shim: %v\n", err)
	}
	s.record(e)
	s.mu.Lock()
	s.exit, s.phase = e, wire.Exited
	s.mu.Unlock()
	close(s.exited)
	s.out.end(e)
}

// record writes the exit record so that it is there whole or not at all.
func (s *server) record(e isolation.Exit) {
	text, err := json.Marshal(e)
	if err == nil {
		tmp := filepath.Join(s.dir, "exit.json.new")
		if err = os.WriteFile(tmp, text, 0o600); err == nil {
			err = os.Rename(tmp, filepath.Join(s.dir, "exit.json"))
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "proa-shim: cannot write the exit record: %v\n", err)
	}
}
