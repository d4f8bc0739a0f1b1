// Package cgroup gives one instance its control group, the same calls over
// version 1, hybrid and version 2 hierarchies. It owns the names of the files
// in there, the translation of isolation.Resources into them, the device list
// and the counters. It never decides what a limit should be, never starts or
// waits for a process, and keeps no state besides open directories: the
// kernel's tree is the state, and Open finds a group again by its path.
//
//	mode     controllers                    kill, freeze         devices
//	v1       one hierarchy each             freezer + signals    devices.allow
//	hybrid   one hierarchy each (v1)        v2 tree, if it can   devices.allow
//	v2       one tree                       cgroup.kill (5.14)   BPF program
package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// Mode is the way in which a host lays out its control groups.
type Mode string

// The three layouts that exist.
const (
	V1     Mode = "v1"     // a hierarchy for each controller, no version 2 tree
	Hybrid Mode = "hybrid" // as V1, with a version 2 tree that holds no controllers
	V2     Mode = "v2"     // one tree for all
)

// Host is the layout of one host.
type Host struct {
	Mode Mode
	// V1 names the mount point of each version 1 controller ("memory", "pids",
	// ...); several may share one.
	V1 map[string]string
	// Unified is the mount point of the version 2 tree, or empty.
	Unified string
	// Controllers are those of the version 2 tree's root.
	Controllers map[string]bool
}

// Detect reads the layout of this host, once. A host without any cgroup mount
// is errdefs.ErrFailedPrecondition with the command that mends it.
var Detect = sync.OnceValues(func() (*Host, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	return parseHost(info)
})

// Has says whether a controller ("memory", "cpu", "pids", "cpuset", "devices",
// ...) can be used on this host. Devices on version 2 are a BPF program and
// always counted as present.
func (h *Host) Has(controller string) bool {
	if h.Mode == V2 {
		return h.Controllers[controller] || controller == "devices" || controller == "freezer"
	}
	return h.V1[controller] != ""
}

// SwapAccounting says whether memory+swap can be limited.
func (h *Host) SwapAccounting() bool {
	if h.Mode == V2 {
		// The root has no memory.swap.max; any child with the controller has it
		// when the kernel accounts swap at all.
		_, err := os.Stat("/proc/swaps")
		return err == nil && h.Controllers["memory"]
	}
	_, err := os.Stat(filepath.Join(h.V1["memory"], "memory.memsw.limit_in_bytes"))
	return err == nil && h.V1["memory"] != ""
}

// v1Controllers are the names that stand in the options of a version 1 mount.
var v1Controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "pids", "blkio", "net_cls", "net_prio", "hugetlb", "perf_event", "rdma"}

// parseHost reads proc(5) mountinfo: "... root mountpoint opts - fstype source superopts".
// Of several mounts of one hierarchy the first whose root is "/" wins: another
// one is a bind mount of a part.
func parseHost(info []byte) (*Host, error) {
	h := &Host{V1: map[string]string{}, Controllers: map[string]bool{}}
	part := map[string]string{} // hierarchies of which only a part is visible
	for line := range bytes.Lines(info) {
		left, right, ok := strings.Cut(strings.TrimSpace(string(line)), " - ")
		if !ok {
			continue
		}
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 3 {
			continue
		}
		root, point := l[3], unescape(l[4])
		set := func(name string) {
			if root != "/" {
				part[name] = point
			} else if name == "2" && h.Unified == "" {
				h.Unified = point
			} else if name != "2" && h.V1[name] == "" {
				h.V1[name] = point
			}
		}
		switch r[0] {
		case "cgroup2":
			set("2")
		case "cgroup":
			opts := strings.Split(r[2], ",")
			for _, c := range v1Controllers {
				for _, o := range opts {
					if o == c {
						set(c)
					}
				}
			}
		}
	}
	for name, point := range part {
		if name == "2" && h.Unified == "" {
			h.Unified = point
		} else if name != "2" && h.V1[name] == "" {
			h.V1[name] = point
		}
	}
	switch {
	case len(h.V1) > 0 && h.Unified != "":
		h.Mode = Hybrid
	case len(h.V1) > 0:
		h.Mode = V1
	case h.Unified != "":
		h.Mode = V2
		b, err := os.ReadFile(filepath.Join(h.Unified, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("cannot read the controllers of %q: %w", h.Unified, err)
		}
		for _, c := range strings.Fields(string(b)) {
			h.Controllers[c] = true
		}
	default:
		return nil, fmt.Errorf("cannot find any control groups: nothing of type cgroup or cgroup2 is mounted; try: mount -t cgroup2 none /sys/fs/cgroup: %w", errdefs.ErrFailedPrecondition)
	}
	return h, nil
}

// unescape undoes the octal escapes of proc(5) mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
