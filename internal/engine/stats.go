package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/moby/moby/api/types/container"

	"proa/internal/event"
	"proa/internal/isolation"
)

// Stats reads a container's use of the host once.
func (e *Engine) Stats(ctx context.Context, ref string) (*Sample, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	c := b.snap.Load()
	s := &Sample{ID: c.ID, Name: c.Name}
	sh, err := b.shim()
	if err != nil {
		return s, nil
	}
	st, err := sh.Stats(ctx)
	if err != nil {
		if gone(err) {
			return s, nil
		}
		return nil, fmt.Errorf("cannot read statistics of container %s: %w", short(b.id), err)
	}
	s.Stats = *st
	if s.Read.IsZero() {
		s.Read = e.cfg.Now().UTC()
	}
	if owner := e.cardOwner(c); owner != "" {
		s.Card = true
		e.netStats(ctx, owner, &s.Stats)
	}
	if s.SystemCPU, s.OnlineCPUs, err = hostCPU(); err != nil {
		return nil, err
	}
	return s, nil
}

// cardOwner is the container whose network card c uses, its own or that of the
// one whose network it has joined; "" where there is none.
func (e *Engine) cardOwner(c *Container) string {
	if c.Host.NetworkMode.IsContainer() {
		b, err := e.find(c.Host.NetworkMode.ConnectedContainer())
		if err != nil {
			return ""
		}
		c = b.snap.Load()
	}
	if c.Endpoint["bridge"] == nil {
		return ""
	}
	return c.ID
}

// hostCPU reads how long all CPUs have run since boot, idle time included, as
// Docker counts it.
func hostCPU() (nanos uint64, cpus uint32, err error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the host's CPU time: %w", err)
	}
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 8 || string(fields[0]) != "cpu" {
		return 0, 0, errors.New("cannot read the host's CPU time: /proc/stat has another form")
	}
	const tick = 1e9 / 100 // USER_HZ is 100 on all of Linux's architectures that Go knows
	for _, f := range fields[1:8] {
		n, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read the host's CPU time: %w", err)
		}
		nanos += n * tick
	}
	return nanos, uint32(runtime.NumCPU()), nil
}

// Top lists the processes of a running container.
func (e *Engine) Top(ctx context.Context, ref string) ([]isolation.ProcessInfo, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	sh, err := b.shim()
	if err != nil {
		return nil, err
	}
	list, err := sh.Top(ctx)
	if err != nil {
		return nil, err
	}
	e.emit(b.snap.Load(), event.ContainerTop)
	return list, nil
}

// Update changes limits and the restart policy, of a running one at once. Zero
// fields stay as they are.
func (e *Engine) Update(ctx context.Context, ref string, u container.UpdateConfig) ([]string, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	if err := b.lock(ctx); err != nil {
		return nil, err
	}
	defer b.unlock()
	c := b.snap.Load()
	if c.State == Removing || c.State == Dead {
		return nil, conflict("container is marked for removal and cannot be \"update\"")
	}
	host := *c.Host
	if err := applyUpdate(&host, &u); err != nil {
		return nil, err
	}
	if err := checkHost(c.Config, &host, c.Kind); err != nil {
		return nil, err
	}
	if c.State.alive() {
		sh, err := b.shim()
		if err != nil {
			return nil, err
		}
		r := resourcesOf(&host, e.cfg.CgroupParent)
		if err := sh.Update(ctx, &r); err != nil {
			return nil, fmt.Errorf("cannot update container %s: %w", short(b.id), err)
		}
	}
	c = b.change(func(r *record, _ *live) { r.Host = &host })
	if err := e.saves.save(b); err != nil {
		return nil, err
	}
	e.emit(c, event.ContainerUpdate)
	return nil, nil
}

// applyUpdate merges what an update may change into h; anything else that is
// set is refused by name.
func applyUpdate(h *container.HostConfig, u *container.UpdateConfig) error {
	rest := u.Resources
	take := func(from, to *int64) {
		if *from != 0 {
			*to = *from
		}
		*from = 0
	}
	take(&rest.CPUShares, &h.CPUShares)
	take(&rest.MemoryReservation, &h.MemoryReservation)
	if rest.NanoCPUs != 0 {
		h.CPUPeriod, h.CPUQuota = 0, 0
	}
	if rest.CPUPeriod != 0 || rest.CPUQuota != 0 {
		if h.NanoCPUs != 0 {
			return conflict("Conflicting options: CPU Period or Quota cannot be updated as NanoCPUs has already been set")
		}
	}
	take(&rest.NanoCPUs, &h.NanoCPUs)
	take(&rest.CPUPeriod, &h.CPUPeriod)
	take(&rest.CPUQuota, &h.CPUQuota)
	if rest.Memory != 0 {
		if h.MemorySwap > 0 && rest.Memory > h.MemorySwap && rest.MemorySwap == 0 {
			return conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
		}
		if h.MemorySwap == 0 && rest.MemorySwap == 0 {
			h.MemorySwap = 2 * rest.Memory
		}
	}
	take(&rest.Memory, &h.Memory)
	take(&rest.MemorySwap, &h.MemorySwap)
	if rest.CpusetCpus != "" {
		h.CpusetCpus = rest.CpusetCpus
	}
	if rest.CpusetMems != "" {
		h.CpusetMems = rest.CpusetMems
	}
	if rest.PidsLimit != nil {
		n := max(0, *rest.PidsLimit) // 0: none, as Docker shows it
		h.PidsLimit = &n
	}
	rest.CpusetCpus, rest.CpusetMems, rest.PidsLimit = "", "", nil
	if err := checkKnobs(&container.HostConfig{Resources: rest}); err != nil {
		return err
	}
	if err := checkResources(&rest); err != nil { // what is honoured only while it is not set
		return err
	}
	if len(rest.Devices) > 0 || len(rest.Ulimits) > 0 || rest.CgroupParent != "" {
		return invalid("cannot update devices, ulimits or the cgroup parent of a container")
	}
	if err := container.ValidateRestartPolicy(u.RestartPolicy); err != nil {
		return invalid("%w", err)
	}
	if u.RestartPolicy.Name != "" {
		if h.AutoRemove && !u.RestartPolicy.IsNone() {
			return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		h.RestartPolicy = u.RestartPolicy
	}
	return nil
}
