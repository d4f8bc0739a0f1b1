package engine

import (
	"math"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/network"
)

// Defaults that Docker's users know, and ours where they are stricter.
const (
	defaultShm   = 64 << 20
	defaultPids  = 4096 // Docker has none; a fork bomb is one line (DESIGN 4.6)
	minMemory    = 6 << 20
	defaultStop  = 10 // seconds
	maxOOMAdjust = 1000
)

// defaultMasked and defaultReadonly are Docker's lists (moby daemon/pkg/oci/defaults.go).
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// kindOf reads Runtime and Isolation, which may both name the wall and must
// agree.
func kindOf(h *container.HostConfig, def isolation.Kind) (isolation.Kind, error) {
	var byRuntime, byIsolation isolation.Kind
	switch h.Runtime {
	case "":
	case string(isolation.Container), string(isolation.VM):
		byRuntime = isolation.Kind(h.Runtime)
	default:
		return "", invalid("unknown or invalid runtime name: %s (known: container, vm)", h.Runtime)
	}
	switch strings.ToLower(string(h.Isolation)) {
	case "", "default":
	case "container", "process":
		byIsolation = isolation.Container
	case "vm":
		byIsolation = isolation.VM
	default:
		return "", invalid("invalid isolation %q: use container or vm", h.Isolation)
	}
	switch {
	case byRuntime != "" && byIsolation != "" && byRuntime != byIsolation:
		return "", invalid("conflicting options: runtime %q and isolation %q", h.Runtime, h.Isolation)
	case byRuntime != "":
		return byRuntime, nil
	case byIsolation != "":
		return byIsolation, nil
	case def != "":
		return def, nil
	}
	return isolation.Container, nil
}

// withDefaults gives a copy with what Docker shows in inspect for fields that
// the client left open.
func withDefaults(h *container.HostConfig, kind isolation.Kind) *container.HostConfig {
	c := *h
	c.Runtime = string(kind)
	if c.NetworkMode == "" || c.NetworkMode == "default" {
		c.NetworkMode = "bridge"
	}
	if name, ok := network.Find(string(c.NetworkMode)); ok { // given by its id
		c.NetworkMode = container.NetworkMode(name)
	}
	if c.LogConfig.Type == "" {
		c.LogConfig.Type = "json-file"
	}
	if c.LogConfig.Config == nil {
		c.LogConfig.Config = map[string]string{}
	}
	if c.RestartPolicy.Name == "" { // old clients send a count with it, which means nothing
		c.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyDisabled}
	}
	if c.ShmSize == 0 {
		c.ShmSize = defaultShm
	}
	if c.IpcMode == "" {
		c.IpcMode = container.IPCModePrivate
	}
	if c.CgroupnsMode == "" {
		c.CgroupnsMode = container.CgroupnsModePrivate
	}
	if !c.Privileged { // none at all there, and shown as null
		if c.MaskedPaths == nil {
			c.MaskedPaths = slices.Clone(defaultMasked)
		}
		if c.ReadonlyPaths == nil {
			c.ReadonlyPaths = slices.Clone(defaultReadonly)
		}
	}
	if c.DNS == nil {
		c.DNS = []netip.Addr{}
	}
	if c.DNSOptions == nil {
		c.DNSOptions = []string{}
	}
	if c.DNSSearch == nil {
		c.DNSSearch = []string{}
	}
	if c.OomKillDisable == nil {
		c.OomKillDisable = new(bool)
	}
	if c.MemorySwappiness != nil && *c.MemorySwappiness == -1 {
		c.MemorySwappiness = nil // what clients send for "not set"
	}
	if c.PidsLimit != nil && *c.PidsLimit <= 0 {
		none := int64(-1)
		c.PidsLimit = &none
	}
	if c.Memory > 0 && c.MemorySwap == 0 {
		c.MemorySwap = 2 * c.Memory // as much swap as memory
	}
	return &c
}

