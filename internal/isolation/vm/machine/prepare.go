package machine

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// Boot limits: how long an agent may take to answer. An idle host needs 2 s
// with emulation; a busy one was seen to need ten times as much.
const (
	bootLimitKVM      = 20 * time.Second
	bootLimitEmulated = 90 * time.Second
)

// Memory of a guest in MiB.
const (
	minMemory = 128
	maxMemory = 1 << 20
)

// Ready finds out what the host can do. It is what Prepare would find.
func (f *Factory) Ready(ctx context.Context) (*Ready, error) {
	h, k, v, err := f.ready(ctx)
	if err != nil {
		return nil, err
	}
	return &Ready{QEMU: h.binary, Version: h.version, Kernel: k.Release, KVM: v}, nil
}

func (f *Factory) ready(ctx context.Context) (*host, *kit, Verdict, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.host == nil {
		h, err := findHost(ctx, f.cfg.QEMU)
		if err != nil {
			return nil, nil, Verdict{}, err
		}
		f.host = h
	}
	if f.kit == nil || !f.kit.current() {
		kernel, err := FindKernel(f.cfg.KernelDirs...)
		if err != nil {
			return nil, nil, Verdict{}, err
		}
		made, err := makeKit(f.cfg.Dir, kernel, f.cfg.Agent)
		if err != nil {
			return nil, nil, Verdict{}, err
		}
		f.kit, f.kvm = made, nil
	}
	if f.kvm == nil {
		v, err := f.judgeKVM(ctx)
		if err != nil {
			return nil, nil, Verdict{}, err
		}
		f.kvm = v
	}
	return f.host, f.kit, *f.kvm, nil
}

// Prepare makes the writable disk, opens all that the machine needs and fills
// spec.Machine. The caller hands the returned files to the shim and closes
// them. Errors: *NoQEMUError and *NoKernelError
// (errdefs.ErrFailedPrecondition), what Check says, errdefs.ErrInvalidArgument
// for limits that no guest can have.
//
// The files of spec.Network.NICs[].Tap are the caller's; Machine.Files names
// them behind those made here.
func (f *Factory) Prepare(ctx context.Context, spec *isolation.Spec, disk Disk, opts Options) (_ *Prepared, err error) {
	if err := Check(spec); err != nil {
		return nil, err
	}
	memory, err := guestMemory(&spec.Resources)
	if err != nil {
		return nil, err
	}
	h, k, kvm, err := f.ready(ctx)
	if err != nil {
		return nil, err
	}

	p := &Prepared{}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	c := &command{
		Name: "proa-" + spec.ID[:min(12, len(spec.ID))], Emulated: !kvm.Usable, TSC: h.tsc, SteadyTSC: h.steady,
		CPUs: guestCPUs(&spec.Resources), MemoryMiB: memory >> 20,
		Vmlinux: k.Vmlinux, Initramfs: k.Initramfs,
	}
	add := func(file *os.File) int {
		p.Files = append(p.Files, file)
		fd := firstFD + len(p.Files) - 1
		c.Sets = append(c.Sets, fd)
		return fd
	}
	m := &isolation.Machine{
		Binary: h.binary, Env: h.env, UID: f.cfg.UID, GID: f.cfg.GID,
		Emulated: c.Emulated, BootLimit: bootLimitKVM, MemoryMiB: c.MemoryMiB, CPUs: c.CPUs,
		OverheadMiB: overheadMiB(c.Emulated),
	}
	if c.Emulated {
		m.BootLimit = bootLimitEmulated
	}

	paths := append([]string{disk.Index}, disk.Data...)
	var devices []string
	for group := range slices.Chunk(paths, maxPartitions) {
		text, err := joinFiles(group, add)
		if err != nil {
			return nil, err
		}
		for i := range group {
			devices = append(devices, fmt.Sprintf("/dev/vd%c%d", 'a'+len(c.Images), i+1))
		}
		c.Images = append(c.Images, text)
	}
	if len(c.Images) > 12 {
		return nil, fmt.Errorf("cannot give a VM an image of %d layers: %w: %d are possible", len(disk.Data), errdefs.ErrInvalidArgument, 12*maxPartitions-1)
	}
	m.RootDevice, m.DataDevices = devices[0], devices[1:]
	m.RWDevice = fmt.Sprintf("/dev/vd%c", 'a'+len(c.Images))

	rw, err := openWritable(ctx, f.cfg.Dir, filepath.Join(opts.Dir, WritableDisk), opts.DiskBytes)
	if err != nil {
		return nil, err
	}
	c.Writable = add(rw)

	for i := range p.Files {
		m.Files = append(m.Files, opts.FirstFile+isolation.File(i))
	}
	for _, nic := range spec.Network.NICs {
		if nic.Tap == 0 {
			return nil, fmt.Errorf("cannot prepare the machine: %w: network card %s has no tap", errdefs.ErrInvalidArgument, nic.Name)
		}
		m.Files = append(m.Files, nic.Tap)
		c.NICs = append(c.NICs, commandNIC{Tap: firstFD + len(m.Files) - 1, MAC: nic.MAC})
	}
	c.Channel = firstFD + len(m.Files)

	// QEMU opens /dev/null to find out which locks the host has.
	m.JailPaths = append(slices.Clone(h.paths), k.Vmlinux, k.Initramfs, os.DevNull)
	if !c.Emulated {
		m.JailPaths = append(m.JailPaths, kvmDevice)
	}
	m.Args = c.args()
	spec.Machine = m
	return p, nil
}

