package sys

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ownMountNS carries the number of the mount namespace that PrivateMounts made
// across its exec; it is removed again on the other side.
const ownMountNS = "_PROA_OWN_MOUNTS"

// PrivateMounts puts the whole process into a mount namespace of its own: what
// it mounts is seen by nobody else and vanishes with the last process in it,
// while mounts that the host makes later still arrive. A thread cannot take the others along,
// so the program is executed again from inside; on that second pass the
// function returns. Call it first thing in main.
func PrivateMounts() error {
	now, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("cannot read the mount namespace: %w", err)
	}
	if os.Getenv(ownMountNS) == now {
		return os.Unsetenv(ownMountNS)
	}
	runtime.LockOSThread() // for good: the thread becomes the new program
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace (are you root?): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("cannot make the mounts private: %w", err)
	}
	if now, err = os.Readlink("/proc/thread-self/ns/mnt"); err != nil {
		return fmt.Errorf("cannot read the mount namespace: %w", err)
	}
	env := []string{ownMountNS + "=" + now}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, ownMountNS+"=") {
			env = append(env, kv)
		}
	}
	return fmt.Errorf("cannot execute itself again: %w", unix.Exec("/proc/self/exe", os.Args, env))
}
