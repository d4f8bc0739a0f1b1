// Package vm is the wall of a kernel of one's own: it starts QEMU in a jail,
// waits for the agent inside the guest, and turns the calls of
// isolation.Instance into messages to it. It runs in the shim, once for each
// machine, and so links little.
//
// It never decides how a machine is made (vm/machine did, in the engine, and
// wrote it into the spec), never opens a path that a guest wrote, never mounts
// a guest's disk, and believes nothing that comes from the guest (vm/wire).
//
//	Create   cgroup, QEMU in its jail, hello from the agent, set-up of the guest
//	Start    exec of the user's process by the agent
//	Wait     the process ended: the guest syncs, powers off, QEMU ends
//	Delete   QEMU is killed if it is still there; the cgroup is removed
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Driver makes machines. It implements isolation.Driver.
type Driver struct{}

// vmmTasks is how many threads QEMU may have besides one for each virtual
// processor: its main and helper threads, and 64 for disk input and output.
const vmmTasks = 96

// maxNetworkFile bounds resolv.conf and hosts, which travel to the guest.
const maxNetworkFile = 256 << 10

// Create starts the machine and waits until its agent has set up the guest. It
// takes over the descriptors that spec.Machine.Files names and closes them. A
// guest that does not answer within spec.Machine.BootLimit is
// errdefs.ErrUnavailable and the error holds its last words.
func (Driver) Create(ctx context.Context, spec *isolation.Spec) (_ isolation.Instance, err error) {
	m := spec.Machine
	if spec.Kind != isolation.VM || m == nil {
		return nil, fmt.Errorf("cannot create machine %q: %w: the spec describes none", spec.ID, errdefs.ErrInvalidArgument)
	}
	setup, err := guestSetup(spec)
	if err != nil {
		return nil, err
	}
	i := &Instance{spec: spec, pids: spec.Resources.Pids, killed: make(chan struct{}), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = i.Delete(context.WithoutCancel(ctx))
		}
	}()
	limits := vmmLimits(spec.Resources, m)
	var devices []isolation.Device
	if !m.Emulated {
		devices = append(devices, isolation.Device{Path: kvmDevice, Type: "c", Major: 10, Minor: 232, Allow: "rwm"})
	}
	i.group, _, err = cgroup.Create(path.Join(spec.Resources.CgroupParent, spec.ID), &limits, devices...)
	if err != nil {
		return nil, err
	}
	if err := i.boot(ctx); err != nil {
		return nil, err
	}
	setup.Time = time.Now().UnixNano() // not before the boot, which takes seconds under emulation
	if err := i.client.Setup(ctx, setup); err != nil {
		return nil, i.explain(err)
	}
	return i, nil
}

// boot starts QEMU and waits for the agent.
func (i *Instance) boot(ctx context.Context) error {
	m := i.spec.Machine
	var files []*os.File
	for _, f := range m.Files {
		file := f.Open("machine")
		if file == nil {
			return fmt.Errorf("cannot start the VMM: %w: a descriptor of the machine is missing", errdefs.ErrInvalidArgument)
		}
		defer file.Close() // QEMU has its own copy then
		files = append(files, file)
	}
	ours, theirs, err := sys.SocketPair("agent")
	if err != nil {
		return err
	}
	defer theirs.Close()
	i.client = wire.NewClient(ours)
	said, says, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe for the console: %w", err)
	}
	i.console = watchConsole(said)
	child, err := startJailed(m, i.spec.Dir, says, append(files, theirs), i.group)
	says.Close()
	if err != nil {
		return err
	}
	i.pid, i.pidfd = child.Pid, child.Pidfd
	go i.reap()

	ctx, cancel := context.WithTimeoutCause(ctx, m.BootLimit, fmt.Errorf("the guest did not answer within %v: %w", m.BootLimit, errdefs.ErrUnavailable))
	defer cancel()
	theirs.Close() // so that the end of QEMU is the end of the connection
	if i.welcome, err = i.client.Hello(ctx); err != nil {
		return i.explain(err)
	}
	return nil
}

// explain adds what the console said last to an error of a guest that is not
// well, after waiting a moment for QEMU's own end, which often is the reason.
func (i *Instance) explain(err error) error {
	if !errors.Is(err, errdefs.ErrUnavailable) {
		return err
	}
	select {
	case <-i.ended:
		err = fmt.Errorf("%w: %s", err, i.death)
	case <-time.After(200 * time.Millisecond):
	}
	if last := i.console.Last(12); last != "" {
		return fmt.Errorf("%w; the last lines of its console:\n%s", err, last)
	}
	return fmt.Errorf("%w; its console is empty", err)
}

// reap waits for the end of QEMU; there is one for each machine.
func (i *Instance) reap() {
	code, sig, err := sys.PidfdReap(i.pidfd)
	<-i.console.done
	switch {
	case err != nil:
		i.death = err.Error()
	case sig != 0:
		i.death = fmt.Sprintf("the VMM was ended by signal %d (%s)", int(sig), sig)
	default:
		i.death = fmt.Sprintf("the VMM ended with code %d", code)
	}
	if n, err := i.group.OOMKills(); err == nil && n > 0 {
		i.oom = true
		i.death = "the VMM was killed because it needed more than the guest's memory and its own allowance"
	}
	close(i.ended)
}

// vmmLimits are the limits of QEMU's cgroup: the user's, with memory enough for
// the guest and QEMU together; the limit of processes holds inside the guest,
// where the user's processes are.
func vmmLimits(r isolation.Resources, m *isolation.Machine) isolation.Resources {
	overhead := m.OverheadMiB << 20
	memory := m.MemoryMiB<<20 + overhead
	if r.SwapBytes > 0 && r.MemoryBytes > 0 {
		r.SwapBytes += memory - r.MemoryBytes
	}
	r.MemoryBytes = memory
	r.Pids = vmmTasks + int64(m.CPUs)
	r.Privileged = false
	return r
}

// guestSetup is what the agent is told before anything runs.
func guestSetup(spec *isolation.Spec) (*wire.Setup, error) {
	m := spec.Machine
	s := &wire.Setup{
		RootDevice: m.RootDevice, DataDevices: m.DataDevices, RWDevice: m.RWDevice, Readonly: spec.Root.Readonly,
		Privileged: spec.Resources.Privileged, Hostname: spec.Hostname, Domain: spec.Domain, NICs: spec.Network.NICs,
		Mounts: spec.Mounts, Sysctls: spec.Sysctls, MaskedPaths: spec.MaskedPaths, ReadonlyPaths: spec.ReadonlyPaths,
		Unstub: spec.Root.Unstub, UnstubParents: spec.Root.UnstubParents, FixedFiles: spec.Network.FixedFiles,
		Init: spec.Init, Limits: wire.Limits{Pids: spec.Resources.Pids},
	}
	if spec.Hold && !spec.Root.Unstub { // a look at the files before a first start
		s.Workdir = spec.Process.Cwd
	}
	for _, f := range []struct {
		path string
		to   *string
	}{{spec.Network.ResolvConf, &s.ResolvConf}, {spec.Network.Hosts, &s.Hosts}, {spec.Network.HostsName, &s.HostnameFile}} {
		if f.path == "" {
			continue
		}
		b, err := readBounded(f.path)
		if err != nil {
			return nil, fmt.Errorf("cannot read %q for the guest: %w", f.path, err)
		}
		*f.to = string(b)
	}
	return s, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxNetworkFile+1))
	if err == nil && len(b) > maxNetworkFile {
		err = fmt.Errorf("%w: it is larger than %d bytes", errdefs.ErrInvalidArgument, maxNetworkFile)
	}
	return b, err
}
