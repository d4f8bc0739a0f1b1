package daemon

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/api"
	"proa/internal/engine"
	"proa/internal/isolation/vm/machine"
	"proa/internal/platform"
	"proa/internal/sys/cgroup"
)

// lowSpace is when doctor begins to speak of a full disk.
const lowSpace = 2 << 30

// host is what the API says about the engine's surroundings.
func (h *house) host() api.Host {
	name, _ := os.Hostname()
	out := api.Host{
		ID: h.id(), DataRoot: h.cfg.DataRoot, Name: name, OS: osName(), KernelVersion: firstLine("/proc/sys/kernel/osrelease"),
		MemTotal: memTotal(), CgroupVersion: "1", CgroupDriver: "cgroupfs", UserNS: len(h.engine.IDs()) > 0,
		Bridge: api.Bridge{
			Name: h.cfg.Bridge,
			Subnet: func() string {
				s, _ := h.network.Subnets()
				return s.String()
			},
			Gateway: h.gateway,
		},
		Doctor:   h.doctor,
		Warnings: h.warnings,
	}
	if c, err := cgroup.Detect(); err == nil {
		out.SwapLimit = c.SwapAccounting()
		if c.Mode == cgroup.V2 {
			out.CgroupVersion = "2"
		}
	}
	return out
}

// gateway is the host's address on the default bridge.
func (h *house) gateway() string {
	s, _ := h.network.Subnets()
	return s.Masked().Addr().Next().String()
}

// id is the name of this data root, made at the first start.
func (h *house) id() string {
	path := filepath.Join(h.cfg.DataRoot, "engine-id")
	if raw, err := os.ReadFile(path); err == nil && len(raw) > 0 {
		return strings.TrimSpace(string(raw))
	}
	var b [16]byte
	rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		h.log.Warn("cannot keep the engine's id", "err", err)
	}
	return id
}

// warnings are the lines of doctor that say no.
func (h *house) warnings(ctx context.Context) []string {
	var out []string
	if blockers, err := h.network.Blockers(ctx); err == nil {
		for _, b := range blockers {
			out = append(out, fmt.Sprintf("WARNING: %s: %s drops traffic %s; %s", b.Where, b.What, b.Traffic, b.Hint))
		}
	}
	if len(h.engine.IDs()) == 0 {
		out = append(out, "WARNING: containers run in the host's user namespace")
	}
	return out
}

// doctor judges what this host can do, one line each.
func (h *house) doctor(ctx context.Context) []api.Check {
	var out []api.Check
	add := func(name, state, detail, mend string) {
		out = append(out, api.Check{Name: name, State: state, Detail: detail, Mend: mend})
	}
	strategy, why := h.images.Strategy()
	mend := ""
	if strategy == "extract" { // the last resort
		mend = "modprobe -a loop erofs, and start the engine again; or Linux 6.12 or later with EROFS and a data root on ext4, xfs or btrfs"
	}
	if why != "" {
		strategy += ": " + why
	}
	add("image mounts", "yes", strategy, mend)

	if ids := h.engine.IDs(); len(ids) > 0 {
		add("user namespaces", "yes", fmt.Sprintf("containers have the ids %s; their root is %d of this host", ids, ids.Root()), "")
	} else {
		add("user namespaces", "no", "containers run in the host's user namespace", "sysctl -w user.max_user_namespaces=15000, and start proad without --userns host")
	}
	out = append(out, rootsCheck(h.engine.TryRoots()))
	out = append(out, cgroupChecks()...)
	out = append(out, h.networkChecks(ctx)...)
	out = append(out, h.machineChecks(ctx)...)
	out = append(out, platformCheck())

	var st syscall.Statfs_t
	if err := syscall.Statfs(h.cfg.DataRoot, &st); err != nil {
		add("free space", "unknown", err.Error(), "")
	} else {
		free := int64(st.Bavail) * st.Bsize
		detail := units.BytesSize(float64(free)) + " in " + h.cfg.DataRoot
		if free < lowSpace {
			add("free space", "no", detail, "proa image prune, proa container prune; or a larger disk by --data-root")
		} else {
			add("free space", "yes", detail, "")
		}
	}
	return out
}

// platformCheck says which images of other platforms run here as containers.
// None has to, so it never fails.
func platformCheck() api.Check {
	var parts []string
	for _, arch := range []string{"386", "amd64", "arm64"} {
		p := platform.Of(ocispec.Platform{OS: "linux", Architecture: arch})
		if p.Architecture == platform.Host().Architecture {
			continue
		}
		switch v := platform.CanRun(p, false); v.Answer {
		case platform.Yes:
			parts = append(parts, platform.Name(p)+" runs")
		case platform.No:
			parts = append(parts, platform.Name(p)+" does not: "+v.Why)
		default:
			parts = append(parts, platform.Name(p)+" may: "+v.Why)
		}
	}
	return api.Check{Name: "other platforms", State: "yes", Detail: platform.Name(platform.Detected()) + "; " + strings.Join(parts, "; ")}
}

