// Package machine prepares virtual machines on the engine's side: it finds
// QEMU and a guest kernel, turns a distribution's kernel package into what
// QEMU boots, finds out whether KVM runs guests here, joins an image's files
// into one disk without copying, makes the writable disk, and writes QEMU's
// command line into isolation.Spec.Machine.
//
// It never starts a machine and never talks to a guest (that is vm, in the
// shim), never reads what a guest wrote, and keeps nothing that cannot be made
// again from the kernel package and the agent.
package machine

import (
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// Config says where things are.
type Config struct {
	Dir        string   // <data-root>/vm: what is made from kernel and agent, the KVM verdict, the empty disk
	KernelDirs []string // looked through in order for an unpacked kernel package (--guest-kernel first)
	Agent      string   // the proa-agent program: PID 1 of the guest
	QEMU       string   // qemu-system-*; "" searches PATH
	// Accelerator forces "kvm" or "tcg"; "" asks the probe.
	Accelerator string
	// Probe is the command that runs ProbeChild ("/proc/self/exe kvm-probe").
	// Without one the machine is emulated.
	Probe  []string
	BootID string // names this boot of the host; a verdict of another one about KVM does not hold
	// UID and GID are those of the jailed VMM, never 0.
	UID, GID uint32
}

// Factory prepares machines. It can be used from many goroutines.
type Factory struct {
	cfg Config

	mu   sync.Mutex // guards what follows; held while it is made, so that it is made once
	host *host
	kit  *kit
	kvm  *Verdict
}

// Open returns a factory. It touches nothing: a host without QEMU or kernel is
// told by Ready and Prepare.
func Open(cfg Config) (*Factory, error) {
	if cfg.Dir == "" || cfg.Agent == "" {
		return nil, fmt.Errorf("cannot open the machine room: %w: Dir and Agent must be set", errdefs.ErrInvalidArgument)
	}
	if cfg.UID == 0 || cfg.GID == 0 {
		return nil, fmt.Errorf("cannot open the machine room: %w: the VMM must not run as root", errdefs.ErrInvalidArgument)
	}
	switch cfg.Accelerator {
	case "", "kvm", "tcg":
	default:
		return nil, fmt.Errorf("cannot open the machine room: %w: accelerator %q is neither kvm nor tcg", errdefs.ErrInvalidArgument, cfg.Accelerator)
	}
	return &Factory{cfg: cfg}, nil
}

// Disk is what image.Store.Disk gives: the image index and the data file of
// each flat layer, in the index's device order.
type Disk struct {
	Index string
	Data  []string
}

// Options of one Prepare.
type Options struct {
	// Dir is the container's own directory; the writable disk is Dir/rw.ext4,
	// made if missing, kept otherwise.
	Dir string
	// DiskBytes is the size of a new writable disk; 0 is DefaultDisk. It is sparse.
	DiskBytes int64
	// FirstFile is the descriptor number in the shim of Prepared.Files[0]; the
	// rest follow.
	FirstFile isolation.File
}

// DefaultDisk is the size of a writable disk that nobody sized.
const DefaultDisk int64 = 16 << 30

// DefaultMemory is what a guest gets without --memory.
const DefaultMemory int64 = 512 << 20

// Prepared is what must be handed to the shim besides the spec.
type Prepared struct {
	Files []*os.File // in the order of descriptor numbers from Options.FirstFile on
}

// Close closes the files, after the shim has them.
func (p *Prepared) Close() error {
	for _, f := range p.Files {
		f.Close()
	}
	p.Files = nil
	return nil
}

// Ready is what the host can do, for doctor and info.
type Ready struct {
	QEMU    string // path
	Version string // "7.2.22"
	Kernel  string // release, "6.1.0-56-cloud-amd64"
	KVM     Verdict
}
