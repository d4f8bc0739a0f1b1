package seccomp

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/elastic/go-seccomp-bpf/arch"
	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Results of a filter (linux/seccomp.h); the low half carries a number.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	eperm  = 1
	enosys = 38
)

// x32Bit marks system calls of the x32 ABI, which shares x86_64's audit number.
const x32Bit = 0x40000000

// armPrivate is where the private calls of 32-bit ARM begin (set_tls and
// friends); they say nothing about how new a profile is.
const (
	armPrivate  = 0xf0000
	armPrivates = 16
)

// table is the system calls of one architecture.
type table struct {
	audit   uint32
	name    specs.Arch
	numbers map[string]int
}

// later lists system calls that are younger than the tables' Linux 6.15. Since
// 5.1 new ones have the same number everywhere.
var later = map[string]int{"file_getattr": 468, "file_setattr": 469, "listns": 470}

func newTable(name specs.Arch, info *arch.Info) table {
	t := table{uint32(info.ID), name, make(map[string]int, len(info.SyscallNames)+len(later))}
	for n, nr := range later {
		t.numbers[n] = nr
	}
	for n, nr := range info.SyscallNames {
		t.numbers[n] = nr
	}
	return t
}

// tables gives the native architecture of a host and those that it can run besides.
func tables(goarch string) ([]table, error) {
	switch goarch {
	case "amd64":
		return []table{newTable(specs.ArchX86_64, arch.X86_64), newTable(specs.ArchX86, arch.I386)}, nil
	case "arm64":
		return []table{newTable(specs.ArchAARCH64, arch.AARCH64), newTable(specs.ArchARM, arch.ARM)}, nil
	}
	return nil, fmt.Errorf("cannot compile a seccomp profile for %s: %w", goarch, errdefs.ErrNotImplemented)
}

// rule is what a profile says of one system call: an action, if all conditions hold.
type rule struct {
	action uint32
	conds  []specs.LinuxSeccompArg
}

// policy is a profile for one architecture, ready to be compiled.
type policy struct {
	audit    uint32
	fallback uint32 // action for what is not named
	rules    map[int][]rule
	newest   int  // greatest number that the profile names
	x32      bool // numbers from x32Bit on must be refused
	private  bool // there are private numbers of ARM
	enosys   bool // numbers beyond newest give ENOSYS
}

// policies evaluates what can be evaluated before a process runs.
func policies(p *profiles.Seccomp, caps uint64, h host) ([]policy, error) {
	if p.DefaultAction == "" {
		return nil, bad("no defaultAction")
	}
	if len(p.Architectures) != 0 && len(p.ArchMap) != 0 {
		return nil, bad("both architectures and archMap are given; use one")
	}
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagSpecAllow, "SECCOMP_FILTER_FLAG_TSYNC": // installed so anyhow, in a process of one thread
		default:
			return nil, fmt.Errorf("cannot honour flag %s of the seccomp profile: %w", f, errdefs.ErrNotImplemented)
		}
	}
	if p.ListenerPath != "" {
		return nil, fmt.Errorf("cannot honour listenerPath of the seccomp profile: %w", errdefs.ErrNotImplemented)
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	all, err := tables(h.arch)
	if err != nil {
		return nil, err
	}
	allowed := archs(p, all[0].name)
	var out []policy
	for i, t := range all {
		if i > 0 && !slices.Contains(allowed, t.name) {
			continue
		}
		out = append(out, policy{
			audit: t.audit, fallback: fallback, rules: map[int][]rule{}, x32: t.name == specs.ArchX86_64, private: t.name == specs.ArchARM,
			enosys: fallback != retAllow && fallback != retLog && fallback != retErrno|enosys,
		})
	}
	for _, call := range p.Syscalls {
		if call == nil {
			continue
		}
		names := call.Names
		if call.Name != "" {
			if len(names) != 0 {
				return nil, bad("both name and names are given in a rule; use names")
			}
			names = []string{call.Name}
		}
		act, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, a := range call.Args {
			if a.Index > 5 {
				return nil, bad(fmt.Sprintf("argument %d: a system call has arguments 0 to 5", a.Index))
			}
			if !slices.Contains(operators, a.Op) {
				return nil, bad(fmt.Sprintf("operator %q is not known", a.Op))
			}
		}
		ok, err := applies(call, caps, h)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		k := 0
		for i, t := range all {
			if i > 0 && !slices.Contains(allowed, t.name) {
				continue
			}
			for _, name := range names {
				if nr, ok := t.numbers[name]; ok { // unknown names are for other hosts
					out[k].add(nr, act, call.Args)
				}
			}
			k++
		}
	}
	return out, nil
}

