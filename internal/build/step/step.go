// Package step is BuildKit's executor over the engine: each RUN is asked for
// with the protocol of package wire and carried out by the engine's own drivers,
// behind either wall. It owns what BuildKit means by a step and how a step's end
// looks to it; it runs nothing, mounts nothing, and imports nothing of the
// engine but words.
package step

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/executor"
	resources "github.com/moby/buildkit/executor/resources/types"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/stack"
	"google.golang.org/grpc"

	"proa/internal/build/step/wire"
	"proa/internal/isolation"
)

// sandbox is the name of the host that a step sees, as with every BuildKit.
const sandbox = "buildkitsandbox"

// endLimit is how long the engine may take to end a step that was killed.
const endLimit = 45 * time.Second

// Executor has steps run by the engine at the other end of a connection.
type Executor struct {
	engine grpc.ClientConnInterface

	mu      sync.Mutex // guards running
	running map[string]*run
}

var _ executor.Executor = (*Executor)(nil)

// New makes an executor. The connection stays the caller's.
func New(engine grpc.ClientConnInterface) *Executor {
	return &Executor{engine: engine, running: map[string]*run{}}
}

// run is one step, for those who want to exec in it.
type run struct {
	begun chan struct{} // closed when its process runs
	ended chan struct{} // closed when Run returns
}

// Run runs a step and returns when nothing of it is left but the files that it
// wrote. When ctx ends the step is killed first. An exit code that is not among
// the valid ones is a *gateway.ExitError; started is closed when the process
// runs, or has failed to.
func (e *Executor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (_ resources.Recorder, err error) {
	if id == "" {
		id = identity.NewID()
	}
	r := &run{begun: make(chan struct{}), ended: make(chan struct{})}
	if err := e.enter(id, r); err != nil {
		return nil, err
	}
	var once sync.Once
	begun := func() {
		once.Do(func() {
			if started != nil {
				close(started)
			}
		})
	}
	defer func() {
		e.leave(id)
		close(r.ended)
		begun()
	}()
	ask, err := newRun(id, &p.Meta)
	if err != nil {
		return nil, err
	}
	var releases releaser
	defer func() { err = errors.Join(err, releases.release()) }()
	if ask.Root, err = releases.mount(ctx, root, false); err != nil {
		return nil, fmt.Errorf("cannot mount the root of a step: %w", err)
	}
	ask.Root.Readonly = root.Readonly || p.Meta.ReadonlyRootFS
	for _, m := range mounts {
		got, err := releases.mount(ctx, m, m.Readonly)
		if err != nil {
			return nil, fmt.Errorf("cannot mount at %s: %w", m.Dest, err)
		}
		got.Target, got.Selector, got.Readonly = path.Join("/", m.Dest), m.Selector, m.Readonly
		ask.Mounts = append(ask.Mounts, got)
	}
	ask.Process.Stdin = p.Stdin != nil
	exit, err := e.talk(ctx, wire.RunName, ask, &p, func() {
		close(r.begun)
		begun()
	})
	if err := ended(ctx, exit, err, &p); err != nil {
		return nil, err
	}
	if exit.Usage == nil {
		return nil, nil
	}
	return &recorder{*exit.Usage}, nil
}

// Exec runs one more process in a step that runs, or is about to.
func (e *Executor) Exec(ctx context.Context, id string, p executor.ProcessInfo) error {
	e.mu.Lock()
	r := e.running[id]
	e.mu.Unlock()
	if r == nil {
		return fmt.Errorf("cannot exec in step %s: it does not run: %w", id, errdefs.ErrNotFound)
	}
	select {
	case <-r.begun:
	case <-r.ended:
		return fmt.Errorf("cannot exec in step %s: it has ended: %w", id, errdefs.ErrNotFound)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ask := &wire.Exec{ID: id, Process: newProcess(&p.Meta)}
	ask.Process.Stdin = p.Stdin != nil
	exit, err := e.talk(ctx, wire.ExecName, ask, &p, func() {})
	return ended(ctx, exit, err, &p)
}

func (e *Executor) enter(id string, r *run) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] != nil {
		return fmt.Errorf("cannot run step %s: it runs already: %w", id, errdefs.ErrAlreadyExists)
	}
	e.running[id] = r
	return nil
}

func (e *Executor) leave(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, id)
}

func newProcess(m *executor.Meta) wire.Process {
	return wire.Process{Args: m.Args, Env: m.Env, Cwd: m.Cwd, User: m.User, Terminal: m.Tty}
}

