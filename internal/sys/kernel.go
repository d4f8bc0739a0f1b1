package sys

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// KernelVersion is the running kernel's version, such as 6 and 18.
func KernelVersion() (major, minor int, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, 0, fmt.Errorf("cannot ask for the kernel's version: %w", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	if n, _ := fmt.Sscanf(release, "%d.%d", &major, &minor); n != 2 {
		return 0, 0, fmt.Errorf("cannot read the kernel's version %q", release)
	}
	return major, minor, nil
}
