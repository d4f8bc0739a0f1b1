package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// NewTap makes a tap called name in the calling thread's network namespace, as
// QEMU wants it: one queue, no packet information, virtio-net headers. It is not
// persistent: the kernel removes it when the last copy of the returned file is
// closed.
func NewTap(name string) (*os.File, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("cannot name a tap %q: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open /dev/net/tun: %w", err)
	}
	// TUN_EXCL: never take over a tap that somebody else made persistent.
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot make tap %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
