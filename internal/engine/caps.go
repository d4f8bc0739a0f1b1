package engine

import (
	"slices"
	"strings"
)

// capabilities are Linux's by number (linux/capability.h, Linux 5.9 and later).
var capabilities = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE",
	"NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN",
	"SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE",
	"MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// defaultCaps are Docker's 14 without MKNOD, NET_RAW and AUDIT_WRITE (DESIGN
// 4.6): ping works by ping_group_range, devices are made by the driver, and
// nothing in a container writes the host's audit log.
var defaultCaps = []string{
	"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL",
}

// allCaps is every capability.
const allCaps = uint64(1)<<41 - 1

// capSet computes the set of a process from --cap-add, --cap-drop and
// --privileged, by Docker's rules: with ALL added, the dropped ones are taken
// from everything; with ALL dropped, only the added ones stay.
func capSet(add, drop []string, privileged bool) (uint64, error) {
	added, addAll, err := capBits(add)
	if err != nil {
		return 0, err
	}
	dropped, dropAll, err := capBits(drop)
	if err != nil {
		return 0, err
	}
	base, _, _ := capBits(defaultCaps)
	switch {
	case privileged:
		return allCaps, nil
	case addAll && dropAll:
		return 0, invalid("cannot add and drop ALL capabilities")
	case addAll:
		return allCaps &^ dropped, nil
	case dropAll:
		return added, nil
	}
	return base&^dropped | added, nil
}

func capBits(names []string) (bits uint64, all bool, err error) {
	for _, n := range names {
		name := strings.TrimPrefix(strings.ToUpper(n), "CAP_")
		if name == "ALL" {
			all = true
			continue
		}
		i := slices.Index(capabilities, name)
		if i < 0 {
			return 0, false, invalid("unknown capability %q", n)
		}
		bits |= 1 << i
	}
	return bits, all, nil
}

// capNames gives the names with CAP_ of a set, in order.
func capNames(set uint64) []string {
	var out []string
	for i, n := range capabilities {
		if set&(1<<i) != 0 {
			out = append(out, "CAP_"+n)
		}
	}
	return out
}
