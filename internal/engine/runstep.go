package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
	"proa/internal/network"
	"proa/internal/shim"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Step is one command that runs once, in an instance of its own that no record
// names: a RUN of a build. It is complete, nothing is taken from an image.
type Step struct {
	Kind     isolation.Kind
	Args     []string
	Env      []string // all of it; only HOME is added where it is missing
	Cwd      string   // made if missing
	User     string   // Docker's USER, looked up in the root
	Hostname string
	Terminal bool
	Stdin    bool // false: /dev/null

	Root     StepFiles
	Readonly bool // of the root
	Mounts   []StepMount
	// UnstubParents: not only mount points that the root did not have go after
	// the end, but also directories that were made on the way to them.
	UnstubParents bool

	Network    isolation.NetworkMode
	ExtraHosts []string            // "name:address"
	Resources  container.Resources // memory, processors, ulimits, cgroup parent
	Insecure   bool                // everything that --privileged gives
}

// FilesOverlay is the type of StepFiles that are the view of a snapshot: what
// was written to it over what lies below.
const FilesOverlay isolation.MountType = "overlay"

// StepFiles are files of the host, by paths of the engine's mount namespace.
// They lie there with the owners of inside.
type StepFiles struct {
	Type isolation.MountType // isolation.MountBind, isolation.MountTmpfs or FilesOverlay
	// Source is a file or directory (bind), or the lower directory (overlay).
	Source string
	// Upper is the directory that holds "upper" and "work" of an overlay.
	Upper string
	// Size of a tmpfs in bytes; 0: half of the memory.
	Size int64
}

// StepMount puts files somewhere else than at the root.
type StepMount struct {
	StepFiles
	Subpath  string // what of the files appears at Target, resolved below them; "": all
	Target   string
	Readonly bool
}

// StepRun is a step that runs. Next must be called until it gives io.EOF, and
// then Wait, or Kill at any time.
type StepRun struct {
	// Warnings say what is not as it should be although it runs.
	Warnings []string

	e      *Engine
	id     string
	spec   *isolation.Spec
	upper  string         // of the root, where that is an overlay; "" else
	views  []func() error // release overlays of mounts
	sh     *shim.Shim
	stream *shim.Stream
	vm     *vmStep // nil behind the container wall

	life context.Context // ends with Kill
	stop context.CancelFunc
	once sync.Once
	gone chan struct{} // closed when everything is given back
	err  error         // why not everything is
}

// StartStep starts a step. Errors as of Start; all that a failed one made is
// gone. ctx bounds the start alone.
func (e *Engine) StartStep(ctx context.Context, s Step) (*StepRun, error) {
	e.work.Go(cgroup.Warm)
	r, err := e.startStep(ctx, s)
	if r == nil && e.distrusts("step", err) {
		r, err = e.startStep(ctx, s)
	}
	return r, err
}

