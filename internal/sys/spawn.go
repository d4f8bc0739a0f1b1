package sys

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Spawn is a process to start with everything decided by the caller. Package
// syscall's ForkExec sets neither seccomp nor capabilities, limits or umask,
// and a helper program between fork and exec would cost its own start, which
// is what a microVM's first process cannot afford under emulation.
type Spawn struct {
	Path string   // executable, looked up by the kernel from the new working directory
	Args []string // with Args[0]
	Env  []string
	Dir  *os.File // working directory, O_PATH will do; nil: the caller's
	// Files become descriptors 0, 1, 2...; no other stays open across the exec.
	Files []*os.File
	// Terminal makes the process a session leader with Files[0] as its
	// controlling terminal.
	Terminal bool

	UID, GID uint32
	Groups   []uint32
	// Capabilities is the bounding, permitted and effective set, as far as the
	// caller has them itself; the inheritable and ambient sets are empty. A UID other than 0 loses the permitted set at
	// exec, as the kernel has it.
	Capabilities    uint64
	NoNewPrivileges bool
	Seccomp         []byte // classic BPF, 8 bytes an instruction; empty: none
	Rlimits         []SpawnLimit
	Umask           uint32
	OOMScoreAdj     int
}

// SpawnLimit is one resource limit by its RLIMIT_ number.
type SpawnLimit struct {
	Type       int
	Soft, Hard uint64
}

// SpawnError says at which step a new process failed. At StepExec the errno is execve's.
type SpawnError struct {
	Step SpawnStep
	Err  syscall.Errno
}

// SpawnStep is a step between fork and exec.
type SpawnStep uint8

// The steps, in their order.
const (
	StepFork SpawnStep = iota
	StepSession
	StepTerminal
	StepOOMScore
	StepRlimit
	StepDir
	StepFiles
	StepSeccomp
	StepBounding
	StepGroups
	StepGID
	StepUID
	StepCapabilities
	StepNoNewPrivileges
	StepExec
)

var stepNames = [...]string{"fork", "start a session", "take the terminal", "set the OOM score", "set a resource limit", "enter the working directory",
	"arrange descriptors", "load the seccomp filter", "drop capabilities", "set the groups", "set the group", "set the user", "set capabilities",
	"set no_new_privs", "exec"}

func (e *SpawnError) Error() string {
	return fmt.Sprintf("cannot %s: %v", stepNames[e.Step], e.Err)
}

// Unwrap gives the errno.
func (e *SpawnError) Unwrap() error { return e.Err }

// forkArgs is all that the child uses, computed before the fork: after it
// nothing may be allocated and no Go function called.
type forkArgs struct {
	path, oomPath *byte
	argv, envv    []*byte
	oom           []byte
	dir           int
	files         []int
	terminal      bool
	uid, gid      uintptr
	groups        []uint32
	caps          uint64
	capHeader     unix.CapUserHeader
	capData       [2]unix.CapUserData
	noNewPrivs    bool
	prog          unix.SockFprog
	limits        []SpawnLimit
	umask         uintptr
	report        int
}