// newRun says what a step is, and refuses what cannot be honoured.
func newRun(id string, m *executor.Meta) (*wire.Run, error) {
	r := &wire.Run{ID: id, Process: newProcess(m), Hostname: m.Hostname, UnstubParents: m.RemoveMountStubsRecursive}
	if r.Hostname == "" {
		r.Hostname = sandbox
	}
	switch m.NetMode {
	case pb.NetMode_UNSET:
		r.Network = string(isolation.NetworkBridge)
	case pb.NetMode_HOST:
		r.Network = string(isolation.NetworkHost)
	case pb.NetMode_NONE:
		r.Network = string(isolation.NetworkNone)
	default:
		return nil, refuse("network mode %s", m.NetMode)
	}
	switch m.SecurityMode {
	case pb.SecurityMode_SANDBOX:
	case pb.SecurityMode_INSECURE:
		r.Insecure = true
	default:
		return nil, refuse("security mode %s", m.SecurityMode)
	}
	if len(m.CDIDevices) > 0 {
		return nil, refuse("CDI device %s", m.CDIDevices[0].GetName())
	}
	if m.Proxy != nil {
		return nil, refuse("a network proxy")
	}
	for _, h := range m.ExtraHosts {
		r.Hosts = append(r.Hosts, hostEntry(h.Host, h.IP))
	}
	r.Limits.CgroupParent = m.CgroupParent
	for _, u := range m.Ulimit {
		if u != nil {
			r.Limits.Ulimits = append(r.Limits.Ulimits, wire.Ulimit{Name: strings.ToLower(u.Name), Soft: u.Soft, Hard: u.Hard})
		}
	}
	if l := m.LinuxResources; l != nil {
		r.Limits.Memory, r.Limits.Swap = l.Memory, l.MemorySwap
		r.Limits.CPUShares, r.Limits.CPUPeriod, r.Limits.CPUQuota = int64(l.CpuShares), int64(l.CpuPeriod), l.CpuQuota
		r.Limits.CPUs, r.Limits.Mems = l.CpusetCpus, l.CpusetMems
	}
	return r, nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("cannot run a step with "+format+": it is not supported: %w", append(args, errdefs.ErrNotImplemented)...)
}

func hostEntry(name string, ip net.IP) string {
	if ip.To4() == nil {
		return name + ":[" + ip.String() + "]"
	}
	return name + ":" + ip.String()
}

// releaser gives mounts up again.
type releaser []func() error

// mount asks for where files lie.
func (r *releaser) mount(ctx context.Context, m executor.Mount, readonly bool) (out wire.Mount, err error) {
	if m.Src == nil {
		return out, errors.New("there is nothing to mount")
	}
	ref, err := m.Src.Mount(ctx, readonly)
	if err != nil {
		return out, err
	}
	list, release, err := plain(ref).Mount()
	if err != nil {
		return out, err
	}
	if release != nil {
		*r = append(*r, release)
	}
	if len(list) != 1 {
		return out, fmt.Errorf("it is made of %d mounts, and one is possible: %w", len(list), errdefs.ErrNotImplemented)
	}
	return wireMount(list[0]), nil
}

// plain gives what lies below BuildKit's wrappers of a snapshot's mounts. One of
// them would mount an overlay in this process, in the engine's place and with
// owners that cannot be shifted any more, and unmounting it would sync all that
// the step wrote; the other makes mounts read-only, which is asked for here in
// another way. Both (cache/refs.go: sharableMountable, readOnlyMounter) embed
// what they wrap; that they do is tested.
func plain(ref executor.MountableRef) executor.MountableRef {
	for {
		v := reflect.Indirect(reflect.ValueOf(ref))
		if v.Kind() != reflect.Struct {
			return ref
		}
		f := v.FieldByName("Mountable")
		if !f.IsValid() || !f.CanInterface() {
			return ref
		}
		inner, ok := f.Interface().(executor.MountableRef)
		if !ok {
			return ref
		}
		ref = inner
	}
}

func wireMount(m mount.Mount) wire.Mount {
	return wire.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
}

func (r releaser) release() error {
	var err error
	for _, f := range slices.Backward(r) {
		err = errors.Join(err, f())
	}
	return err
}

