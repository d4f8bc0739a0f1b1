// Package container is the driver of the container wall: it turns a Spec into
// processes of this kernel behind namespaces, control groups, capabilities and
// seccomp, and starts more processes inside. It owns the order in which those
// are made and the security of that order. It never decides anything: paths,
// limits, filters and maps come complete in the Spec; it knows neither images
// nor Docker, writes no log and plugs no network card.
//
// Everything that can be done outside is done outside, by ordinary code in a
// thread that enters the new mount namespace; the new process itself runs a
// sys.Program, a list of system calls, and no code of the engine or the image
// before the user's own.
//
//	parent                                  child (sys.Program)
//	  | clone: user, mount, pid, ipc, ... ---> blocks
//	  | id maps ---------------------------->| becomes root of the user namespace
//	  | /dev, idmapped image and upper,      | proc, sysfs, devpts, mqueue, tmpfs
//	  | overlay, binds, copy-up              | as detached mounts; host name, lo,
//	  | control group (beside it) ---------->| sysctls; cgroup namespace
//	  |<------------------------------ report|
//	  | enters the mount namespace, attaches |
//	  | all of it, pivots, masks             | blocks
//	  ~ Create is done; the engine plugs the network ~
//	  | user, terminal, stdio -------------->| own descriptors, ids, capabilities,
//	  |<----------------- pipe closed by exec| seccomp, execve
package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/isolation/userdb"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Driver makes containers. The zero value is ready; it can make several at once.
type Driver struct {
	// Warn is told what could not be honoured although nothing fails for it,
	// such as a resource limit above the engine's own, from any goroutine.
	// nil: nobody.
	Warn func(string)
}

var _ isolation.Driver = (*Driver)(nil)

func (d *Driver) warn(format string, args ...any) {
	if d.Warn != nil {
		d.Warn(fmt.Sprintf(format, args...))
	}
}

// Create makes namespaces, control group and the whole file system of a
// container, with its first process standing just before the steps that make
// it the user's. On error nothing is left.
func (d *Driver) Create(ctx context.Context, spec *isolation.Spec) (_ isolation.Instance, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := check(spec); err != nil {
		return nil, err
	}
	c := &instance{driver: d, spec: spec, binds: wanted(spec), state: created, procs: map[*process]struct{}{}}
	defer func() {
		if err != nil {
			_ = c.discard()
		}
	}()

	// Three things go on at once: the control group, the file system on a
	// thread of its own, and the child.
	group := make(chan error, 1)
	go func() {
		g, warnings, err := cgroup.Create(spec.Resources.CgroupParent+"/"+spec.ID, &spec.Resources, spec.Devices...)
		c.group = g
		for _, w := range warnings {
			d.warn("%s", w)
		}
		group <- err
	}()
	mapped := make(chan bool, 1)
	furnished := make(chan error, 1)
	go func() { furnished <- sys.OnThread(func(t *sys.Thread) error { return c.furnish(t, mapped) }) }()

	err = c.begin()
	mapped <- err == nil
	groupErr := <-group
	if err == nil {
		if err = groupErr; err == nil {
			err = c.group.Add(c.child.Pid)
		}
		if err == nil {
			err = c.child.Continue()
		}
		if err != nil {
			// The thread waits for a report that will not come otherwise.
			c.child.Abandon()
		}
	}
	if e := <-furnished; err == nil {
		err = e // otherwise it is a consequence
	}
	if err != nil {
		return nil, err
	}
	if err := c.limits(c.child.Pid, &spec.Process); err != nil {
		return nil, err
	}
	return c, nil
}

// begin clones the child and gives it its maps.
func (c *instance) begin() error {
	p, err := sys.NewProgram(programSize(&c.spec.Process))
	if err != nil {
		return err
	}
	c.program = p
	c.made = c.build(p)
	o, err := c.cloneOptions()
	if err != nil {
		return err
	}
	c.child, err = p.Clone(o)
	if o.PIDNamespace != nil {
		_ = o.PIDNamespace.Close()
	}
	if err != nil {
		return err
	}
	if err := c.mapIDs(); err != nil {
		return err
	}
	if c.reforks() {
		return startError(c.child.WaitRefork())
	}
	return nil
}