// Start starts the process and returns its pid once the exec has happened, or a
// *SpawnError. The caller reaps it, also after a SpawnError other than StepFork
// if the caller reaps every child (a PID 1 does); otherwise reap is true and
// Start does.
func (s *Spawn) Start(reap bool) (pid int, err error) {
	a := forkArgs{
		dir: -1, terminal: s.Terminal, uid: uintptr(s.UID), gid: uintptr(s.GID), groups: s.Groups,
		caps: s.Capabilities, noNewPrivs: s.NoNewPrivileges, limits: s.Rlimits, umask: uintptr(s.Umask),
		oom: []byte(strconv.Itoa(s.OOMScoreAdj)),
	}
	if a.path, err = syscall.BytePtrFromString(s.Path); err != nil {
		return 0, &SpawnError{StepExec, syscall.EINVAL}
	}
	a.oomPath, _ = syscall.BytePtrFromString("/proc/self/oom_score_adj")
	if a.argv, err = syscall.SlicePtrFromStrings(s.Args); err != nil {
		return 0, &SpawnError{StepExec, syscall.EINVAL}
	}
	if a.envv, err = syscall.SlicePtrFromStrings(s.Env); err != nil {
		return 0, &SpawnError{StepExec, syscall.EINVAL}
	}
	if s.Dir != nil {
		a.dir = int(s.Dir.Fd())
	}
	a.capHeader.Version = unix.LINUX_CAPABILITY_VERSION_3
	var own [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &own[0]); err != nil {
		return 0, &SpawnError{StepCapabilities, err.(syscall.Errno)}
	}
	for i := range a.capData {
		set := uint32(s.Capabilities>>(32*i)) & own[i].Permitted
		a.capData[i] = unix.CapUserData{Permitted: set, Effective: set}
	}
	if n := len(s.Seccomp); n > 0 {
		if n%8 != 0 || n/8 > 0xffff {
			return 0, &SpawnError{StepSeccomp, syscall.EINVAL}
		}
		a.prog = unix.SockFprog{Len: uint16(n / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&s.Seccomp[0]))}
	}
	// Descriptors that lie where others shall go are moved out of the way first.
	var moved []int
	defer func() {
		for _, fd := range moved {
			unix.Close(fd)
		}
	}()
	for _, f := range s.Files {
		fd := int(f.Fd())
		if fd < len(s.Files) {
			if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, len(s.Files)); err != nil {
				return 0, &SpawnError{StepFiles, err.(syscall.Errno)}
			}
			moved = append(moved, fd)
		}
		a.files = append(a.files, fd)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, &SpawnError{StepFork, err.(syscall.Errno)}
	}
	if pipe[1] < len(s.Files) {
		moved = append(moved, pipe[1])
		if pipe[1], err = unix.FcntlInt(uintptr(pipe[1]), unix.F_DUPFD_CLOEXEC, len(s.Files)); err != nil {
			unix.Close(pipe[0])
			return 0, &SpawnError{StepFork, err.(syscall.Errno)}
		}
	}
	a.report = pipe[1]

	syscall.ForkLock.Lock()
	child, errno := fork(&a)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(s)
	unix.Close(pipe[1])
	defer unix.Close(pipe[0])
	if errno != 0 {
		return 0, &SpawnError{StepFork, errno}
	}
	var msg [2]uint32
	n := 0
	for {
		n, err = unix.Read(pipe[0], (*[8]byte)(unsafe.Pointer(&msg))[:])
		if err != unix.EINTR {
			break
		}
	}
	if n == 0 {
		return int(child), nil
	}
	if reap {
		for {
			if _, err := unix.Wait4(int(child), nil, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	if n != len(msg)*4 || msg[0] >= uint32(len(stepNames)) {
		return 0, &SpawnError{StepFork, syscall.EIO}
	}
	return 0, &SpawnError{SpawnStep(msg[0]), syscall.Errno(msg[1])}
}

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// fork forks and, in the child, goes through the steps and execs. The memory is
// not shared with the parent (no CLONE_VM): a small parent forks quickly enough
// and nothing in the child can hurt it. Between beforeFork and exec only raw
// system calls may happen: the child has one thread and a copied heap.
//
//go:noinline
//go:norace
//go:nocheckptr
func fork(a *forkArgs) (pid uintptr, errno syscall.Errno) {
	var (
		step uint32
		msg  [2]uint32
		fd   uintptr
		i    int
		lim  syscall.Rlimit
	)
	beforeFork()
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return pid, errno
	}
	afterForkInChild() // handlers and the signal mask are as exec should find them

	step = uint32(StepSession)
	if a.terminal {
		if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
			goto failed
		}
		step = uint32(StepTerminal)
		if _, _, errno = syscall.RawSyscall(unix.SYS_IOCTL, uintptr(a.files[0]), unix.TIOCSCTTY, 0); errno != 0 {
			goto failed
		}
	} else if _, _, errno = syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		goto failed
	}

	// The parent's score is not for its children: always written. A kernel that
	// refuses a lower one than the caller's (no CAP_SYS_RESOURCE) fails here.
	step = uint32(StepOOMScore)
	fd, _, errno = syscall.RawSyscall6(unix.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(a.oomPath)), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		goto failed
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&a.oom[0])), uintptr(len(a.oom))); errno != 0 {
		goto failed
	}
	syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)

	step = uint32(StepRlimit)
	for i = 0; i < len(a.limits); i++ {
		lim.Cur, lim.Max = a.limits[i].Soft, a.limits[i].Hard
		if _, _, errno = syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(a.limits[i].Type), uintptr(unsafe.Pointer(&lim)), 0, 0, 0); errno != 0 {
			goto failed
		}
	}

	step = uint32(StepDir)
	if a.dir >= 0 {
		if _, _, errno = syscall.RawSyscall(unix.SYS_FCHDIR, uintptr(a.dir), 0, 0); errno != 0 {
			goto failed
		}
	}
	syscall.RawSyscall(unix.SYS_UMASK, a.umask, 0, 0)

	step = uint32(StepFiles)
	for i = 0; i < len(a.files); i++ {
		if _, _, errno = syscall.RawSyscall(unix.SYS_DUP3, uintptr(a.files[i]), uintptr(i), 0); errno != 0 {
			goto failed
		}
	}

	// Whatever else is open, by mistake or inherited, is not for the new
	// process (CVE-2024-21626). A kernel before 5.11 does not know the flag.
	syscall.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(len(a.files)), ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC)

	// Without no_new_privs the filter needs CAP_SYS_ADMIN, so it comes before the drop.
	step = uint32(StepSeccomp)
	if a.prog.Len > 0 && !a.noNewPrivs {
		if _, _, errno = syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&a.prog))); errno != 0 {
			goto failed
		}
	}

	step = uint32(StepBounding)
	for i = 0; i < 64; i++ {
		if a.caps&(1<<uint(i)) != 0 {
			continue
		}
		_, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(i), 0, 0, 0, 0)
		if errno == syscall.EINVAL {
			break // the kernel has no such capability, nor any above
		}
		if errno != 0 {
			goto failed
		}
	}

	step = uint32(StepGroups)
	if len(a.groups) > 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(a.groups)), uintptr(unsafe.Pointer(&a.groups[0])), 0)
	} else {
		_, _, errno = syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
	}
	if errno != 0 {
		goto failed
	}
	step = uint32(StepGID)
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESGID, a.gid, a.gid, a.gid); errno != 0 {
		goto failed
	}
	step = uint32(StepUID)
	if _, _, errno = syscall.RawSyscall(unix.SYS_SETRESUID, a.uid, a.uid, a.uid); errno != 0 {
		goto failed
	}
	step = uint32(StepCapabilities)
	if a.uid == 0 { // others lost theirs with the user id
		if _, _, errno = syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&a.capHeader)), uintptr(unsafe.Pointer(&a.capData[0])), 0); errno != 0 {
			goto failed
		}
	}

	step = uint32(StepNoNewPrivileges)
	if a.noNewPrivs {
		if _, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
			goto failed
		}
		step = uint32(StepSeccomp)
		if a.prog.Len > 0 {
			if _, _, errno = syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&a.prog))); errno != 0 {
				goto failed
			}
		}
	}

	step = uint32(StepExec)
	_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(a.path)), uintptr(unsafe.Pointer(&a.argv[0])), uintptr(unsafe.Pointer(&a.envv[0])))

failed:
	msg[0], msg[1] = step, uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(a.report), uintptr(unsafe.Pointer(&msg)), unsafe.Sizeof(msg))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}