func (e *Engine) startStep(ctx context.Context, s Step) (_ *StepRun, err error) {
	if err := e.life.Err(); err != nil {
		return nil, refusef(errdefs.ErrUnavailable, "cannot run a step: the engine is stopping")
	}
	var back undo
	defer func() {
		if err != nil {
			back.run()
		}
	}()
	rec, err := e.planStep(s)
	if err != nil {
		return nil, err
	}
	r := &StepRun{e: e, id: rec.ID, gone: make(chan struct{})}
	r.life, r.stop = context.WithCancel(e.life)
	back.add(r.stop)
	back.add(func() { _ = r.releaseViews() })
	p := parts{dir: e.runDir(r.id), parent: e.cfg.CgroupParent, hostname: e.host, ids: e.ids}
	if p.seccomp, err = seccompOf(rec.Host); err != nil {
		return nil, err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make a directory of the step: %w", err)
	}
	back.add(func() { os.RemoveAll(p.dir) })
	if parent := rec.Host.CgroupParent; parent != "" {
		// A step has no record that would tell the next engine.
		if err := os.WriteFile(filepath.Join(p.dir, parentFile), []byte(parent), 0o600); err != nil {
			return nil, fmt.Errorf("cannot note the control group of a step: %w", err)
		}
	}
	files := shim.NewFiles()
	defer func() { closeAll(files) }()

	var root isolation.File
	var shown map[string]bool
	if s.Kind == isolation.VM {
		back.add(r.closeTrees)
		if err := r.openVM(ctx, s, &p); err != nil {
			return nil, err
		}
		if err := os.Mkdir(e.dir(r.id), 0o700); err != nil {
			return nil, fmt.Errorf("cannot make a directory of the step: %w", err)
		}
		back.add(func() { os.RemoveAll(e.dir(r.id)) })
	} else {
		if root, err = e.openStepRoot(s.Root, &p, &files, r); err != nil {
			return nil, err
		}
		if shown, err = e.openStepMounts(s, rec, &p, &files, r); err != nil {
			return nil, err
		}
		if p.devices, err = devicesOf(rec.Host); err != nil {
			return nil, err
		}
	}
	req, err := e.networkRequest(rec)
	if err != nil {
		return nil, err
	}
	ep, err := e.reserve(ctx, r.id, rec.Kind, req, &p, &files, &back)
	if err != nil {
		return nil, err
	}
	if req.Kind != isolation.NetworkBridge {
		ep = nil
	}
	// As in every build: a file of names is the builder's, not the step's.
	p.network.HostsName, p.network.FixedFiles = "", true
	spec, err := buildSpec(rec, p)
	if err != nil {
		return nil, err
	}
	spec.Process.Env = s.Env
	for i := range spec.Mounts {
		if shown[spec.Mounts[i].Target] {
			spec.Mounts[i].Idmap = false
		}
	}
	spec.Root.Tree, spec.Root.Unstub, spec.Root.UnstubParents = root, true, s.UnstubParents
	// What is not in the books when the machine stops is not used again.
	spec.Root.Volatile = true
	r.spec = spec
	if s.Kind == isolation.VM {
		spec.Hold = true // what it wrote is in it
		if err := e.prepareMachine(ctx, spec, r.vm.disk, e.dir(r.id), &files); err != nil {
			return nil, err
		}
	}
	if err := r.start(ctx, files, ep, &back); err != nil {
		return nil, err
	}
	return r, nil
}

// start makes the spec run, with its streams attached from the first byte.
func (r *StepRun) start(ctx context.Context, files shim.Files, ep *network.Endpoint, back *undo) error {
	p := r.spec.Process
	sh, _, err := r.e.raise(ctx, r.spec, files, ep, back, func(sh *shim.Shim) (err error) {
		r.stream, err = sh.Attach(ctx, shim.Streams{Stdin: p.Stdin, Stdout: true, Stderr: !p.Terminal})
		if err == nil && r.vm != nil {
			err = r.send(ctx, sh)
		}
		return err
	})
	if err != nil {
		if r.stream != nil {
			r.stream.Close()
		}
		return err
	}
	r.sh = sh
	r.e.work.Go(func() {
		select {
		case <-r.e.life.Done(): // nobody would ask for its files any more
			r.Kill()
		case <-r.gone:
		}
	})
	return nil
}

// parentFile is in the directory of a step whose control group is not where all are.
const parentFile = "cgroup-parent"

// parentOf is where the control group of an instance without a record is.
func (e *Engine) parentOf(id string) string {
	if b, err := os.ReadFile(filepath.Join(e.runDir(id), parentFile)); err == nil {
		return string(b)
	}
	return e.cfg.CgroupParent
}

// planStep makes what a container's record would say, and refuses what cannot
// be honoured.
func (e *Engine) planStep(s Step) (*record, error) {
	if len(s.Args) == 0 {
		return nil, invalid("cannot run a step without a command")
	}
	h := &container.HostConfig{
		Resources: s.Resources, NetworkMode: container.NetworkMode(s.Network), ExtraHosts: s.ExtraHosts,
		ReadonlyRootfs: s.Readonly, Privileged: s.Insecure, LogConfig: container.LogConfig{Type: "none"},
	}
	h = withDefaults(h, s.Kind)
	c := &container.Config{
		Cmd: s.Args, Env: s.Env, WorkingDir: s.Cwd, User: s.User, Hostname: s.Hostname, Tty: s.Terminal, OpenStdin: s.Stdin,
	}
	if err := checkHost(c, h, s.Kind); err != nil {
		return nil, err
	}
	if s.Kind == isolation.VM {
		if err := e.hasMachines(); err != nil {
			return nil, err
		}
		if h.Memory == 0 {
			h.Memory, h.MemorySwap = stepMemory, 0
		}
	}
	return &record{ID: newID(), Config: c, Host: h, Kind: s.Kind}, nil
}

