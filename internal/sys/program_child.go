package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CloneOptions say how the child of a program begins.
type CloneOptions struct {
	// Flags are CLONE_NEW flags of the new process. The child always shares
	// the table of descriptors with its parent until the program's
	// DetachFiles, so that the parent can hand it files that it opens later
	// and use those that the child opens.
	Flags uint64
	// Cgroup is a directory of a cgroup v2 hierarchy in which the child begins
	// (Linux 5.7); nil: the parent's own.
	Cgroup *os.File
	// PIDNamespace is entered by the forking thread for the time of the clone,
	// so that the child is born in it; nil: the parent's own.
	PIDNamespace *os.File
}

// Child is a process that carries out a Program.
type Child struct {
	Pid   int // in the caller's PID namespace
	Pidfd *os.File

	program *Program
}

// forker is the one thread that clones. Its life is the life of the process,
// because a parent-death signal is sent when the parent's *thread* ends.
var forker = struct {
	once sync.Once
	work chan func()
}{work: make(chan func())}

// onForker runs f on the forking thread and waits for it.
func onForker(f func()) {
	forker.once.Do(func() {
		go func() {
			runtime.LockOSThread()
			for f := range forker.work {
				f()
			}
		}()
	})
	done := make(chan struct{})
	forker.work <- func() { defer close(done); f() }
	<-done
}

// Clone starts a process that carries out p. The calling process becomes
// non-dumpable by it, and so is the child from its first moment: a process of a
// namespace that the child enters can neither trace it nor follow its
// /proc/PID/exe or /proc/PID/fd (CVE-2016-9962, CVE-2019-5736).
func (p *Program) Clone(o CloneOptions) (*Child, error) {
	if p.err != nil {
		return nil, p.err
	}
	if err := NotDumpable(); err != nil {
		return nil, err
	}
	p.pidfd = -1
	args := &cloneArgs{flags: o.Flags | unix.CLONE_FILES | unix.CLONE_PIDFD, pidfd: uint64(uintptr(unsafe.Pointer(&p.pidfd))), exitSignal: uint64(unix.SIGCHLD)}
	if o.Cgroup != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(RawFD(o.Cgroup))
	}
	var pid uintptr
	var errno syscall.Errno
	var err error
	onForker(func() {
		if o.PIDNamespace != nil {
			own, e := unix.Open("/proc/thread-self/ns/pid_for_children", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if e != nil {
				err = fmt.Errorf("cannot open the own PID namespace: %w", e)
				return
			}
			defer unix.Close(own)
			if e := unix.Setns(RawFD(o.PIDNamespace), unix.CLONE_NEWPID); e != nil {
				err = fmt.Errorf("cannot enter the PID namespace: %w", e)
				return
			}
			defer func() {
				if e := unix.Setns(own, unix.CLONE_NEWPID); e != nil && err == nil {
					err = fmt.Errorf("cannot return to the own PID namespace: %w", e)
				}
			}()
		}
		syscall.ForkLock.Lock()
		pid, errno = cloneProgram(args, p.head, &p.ops[0])
		syscall.ForkLock.Unlock()
	})
	runtime.KeepAlive(o)
	runtime.KeepAlive(p)
	if err == nil && errno != 0 {
		err = fmt.Errorf("cannot clone: %w", errno)
	}
	if err != nil {
		if pid != 0 && errno == 0 {
			_ = unix.Kill(int(pid), unix.SIGKILL)
			_, _ = unix.Wait4(int(pid), nil, 0, nil)
			_ = unix.Close(int(p.pidfd))
		}
		return nil, err
	}
	file, err := PidFile(int(p.pidfd))
	if err != nil {
		return nil, err
	}
	return &Child{Pid: int(pid), Pidfd: file, program: p}, nil
}

// cloneArgs is struct clone_args of linux/sched.h.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

func closeOnce(fd *int) {
	if *fd >= 0 {
		_ = unix.Close(*fd)
		*fd = -1
	}
}

// cloneProgram clones the calling thread without sharing memory, as package syscall
// does for a child that needs id maps.
//
//go:noinline
//go:norace
//go:nocheckptr
func cloneProgram(args *cloneArgs, h *programHead, ops *op) (pid uintptr, errno syscall.Errno) {
	beforeFork()
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild()
	interpret(h, ops)
	return 0, 0
}

