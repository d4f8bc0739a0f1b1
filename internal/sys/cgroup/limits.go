package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"proa/internal/isolation"
)

// Update changes the limits of r that are not zero and leaves the others as
// they are; -1 lifts a memory, swap or pids limit. Devices cannot be changed.
// A controller that the group did not need before is added, with all processes.
func (g *Group) Update(r *isolation.Resources) ([]string, error) {
	before := len(g.dirs)
	for _, c := range g.wanted(r) {
		if c == "devices" {
			continue
		}
		if err := g.need(c); err != nil {
			return nil, err
		}
	}
	warnings, err := g.limit(r)
	if err != nil || len(g.dirs) == before {
		return warnings, err
	}
	// A process that forks while the list is read is caught by the next round.
	var buf [20]byte
	for range 20 {
		pids, err := g.Procs()
		if err != nil {
			return warnings, err
		}
		moved := 0
		for i := before; i < len(g.dirs); i++ {
			inside, _ := g.dirs[i].read("cgroup.procs")
			for _, pid := range pids {
				b := strconv.AppendInt(buf[:0], int64(pid), 10)
				if bytes.Contains(append([]byte("\n"), inside...), append(append([]byte("\n"), b...), '\n')) {
					continue
				}
				moved++
				if err := g.dirs[i].write("cgroup.procs", b); err != nil && !errors.Is(err, unix.ESRCH) {
					return warnings, fmt.Errorf("cannot put process %d into %s of control group %q: %w", pid, g.dirs[i].controllers, g.path, err)
				}
			}
		}
		if moved == 0 {
			break
		}
	}
	return warnings, nil
}

// limit writes all limits of r.
func (g *Group) limit(r *isolation.Resources) ([]string, error) {
	var warnings []string
	for _, step := range []func(*isolation.Resources) (string, error){g.limitMemory, g.limitCPU, g.limitCpuset, g.limitPids} {
		w, err := step(r)
		if err != nil {
			return warnings, err
		}
		if w != "" {
			warnings = append(warnings, w)
		}
	}
	return warnings, nil
}

