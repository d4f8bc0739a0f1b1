package container

import (
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
	binds   []isolation.Mount // the network's files and the spec's mounts
	child   *sys.Child        // the first process
	program *sys.Program
	made    made // by the program
	group   *cgroup.Group
	root    *os.File // the root's mount (O_PATH)
	proc    *os.File // its /proc
	pts     *os.File // its devpts
	// The main process's terminal, made by Create.
	master, terminal *os.File

	mu      sync.Mutex
	state   state
	main    *process
	procs   map[*process]struct{} // running ones, the main one included
	oomBase uint64
}

// state is how far the main process is.
type state string

const (
	created state = "created"
	started state = "started"
	deleted state = "deleted"
)

// step goes from one state to the next one, or says why not.
func (c *instance) step(from, to state) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != from {
		return fmt.Errorf("cannot make a container %q that is %q: %w", to, c.state, errdefs.ErrFailedPrecondition)
	}
	c.state = to
	return nil
}

// alive fails if the container is not running.
func (c *instance) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != started {
		return fmt.Errorf("cannot reach a container that is %q: %w", c.state, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Pid is the host's number of the container's first process.
func (c *instance) Pid() int { return c.child.Pid }

// Start runs the main process. When it fails the container is of no use any
// more and has to be deleted.
func (c *instance) Start(_ context.Context, stdio isolation.Stdio) (isolation.Running, error) {
	if err := c.step(created, started); err != nil {
		return nil, err
	}
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
	run := &process{instance: c, child: c.child, io: io, ended: make(chan struct{}), main: true}
	c.finish(c.program, p, user, io, c.spec.Init)
	err = c.child.Continue()
	if err == nil {
		err = c.child.WaitExec()
	}
	if err != nil {
		err = processError(err, p)
	}
	c.program.Close()
	io.closeTheirs()
	if err != nil {
		io.closeOurs()
		return nil, err
	}
	c.mu.Lock()
	c.main = run
	c.procs[run] = struct{}{}
	c.mu.Unlock()
	run.begin()
	return run, nil
}

// Pause stops every process.
func (c *instance) Pause(context.Context) error {
	if err := c.alive(); err != nil {
		return err
	}
	return c.group.Freeze()
}

// Resume continues them.
func (c *instance) Resume(context.Context) error {
	if err := c.alive(); err != nil {
		return err
	}
	return c.group.Thaw()
}

// Stats reads the control group.
func (c *instance) Stats(context.Context) (*isolation.Stats, error) {
	s, err := c.group.Stats()
	if err != nil {
		return nil, err
	}
	return &s, nil
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
	gone := c.state == deleted
	c.state = deleted
	procs := make([]*process, 0, len(c.procs))
	for p := range c.procs {
		procs = append(procs, p)
	}
	c.mu.Unlock()
	if gone {
		return nil
	}
	var err error
	if len(procs) > 0 { // otherwise discard sees to the child
		err = c.kill()
	}
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
	for _, f := range []*os.File{c.root, c.proc, c.pts, c.master, c.terminal} {
		if f != nil {
			_ = f.Close()
		}
	}
	if c.group != nil {
		err = errors.Join(err, c.group.Delete())
	}
	return err
}
