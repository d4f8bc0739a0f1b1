package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Notify tells systemd, if it started us, where we stand (sd_notify(3)).
// Where nobody listens there is nobody to tell.
func Notify(what string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// A leading @ is an abstract name, for the library as for systemd.
	_ = unix.Sendto(fd, []byte(what), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path})
}