// check refuses what no engine should have written.
func check(s *isolation.Spec) error {
	ns := &s.Namespaces
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	switch {
	case s.Kind != isolation.Container:
		return bad("cannot make a %q with the container driver", s.Kind)
	case len(s.Process.Args) == 0:
		return bad("cannot make a container without a command")
	case s.Root.Tree == 0 && (s.Root.Image == 0 || s.Root.Upper == ""):
		return bad("cannot make a container without an image and a writable layer")
	case ns.User && (ns.UIDs.Root() == 0 || ns.GIDs.Root() == 0):
		return bad("cannot make a user namespace that maps the host's root, or nobody")
	case s.Init && !ns.PID:
		return bad("cannot run an init in the PID namespace of somebody else")
	}
	return nil
}

// enoughFiles is more than the highest descriptor that a program's steps use.
const enoughFiles = 256

// limits sets from outside what the child itself may not be allowed to set.
func (c *instance) limits(pid int, p *isolation.Process) error {
	for _, l := range p.Rlimits {
		soft, hard := l.Soft, l.Hard
		if l.Type == syscall.RLIMIT_NOFILE {
			// The child still needs some descriptors; finish sets the rest.
			soft, hard = max(soft, enoughFiles), max(hard, enoughFiles)
		}
		lowered, err := sys.SetLimit(pid, l.Type, soft, hard)
		if err != nil {
			return err
		}
		if lowered {
			c.driver.warn("resource limit %d stays below what was asked: the engine may not raise it (CAP_SYS_RESOURCE)", l.Type)
		}
	}
	if err := sys.SetOOMScore(pid, p.OOMScoreAdj); err != nil {
		if !errors.Is(err, os.ErrPermission) {
			return err
		}
		c.driver.warn("%v: the engine may not lower it (CAP_SYS_RESOURCE)", err)
	}
	return nil
}

// who is a process's user as seen inside.
type who struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookup finds whom a process runs as, in the root's own databases.
func (c *instance) lookup(p *isolation.Process) (who, error) {
	uid, gid, groups, home, err := userdb.Lookup(c.root, p.User, p.Groups)
	if err != nil {
		return who{}, &isolation.StartError{Kind: isolation.StartFailed, Step: fmt.Sprintf("find user %q", p.User), Why: err.Error()}
	}
	if c.shifted() {
		ns := &c.spec.Namespaces
		if !ns.UIDs.Has(uid) {
			return who{}, unmapped(p, "user", uid, ns.UIDs)
		}
		for _, g := range groups { // gid is the first
			if !ns.GIDs.Has(g) {
				return who{}, unmapped(p, "group", g, ns.GIDs)
			}
		}
	}
	return who{uid, gid, groups, home}, nil
}

// unmapped is the error of a process that cannot be a user because the user
// namespace has no such id.
func unmapped(p *isolation.Process, what string, id uint32, m isolation.IDMap) error {
	return &isolation.StartError{
		Kind: isolation.StartFailed, Step: fmt.Sprintf("run as user %q", p.User), Why: isolation.NoID(what, id, m),
	}
}

// outside is the host's number of a user or group id inside, which lookup has
// found to be mapped, or which every map has.
func outside(user bool, m isolation.IDMap, id uint32) uint32 {
	if !user {
		return id
	}
	host, _ := m.Outside(id)
	return host
}

func (c *instance) hostUID(id uint32) uint32 {
	return outside(c.shifted(), c.spec.Namespaces.UIDs, id)
}

func (c *instance) hostGID(id uint32) uint32 {
	return outside(c.shifted(), c.spec.Namespaces.GIDs, id)
}

// shifted says whether ids inside are other ids outside: in a user namespace of
// its own or in that of another container.
func (c *instance) shifted() bool {
	return c.spec.Namespaces.User || c.spec.Namespaces.Join["user"] != 0
}