// Continue lets the child go past its next Await.
func (c *Child) Continue() error {
	if c.program.err != nil {
		return c.program.err
	}
	if _, err := unix.Write(c.program.await[1], []byte{1}); err != nil {
		return fmt.Errorf("cannot let the new process go on: %w", err)
	}
	return nil
}

// Abandon makes the child end at its next Await, in its own time: unlike a
// signal that leaves no descriptor behind that it was just opening. It returns
// once the child has ended and is to be reaped; one that takes more than a
// second is killed.
func (c *Child) Abandon() {
	closeOnce(&c.program.await[1])
	fds := []unix.PollFd{{Fd: int32(RawFD(c.Pidfd)), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Second); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		if n > 0 || err == nil {
			break
		}
	}
	_ = PidfdSignal(c.Pidfd, syscall.SIGKILL)
}

// WaitReport waits until the child has come to its next Report. A child that
// failed gives a *ProgramError.
func (c *Child) WaitReport() error {
	if done, err := c.poll(); err != nil || done {
		if err == nil {
			err = c.failure()
		}
		return err
	}
	return nil
}

// WaitRefork waits until the clone of Refork has taken the child's place.
func (c *Child) WaitRefork() error {
	if err := c.WaitReport(); err != nil {
		return err
	}
	if c.program.refork < 0 {
		return nil // the first one's end was seen before the report
	}
	if err := PidfdWait(c.Pidfd); err != nil {
		return fmt.Errorf("cannot wait for a process: %w", err)
	}
	if adopted, err := c.adopt(); err != nil || !adopted {
		return errors.Join(c.failure(), err)
	}
	return nil
}

// WaitExec waits until the child's table of descriptors is its own (the Report
// of DetachFiles) and it has executed. A child that failed gives a *ProgramError.
func (c *Child) WaitExec() error {
	if err := c.WaitReport(); err != nil {
		return err
	}
	// From here on the child has its own copies, and the end of the report
	// pipe is the exec, which closes them.
	closeOnce(&c.program.await[0])
	closeOnce(&c.program.report[1])
	done, err := c.poll()
	if err != nil {
		return err
	}
	if !done {
		return errors.New("cannot start a process: it reported once more than asked")
	}
	if c.program.head.failed != 0 {
		return c.failure()
	}
	if !c.program.atExec() {
		return c.failure() // killed on the way
	}
	return nil
}

// atExec says whether the call that the child came to last is an execve.
func (p *Program) atExec() bool {
	nr := p.ops[p.head.at].nr
	return nr == unix.SYS_EXECVE || nr == unix.SYS_EXECVEAT
}

// poll waits for a report (false) or for the end of the reports (true).
func (c *Child) poll() (done bool, err error) {
	fds := []unix.PollFd{{Fd: int32(c.program.report[0]), Events: unix.POLLIN}, {Fd: int32(RawFD(c.Pidfd)), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return false, fmt.Errorf("cannot wait for a new process: %w", err)
		}
		if fds[0].Revents != 0 {
			var b [1]byte
			n, err := unix.Read(c.program.report[0], b[:])
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return n == 0, err
		}
		if adopted, err := c.adopt(); err != nil || !adopted {
			return true, err
		}
		fds[1].Fd = int32(RawFD(c.Pidfd))
	}
}

// adopt follows a Refork: once the first child has ended well, its clone is the
// child.
func (c *Child) adopt() (bool, error) {
	p := c.program
	if p.refork < 0 || p.head.failed != 0 || p.head.forked == 0 {
		return false, nil
	}
	pid := int(p.head.forked)
	p.refork = -1
	if _, _, err := PidfdReap(c.Pidfd); err != nil {
		return false, err
	}
	next, err := OpenPid(pid) // ours and not reaped, so the number is still its own
	if err != nil {
		return false, err
	}
	_ = c.Pidfd.Close()
	c.Pid, c.Pidfd = pid, next
	return true, nil
}

// failure is what made the child end.
func (c *Child) failure() error {
	h := c.program.head
	step := "start a process"
	if int(h.at) < len(c.program.steps) {
		step = c.program.steps[h.at]
	}
	if h.failed == 0 {
		return &ProgramError{Step: step}
	}
	return &ProgramError{Step: step, Errno: syscall.Errno(h.errno)}
}
