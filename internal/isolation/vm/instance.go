package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/rootfs"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// How long a guest that works may take. One that takes longer is killed.
const (
	shutdownLimit = 20 * time.Second // to end what still runs and sync the disk
	powerOffLimit = 5 * time.Second  // from there to the end of QEMU
	killLimit     = 5 * time.Second  // from SIGKILL for the main process to its end
	statsLimit    = 2 * time.Second
)

// Instance is one machine. It implements isolation.Instance.
type Instance struct {
	spec    *isolation.Spec
	group   *cgroup.Group
	client  *wire.Client
	console *console
	welcome *wire.Welcome
	pid     int
	pidfd   *os.File

	frozen atomic.Bool
	limits sync.Mutex // guards pids, also while the guest is told
	pids   int64      // limit of processes in the guest; 0 and less: none

	// Written before ended is closed, read afterwards.
	death string // how QEMU ended
	oom   bool
	ended chan struct{}

	killOnce sync.Once
	killed   chan struct{} // closed by kill: the end of QEMU was wanted
	downOnce sync.Once
	delMu    sync.Mutex // Delete is one at a time
	deleted  bool
}

// Pid is QEMU's process id on the host.
func (i *Instance) Pid() int { return i.pid }

// Welcome is what the agent said about the boot.
func (i *Instance) Welcome() *wire.Welcome { return i.welcome }

// Start runs the main process. The machine ends with it.
func (i *Instance) Start(ctx context.Context, stdio isolation.Stdio) (isolation.Running, error) {
	r, err := i.client.Start(ctx, &i.spec.Process, stdio)
	if err != nil {
		return nil, i.explain(err)
	}
	return &running{Running: r, machine: i, main: true}, nil
}

// Exec runs one more process.
func (i *Instance) Exec(ctx context.Context, p *isolation.Process, stdio isolation.Stdio) (isolation.Running, error) {
	r, err := i.client.Exec(ctx, p, stdio)
	if err != nil {
		return nil, err
	}
	return &running{Running: r, machine: i}, nil
}

// Pause stops the virtual processors by freezing QEMU.
func (i *Instance) Pause(context.Context) error {
	i.frozen.Store(true)
	return i.group.Freeze()
}

// Resume lets them go on and puts the guest's clock right.
func (i *Instance) Resume(ctx context.Context) error {
	if err := i.group.Thaw(); err != nil {
		return err
	}
	i.frozen.Store(false)
	ctx, cancel := context.WithTimeout(ctx, statsLimit)
	defer cancel()
	_ = i.client.SetTime(ctx, time.Now()) // a guest too busy to answer keeps its own idea of time
	return nil
}

// Stats reads what QEMU costs the host; the number of processes and what the
// guest's kernel killed for want of memory come from the guest, if it answers.
func (i *Instance) Stats(ctx context.Context) (*isolation.Stats, error) {
	s, err := i.group.Stats()
	if err != nil {
		return nil, err
	}
	i.limits.Lock()
	s.Pids, s.PidsLimit = 0, uint64(max(0, i.pids))
	i.limits.Unlock()
	ctx, cancel := context.WithTimeout(ctx, statsLimit)
	defer cancel()
	if g, err := i.client.Stats(ctx); err == nil {
		s.Pids = g.Pids
		s.OOMKills += g.OOMKills
		s.ReadBytes, s.WriteBytes = g.DiskRead, g.DiskWritten
	}
	return &s, nil
}

// Usage reads QEMU's control group: all of the VM is in it.
func (i *Instance) Usage(context.Context) (*isolation.Usage, error) {
	u, err := i.group.Usage()
	if err != nil {
		return nil, err
	}
	u.Kernel, u.Emulated = i.welcome.Kernel, i.spec.Machine.Emulated
	return &u, nil
}

// Processes lists the guest's processes.
func (i *Instance) Processes(ctx context.Context) ([]isolation.ProcessInfo, error) {
	return i.client.Processes(ctx)
}

// Files carries out one operation on the files of the guest's root, by the
// agent. It is possible before Start and, with isolation.Spec.Hold, after the
// end of the main process.
func (i *Instance) Files(ctx context.Context, r *rootfs.Request, in io.Reader, out io.Writer) error {
	if i.frozen.Load() {
		return fmt.Errorf("cannot %s files of a paused VM: %w: unpause it first", r.Op, errdefs.ErrFailedPrecondition)
	}
	return i.client.Files(ctx, r, in, out)
}

