package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// room is where the user's processes live: PID, mount and cgroup namespaces of
// their own inside the guest, so that what they see and how signals treat
// process 1 is as behind the other wall, and the agent, its /dev with the
// machine's disks and its port are out of sight.
//
//	setUp                          child (process 1 of the room)
//	  | clone ---------------------->| proc and cgroup2 of the new namespaces, as detached mounts
//	  | attach all below rootDir <---| waits
//	start
//	  | terminal, directory -------->| mount namespace, root; user, limits, exec
//	  | root <-----------------------|
type room struct {
	program *sys.Program // nil once the first process was started
	child   *sys.Child
	pidns   *os.File
	group   *group
	init    bool               // a reaper is process 1
	main    *isolation.Process // whose limits an exec'd process inherits

	root     *os.File // O_PATH; rootDir in the agent's mounts, from the start on the child's root in its own
	view     *os.File // the root as Files requests see it
	dev, pts *os.File // roots of the file systems
	readonly bool     // the root is to be made read-only before anything runs
	fixed    bool     // the engine's small files are read-only

	mounts []isolation.Mount // the user's, not attached yet
	files  []placedFile      // the engine's, not attached yet
	stubs  *unstubber        // nil: mount points stay
}

// newRoom makes the namespaces and fills root with what a container finds mounted.
func (a *Agent) newRoom(root *os.File, s *wire.Setup) (r *room, err error) {
	r = &room{root: root, view: a.files.tree.Root, init: s.Init, readonly: s.Readonly, fixed: s.FixedFiles}
	if a.options.Cgroups != "" {
		if r.group, err = newGroup(a.options.Cgroups); err != nil {
			a.options.Warn(err.Error())
		}
	}
	if err := r.group.limit(s.Limits); err != nil {
		return nil, failed("limit the guest's processes", err)
	}
	if r.program, err = sys.NewProgram(8 * wire.MaxRequest); err != nil {
		return nil, failed("make the first process", err)
	}
	const strict = sys.MountNosuid | sys.MountNodev | sys.MountNoexec
	p := r.program
	p.NotDumpable()
	p.DieWithParent()
	proc := p.NewFS("proc", strict)
	cgroups := sys.Result(-1)
	if r.group != nil {
		attr := strict
		if !s.Privileged {
			attr |= sys.MountReadonly
		}
		p.Unshare("make a control group namespace", sys.NewCgroup)
		cgroups = p.NewFS("cgroup2", attr)
	}
	p.Report()
	p.Await()
	if r.child, err = p.Clone(sys.CloneOptions{Flags: sys.NewPID, Cgroup: r.group.directory()}); err != nil {
		return nil, failed("make the first process", err)
	}
	if err := r.child.WaitReport(); err != nil {
		return nil, failed("make the first process", err)
	}
	if r.pidns, err = os.Open(fmt.Sprintf("/proc/%d/ns/pid", r.child.Pid)); err != nil {
		return nil, failed("make a PID namespace", err)
	}
	ready := map[string]*os.File{}
	for at, result := range map[string]sys.Result{"/proc": proc, "/sys/fs/cgroup": cgroups} {
		if result < 0 {
			continue
		}
		m, err := p.Take(result, at)
		if err != nil {
			return nil, failed("mount "+at, err)
		}
		defer m.Close()
		ready[at] = m
	}
	if err := r.standardMounts(root, s, ready); err != nil {
		return nil, err
	}
	return r, nil
}

// directory is what CloneOptions take; nil without a group.
func (g *group) directory() *os.File {
	if g == nil {
		return nil
	}
	return g.dir
}

// furnish does what depends on the main process and must be there before it:
// its working directory and its terminal at /dev/console.
func (r *room) furnish(want *isolation.Process, terminal *os.File) error {
	dir, err := sys.OpenTarget(r.root, path.Join("/", want.Cwd), true)
	if err != nil {
		return workdirError(want.Cwd, err)
	}
	isDir, err := sys.IsDir(dir)
	dir.Close()
	if err == nil && !isDir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return workdirError(want.Cwd, err)
	}
	if terminal != nil {
		if err := r.console(terminal); err != nil {
			return failed("make /dev/console", err)
		}
	}
	if r.readonly {
		r.readonly = false
		if err := sys.SetMountAttr(r.root, sys.MountReadonly, 0, false); err != nil {
			return failed("make the root read-only", err)
		}
	}
	return nil
}

// console puts a terminal at /dev/console, by descriptors of our own (CVE-2025-52565).
func (r *room) console(terminal *os.File) error {
	if err := sys.MakeFile(r.dev, "console", 0o620); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	at, err := sys.OpenTarget(r.dev, "console", false)
	if err != nil {
		return err
	}
	defer at.Close()
	clone, err := sys.CloneTree(terminal, "", false)
	if err != nil {
		return err
	}
	defer clone.Close()
	return sys.AttachTo(clone, at)
}

