package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Cpuset is what the host's control groups can give: lists of CPUs and memory
// nodes, as "0-3,7". Both are empty where there is no cpuset controller.
func (h *Host) Cpuset() (cpus, mems string, err error) {
	dir, suffix := h.V1["cpuset"], ""
	if h.Mode == V2 && h.Controllers["cpuset"] {
		dir, suffix = h.Unified, ".effective"
	}
	if dir == "" {
		return "", "", nil
	}
	read := func(name string) string {
		b, e := os.ReadFile(filepath.Join(dir, name+suffix))
		if e != nil && err == nil {
			err = fmt.Errorf("cannot read which CPUs the host has: %w", e)
		}
		return strings.TrimSpace(string(b))
	}
	return read("cpuset.cpus"), read("cpuset.mems"), err
}
