//go:build !amd64

package sys

import (
	"errors"
	"fmt"
	"time"
)

// KVMRun is how one run of a virtual CPU ended.
type KVMRun struct {
	Exit uint32
	Took time.Duration
}

// KVMExitIO is the exit of a guest that wrote to a port.
const KVMExitIO = 2

// RunKVM is errors.ErrUnsupported: the code that it runs is x86's.
func RunKVM([]byte) (KVMRun, error) {
	return KVMRun{}, fmt.Errorf("cannot probe KVM: %w on this architecture", errors.ErrUnsupported)
}