// hidden are mounts of the initramfs that the room must not find below its root.
var hidden = []string{"/dev", "/sys", "/proc", viewDir, filesDir, diskDir, lowerDir, placesDir}

// begin runs the main process: the child goes on to its exec.
// started is called with its pid before anything of the user's runs.
func (r *room) begin(l *launch, e *ends, started func(pid int)) error {
	if r.program == nil {
		return &wire.Failure{Kind: wire.FailInvalid, Step: "start the main process", Why: "an earlier start has failed"}
	}
	p := r.program
	r.program = nil
	defer p.Close()
	root := p.Guestroom(rootDir, hidden...)
	p.NotDumpable()
	l.finish(p, e, r.init)
	if err := r.set(r.child.Pid, l); err != nil {
		return err
	}
	started(r.child.Pid)
	r.main = l.want
	err := r.child.Continue()
	if err == nil {
		err = r.child.WaitExec()
	}
	if err != nil {
		return err
	}
	inside, err := p.Take(root, "root of the guest")
	if err != nil {
		return err
	}
	r.root.Close()
	r.root = inside
	return nil
}

// enter runs one more process inside.
func (r *room) enter(l *launch, e *ends, clone func(p *sys.Program, o sys.CloneOptions) (*sys.Child, error)) error {
	p, err := sys.NewProgram(l.size())
	if err != nil {
		return err
	}
	defer p.Close()
	p.NotDumpable()
	p.DieWithParent()
	p.Await()
	p.Setns("enter the namespaces of the first process", sys.FD(r.child.Pidfd), sys.NewMounts|sys.NewCgroup)
	p.Chroot(sys.FD(r.root))
	l.finish(p, e, false)
	child, err := clone(p, sys.CloneOptions{PIDNamespace: r.pidns, Cgroup: r.group.directory()})
	if err != nil {
		return err
	}
	defer child.Pidfd.Close()
	if err := r.set(child.Pid, l); err != nil {
		child.Abandon()
		return err
	}
	if err := child.Continue(); err != nil {
		return err
	}
	return child.WaitExec()
}

// set gives a process that has not begun its OOM score: the agent's is not for
// its children.
func (r *room) set(pid int, l *launch) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(l.want.OOMScoreAdj)), 0)
}

// inherit gives an exec'd process the main one's limits where it has none of its own.
func (r *room) inherit(want *isolation.Process) *isolation.Process {
	p := *want
	if r.main != nil && len(p.Rlimits) == 0 {
		p.Rlimits = r.main.Rlimits
	}
	if r.main != nil && p.OOMScoreAdj == 0 {
		p.OOMScoreAdj = r.main.OOMScoreAdj
	}
	return &p
}

// openFiles is Docker's limit of open files. The kernel's own of 4096 is from
// a time of smaller programs.
const openFiles = 1 << 20

// finish writes the end of a program, from the descriptors to the exec.
func (l *launch) finish(p *sys.Program, e *ends, reaper bool) {
	for _, f := range e.files() {
		f.Fd() // makes it blocking, as a process expects its stdio
	}
	p.Settle(sys.FD(e.in), sys.FD(e.out), sys.FD(e.err), reaper, e.terminal, l.want.Umask)
	p.Chdir(l.cwd)
	p.Limit(syscall.RLIMIT_NOFILE, openFiles, openFiles, false)
	for _, r := range l.want.Rlimits {
		p.Limit(r.Type, r.Soft, r.Hard, true)
	}
	p.Become(sys.Credentials{UID: l.uid, GID: l.gid, Groups: l.groups, Capabilities: l.capabilities,
		NoNewPrivileges: l.want.NoNewPrivileges, Seccomp: l.want.Seccomp})
	p.DieWithParent()
	p.Exec(l.want.Args, l.env, path.Dir(l.path))
}

// size is the room that the strings of a process need in a program.
func (l *launch) size() int {
	n := 32<<10 + len(l.want.Seccomp) + 2*len(l.cwd) + 2*len(l.path)
	for _, list := range [][]string{l.want.Args, l.env} {
		for _, s := range list {
			n += len(s) + 32
		}
	}
	return n
}

// explain turns a failed start into a start error. ENOENT of an existing file
// is that of its interpreter.
func explain(err error, l *launch) error {
	var s *sys.ProgramError
	if !errors.As(err, &s) || !strings.HasPrefix(s.Step, "exec ") {
		var f *wire.Failure
		if errors.As(err, &f) {
			return f
		}
		return &isolation.StartError{Kind: isolation.StartFailed, Step: "start the process", Why: err.Error()}
	}
	why := "exec " + l.path + ": " + s.Errno.Error()
	switch s.Errno {
	case syscall.ENOENT, syscall.ENOTDIR:
		return cannotExec(isolation.StartNotFound, why)
	case syscall.EACCES, syscall.EPERM, syscall.ENOEXEC, syscall.EISDIR, syscall.ELIBBAD, syscall.ETXTBSY:
		return cannotExec(isolation.StartNotAllowed, why)
	}
	return cannotExec(isolation.StartFailed, why)
}