// set writes one value that somebody asked for by name (flag). An absent
// controller is errdefs.ErrFailedPrecondition, a value that the kernel does not
// take errdefs.ErrInvalidArgument.
func (g *Group) set(controller, file, value, flag string) error {
	d := g.dir(controller)
	if d == nil {
		return fmt.Errorf("cannot honour %s: this host has no %s controller: %w", flag, controller, errdefs.ErrFailedPrecondition)
	}
	err := d.write(file, []byte(value))
	switch {
	case err == nil:
		return nil
	case missing(err):
		return fmt.Errorf("cannot honour %s: the %s controller has no %s here: %w", flag, controller, file, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EBUSY):
		return fmt.Errorf("cannot honour %s: %w (%w)", flag, err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("cannot honour %s: %w", flag, err)
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// orMax is how version 2 spells a limit.
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return decimal(n)
}

func (g *Group) limitMemory(r *isolation.Resources) (string, error) {
	v2 := g.host.Mode == V2
	var warning string
	swap := r.SwapBytes
	if swap != 0 && !g.swapAccounting() {
		// Docker discards it as well: without accounting there is no limit to write.
		warning, swap = "swap is not limited: this kernel does not account it (boot with swapaccount=1)", 0
	}
	switch {
	case v2:
		// Swap first when both shrink or grow does not matter: they are separate counters.
		if r.MemoryBytes != 0 {
			if err := g.set("memory", "memory.max", orMax(r.MemoryBytes), "--memory"); err != nil {
				return warning, err
			}
		}
		if swap != 0 {
			only := swap // version 2 counts swap alone, Docker memory and swap together
			if swap > 0 {
				if r.MemoryBytes <= 0 || swap < r.MemoryBytes {
					return warning, fmt.Errorf("cannot honour --memory-swap: it must not be below --memory: %w", errdefs.ErrInvalidArgument)
				}
				only = swap - r.MemoryBytes
			}
			if err := g.set("memory", "memory.swap.max", orMax(only), "--memory-swap"); err != nil {
				return warning, err
			}
		}
	case r.MemoryBytes != 0 || swap != 0:
		// The kernel keeps limit <= memsw.limit at every step, so the order
		// depends on where the limits stand now: try one, then the other.
		limit := func() error {
			if r.MemoryBytes == 0 {
				return nil
			}
			return g.set("memory", "memory.limit_in_bytes", decimal(r.MemoryBytes), "--memory")
		}
		memsw := func() error {
			if swap == 0 {
				return nil
			}
			return g.set("memory", "memory.memsw.limit_in_bytes", decimal(swap), "--memory-swap")
		}
		if err := limit(); err != nil {
			if memsw() != nil {
				return warning, err
			}
			if err := limit(); err != nil {
				return warning, err
			}
		} else if err := memsw(); err != nil {
			return warning, err
		}
	}
	if r.MemoryLow != 0 {
		file, value := "memory.soft_limit_in_bytes", decimal(r.MemoryLow)
		if v2 {
			file, value = "memory.low", orMax(r.MemoryLow)
		}
		if err := g.set("memory", file, value, "--memory-reservation"); err != nil {
			return warning, err
		}
	}
	return warning, nil
}

func (g *Group) swapAccounting() bool {
	d := g.dir("memory")
	if d == nil {
		return false
	}
	file := "memory.memsw.limit_in_bytes"
	if g.host.Mode == V2 {
		file = "memory.swap.max"
	}
	return unix.Faccessat(d.fd, file, unix.F_OK, 0) == nil
}

func (g *Group) limitCPU(r *isolation.Resources) (string, error) {
	if g.host.Mode == V2 {
		if r.CPUShares != 0 {
			if err := g.set("cpu", "cpu.weight", decimal(weight(r.CPUShares)), "--cpu-shares"); err != nil {
				return "", err
			}
		}
		if r.CPUQuota != 0 || r.CPUPeriod != 0 {
			v := "max"
			if r.CPUQuota > 0 {
				v = decimal(r.CPUQuota)
			}
			if r.CPUPeriod > 0 {
				v += " " + decimal(r.CPUPeriod)
			}
			return "", g.set("cpu", "cpu.max", v, "--cpus")
		}
		return "", nil
	}
	if r.CPUShares != 0 {
		if err := g.set("cpu", "cpu.shares", decimal(r.CPUShares), "--cpu-shares"); err != nil {
			return "", err
		}
	}
	if r.CPUPeriod != 0 {
		// A shorter period with the old quota may be more than all CPUs of a
		// parent; then the quota has to be written first.
		if err := g.set("cpu", "cpu.cfs_period_us", decimal(r.CPUPeriod), "--cpu-period"); err != nil {
			if r.CPUQuota == 0 || g.set("cpu", "cpu.cfs_quota_us", decimal(r.CPUQuota), "--cpus") != nil {
				return "", err
			}
			return "", g.set("cpu", "cpu.cfs_period_us", decimal(r.CPUPeriod), "--cpu-period")
		}
	}
	if r.CPUQuota != 0 {
		return "", g.set("cpu", "cpu.cfs_quota_us", decimal(r.CPUQuota), "--cpus")
	}
	return "", nil
}

// weight turns version 1 shares (2..262144, norm 1024) into a version 2 weight
// (1..10000, norm 100): the quadratic formula of runc 1.3.2 and crun 1.23,
// which keeps both ends and the norm.
func weight(shares int64) int64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

func (g *Group) limitCpuset(r *isolation.Resources) (string, error) {
	if r.CpusetCpus != "" {
		if err := g.set("cpuset", "cpuset.cpus", r.CpusetCpus, "--cpuset-cpus"); err != nil {
			return "", err
		}
	}
	if r.CpusetMems != "" {
		return "", g.set("cpuset", "cpuset.mems", r.CpusetMems, "--cpuset-mems")
	}
	return "", nil
}

// inheritCpuset fills empty cpuset.cpus and cpuset.mems from the hierarchy's
// root down to the group: a version 1 cpuset without both takes no process.
func (g *Group) inheritCpuset(mount string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		at := dir{fd: unix.AT_FDCWD}
		parent, err := at.read(filepath.Join(mount, file))
		if err != nil {
			return fmt.Errorf("cannot read %s of %q: %w", file, mount, err)
		}
		for _, rel := range chain(g.path) {
			p := filepath.Join(mount, rel, file)
			b, err := at.read(p)
			if err != nil {
				return fmt.Errorf("cannot read %q: %w", p, err)
			}
			if len(bytes.TrimSpace(b)) == 0 {
				if err := at.write(p, parent); err != nil {
					return fmt.Errorf("cannot fill %q from its parent: %w", p, err)
				}
				b = parent
			}
			parent = b
		}
	}
	return nil
}

// chain lists a path's ancestors and itself, outermost first.
func chain(p string) []string {
	var out []string
	for ; p != "."; p = path.Dir(p) {
		out = append([]string{p}, out...)
	}
	return out
}

func (g *Group) limitPids(r *isolation.Resources) (string, error) {
	if r.Pids == 0 {
		return "", nil
	}
	if g.dir("pids") == nil || g.host.Mode == V2 && !g.host.Controllers["pids"] {
		if r.Pids < 0 {
			return "", nil
		}
		// There is a limit by default, so nobody need have asked for this one.
		return "the number of processes is not limited: this host has no pids controller", nil
	}
	return "", g.set("pids", "pids.max", orMax(r.Pids), "--pids-limit")
}
