package machine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// Check names the first thing in spec that the VM wall cannot honour, by the
// flag that asked for it: errdefs.ErrNotImplemented where it may come one day,
// errdefs.ErrInvalidArgument where it makes no sense with a guest kernel of
// one's own. What it lets through is honoured. It looks at no descriptor, so it
// can be asked when a container is created.
//
// Namespace modes are not in a VM's spec (Namespaces is the container
// driver's): use CheckNamespace for --pid, --ipc, --uts, --userns and --cgroupns.
func Check(spec *isolation.Spec) error {
	if spec.Kind != isolation.VM {
		return fmt.Errorf("cannot check a spec of isolation %q for a VM: %w", spec.Kind, errdefs.ErrInvalidArgument)
	}
	for _, m := range spec.Mounts {
		if m.Type != isolation.MountTmpfs && m.Type != isolation.MountCopy {
			return notYet("-v/--volume/--mount", fmt.Sprintf("mounting %q at %q", m.Origin, m.Target),
				"copy the files into the image, or use --tmpfs for scratch space")
		}
	}
	for _, d := range spec.Devices {
		return notYet("--device", fmt.Sprintf("giving %q", d.Path), "use --isolation container for it")
	}
	switch spec.Network.Mode {
	case isolation.NetworkHost:
		return never("--network host", "a VM has a network stack of its own; publish ports with -p instead")
	case isolation.NetworkNone, isolation.NetworkBridge:
	default:
		return fmt.Errorf("cannot use --network %s with a VM: %w", spec.Network.Mode, errdefs.ErrNotImplemented)
	}
	for kind := range spec.Namespaces.Join {
		if kind == "net" {
			return notYet("--network container:...", "sharing a container's network", "use --network bridge")
		}
		return never("--"+kind+" container:...", "a VM has a kernel of its own")
	}
	for name := range spec.Sysctls {
		if !slices.ContainsFunc([]string{"net.", "kernel.", "fs.", "vm.", "user.", "dev."}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			return fmt.Errorf("cannot use --sysctl %s: %w: no such name in Linux", name, errdefs.ErrInvalidArgument)
		}
	}
	if p := spec.Process; p.OOMScoreAdj < -1000 || p.OOMScoreAdj > 1000 {
		return fmt.Errorf("cannot use --oom-score-adj %d: %w: -1000 to 1000 are possible", p.OOMScoreAdj, errdefs.ErrInvalidArgument)
	}
	_, err := guestMemory(&spec.Resources)
	return err
}

// CheckNamespace judges one of Docker's namespace modes ("", "private",
// "shareable", "none", "host", "container:x") by its flag: "pid", "ipc", "uts",
// "userns", "cgroupns".
func CheckNamespace(flag, mode string) error {
	switch {
	case mode == "" || mode == "private" || mode == "shareable":
		return nil
	case flag == "userns" && mode == "host", flag == "ipc" && mode == "none":
		return nil // there is no other user namespace in a guest, and nobody to share memory with
	default:
		return never("--"+flag+" "+mode, "a VM has a kernel of its own")
	}
}

func notYet(flag, what, instead string) error {
	return fmt.Errorf("cannot use %s with a VM: %w: %s is not possible behind this wall yet; %s", flag, errdefs.ErrNotImplemented, what, instead)
}

func never(flag, why string) error {
	return fmt.Errorf("cannot use %s with a VM: %w: %s", flag, errdefs.ErrInvalidArgument, why)
}
