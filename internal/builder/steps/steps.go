// Package steps lets a builder have its steps run by the engine: it answers the
// protocol of package build/step/wire, turns what is asked into engine.Step, and
// carries streams, signals and the end. It owns which steps of a builder run.
//
// It trusts a builder with what it may name (the engine started it, and both
// run as root), and with nothing else: a step of a builder that went away, or
// does not read any more, is killed.
package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"google.golang.org/grpc"

	"proa/internal/build/step/wire"
	"proa/internal/engine"
	"proa/internal/isolation"
	shimwire "proa/internal/shim/wire"
)

// Register offers the service on r. All steps that it starts have isolation kind.
func Register(r grpc.ServiceRegistrar, e *engine.Engine, kind isolation.Kind) {
	s := &server{engine: e, kind: kind, running: map[string]*engine.StepRun{}}
	stream := func(name string, handle func(*wire.Conn, context.Context) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, ServerStreams: true, ClientStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
			return handle(wire.NewConn(st), st.Context())
		}}
	}
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: wire.Service, HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{stream(wire.RunName, s.run), stream(wire.ExecName, s.exec)},
	}, s)
}

// server holds the steps of one builder.
type server struct {
	engine *engine.Engine
	kind   isolation.Kind

	mu      sync.Mutex                 // guards running
	running map[string]*engine.StepRun // by the builder's name
}

// process is the step's own process, or one beside it.
type process interface {
	Next() (stderr bool, data []byte, err error)
	Write([]byte) (int, error)
	CloseWrite() error
	Signal(ctx context.Context, sig int) error
	Resize(ctx context.Context, rows, cols uint16) error
}

// run carries one step from its start to its end.
func (s *server) run(conn *wire.Conn, ctx context.Context) error {
	var ask wire.Run
	if err := conn.Receive(wire.Ask, &ask); err != nil {
		return err
	}
	step, err := readStep(ask, s.kind)
	if err != nil {
		return tell(conn, nil, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	orders := listen(conn, cancel)
	r, err := s.engine.StartStep(ctx, step)
	if err != nil {
		return tell(conn, nil, err)
	}
	// A kill, and a builder that goes away, end ctx.
	stop := context.AfterFunc(ctx, r.Kill)
	defer stop()
	if err := s.enter(ask.ID, r); err != nil {
		r.Kill()
		return tell(conn, nil, err)
	}
	defer s.leave(ask.ID)
	if err := conn.Send(wire.Begun, wire.Start{Warnings: r.Warnings}); err != nil {
		r.Kill()
		return err
	}
	go orders.obey(ctx, r)
	if err := carry(conn, r); err != nil {
		r.Kill()
		if ctx.Err() == nil {
			return err
		}
	}
	exit, err := r.Wait()
	return tell(conn, &exit, err)
}

// exec carries one more process in a step that runs.
func (s *server) exec(conn *wire.Conn, ctx context.Context) error {
	var ask wire.Exec
	if err := conn.Receive(wire.Ask, &ask); err != nil {
		return err
	}
	s.mu.Lock()
	r := s.running[ask.ID]
	s.mu.Unlock()
	if r == nil {
		return tell(conn, nil, fmt.Errorf("cannot find step %q: it does not run: %w", ask.ID, errdefs.ErrNotFound))
	}
	p := ask.Process
	if len(p.Args) == 0 {
		return tell(conn, nil, invalid("cannot exec in a step: no command is given"))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	orders := listen(conn, cancel)
	x, err := r.Exec(ctx, engine.StepProcess{Args: p.Args, Env: p.Env, Cwd: p.Cwd, User: p.User, Terminal: p.Terminal, Stdin: p.Stdin})
	if err != nil {
		return tell(conn, nil, err)
	}
	defer x.Close()
	const sigkill = 9
	stop := context.AfterFunc(ctx, func() { _ = x.Signal(context.WithoutCancel(ctx), sigkill) })
	defer stop()
	if err := conn.Send(wire.Begun, wire.Start{}); err != nil {
		return err
	}
	go orders.obey(ctx, x)
	if err := carry(conn, x); err != nil {
		return err
	}
	exit, err := x.Wait()
	return tell(conn, &exit, err)
}

func (s *server) enter(id string, r *engine.StepRun) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" || s.running[id] != nil {
		return fmt.Errorf("cannot run step %q: the name is taken, or empty: %w", id, errdefs.ErrAlreadyExists)
	}
	s.running[id] = r
	return nil
}

func (s *server) leave(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, id)
}