// rootsCheck is the line about what the engine tried in the data root.
func rootsCheck(err error) api.Check {
	var no *engine.NoRootsError
	switch {
	case errors.As(err, &no):
		return api.Check{Name: "roots of containers", State: "no", Detail: no.Error(), Mend: no.Hint()}
	case err != nil:
		return api.Check{Name: "roots of containers", State: "unknown", Detail: err.Error()}
	}
	return api.Check{Name: "roots of containers", State: "yes", Detail: "a layer of the data root can be written to"}
}

func cgroupChecks() []api.Check {
	c, err := cgroup.Detect()
	if err != nil {
		return []api.Check{{Name: "control groups", State: "no", Detail: err.Error(), Mend: "mount -t cgroup2 none /sys/fs/cgroup"}}
	}
	var missing []string
	for _, name := range []string{"memory", "cpu", "pids", "cpuset", "devices"} {
		if !c.Has(name) {
			missing = append(missing, name)
		}
	}
	detail := string(c.Mode)
	if len(missing) > 0 {
		return []api.Check{{Name: "control groups", State: "no", Detail: detail + " without " + strings.Join(missing, ", "), Mend: "boot without cgroup_disable= on the kernel's command line"}}
	}
	if !c.SwapAccounting() {
		detail += ", swap is not limited (swapaccount=1 on the kernel's command line changes that)"
	}
	return []api.Check{{Name: "control groups", State: "yes", Detail: detail}}
}

func (h *house) networkChecks(ctx context.Context) []api.Check {
	subnet, subnet6 := h.network.Subnets()
	detail := fmt.Sprintf("bridge %s, %s", h.cfg.Bridge, subnet)
	if subnet6.IsValid() {
		detail += ", " + subnet6.String()
	}
	out := []api.Check{{Name: "network", State: "yes", Detail: detail + ", nftables table inet " + h.cfg.table()}}
	blockers, err := h.network.Blockers(ctx)
	switch {
	case err != nil:
		out[0] = api.Check{Name: "network", State: "no", Detail: err.Error(), Mend: "modprobe nf_tables"}
	case len(blockers) == 0:
		out = append(out, api.Check{Name: "forwarded traffic", State: "yes", Detail: "no other firewall rule drops it"})
	}
	for _, b := range blockers {
		state := "no"
		if !b.Certain {
			state = "unknown"
		}
		out = append(out, api.Check{Name: "forwarded traffic", State: state, Detail: fmt.Sprintf("%s: %s drops traffic %s", b.Where, b.What, b.Traffic), Mend: b.Hint})
	}
	return out
}

func (h *house) machineChecks(ctx context.Context) []api.Check {
	const kernelMend = "make setup, or unpack a kernel package (dpkg -x) and name it: proad --guest-kernel DIR"
	if h.machines == nil {
		return []api.Check{{Name: "virtual machines", State: "no", Detail: "the guest agent was not found", Mend: "make build"}}
	}
	r, err := h.machines.Ready(ctx)
	var noQEMU *machine.NoQEMUError
	var noKernel *machine.NoKernelError
	switch {
	case errors.As(err, &noQEMU):
		return []api.Check{{Name: "QEMU", State: "no", Detail: err.Error(), Mend: "apt-get install --no-install-recommends qemu-system-x86"}}
	case errors.As(err, &noKernel):
		return []api.Check{{Name: "guest kernel", State: "no", Detail: err.Error(), Mend: kernelMend}}
	case err != nil:
		return []api.Check{{Name: "virtual machines", State: "no", Detail: err.Error()}}
	}
	out := []api.Check{
		{Name: "QEMU", State: "yes", Detail: r.QEMU + " " + r.Version},
		{Name: "guest kernel", State: "yes", Detail: r.Kernel},
	}
	if r.KVM.Usable {
		return append(out, api.Check{Name: "KVM", State: "yes", Detail: "guests run on hardware"})
	}
	return append(out, api.Check{Name: "KVM", State: "no", Detail: r.KVM.Why + "; VMs are emulated, which is slow", Mend: "turn on virtualisation in the firmware, or nested virtualisation for this machine; modprobe kvm-intel or kvm-amd"})
}

func firstLine(path string) string {
	raw, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(raw), "\n")
	return line
}

// osName is PRETTY_NAME of os-release(5).
func osName() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return "Linux"
}

// memTotal is the host's memory in bytes.
func memTotal() int64 {
	var si syscall.Sysinfo_t
	if syscall.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit)
}