// Update changes the processor limits of a running machine and its limit of
// processes, which the guest's kernel keeps. Its memory and the
// number of its virtual processors are those of its boot:
// errdefs.ErrInvalidArgument says so.
func (i *Instance) Update(ctx context.Context, r *isolation.Resources) error {
	m := i.spec.Machine
	if r.MemoryBytes != i.spec.Resources.MemoryBytes {
		return fmt.Errorf("cannot change the memory of a running VM: %w: stop it first", errdefs.ErrInvalidArgument)
	}
	if r.CPUPeriod > 0 && r.CPUQuota > int64(m.CPUs)*r.CPUPeriod {
		return fmt.Errorf("cannot give a running VM more than its %d virtual processors: %w: stop it first", m.CPUs, errdefs.ErrInvalidArgument)
	}
	limits := vmmLimits(*r, m)
	if _, err := i.group.Update(&limits); err != nil {
		return err
	}
	i.limits.Lock()
	defer i.limits.Unlock()
	if r.Pids == i.pids {
		return nil
	}
	if err := i.client.Update(ctx, wire.Limits{Pids: r.Pids}); err != nil {
		return err
	}
	i.pids = r.Pids
	return nil
}

// Delete kills QEMU if it still runs and removes the cgroup.
func (i *Instance) Delete(context.Context) error {
	i.delMu.Lock()
	defer i.delMu.Unlock()
	if i.deleted {
		return nil
	}
	if i.pidfd != nil {
		i.kill()
		<-i.ended
	}
	if i.client != nil {
		_ = i.client.Close()
	}
	if i.group != nil {
		if err := i.group.Delete(); err != nil {
			return err
		}
		i.group.Close()
	}
	if i.pidfd != nil {
		i.pidfd.Close()
	}
	i.deleted = true
	return nil
}

// kill ends QEMU at once: what the guest has not synced is lost, as with the
// power.
func (i *Instance) kill() {
	i.killOnce.Do(func() { close(i.killed) })
	_ = sys.PidfdSignal(i.pidfd, syscall.SIGKILL)
	select {
	case <-i.ended:
	case <-time.After(50 * time.Millisecond):
		_ = i.group.Thaw() // version 1 does not kill what is frozen
	}
}

// shutDown has the guest end what still runs, sync its disk and power off, and
// returns when QEMU has ended. A guest that does not do so in time is killed.
func (i *Instance) shutDown() {
	i.downOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownLimit)
		defer cancel()
		if err := i.client.Shutdown(ctx); err == nil {
			select {
			case <-i.ended:
				return
			case <-time.After(powerOffLimit):
			}
		} else if errors.Is(err, errdefs.ErrUnavailable) {
			select { // it may be on its way out already
			case <-i.ended:
				return
			case <-time.After(time.Second):
			}
		}
		i.kill()
	})
	<-i.ended
}

// wasKilled says whether the end of QEMU was asked for.
func (i *Instance) wasKilled() bool {
	select {
	case <-i.killed:
		return true
	default:
		return false
	}
}

// running is one process of the guest.
type running struct {
	isolation.Running
	machine *Instance
	main    bool
}

// Signal sends a signal by the agent. If SIGKILL for the main process has no
// effect in time, because the guest hangs or is frozen, QEMU is killed.
func (r *running) Signal(ctx context.Context, sig int) error {
	if !r.main || syscall.Signal(sig) != syscall.SIGKILL {
		return r.Running.Signal(ctx, sig)
	}
	if r.machine.frozen.Load() {
		r.machine.kill()
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	err := r.Running.Signal(limited, sig)
	switch {
	case err == nil:
		go func() {
			gone, stop := context.WithTimeout(context.Background(), killLimit)
			defer stop()
			if _, err := r.Running.Wait(gone); errors.Is(err, context.DeadlineExceeded) {
				r.machine.kill()
			}
		}()
	case errdefs.IsNotFound(err):
		return err
	default:
		r.machine.kill()
	}
	return nil
}

// Wait returns when the process has ended and its output was delivered; for the
// main process the guest has powered off then and its disk is clean, unless the
// spec wants the instance held. The end
// of QEMU ends every process of the guest: 137, and why.
func (r *running) Wait(ctx context.Context) (isolation.Exit, error) {
	i := r.machine
	exit, err := r.Running.Wait(ctx)
	switch {
	case err == nil:
	case errors.Is(err, errdefs.ErrUnavailable):
		exit = isolation.Exit{Code: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL), At: time.Now()}
		wanted := i.wasKilled()
		select {
		case <-i.ended:
			if !wanted {
				exit.Error = i.death
			}
		case <-time.After(time.Second): // QEMU lives, but what the agent said was nonsense
			exit.Error = err.Error()
			i.kill()
			<-i.ended
		}
		exit.OOMKilled = i.oom
		if i.oom {
			exit.Error = i.death
		}
	default:
		return isolation.Exit{}, err
	}
	if r.main && !i.spec.Hold {
		i.shutDown()
	}
	return exit, nil
}

// Console is the end of what the VMM and the guest's kernel printed.
func (i *Instance) Console() string { return i.console.Last(100) }
