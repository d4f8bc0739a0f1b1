package sys

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenPid gives a descriptor that stands for a process whatever happens to its
// number (Linux 5.3). syscall.ESRCH: there is no such process.
func OpenPid(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK) // flag since 5.10
	if err == unix.EINVAL {
		fd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open process %d: %w", pid, err)
	}
	return PidFile(fd)
}

// PidFile wraps a pidfd for the runtime's poller.
func PidFile(fd int) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot use a process descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// PidfdSignal sends a signal to the process behind a pidfd; syscall.ESRCH: it has ended.
func PidfdSignal(pidfd *os.File, sig syscall.Signal) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, serr)
}

// PidfdWait waits until the process behind a pidfd has ended. Closing the file
// or its read deadline ends the wait with an error. Nothing is reaped.
func PidfdWait(pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// PidfdReap waits until the process behind a pidfd, a child of the calling
// process, has ended, and reaps it. It returns the exit code, which is 128+n
// after signal n, and that signal. It is for one goroutine, once.
func PidfdReap(pidfd *os.File) (code int, sig syscall.Signal, err error) {
	// siginfo_t as waitid(2) fills it for a child.
	var info struct {
		signo, errno, code, _, pid, uid, status int32
		_                                       [100]byte
	}
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("cannot wait for a process: %w", err)
	}
	var errno syscall.Errno
	err = raw.Read(func(fd uintptr) bool {
		for {
			_, _, errno = unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, fd, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG, 0, 0)
			if errno != unix.EINTR {
				break
			}
		}
		// A non-blocking pidfd of a process that still runs gives EAGAIN.
		return errno != unix.EAGAIN && (errno != 0 || info.pid != 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cannot wait for a process: %w", err)
	}
	const exited = 1 // CLD_EXITED
	if info.code == exited {
		return int(info.status), 0, nil
	}
	return 128 + int(info.status), syscall.Signal(info.status), nil
}

// NotDumpable keeps others from tracing the calling process and what it forks,
// and from following their /proc entries, unless they have CAP_SYS_PTRACE in
// the initial user namespace.
func NotDumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot make the process non-dumpable: %w", err)
	}
	return nil
}

// readable says whether a descriptor is readable right now.
func readable(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1
}
