package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// instance is one container. What Create fills in does not change any more,
// except that discard closes it.
type instance struct {
	driver  *Driver
	spec    *isolation.Spec
	binds   []bind     // the network's files and the spec's mounts
	child   *sys.Child // the first process
	program *sys.Program
	made    made // by the program
	group   *cgroup.Group
	root    *os.File   // the root's mount (O_PATH)
	proc    *os.File   // its /proc
	pts     *os.File   // its devpts
	null    *os.File   // its /dev/null, open
	stubs   []sys.Stub // mount points that the root did not have
	bare    *os.File   // the root's mount once more, where root is read-only and stubs have to go
	// The main process's terminal, made by Create.
	master, terminal *os.File

	mu    sync.Mutex
	state state
	main  *process
	procs map[*process]struct{} // running ones, the main one included
	busy  sync.WaitGroup        // calls of Start and Exec; added to under mu
}

// state is how far the main process is.
type state string

const (
	created state = "created"
	started state = "started"
	paused  state = "paused"
	deleted state = "deleted"
)

// step goes from one state to the next one, or says why not. What do does in
// between is seen by Delete, which waits for it; when it fails, the state stays.
func (c *instance) step(from, to state, do func() error) error {
	c.mu.Lock()
	if c.state != from {
		defer c.mu.Unlock()
		return fmt.Errorf("cannot make a container %q that is %q: %w", to, c.state, errdefs.ErrFailedPrecondition)
	}
	c.state = to
	c.busy.Add(1)
	c.mu.Unlock()
	defer c.busy.Done()
	err := do()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.state == to {
		c.state = from
	}
	return err
}

// Pid is the host's number of the container's first process.
func (c *instance) Pid() int { return c.child.Pid }

// Start runs the main process. When it fails the container is of no use any
// more and has to be deleted.
func (c *instance) Start(_ context.Context, stdio isolation.Stdio) (run isolation.Running, err error) {
	err = c.step(created, started, func() error {
		if c.program == nil {
			return fmt.Errorf("cannot start a container whose start has failed: %w", errdefs.ErrFailedPrecondition)
		}
		run, err = c.start(stdio)
		return err
	})
	return run, err
}

func (c *instance) start(stdio isolation.Stdio) (isolation.Running, error) {
	program := c.program
	defer program.Close()
	c.program = nil
	p := &c.spec.Process
	user, err := c.lookup(p)
	if err != nil {
		return nil, err
	}
	io, err := c.connect(p, stdio, user, c.master, c.terminal)
	c.master, c.terminal = nil, nil
	if err != nil {
		return nil, err
	}
	c.finish(program, p, user, io, c.spec.Init)
	if err = c.child.Continue(); err == nil {
		err = c.child.WaitExec()
	}
	io.closeTheirs()
	if err != nil {
		io.closeOurs()
		return nil, processError(err, p)
	}
	run := &process{instance: c, child: c.child, io: io, ended: make(chan struct{}), main: true}
	c.mu.Lock()
	c.main = run
	c.procs[run] = struct{}{}
	c.mu.Unlock()
	run.begin()
	return run, nil
}

// Pause stops every process.
func (c *instance) Pause(context.Context) error { return c.step(started, paused, c.group.Freeze) }

// Resume continues them.
func (c *instance) Resume(context.Context) error { return c.step(paused, started, c.group.Thaw) }

// Stats reads the control group.
func (c *instance) Stats(context.Context) (*isolation.Stats, error) {
	s, err := c.group.Stats()
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// Usage reads the control group; the kernel inside is this one.
func (c *instance) Usage(context.Context) (*isolation.Usage, error) {
	u, err := c.group.Usage()
	if err != nil {
		return nil, err
	}
	u.Kernel = sys.KernelRelease()
	return &u, nil
}

// Update changes limits.
func (c *instance) Update(_ context.Context, r *isolation.Resources) error {
	warnings, err := c.group.Update(r)
	for _, w := range warnings {
		c.driver.warn("%s", w)
	}
	return err
}

// Delete kills what runs, waits for it and removes the control group. Mounts
// and namespaces vanish with the last process.
func (c *instance) Delete(context.Context) error {
	c.mu.Lock()
	was := c.state
	c.state = deleted
	c.mu.Unlock()
	if was == deleted {
		return nil
	}
	var err error
	if was != created { // otherwise discard sees to the child
		err = c.kill()
		c.busy.Wait()
		err = errors.Join(err, c.kill()) // what was being started meanwhile
	}
	c.mu.Lock()
	procs := make([]*process, 0, len(c.procs))
	for p := range c.procs {
		procs = append(procs, p)
	}
	c.mu.Unlock()
	for _, p := range procs {
		<-p.ended
	}
	return errors.Join(err, c.discard())
}

// kill ends all processes of the container.
func (c *instance) kill() error {
	var err error
	if c.group != nil {
		err = c.group.Kill()
		_ = c.group.Thaw() // a frozen process of version 1 dies when it is thawed
	}
	if c.child != nil {
		_ = sys.PidfdSignal(c.child.Pidfd, syscall.SIGKILL)
	}
	return err
}

// discard takes away what Create made, as far as it came. Every process that
// has been started is waited for by its owner already.
func (c *instance) discard() error {
	var err error
	if c.child != nil {
		c.mu.Lock()
		unwaited := c.main == nil
		c.mu.Unlock()
		if unwaited {
			c.child.Abandon()
			_ = c.kill()
			_, _, err = sys.PidfdReap(c.child.Pidfd)
		}
		_ = c.child.Pidfd.Close()
	}
	if c.program != nil {
		c.program.Close()
	}
	if c.spec.Root.Unstub && c.root != nil {
		if e := sys.RemoveStubs(cmp.Or(c.bare, c.root), c.stubs, c.spec.Root.UnstubParents); e != nil {
			c.driver.warn("%v", e)
		}
	}
	for _, f := range []*os.File{c.root, c.bare, c.proc, c.pts, c.null, c.master, c.terminal} {
		if f != nil {
			_ = f.Close()
		}
	}
	if c.group != nil {
		err = errors.Join(err, c.group.Delete())
	}
	return err
}