// checkHost refuses what is wrong or cannot be honoured. It reads a
// configuration that went through withDefaults.
func checkHost(c *container.Config, h *container.HostConfig, kind isolation.Kind) error {
	vm := kind == isolation.VM
	if err := checkKnobs(h); err != nil {
		return err
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return invalid("%v", err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	if err := checkModes(c, h, vm); err != nil {
		return err
	}
	if err := checkResources(&h.Resources); err != nil {
		return err
	}
	if h.ShmSize < 0 {
		return invalid("SHM size can not be less than 0")
	}
	if h.OomScoreAdj < -maxOOMAdjust || h.OomScoreAdj > maxOOMAdjust {
		return invalid("invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	if _, empty := h.Annotations[""]; empty {
		return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	if h.Umask != nil && *h.Umask > 0o777 {
		return invalid("invalid umask %o", *h.Umask)
	}
	for _, x := range h.ExtraHosts {
		if _, _, err := extraHost(x); err != nil {
			return err
		}
	}
	if _, err := capSet(h.CapAdd, h.CapDrop, h.Privileged); err != nil {
		return err
	}
	if _, err := rlimits(h.Ulimits); err != nil {
		return err
	}
	if err := checkLog(h.LogConfig); err != nil {
		return err
	}
	if err := checkSysctls(h, vm); err != nil {
		return err
	}
	_, err := securityOf(h)
	return err
}

// checkModes reads the namespaces that are wanted.
func checkModes(c *container.Config, h *container.HostConfig, vm bool) error {
	switch m := h.NetworkMode; {
	case m.IsContainer() && m.ConnectedContainer() == "":
		return invalid("invalid network mode: %s", m)
	}
	if !h.PidMode.Valid() {
		return invalid("invalid PID mode: %s", h.PidMode)
	}
	if !h.IpcMode.Valid() {
		return invalid("invalid IPC mode: %s", h.IpcMode)
	}
	if !h.UTSMode.Valid() {
		return invalid("invalid UTS mode: %s", h.UTSMode)
	}
	if h.UTSMode.IsHost() && c.Hostname != "" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	if !h.UsernsMode.Valid() {
		return invalid("invalid userns mode: %s", h.UsernsMode)
	}
	if !h.CgroupnsMode.Valid() {
		return invalid("invalid cgroup namespace mode: %s", h.CgroupnsMode)
	}
	if !vm {
		return nil
	}
	if h.NetworkMode.IsContainer() {
		return invalid("cannot use --network %s with a VM: it has a kernel and a network stack of its own; use --network bridge", h.NetworkMode)
	}
	for flag, mode := range map[string]string{"pid": string(h.PidMode), "ipc": string(h.IpcMode), "uts": string(h.UTSMode), "userns": string(h.UsernsMode), "cgroupns": string(h.CgroupnsMode)} {
		if err := machine.CheckNamespace(flag, mode); err != nil {
			return err
		}
	}
	return nil
}

// checkResources has Docker's rules and messages.
func checkResources(r *container.Resources) error {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap != -1 && r.MemorySwap != 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwap < -1:
		return invalid("invalid memory and swap limit %d", r.MemorySwap)
	case r.MemoryReservation < 0 || r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.MemorySwappiness != nil && *r.MemorySwappiness != -1:
		return invalid("cannot honour MemorySwappiness: it is not supported (cgroup v2 has none)")
	case r.OomKillDisable != nil && *r.OomKillDisable:
		return invalid("cannot honour OomKillDisable: it is not supported (cgroup v2 has none)")
	case r.NanoCPUs != 0 && (r.CPUPeriod != 0 || r.CPUQuota != 0):
		return invalid("Conflicting options: Nano CPUs cannot be used together with CPU period or CPU quota")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(runtime.NumCPU())*1e9:
		return invalid("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", runtime.NumCPU(), runtime.NumCPU())
	case r.CPUShares < 0:
		return invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if err := checkCpusets(r.CpusetCpus, r.CpusetMems); err != nil {
		return err
	}
	if strings.Contains(r.CgroupParent, "..") || strings.ContainsRune(r.CgroupParent, 0) {
		return invalid("invalid cgroup parent %q", r.CgroupParent)
	}
	return nil
}

// resourcesOf turns Docker's limits into the contract's.
func resourcesOf(h *container.HostConfig, parent string) isolation.Resources {
	r := isolation.Resources{
		CgroupParent: parent,
		MemoryBytes:  h.Memory,
		SwapBytes:    h.MemorySwap,
		MemoryLow:    h.MemoryReservation,
		CPUQuota:     h.CPUQuota,
		CPUPeriod:    h.CPUPeriod,
		CPUShares:    h.CPUShares,
		CpusetCpus:   h.CpusetCpus,
		CpusetMems:   h.CpusetMems,
		Pids:         defaultPids,
		Privileged:   h.Privileged,
	}
	if h.CgroupParent != "" {
		r.CgroupParent = h.CgroupParent
	}
	if h.NanoCPUs > 0 {
		r.CPUPeriod = 100_000
		r.CPUQuota = h.NanoCPUs * r.CPUPeriod / 1e9
	}
	if h.PidsLimit != nil {
		r.Pids = *h.PidsLimit
		if r.Pids <= 0 {
			r.Pids = -1
		}
	}
	return r
}

// rlimitTypes are Linux's numbers (asm-generic/resource.h).
var rlimitTypes = map[string]int{
	"cpu": 0, "fsize": 1, "data": 2, "stack": 3, "core": 4, "rss": 5, "nproc": 6, "nofile": 7, "memlock": 8, "as": 9, "locks": 10, "sigpending": 11,
	"msgqueue": 12, "nice": 13, "rtprio": 14, "rttime": 15,
}

func rlimits(list []*container.Ulimit) ([]isolation.Rlimit, error) {
	var out []isolation.Rlimit
	for _, u := range list {
		if u == nil {
			continue
		}
		t, ok := rlimitTypes[u.Name]
		if !ok {
			return nil, invalid("invalid ulimit type: %s", u.Name)
		}
		if u.Soft > u.Hard && u.Hard != -1 || u.Soft == -1 && u.Hard != -1 {
			return nil, invalid("ulimit soft limit must be less than or equal to hard limit: %s %d > %d", u.Name, u.Soft, u.Hard)
		}
		out = append(out, isolation.Rlimit{Type: t, Soft: unlimited(u.Soft), Hard: unlimited(u.Hard)})
	}
	slices.SortFunc(out, func(a, b isolation.Rlimit) int { return a.Type - b.Type })
	return out, nil
}

func unlimited(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

// checkSysctls lets only those through that belong to a namespace of the container.
func checkSysctls(h *container.HostConfig, vm bool) error {
	for name, value := range h.Sysctls {
		if strings.ContainsAny(name, "/\x00 ") || strings.Contains(name, "..") || strings.ContainsAny(value, "\x00\n") {
			return invalid("invalid sysctl %q", name)
		}
		switch {
		case vm: // the whole kernel is its own
		case slices.Contains([]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}, name),
			strings.HasPrefix(name, "fs.mqueue."):
			if h.IpcMode.IsHost() {
				return invalid("sysctl %q is not allowed in the host's IPC namespace", name)
			}
			if h.IpcMode.IsContainer() {
				return invalid("sysctl %q is not allowed in the IPC namespace of another container: set it there", name)
			}
		case strings.HasPrefix(name, "net."):
			if h.NetworkMode.IsHost() {
				return invalid("sysctl %q is not allowed in the host's network namespace", name)
			}
			if h.NetworkMode.IsContainer() {
				return invalid("sysctl %q is not allowed in the network namespace of another container: set it there", name)
			}
		default:
			return invalid("sysctl %q is not in a separate kernel namespace", name)
		}
	}
	return nil
}

// security is what --security-opt says.
type security struct {
	noNewPrivileges bool
	unconfined      bool   // no seccomp
	profile         string // seccomp profile as JSON; "" is the default one
}

// securityOf reads SecurityOpt. Labels and AppArmor profiles exist only where
// their kernel parts do; to turn them off is therefore no change.
func securityOf(h *container.HostConfig) (security, error) {
	s := security{unconfined: h.Privileged}
	for _, opt := range h.SecurityOpt {
		key, value, has := strings.Cut(opt, "=")
		if !has {
			key, value, has = strings.Cut(opt, ":")
		}
		switch key {
		case "no-new-privileges":
			switch value {
			case "", "true":
				s.noNewPrivileges = true
			case "false":
				s.noNewPrivileges = false
			default:
				return s, invalid("invalid --security-opt: %q", opt)
			}
		case "seccomp":
			switch value {
			case "unconfined":
				s.unconfined = true
			case "builtin":
			case "":
				return s, invalid("invalid --security-opt: %q", opt)
			default:
				s.profile = value
				s.unconfined = false
			}
		case "apparmor":
			if value != "unconfined" && value != "" {
				return s, invalid("cannot honour --security-opt apparmor=%s: AppArmor profiles are not supported", value)
			}
		case "label":
			if value != "disable" {
				return s, invalid("cannot honour --security-opt label=%s: SELinux labels are not supported", value)
			}
		case "systempaths":
			if value != "unconfined" {
				return s, invalid("invalid --security-opt: %q", opt)
			}
		default:
			return s, invalid("invalid --security-opt: %q (known: no-new-privileges, seccomp, apparmor=unconfined, label=disable)", opt)
		}
	}
	return s, nil
}

// extraHost reads "name:address" or "name=address"; the address may be host-gateway.
func extraHost(s string) (name, addr string, err error) {
	i := strings.IndexAny(s, ":=")
	if i <= 0 || i == len(s)-1 {
		return "", "", invalid("bad format for add-host: %q", s)
	}
	name, addr = s[:i], strings.Trim(s[i+1:], "[]")
	if addr != "host-gateway" {
		if _, err := netip.ParseAddr(addr); err != nil {
			return "", "", invalid("invalid IP address in add-host: %q", addr)
		}
	}
	return name, addr, nil
}

// parseSize reads "10m", "64k", "1g", "4096" into bytes.
func parseSize(s string) (int64, error) {
	mult := int64(1)
	t := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "b")
	if t == "" {
		return 0, invalid("invalid size %q", s)
	}
	switch t[len(t)-1] {
	case 'k':
		mult = 1 << 10
	case 'm':
		mult = 1 << 20
	case 'g':
		mult = 1 << 30
	case 't':
		mult = 1 << 40
	}
	if mult > 1 {
		t = t[:len(t)-1]
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/mult {
		return 0, invalid("invalid size %q", s)
	}
	return n * mult, nil
}
