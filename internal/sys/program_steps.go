package sys

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The steps below are the calls that programs are made of, by what they are
// for. Each stands for one system call unless its comment says more.

// Mount attaches by mount(2).
func (p *Program) Mount(source, target, fstype string, flags uintptr, data string) {
	p.Call(fmt.Sprintf("mount %q", target), unix.SYS_MOUNT, p.String(source), p.String(target), p.String(fstype), Int(flags), p.String(data))
}

// PrivateMounts makes all mounts of the child's namespace private.
func (p *Program) PrivateMounts() {
	p.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// NewFS creates a file system with fsopen(2) in the namespaces and with the
// owner that the child has; the result is a descriptor of a detached mount.
// Only strings and flags of params count.
func (p *Program) NewFS(fstype string, attr int, params ...FSConfig) Result {
	fs := p.Call("open file system type "+fstype, unix.SYS_FSOPEN, p.String(fstype), Int(unix.FSOPEN_CLOEXEC))
	// What the first column of mount(8) and df(1) shows.
	if !slices.ContainsFunc(params, func(c FSConfig) bool { return c.Key == "source" }) {
		p.Call("name a new "+fstype, unix.SYS_FSCONFIG, Of(fs), Int(unix.FSCONFIG_SET_STRING), p.String("source"), p.String(fstype), Int(0))
	}
	for _, c := range params {
		if c.Flag {
			p.Call("set "+c.Key+" of a new "+fstype, unix.SYS_FSCONFIG, Of(fs), Int(unix.FSCONFIG_SET_FLAG), p.String(c.Key), Int(0), Int(0))
		} else {
			p.Call("set "+c.Key+" of a new "+fstype, unix.SYS_FSCONFIG, Of(fs), Int(unix.FSCONFIG_SET_STRING), p.String(c.Key), p.String(c.Value), Int(0))
		}
	}
	p.Call("create "+fstype, unix.SYS_FSCONFIG, Of(fs), Int(unix.FSCONFIG_CMD_CREATE), Int(0), Int(0), Int(0))
	m := p.Call("make a mount of "+fstype, unix.SYS_FSMOUNT, Of(fs), Int(unix.FSMOUNT_CLOEXEC), Int(attr))
	p.closes(fs, p.Call("close a file system context", unix.SYS_CLOSE, Of(fs)))
	p.closes(m, -1)
	return m
}

// closes notes that what call opens is closed by another one, or never (-1), so
// that nothing of a child that fails in between stays open in the parent.
func (p *Program) closes(open, close Result) {
	p.opened = append(p.opened, opened{open: open, close: close})
}

// MoveMount attaches a detached mount to an O_PATH descriptor.
func (p *Program) MoveMount(step string, mount, target Arg) {
	p.Call(step, unix.SYS_MOVE_MOUNT, mount, p.String(""), target, p.String(""), Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// PivotRoot makes the directory dir the root of the child and takes everything
// outside of it away. The mount of dir must be attached in the child's mount
// namespace, where nothing is shared (PrivateMounts).
func (p *Program) PivotRoot(dir Arg) {
	p.Call("enter the new root", unix.SYS_FCHDIR, dir)
	p.Call("change the root", unix.SYS_PIVOT_ROOT, p.String("."), p.String("."))
	p.Call("detach the old root", unix.SYS_UMOUNT2, p.String("."), Int(unix.MNT_DETACH))
	p.Call("enter the root", unix.SYS_CHDIR, p.String("/"))
}

// Setns enters the namespaces behind fd, a namespace file or a pidfd (Linux 5.8).
func (p *Program) Setns(step string, fd Arg, flags uintptr) {
	p.Call(step, unix.SYS_SETNS, fd, Int(flags))
}

// Unshare makes new namespaces.
func (p *Program) Unshare(step string, flags uintptr) { p.Call(step, unix.SYS_UNSHARE, Int(flags)) }

// Hostname sets the host name and the NIS domain name of the UTS namespace; an
// empty one is left as it is.
func (p *Program) Hostname(name, domain string) {
	if name != "" {
		p.Call("set the host name", unix.SYS_SETHOSTNAME, p.String(name), Int(len(name)))
	}
	if domain != "" {
		p.Call("set the domain name", unix.SYS_SETDOMAINNAME, p.String(domain), Int(len(domain)))
	}
}

// LoopbackUp brings up "lo" of the child's network namespace.
func (p *Program) LoopbackUp() {
	req := make([]byte, 40) // struct ifreq
	copy(req, "lo")
	binary.NativeEndian.PutUint16(req[16:], unix.IFF_UP|unix.IFF_RUNNING)
	s := p.Call("open a socket for the loopback interface", unix.SYS_SOCKET, Int(unix.AF_INET), Int(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), Int(0))
	p.Call("bring up the loopback interface", unix.SYS_IOCTL, Of(s), Int(unix.SIOCSIFFLAGS), p.Bytes(req))
	p.closes(s, p.Call("close a socket", unix.SYS_CLOSE, Of(s)))
}

// WriteBelow writes value to the file path below the directory dir, following
// no symbolic link and crossing no mount: in a procfs that the child made, the
// write cannot be led elsewhere (CVE-2025-52881). The result is the write's.
// With must unset a failure is not fatal.
func (p *Program) WriteBelow(step string, dir Arg, path, value string, must bool) Result {
	call := p.Try
	if must {
		call = p.Call
	}
	how := p.Words(Int(unix.O_WRONLY|unix.O_CLOEXEC), Int(0), Int(unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV))
	fd := call(step, unix.SYS_OPENAT2, dir, p.String(path), how, Int(24))
	w := call(step, unix.SYS_WRITE, Of(fd), p.String(value), Int(len(value)))
	p.closes(fd, p.Try("close a file", unix.SYS_CLOSE, Of(fd)))
	return w
}

// NotDumpable is the function of that name in the child. Changing ids or
// capabilities can undo it, so it is repeated after them.
func (p *Program) NotDumpable() {
	p.Call("make the process non-dumpable", unix.SYS_PRCTL, Int(unix.PR_SET_DUMPABLE), Int(0), Int(0), Int(0), Int(0))
}

// DieWithParent has the child killed when the parent (its forking thread, which
// lives as long as the process) ends. A change of credentials undoes it.
func (p *Program) DieWithParent() {
	p.Call("set the parent-death signal", unix.SYS_PRCTL, Int(unix.PR_SET_PDEATHSIG), Int(int(unix.SIGKILL)), Int(0), Int(0), Int(0))
}

// Limit sets one resource limit; with must unset a refusal is left to Value.
func (p *Program) Limit(resource int, soft, hard uint64, must bool) Result {
	args := []Arg{Int(0), Int(resource), p.Words(Int(soft), Int(hard)), Int(0)}
	step := fmt.Sprintf("set resource limit %d", resource)
	if must {
		return p.Call(step, unix.SYS_PRLIMIT64, args...)
	}
	return p.Try(step, unix.SYS_PRLIMIT64, args...)
}

// DetachFiles gives the child a table of descriptors of its own, in which 0, 1
// and 2 are the given ones, 3 is the end of the report pipe, closed by exec, and
// nothing else is left (CVE-2024-21626). The parent must call Child.WaitExec
// after it, for which a Report is part of this step.
func (p *Program) DetachFiles(stdin, stdout, stderr Arg) {
	p.Unshare("leave the parent's descriptors", unix.CLONE_FILES)
	p.Report()
	// Standard descriptors may be among the numbers that are overwritten.
	const high = 64
	var moved [3]Result
	for i, a := range []Arg{stdin, stdout, stderr} {
		moved[i] = p.Call("move a standard descriptor", unix.SYS_FCNTL, a, Int(unix.F_DUPFD_CLOEXEC), Int(high))
	}
	report := p.Call("move the report pipe", unix.SYS_FCNTL, Int(p.report[1]), Int(unix.F_DUPFD_CLOEXEC), Int(high))
	for i, m := range moved {
		p.Call("set a standard descriptor", unix.SYS_DUP3, Of(m), Int(i), Int(0))
	}
	p.Call("set the report pipe", unix.SYS_DUP3, Of(report), Int(3), Int(unix.O_CLOEXEC))
	p.Call("close other descriptors", unix.SYS_CLOSE_RANGE, Int(4), Int(uint32(0xffffffff)), Int(0))
}

// DefaultSignals unblocks all signals and gives them their default actions;
// what a parent ignores would stay ignored over execve.
func (p *Program) DefaultSignals() {
	none := p.Bytes(make([]byte, 64)) // struct sigaction, and an empty set
	p.Call("unblock signals", unix.SYS_RT_SIGPROCMASK, Int(unix.SIG_SETMASK), none, Int(0), Int(8))
	for sig := 1; sig <= 64; sig++ {
		if s := syscall.Signal(sig); s != syscall.SIGKILL && s != syscall.SIGSTOP {
			p.Call("reset a signal", unix.SYS_RT_SIGACTION, Int(sig), none, Int(0), Int(8))
		}
	}
}

// NewKeyring gives the child a session keyring of its own, so that it cannot
// look into the engine's. A kernel without keyrings is no failure.
func (p *Program) NewKeyring() {
	p.Try("make a session keyring", unix.SYS_KEYCTL, Int(unix.KEYCTL_JOIN_SESSION_KEYRING), Int(0))
}

// NewSession makes the child the leader of a session without a terminal.
func (p *Program) NewSession() { p.CallUnless(unix.EPERM, "start a session", unix.SYS_SETSID) }

// TakeTerminal makes the terminal fd that of the child's new session.
func (p *Program) TakeTerminal(fd Arg) {
	p.Call("take the terminal", unix.SYS_IOCTL, fd, Int(unix.TIOCSCTTY), Int(0))
}

// Umask sets the mask of file modes.
func (p *Program) Umask(mask uint32) { p.Call("set the umask", unix.SYS_UMASK, Int(mask)) }

// Chdir enters a directory. Magic links of procfs, which can lead out of the
// root, are refused (CVE-2024-21626).
func (p *Program) Chdir(dir string) {
	how := p.Words(Int(unix.O_PATH|unix.O_DIRECTORY), Int(0), Int(unix.RESOLVE_NO_MAGICLINKS))
	fd := p.Call(fmt.Sprintf("open the working directory %q", dir), unix.SYS_OPENAT2, Int(unix.AT_FDCWD), p.String(dir), how, Int(24))
	p.Call(fmt.Sprintf("enter the working directory %q", dir), unix.SYS_FCHDIR, Of(fd))
	p.Call("close the working directory", unix.SYS_CLOSE, Of(fd))
}

// Credentials are who a process is.
type Credentials struct {
	UID, GID        uint32
	Groups          []uint32
	Capabilities    uint64 // bounding set, and of user 0 the permitted and effective sets; inheritable and ambient are empty
	NoNewPrivileges bool
	Seccomp         []byte // classic BPF, 8 bytes an instruction, little endian; empty: none
}

// lastCapability is CAP_LAST_CAP of the newest kernel that the numbers are known of.
const lastCapability = 40

// Become changes the child's ids, capabilities and filter, in the only order
// that works without no_new_privs: bounding set, ids with capabilities kept,
// filter while CAP_SYS_ADMIN is there, capabilities last. What follows must be
// allowed by the filter. Capabilities beyond those of the caller make it fail:
// see Capabilities. Another user than 0 keeps none: what it must not reach it
// cannot execute either, and with no_new_privs a program's file capabilities,
// which count as gained when they were not there before, give it nothing.
func (p *Program) Become(c Credentials) {
	for i := range 64 {
		if c.Capabilities&(1<<i) != 0 {
			continue
		}
		if i <= lastCapability {
			p.CallUnless(unix.EINVAL, "drop a capability", unix.SYS_PRCTL, Int(unix.PR_CAPBSET_DROP), Int(i), Int(0), Int(0), Int(0))
		}
	}
	p.CallUnless(unix.EINVAL, "clear ambient capabilities", unix.SYS_PRCTL, Int(unix.PR_CAP_AMBIENT), Int(unix.PR_CAP_AMBIENT_CLEAR_ALL), Int(0), Int(0), Int(0))
	p.Call("keep capabilities", unix.SYS_PRCTL, Int(unix.PR_SET_KEEPCAPS), Int(1), Int(0), Int(0), Int(0))
	p.SetIDs(c.UID, c.GID, c.Groups)
	if c.NoNewPrivileges {
		p.Call("set no_new_privs", unix.SYS_PRCTL, Int(unix.PR_SET_NO_NEW_PRIVS), Int(1), Int(0), Int(0), Int(0))
	}
	if len(c.Seccomp) > 0 {
		if len(c.Seccomp)%8 != 0 || len(c.Seccomp)/8 > 4096 {
			p.fail(fmt.Errorf("cannot use a seccomp filter of %d bytes", len(c.Seccomp)))
			return
		}
		if !c.NoNewPrivileges && c.UID != 0 {
			// The change of ids cleared the effective set and kept the permitted one.
			with := c.Capabilities | 1<<unix.CAP_SYS_ADMIN
			p.capset("regain capabilities", with, with)
		}
		prog := p.Words(Int(len(c.Seccomp)/8), p.Bytes(c.Seccomp))
		p.Call("load the seccomp filter", unix.SYS_SECCOMP, Int(unix.SECCOMP_SET_MODE_FILTER), Int(0), prog)
	}
	var keep uint64
	if c.UID == 0 {
		keep = c.Capabilities
	}
	p.capset("set capabilities", keep, keep)
}

// SetIDs sets all user and group ids and the supplementary groups.
func (p *Program) SetIDs(uid, gid uint32, groups []uint32) {
	b := make([]byte, 0, 4*len(groups))
	for _, g := range groups {
		b = binary.NativeEndian.AppendUint32(b, g)
	}
	p.Call("set the supplementary groups", unix.SYS_SETGROUPS, Int(len(groups)), p.Bytes(b))
	p.Call("set the group", unix.SYS_SETRESGID, Int(gid), Int(gid), Int(gid))
	p.Call("set the user", unix.SYS_SETRESUID, Int(uid), Int(uid), Int(uid))
}

func (p *Program) capset(step string, permitted, effective uint64) {
	head := binary.NativeEndian.AppendUint32(nil, unix.LINUX_CAPABILITY_VERSION_3)
	head = binary.NativeEndian.AppendUint32(head, 0)
	var data []byte
	for shift := 0; shift < 64; shift += 32 {
		data = binary.NativeEndian.AppendUint32(data, uint32(effective>>shift))
		data = binary.NativeEndian.AppendUint32(data, uint32(permitted>>shift))
		data = binary.NativeEndian.AppendUint32(data, 0)
	}
	p.Call(step, unix.SYS_CAPSET, p.Bytes(head), p.Bytes(data))
}

// Exec executes args[0] with the environment env: the file itself if its name
// has a slash, else the first of that name in the directories of search that
// can be executed. A file that is reached through a magic link of procfs
// (/proc/self/exe: the engine's own program, CVE-2019-5736) is refused.
func (p *Program) Exec(args, env []string, search string) {
	name := args[0]
	step := fmt.Sprintf("exec %q", name)
	var candidates []string
	if strings.Contains(name, "/") {
		candidates = []string{name}
	} else if name != "" {
		for _, dir := range strings.Split(search, ":") {
			if dir == "" {
				dir = "."
			}
			candidates = append(candidates, dir+"/"+name)
		}
	}
	argv, envv := p.Strings(args), p.Strings(env)
	how := p.Words(Int(unix.O_PATH|unix.O_CLOEXEC), Int(0), Int(unix.RESOLVE_NO_MAGICLINKS))
	p.head.kept = uint64(syscall.ENOENT)
	for _, c := range candidates {
		path := p.String(c)
		p.add(opGuard, 0, step, unix.SYS_OPENAT2, []Arg{Int(unix.AT_FDCWD), path, how, Int(24)})
		p.add(opAttempt, 0, step, unix.SYS_EXECVE, []Arg{path, argv, envv})
	}
	p.add(opGiveUp, 0, step, 0, nil)
}

// Capabilities is the permitted set of the calling process.
func Capabilities() (uint64, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return 0, fmt.Errorf("cannot read the own capabilities: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

// UserNamespace opens the user namespace of a process.
func UserNamespace(pid int) (*os.File, error) { return namespaceOf(pid, "user") }

func namespaceOf(pid int, kind string) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return nil, fmt.Errorf("cannot open the %s namespace of process %d: %w", kind, pid, err)
	}
	return f, nil
}
