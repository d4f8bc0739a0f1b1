package container

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// Exec runs one more process: born in the container's PID namespace, it enters
// the other namespaces of the first process, and goes the same last steps as
// that one did.
func (c *instance) Exec(_ context.Context, s *isolation.Process, stdio isolation.Stdio) (run isolation.Running, err error) {
	err = c.step(started, started, func() error {
		run, err = c.exec(s, stdio)
		return err
	})
	return run, err
}

func (c *instance) exec(s *isolation.Process, stdio isolation.Stdio) (isolation.Running, error) {
	fail := func(err error) (isolation.Running, error) {
		return nil, processError(err, s)
	}
	if len(s.Args) == 0 {
		return nil, &isolation.StartError{Kind: isolation.StartFailed, Step: "exec", Why: "there is no command"}
	}
	user, err := c.lookup(s)
	if err != nil {
		return nil, err
	}
	io, err := c.connect(s, stdio, user, nil, nil)
	if err != nil {
		return fail(err)
	}
	started := false
	defer func() {
		io.closeTheirs()
		if !started {
			io.closeOurs()
		}
	}()
	p, err := sys.NewProgram(programSize(s))
	if err != nil {
		return fail(err)
	}
	defer p.Close()
	p.NotDumpable()
	p.DieWithParent()
	p.Await() // control group: before it, nothing of the container's could be counted
	p.Setns("enter the container's namespaces", sys.FD(c.child.Pidfd), c.namespacesToEnter())
	if c.shifted() {
		p.SetIDs(0, 0, nil)
	}
	p.NotDumpable()
	c.finish(p, s, user, io, false)

	o := sys.CloneOptions{PIDNamespace: c.pidns()}
	if o.PIDNamespace != nil {
		defer o.PIDNamespace.Close()
	}
	child, err := p.Clone(o)
	if err != nil {
		return fail(err)
	}
	err = c.group.Add(child.Pid)
	if err == nil {
		err = c.limits(child.Pid, c.inherit(s))
	}
	if err == nil {
		if err = child.Continue(); err == nil {
			err = child.WaitExec()
		}
	}
	if err != nil {
		_ = sys.PidfdSignal(child.Pidfd, syscall.SIGKILL)
		_, _, _ = sys.PidfdReap(child.Pidfd)
		_ = child.Pidfd.Close()
		return fail(err)
	}
	started = true
	run := &process{instance: c, child: child, io: io, ended: make(chan struct{})}
	c.mu.Lock()
	c.procs[run] = struct{}{}
	c.mu.Unlock()
	run.begin()
	return run, nil
}

// inherit gives an exec'd process the main one's limits where it has none of
// its own.
func (c *instance) inherit(s *isolation.Process) *isolation.Process {
	p := *s
	if len(p.Rlimits) == 0 {
		p.Rlimits = c.spec.Process.Rlimits
	}
	if p.OOMScoreAdj == 0 {
		p.OOMScoreAdj = c.spec.Process.OOMScoreAdj
	}
	return &p
}

// namespacesToEnter are those of the first process that are not the engine's;
// the PID namespace is entered by birth.
func (c *instance) namespacesToEnter() uintptr {
	ns := &c.spec.Namespaces
	flags := uintptr(syscall.CLONE_NEWNS)
	for _, n := range []struct {
		on   bool
		name string
		flag uintptr
	}{
		{ns.IPC, "ipc", syscall.CLONE_NEWIPC}, {ns.UTS, "uts", syscall.CLONE_NEWUTS}, {ns.Net, "net", syscall.CLONE_NEWNET},
		{ns.User, "user", syscall.CLONE_NEWUSER}, {ns.Cgroup, "cgroup", cloneNewCgroup},
	} {
		if n.on || ns.Join[n.name] != 0 {
			flags |= n.flag
		}
	}
	return flags
}

// pidns is what the forking thread enters for the clone.
func (c *instance) pidns() *os.File {
	if !c.spec.Namespaces.PID && c.spec.Namespaces.Join["pid"] == 0 {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", c.child.Pid))
	if err != nil {
		return nil // the process is gone; entering its other namespaces says so
	}
	return f
}