// joinFiles opens files as the partitions of one disk and returns the
// descriptor of the text that joins them.
func joinFiles(paths []string, add func(*os.File) int) (int, error) {
	var sizes []int64
	var names []string
	take := func(file *os.File) { names = append(names, fmt.Sprintf("/dev/fdset/%d", add(file))) }
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return 0, fmt.Errorf("cannot open the image's files: %w", err)
		}
		take(file)
		info, err := file.Stat()
		if err != nil {
			return 0, fmt.Errorf("cannot open the image's files: %w", err)
		}
		sizes = append(sizes, info.Size())
	}
	d, err := layoutDisk(sizes)
	if err != nil {
		return 0, err
	}
	for _, part := range []struct {
		name string
		data []byte
	}{{"disk-head", d.head}, {"disk-tail", d.tail}} {
		file, err := readOnlyMemory(part.name, part.data)
		if err != nil {
			return 0, err
		}
		take(file)
	}
	last := len(names) - 2 // the head was opened behind the files, but comes first
	ordered := slices.Concat(names[last:last+1], names[:last], names[last+1:])
	text, err := readOnlyMemory("disk-text", d.descriptor(ordered))
	if err != nil {
		return 0, err
	}
	return add(text), nil
}

// readOnlyMemory is a sealed file in memory, opened for reading: QEMU takes
// from a descriptor set only what has the very access mode that it asks for.
func readOnlyMemory(name string, data []byte) (*os.File, error) {
	f, err := sys.MemFile(name, data)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot open the memory file %q: %w", name, err)
	}
	return r, nil
}

// guestMemory is the guest's memory in bytes: --memory, in whole MiB.
func guestMemory(r *isolation.Resources) (int64, error) {
	memory := r.MemoryBytes
	if memory == 0 {
		memory = DefaultMemory
	}
	memory = memory >> 20 << 20
	if memory < minMemory<<20 || memory > maxMemory<<20 {
		return 0, fmt.Errorf("cannot give a VM %d bytes of memory (--memory): %w: a guest with its own kernel needs at least %d MiB", r.MemoryBytes, errdefs.ErrInvalidArgument, minMemory)
	}
	return memory, nil
}

// maxCPUs is what a microvm takes.
const maxCPUs = 255

// guestCPUs is the number of virtual CPUs: --cpus rounded up, the rest being
// held back by the quota on the VMM; without it as many as the host has.
func guestCPUs(r *isolation.Resources) int {
	n := runtime.NumCPU()
	if r.CPUQuota > 0 && r.CPUPeriod > 0 {
		n = min(n, int(math.Ceil(float64(r.CPUQuota)/float64(r.CPUPeriod))))
	}
	return max(1, min(n, maxCPUs))
}
