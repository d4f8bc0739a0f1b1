// Package seccomp turns a seccomp profile in Docker's JSON into a classic BPF
// program that the kernel takes. It owns the meaning of a profile (which rules
// count for which capabilities, architecture and kernel, what wins when two
// rules name one system call) and the shape of the program: a binary search
// over ranges of system call numbers, because the kernel runs the program once
// for each number when it is installed, and later for each call that has
// conditions. It never installs one; the shim does, and links none of this.
//
//	architecture -> number -> action, or conditions on arguments -> action
//
// The default is Docker's own list (github.com/moby/profiles/seccomp). What is
// done as libseccomp and runc do it:
//   - a foreign architecture kills the thread;
//   - 32-bit programs (i386, arm) are allowed and filtered by their own numbers;
//   - system calls newer than all that the profile names give ENOSYS, so that
//     programs fall back to older ones instead of failing (runc's patchbpf);
//   - a rule without conditions beats one with conditions.
//
// What is not: calls of the x32 ABI always give ENOSYS, as on a kernel without it.
package seccomp

import (
	"encoding/json"
	"fmt"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	profiles "github.com/moby/profiles/seccomp"

	"proa/internal/sys"
)

// Default compiles Docker's default profile for a process with these
// capabilities (one bit each, the bounding set). Instructions are 8 bytes
// each, little endian, ready for seccomp(2). The result is shared: do not
// change it.
func Default(caps uint64) ([]byte, error) {
	if b, ok := defaults.Load(caps); ok {
		return b.([]byte), nil
	}
	host, err := thisHost()
	if err != nil {
		return nil, err
	}
	prog, err := compile(profiles.DefaultProfile(), caps, host)
	if err != nil {
		return nil, err
	}
	b, _ := defaults.LoadOrStore(caps, prog)
	return b.([]byte), nil
}

// defaults holds what Default made, by capabilities: a handful of sets at most
// on a real host, and a few kilobytes each.
var defaults sync.Map

// Compile compiles a profile in Docker's JSON. Errors are
// errdefs.ErrInvalidArgument, or ErrNotImplemented for SCMP_ACT_NOTIFY and
// flags that cannot be honoured.
func Compile(profile []byte, caps uint64) ([]byte, error) {
	var p profiles.Seccomp
	if err := json.Unmarshal(profile, &p); err != nil {
		return nil, fmt.Errorf("cannot decode the seccomp profile: %w (%w)", err, errdefs.ErrInvalidArgument)
	}
	host, err := thisHost()
	if err != nil {
		return nil, err
	}
	return compile(&p, caps, host)
}

// host is what conditional rules of a profile are about.
type host struct {
	arch   string // as GOARCH
	kernel [2]int
}

var thisHost = sync.OnceValues(func() (host, error) {
	major, minor, err := sys.KernelVersion()
	return host{runtime.GOARCH, [2]int{major, minor}}, err
})