// openStepRoot opens the root: an image with a writable layer, or (tree is not
// 0) a directory that is written in place.
func (e *Engine) openStepRoot(root StepFiles, p *parts, files *shim.Files, r *StepRun) (tree isolation.File, err error) {
	f, err := sys.CloneTree(nil, root.Source, false)
	if err != nil {
		return 0, fmt.Errorf("cannot open the root of a step: %w", err)
	}
	switch root.Type {
	case FilesOverlay:
		p.root, p.upper = files.Add(f), root.Upper
		r.upper = root.Upper
		return 0, nil
	case isolation.MountBind:
		return files.Add(f), nil
	}
	f.Close()
	return 0, invalid("cannot run a step on a root of type %q", root.Type)
}

// openStepMounts opens the sources of all mounts, and decides on the user
// namespace as planContainer does. shown are those targets whose owners are
// right already.
func (e *Engine) openStepMounts(s Step, rec *record, p *parts, files *shim.Files, r *StepRun) (shown map[string]bool, err error) {
	why := hostUserNS(rec.Host)
	binds := map[int]*os.File{}
	for i, m := range s.Mounts {
		if m.Type != isolation.MountBind {
			continue
		}
		f, err := openPart(m)
		if err != nil {
			return nil, fmt.Errorf("cannot mount at %s: %w", m.Target, err)
		}
		files.Add(f) // closed with them
		binds[i] = f
		if why == "" && e.userns != nil {
			if err := sys.CanIdmap(f, e.userns, true); err != nil {
				why = fmt.Sprintf("the mount at %s (its file system, or one below it, cannot be idmapped)", m.Target)
			}
		}
	}
	if rec.UserNS = why == "" && e.userns != nil; !rec.UserNS && e.userns != nil {
		if e.cfg.UserNS == "strict" {
			return nil, invalid("cannot run in the host's user namespace, which %s needs: the engine runs with userns=strict", why)
		}
		r.Warnings = append(r.Warnings, fmt.Sprintf("this step runs in the host's user namespace because of %s: its root is the host's root", why))
	}
	shown = map[string]bool{}
	for i, m := range s.Mounts {
		out := isolation.Mount{Type: m.Type, Origin: m.Source, Target: m.Target, Readonly: m.Readonly, Size: m.Size}
		switch m.Type {
		case isolation.MountTmpfs:
			out.Options = "exec"
		case isolation.MountBind:
			out.Source = files.Number(binds[i])
		case FilesOverlay:
			f, err := r.openView(m, rec.UserNS)
			if err != nil {
				return nil, fmt.Errorf("cannot mount at %s: %w", m.Target, err)
			}
			out.Type, out.Source = isolation.MountBind, files.Add(f)
			shown[m.Target] = true
		default:
			return nil, invalid("cannot mount files of type %q at %s", m.Type, m.Target)
		}
		p.mounts = append(p.mounts, out)
	}
	return shown, nil
}

// openPart opens the part of a directory or file of the host that a mount shows.
func openPart(m StepMount) (*os.File, error) {
	f, err := sys.OpenPath(m.Source)
	if err != nil || m.Subpath == "" {
		return f, err
	}
	defer f.Close()
	part, err := sys.OpenPathInRoot(f, m.Subpath)
	if errors.Is(err, os.ErrNotExist) {
		return nil, refusef(errdefs.ErrNotFound, "%q is not there", m.Subpath)
	}
	return part, err
}

// openView opens what a mount shows of an overlay, which is attached until the
// step has ended.
func (r *StepRun) openView(m StepMount, shifted bool) (*os.File, error) {
	var at string
	var release func() error
	var err error
	if m.Readonly {
		at, release, err = r.e.attachReadonly(m.StepFiles, shifted)
	} else {
		at, release, err = r.e.mountOverlay(m.StepFiles, shifted)
	}
	if err != nil {
		return nil, err
	}
	r.views = append(r.views, release)
	m.Source = at
	return openPart(m)
}

// releaseViews gives the overlays of mounts up.
func (r *StepRun) releaseViews() error {
	var err error
	for _, f := range r.views {
		err = errors.Join(err, f())
	}
	return err
}

// ID is the instance's id.
func (r *StepRun) ID() string { return r.id }

