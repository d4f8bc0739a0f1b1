package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// interpret carries out the program in the child and never returns. It runs
// where package syscall's forkAndExecInChild runs: after a fork of one thread of
// many, with a stack that cannot grow. So everything it calls is nosplit, it
// writes no Go pointers and it allocates nothing.
//
//go:norace
//go:nosplit
//go:nocheckptr
func interpret(h *programHead, ops *op) {
	for i := uintptr(0); i < uintptr(h.count); i++ {
		h.at = uint64(i)
		o := (*op)(unsafe.Add(unsafe.Pointer(ops), i*unsafe.Sizeof(op{})))
		if o.refs != 0 {
			for k := uintptr(0); k < 6; k++ {
				if o.refs&(1<<k) != 0 {
					a := (*uint64)(unsafe.Add(unsafe.Pointer(o), k*8))
					*a = uint64((*op)(unsafe.Add(unsafe.Pointer(ops), uintptr(*a)*unsafe.Sizeof(op{}))).result)
				}
			}
		}
		var r uintptr
		var errno syscall.Errno
		switch o.kind {
		case opAwait, opReport:
			fd := h.await
			if o.kind == opReport {
				fd = h.report
			}
			for {
				r, _, errno = syscall.RawSyscall6(uintptr(o.nr), uintptr(fd), uintptr(unsafe.Pointer(&h.byte)), 1, 0, 0, 0)
				if errno != syscall.EINTR {
					break
				}
			}
			if errno == 0 && r == 0 || errno == syscall.EPIPE {
				exitRaw(1)
			}
		case opGiveUp:
			errno = syscall.Errno(h.kept)
		case opFork, opInit:
			r, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(o.args[0]), 0, 0, 0, 0, 0)
			if errno == 0 && r != 0 {
				if o.kind == opInit {
					reap(h, r)
				}
				h.forked = uint64(r) // not the result, which the clone writes as well
				exitRaw(0)
			}
		default:
			for {
				r, _, errno = syscall.RawSyscall6(uintptr(o.nr), uintptr(o.args[0]), uintptr(o.args[1]), uintptr(o.args[2]), uintptr(o.args[3]), uintptr(o.args[4]), uintptr(o.args[5]))
				if errno != syscall.EINTR || o.kind != opRetry {
					break
				}
			}
		}
		if errno == 0 {
			o.result = int64(r)
			continue
		}
		o.result = -int64(errno)
		switch {
		case o.kind == opTry || o.kind == opGuard && errno != syscall.ELOOP || uint32(errno) == o.ignore:
			continue
		case o.kind == opAttempt && (errno == syscall.ENOENT || errno == syscall.ENOTDIR || errno == syscall.EACCES):
			// As execvp does: go on looking, but a file that may not be run
			// counts for more than one that is not there.
			if h.kept != uint64(syscall.EACCES) {
				h.kept = uint64(errno)
			}
			continue
		}
		h.errno = uint64(errno)
		h.failed = 1
		exitRaw(255)
	}
	h.failed = 1
	exitRaw(255)
}

// reap is what process 1 of a container with --init does: it waits for
// everything that is reparented to it, passes signals on to main, and ends as
// main ends.
//
//go:norace
//go:nosplit
//go:nocheckptr
func reap(h *programHead, main uintptr) {
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&h.sigs)), 0, 8, 0, 0)
	syscall.RawSyscall6(unix.SYS_CLOSE_RANGE, 0, ^uintptr(0)&0xffffffff, 0, 0, 0, 0)
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&h.name)), 0, 0, 0, 0)
	for i := uintptr(0); i < uintptr(h.argvN); i++ {
		b := byte(0)
		if i < 15 && i+1 < uintptr(h.argvN) {
			b = *(*byte)(unsafe.Add(unsafe.Pointer(&h.name), i))
		}
		*(*byte)(unsafe.Add(*(*unsafe.Pointer)(unsafe.Pointer(&h.argv)), i)) = b
	}
	for {
		pid, _, errno := syscall.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&h.status)), unix.WNOHANG, 0, 0, 0)
		if errno == syscall.ECHILD {
			exitRaw(255)
		}
		if errno == 0 && pid == main {
			s := uint32(h.status)
			if s&0x7f != 0 {
				exitRaw(uintptr(128 + s&0x7f))
			}
			exitRaw(uintptr(s >> 8 & 0xff))
		}
		if errno == 0 && pid != 0 {
			continue
		}
		sig, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&h.sigs)), 0, 0, 8, 0, 0)
		if errno == 0 && sig != uintptr(unix.SIGCHLD) {
			syscall.RawSyscall6(unix.SYS_KILL, main, sig, 0, 0, 0, 0)
		}
	}
}

//go:norace
//go:nosplit
func exitRaw(code uintptr) {
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0)
	}
}