// tell says how it ended, which is the last message.
func tell(conn *wire.Conn, exit *isolation.Exit, err error) error {
	end := wire.End{Error: shimwire.NewError(err)}
	if err == nil {
		end.Exit = exit
	}
	return conn.Send(wire.Ended, end)
}

// carry takes output to the builder until the process has ended.
func carry(conn *wire.Conn, p process) error {
	for {
		stderr, b, err := p.Next()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, errdefs.ErrUnavailable) {
				return nil // the end says more
			}
			return err
		}
		kind := wire.Stdout
		if stderr {
			kind = wire.Stderr
		}
		if err := conn.Data(kind, b); err != nil {
			return err
		}
	}
}

// orders are what a builder says while a process is started and runs.
type orders struct {
	conn  *wire.Conn
	input chan []byte     // has room for the one piece that may be under way
	other chan wire.Order // signals and sizes
}

// listen reads orders until the builder has no more. A kill, or the end of the
// stream, calls kill; a stream that is broken does by its context.
func listen(conn *wire.Conn, kill func()) *orders {
	o := &orders{conn: conn, input: make(chan []byte, 1), other: make(chan wire.Order, 64)}
	go func() {
		for {
			kind, b, err := conn.Next()
			if err != nil {
				return
			}
			switch kind {
			case wire.Stdin:
				select {
				case o.input <- b:
				default: // it did not wait for Took
					kill()
					return
				}
			case wire.Signal, wire.Resize:
				var order wire.Order
				if wire.Decode(b, &order) != nil {
					kill()
					return
				}
				select {
				case o.other <- order:
				default: // nobody means so many at once
				}
			default:
				kill()
				return
			}
		}
	}()
	return o
}

// obey carries orders out until ctx ends.
func (o *orders) obey(ctx context.Context, p process) {
	go func() {
		for {
			select {
			case b := <-o.input:
				if len(b) == 0 {
					_ = p.CloseWrite()
				} else if _, err := p.Write(b); err != nil {
					return
				}
				if o.conn.Send(wire.Took, nil) != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case order := <-o.other:
			// One that comes too late has no process to go to.
			if order.Signal != 0 {
				_ = p.Signal(ctx, order.Signal)
			} else {
				_ = p.Resize(ctx, order.Rows, order.Cols)
			}
		case <-ctx.Done():
			return
		}
	}
}

// readStep turns what is asked into the engine's words.
func readStep(r wire.Run, kind isolation.Kind) (engine.Step, error) {
	p, l := r.Process, r.Limits
	s := engine.Step{
		Kind: kind, Args: p.Args, Env: p.Env, Cwd: p.Cwd, User: p.User, Terminal: p.Terminal, Stdin: p.Stdin,
		Hostname: r.Hostname, UnstubParents: r.UnstubParents, Network: isolation.NetworkMode(r.Network), ExtraHosts: r.Hosts, Insecure: r.Insecure,
		Resources: container.Resources{
			Memory: l.Memory, MemorySwap: l.Swap, CPUShares: l.CPUShares, CPUPeriod: l.CPUPeriod, CPUQuota: l.CPUQuota,
			CpusetCpus: l.CPUs, CpusetMems: l.Mems, CgroupParent: l.CgroupParent,
		},
	}
	for _, u := range l.Ulimits {
		s.Resources.Ulimits = append(s.Resources.Ulimits, &container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	root, readonly, err := readMount(r.Root)
	if err != nil {
		return s, err
	}
	s.Root, s.Readonly = root, readonly || r.Root.Readonly
	s.Mounts, err = readMounts(r.Mounts)
	return s, err
}