// Next gives the next piece of output, valid until the next call; io.EOF when
// the process has ended and everything was delivered.
func (r *StepRun) Next() (stderr bool, data []byte, err error) { return r.stream.Next() }

// Write sends input. It blocks while the process does not read.
func (r *StepRun) Write(b []byte) (int, error) { return r.stream.Write(b) }

// CloseWrite ends the input.
func (r *StepRun) CloseWrite() error { return r.stream.CloseWrite() }

// Signal sends a signal by its Linux number to the process.
func (r *StepRun) Signal(ctx context.Context, sig int) error { return r.sh.Signal(ctx, sig) }

// Resize sets the size of the process's terminal.
func (r *StepRun) Resize(ctx context.Context, rows, cols uint16) error {
	return r.sh.Resize(ctx, rows, cols)
}

// Wait returns when nothing of the step is left but the files that it wrote.
func (r *StepRun) Wait() (isolation.Exit, error) {
	exit, err := r.stream.Wait()
	if err != nil {
		exit, err = r.sh.Wait(context.WithoutCancel(r.e.life))
	}
	var ferr error
	if r.vm != nil && err == nil {
		ferr = r.fetch(r.life, exit)
	}
	r.once.Do(func() { r.clean(r.vm != nil) }) // a VM is held until it is killed
	return exit, errors.Join(err, ferr, r.err)
}

// Kill ends the step whatever it is doing, and returns when nothing of it is
// left. It can be called at any time and more than once.
func (r *StepRun) Kill() {
	r.stop()
	r.once.Do(func() { r.clean(true) })
}

// clean gives back what a step holds. The process is killed, or has ended.
func (r *StepRun) clean(kill bool) {
	defer close(r.gone)
	defer r.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.e.life), destroyLimit)
	defer cancel()
	parent := r.spec.Resources.CgroupParent
	if kill {
		r.e.destroy(r.id, parent, r.sh)
	} else {
		if err := r.sh.Gone(ctx); err != nil {
			r.e.cfg.Log.Warn("a shim does not end; killing it", "id", short(r.id), "err", err)
			r.sh.Kill()
		}
		r.sh.Close()
		r.e.sweep(r.id, parent)
	}
	r.stream.Close()
	if err := r.e.cfg.Network.Release(ctx, r.id); err != nil {
		r.e.cfg.Log.Error("cannot release the network of a step", "id", short(r.id), "err", err)
	}
	if r.vm != nil {
		r.closeTrees()
		if err := os.RemoveAll(r.e.dir(r.id)); err != nil {
			r.e.cfg.Log.Error("cannot remove the disk of a step", "id", short(r.id), "err", err)
		}
	}
	r.err = errors.Join(r.err, r.releaseViews())
	if r.upper != "" {
		r.err = errors.Join(r.err, unmark(r.upper))
	}
}

// StepProcess is one more process in a step. Empty fields are the step's own.
type StepProcess struct {
	Args     []string
	Env      []string
	Cwd      string
	User     string
	Terminal bool
	Stdin    bool
}

// StepExec is a process that runs beside a step's own. It ends with the step.
type StepExec struct {
	*shim.ExecStream
	sh *shim.Shim
	id string
}

// Exec starts one more process in a step that runs. ctx bounds the start alone.
func (r *StepRun) Exec(ctx context.Context, x StepProcess) (*StepExec, error) {
	p := r.spec.Process
	p.Args, p.Terminal, p.Stdin = x.Args, x.Terminal, x.Stdin
	if len(x.Env) > 0 {
		p.Env = x.Env
	}
	if x.Cwd != "" {
		p.Cwd = cwd(x.Cwd)
	}
	if x.User != "" {
		p.User = x.User
	}
	id := newID()
	st, err := r.sh.Exec(ctx, id, &p, shim.Streams{Stdin: p.Stdin, Stdout: true, Stderr: !p.Terminal})
	if err != nil {
		return nil, err
	}
	return &StepExec{ExecStream: st, sh: r.sh, id: id}, nil
}

// Signal sends a signal to the exec'd process.
func (x *StepExec) Signal(ctx context.Context, sig int) error {
	return x.sh.ExecSignal(ctx, x.id, sig)
}

// Resize sets the size of the exec'd process's terminal.
func (x *StepExec) Resize(ctx context.Context, rows, cols uint16) error {
	return x.sh.ExecResize(ctx, x.id, rows, cols)
}