// add adds a rule for one number. Conditions on one argument that occurs twice
// are alternatives, as runc has them; else all of them must hold.
func (p *policy) add(nr int, act uint32, conds []specs.LinuxSeccompArg) {
	if nr > p.newest && nr < armPrivate {
		p.newest = nr
	}
	if act == p.fallback {
		return // runc leaves those out before anything can contradict them
	}
	rules := p.rules[nr]
	if len(rules) > 0 && rules[0].conds == nil {
		return // decided already
	}
	if len(conds) == 0 {
		p.rules[nr] = []rule{{act, nil}}
		return
	}
	var seen [6]bool
	twice := false
	for _, c := range conds {
		twice = twice || seen[c.Index]
		seen[c.Index] = true
	}
	if !twice {
		p.rules[nr] = append(rules, rule{act, conds})
		return
	}
	for i := range conds {
		rules = append(rules, rule{act, conds[i : i+1]})
	}
	p.rules[nr] = rules
}

// operators are all that exist.
var operators = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}

// archs lists the architectures that the profile has rules for besides the native one.
func archs(p *profiles.Seccomp, native specs.Arch) []specs.Arch {
	for _, a := range p.ArchMap {
		if a.Arch == native {
			return a.SubArches
		}
	}
	return p.Architectures
}

// applies evaluates the conditions of a rule that are about the container and
// the host: excluded by any of its excludes, included if all its includes hold.
func applies(call *profiles.Syscall, caps uint64, h host) (bool, error) {
	has := func(name string) bool {
		i := slices.Index(capabilities, name)
		return i >= 0 && caps>>i&1 == 1
	}
	newer := func(v *profiles.KernelVersion) bool {
		return uint64(h.kernel[0]) > v.Kernel || uint64(h.kernel[0]) == v.Kernel && uint64(h.kernel[1]) >= v.Major
	}
	for _, f := range []*profiles.Filter{call.Includes, call.Excludes} {
		if f == nil {
			continue
		}
		for _, c := range f.Caps {
			if !slices.Contains(capabilities, c) {
				return false, bad(fmt.Sprintf("capability %q is not known", c))
			}
		}
	}
	if x := call.Excludes; x != nil {
		if slices.Contains(x.Arches, h.arch) || slices.ContainsFunc(x.Caps, has) || x.MinKernel != nil && newer(x.MinKernel) {
			return false, nil
		}
	}
	if in := call.Includes; in != nil {
		if len(in.Arches) > 0 && !slices.Contains(in.Arches, h.arch) || in.MinKernel != nil && !newer(in.MinKernel) {
			return false, nil
		}
		for _, c := range in.Caps {
			if !has(c) {
				return false, nil
			}
		}
	}
	return true, nil
}

// action turns a profile's action into a filter's result.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	n := uint32(eperm)
	if errno != nil {
		if *errno > 0xfff && a == specs.ActErrno || bits.Len(*errno) > 16 {
			return 0, bad(fmt.Sprintf("errnoRet %d is too great", *errno))
		}
		n = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActErrno:
		return retErrno | n, nil
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActTrace:
		return retTrace | n, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("cannot honour %s of the seccomp profile: nobody listens: %w", a, errdefs.ErrNotImplemented)
	}
	return 0, bad(fmt.Sprintf("action %q is not known", a))
}

func bad(why string) error {
	return fmt.Errorf("cannot use the seccomp profile: %s: %w", why, errdefs.ErrInvalidArgument)
}

// capabilities by their bits (linux/capability.h).
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}
