package engine

import (
	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation/container/seccomp"
)

// seccompOf compiles the system call filter that a container asks for; nil is
// unconfined. A guest kernel is its own filter, so a VM gets none.
func seccompOf(h *container.HostConfig) ([]byte, error) {
	sec, err := securityOf(h)
	if err != nil || sec.unconfined || h.Runtime == "vm" {
		return nil, err
	}
	caps, err := capSet(h.CapAdd, h.CapDrop, h.Privileged)
	if err != nil {
		return nil, err
	}
	if sec.profile == "" {
		return seccomp.Default(caps)
	}
	return seccomp.Compile([]byte(sec.profile), caps)
}