// talk has one conversation and returns how the process ended. When ctx ends it
// has the process killed and waits for that.
func (e *Executor) talk(ctx context.Context, method string, ask any, p *executor.ProcessInfo, begun func()) (*isolation.Exit, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	desc := &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}
	stream, err := e.engine.NewStream(life, desc, "/"+wire.Service+"/"+method, grpc.CallContentSubtype(wire.CodecName))
	if err != nil {
		return nil, fmt.Errorf("cannot ask the engine for a step: %w", err)
	}
	conn := wire.NewConn(stream)
	if err := conn.Send(wire.Ask, ask); err != nil {
		return nil, broken(stream, err)
	}
	defer context.AfterFunc(ctx, func() {
		if conn.Send(wire.Kill, nil) != nil {
			end()
		}
		time.AfterFunc(endLimit, end) // too late to matter where it has ended
	})()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer end()
	took := make(chan struct{}, 1)
	for {
		kind, b, err := conn.Next()
		if err != nil {
			return nil, fmt.Errorf("cannot follow a step: the engine said no more: %w", err)
		}
		switch kind {
		case wire.Begun:
			var s wire.Start
			if err := wire.Decode(b, &s); err != nil {
				return nil, err
			}
			for _, w := range s.Warnings {
				say(p, "warning: "+w)
			}
			begun()
			helpers.Go(func() { order(life, conn, p) })
			if p.Stdin != nil {
				defer p.Stdin.Close()
				go feed(life, conn, p.Stdin, took) // ends when its reader does, which Close is for
			}
		case wire.Took:
			took <- struct{}{}
		case wire.Stdout, wire.Stderr:
			w := p.Stdout
			if kind == wire.Stderr {
				w = p.Stderr
			}
			if w != nil {
				// Who does not want the rest does not stop the process.
				_, _ = w.Write(b)
			}
		case wire.Ended:
			var e wire.End
			if err := wire.Decode(b, &e); err != nil {
				return nil, err
			}
			if e.Error != nil {
				return nil, e.Error
			}
			if e.Exit == nil {
				return nil, errors.New("cannot follow a step: the engine did not say how it ended")
			}
			return e.Exit, nil
		default:
			return nil, fmt.Errorf("cannot follow a step: the engine sent a message of kind %d", kind)
		}
	}
}

// broken finds out why a stream takes no message.
func broken(s grpc.ClientStream, err error) error {
	if errors.Is(err, io.EOF) { // the reason is what is read next
		err = s.RecvMsg(&wire.Message{})
	}
	return fmt.Errorf("cannot ask the engine for a step: %w", err)
}

// order passes signals and sizes on until the conversation ends.
func order(life context.Context, conn *wire.Conn, p *executor.ProcessInfo) {
	for {
		var err error
		select {
		case <-life.Done():
			return
		case sig, ok := <-p.Signal:
			if !ok {
				p.Signal = nil
				continue
			}
			err = conn.Send(wire.Signal, wire.Order{Signal: int(sig)})
		case size, ok := <-p.Resize:
			if !ok {
				p.Resize = nil
				continue
			}
			err = conn.Send(wire.Resize, wire.Order{Rows: uint16(size.Rows), Cols: uint16(size.Cols)})
		}
		if err != nil {
			return
		}
	}
}

// feed passes input on, piece by piece as the process takes it.
func feed(life context.Context, conn *wire.Conn, in io.Reader, took <-chan struct{}) {
	buf := make([]byte, wire.MaxData)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if conn.Data(wire.Stdin, buf[:n]) != nil {
				return
			}
			select {
			case <-took:
			case <-life.Done():
				return
			}
		}
		if err != nil {
			_ = conn.Data(wire.Stdin, nil)
			return
		}
	}
}

// say puts a line of the builder's own into a step's output.
func say(p *executor.ProcessInfo, line string) {
	w := p.Stderr
	if w == nil {
		w = p.Stdout
	}
	if w != nil {
		fmt.Fprintln(w, line)
	}
}

// ended turns how a process ended into BuildKit's words.
func ended(ctx context.Context, exit *isolation.Exit, err error, p *executor.ProcessInfo) error {
	e := &gateway.ExitError{ExitCode: gateway.UnknownExitStatus}
	var start *isolation.StartError
	switch {
	case err == nil:
		e.ExitCode = uint32(exit.Code)
		if exit.OOMKilled {
			e.Err = syscall.ENOMEM
		} else if exit.Error != "" {
			e.Err = errors.New(exit.Error)
		}
		valid := p.Meta.ValidExitCodes
		if valid == nil {
			valid = []int{0}
		}
		if slices.Contains(valid, exit.Code) && exit.Error == "" {
			return nil
		}
	case errors.As(err, &start) && start.Kind != isolation.StartFailed:
		// As a shell has it: the step has said why, and ends with a code.
		say(p, startMessage(start))
		e.ExitCode = 126
		if start.Kind == isolation.StartNotFound {
			e.ExitCode = 127
		}
		if slices.Contains(p.Meta.ValidExitCodes, int(e.ExitCode)) {
			return nil
		}
	case ctx.Err() == nil:
		return err
	default:
		e.Err = err
	}
	if ctx.Err() != nil {
		e.Err = fmt.Errorf("%s: %w", e.Error(), context.Cause(ctx))
		return e
	}
	return stack.Enable(e)
}

// startMessage has the words that users of Docker know.
func startMessage(s *isolation.StartError) string {
	step := s.Step
	if rest, ok := strings.CutPrefix(step, "exec "); ok {
		step = "exec: " + rest
	}
	return step + ": " + s.Why
}
