package engine

import (
	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation/container/seccomp"
)

// seccompOf compiles the system call filter that a container asks for; nil is
// unconfined. A guest kernel is a wall of its own, so a VM gets no filter unless
// the user brings one.
func seccompOf(h *container.HostConfig) ([]byte, error) {
	sec, err := securityOf(h)
	if err != nil || sec.unconfined || h.Runtime == "vm" && sec.profile == "" {
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
