package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// The jail of the VMM. QEMU is a large program that talks to a guest which may
// be hostile, so it gets as little as it can start with:
//
//	namespaces   mount, PID, IPC, UTS, network and cgroup of its own, owned by the
//	             host's root; then a user namespace in which only its own id exists
//	root         a read-only tmpfs that holds nothing but QEMU's program, its
//	             libraries, firmware, the guest's kernel and initramfs (and
//	             /dev/kvm where it is used); no /proc, no /etc, no /dev but null, nothing to write
//	identity     an unprivileged user, no groups, no capabilities, none to be had
//	             (bounding set, no_new_privs), not dumpable, no core dumps
//	seccomp      QEMU's own -sandbox with every deny, loaded before the guest runs
//	descriptors  those of the spec, by number, and no other
//	cgroup       its own: memory, processors, processes, devices
//	life         killed with the shim
//
// All of it is done between clone and exec by a program of system calls
// (sys.Program): nothing of ours runs inside the jail.
const (
	rootFlags = syscall.MS_NOSUID
	doneFlags = syscall.MS_BIND | syscall.MS_REMOUNT | syscall.MS_RDONLY | rootFlags
	fileFlags = doneFlags | syscall.MS_NODEV
	kvmDevice = "/dev/kvm"
	// coreLimit is RLIMIT_CORE: a core dump would hold the guest's memory.
	coreLimit = 4
)

// startJailed starts m's VMM with files as descriptors 3 and up, and console as
// its output. dir is an empty directory of the host that becomes the mount
// point of the root; in the host's own mounts nothing appears there. It returns
// once QEMU was executed; the caller reaps it and closes its pidfd.
func startJailed(m *isolation.Machine, dir string, console *os.File, files []*os.File, group *cgroup.Group) (child *sys.Child, err error) {
	if m.UID == 0 || m.GID == 0 {
		return nil, fmt.Errorf("cannot start the VMM: %w: it must not be root", errdefs.ErrInvalidArgument)
	}
	size := 4096
	for _, s := range [][]string{m.Args, m.Env, m.JailPaths} {
		for _, a := range s {
			size += 3*len(a) + 256
		}
	}
	p, err := sys.NewProgram(size)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("cannot open the null device: %w", err)
	}
	defer null.Close()

	p.Await()
	child, err = p.Clone(sys.CloneOptions{
		Flags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot start the VMM: %w", err)
	}
	var held []*os.File
	defer func() {
		for _, f := range held {
			f.Close()
		}
		if err != nil {
			_ = sys.PidfdSignal(child.Pidfd, syscall.SIGKILL)
			_, _, _ = sys.PidfdReap(child.Pidfd)
			child.Pidfd.Close()
			child, err = nil, fmt.Errorf("cannot start the VMM: %w", err)
		}
	}()
	if err := group.Add(child.Pid); err != nil {
		return nil, err
	}

	p.Unshare("make a cgroup namespace", syscall.CLONE_NEWCGROUP) // in its cgroup, which so becomes the root
	p.PrivateMounts()
	if err := buildRoot(p, dir, m.JailPaths); err != nil {
		return nil, err
	}
	p.Hostname("vmm", "(none)")
	p.Call("start a session", syscall.SYS_SETSID)
	p.Limit(coreLimit, 0, 0, true)
	p.Unshare("make a user namespace", syscall.CLONE_NEWUSER)
	p.Report()
	p.Await()
	p.Become(sys.Credentials{UID: m.UID, GID: m.GID, NoNewPrivileges: true})
	p.NotDumpable()
	p.DieWithParent()
	held, err = p.DetachFilesAs(append([]*os.File{null, console, console}, files...))
	if err != nil {
		return nil, err
	}
	p.Exec(append([]string{m.Binary}, m.Args...), m.Env, "")

	if err := child.Continue(); err != nil {
		return nil, err
	}
	if err := child.WaitReport(); err != nil {
		return nil, err
	}
	for file, id := range map[string]uint32{"uid_map": m.UID, "gid_map": m.GID} {
		path := fmt.Sprintf("/proc/%d/%s", child.Pid, file)
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d %d 1\n", id, id), 0); err != nil {
			return nil, fmt.Errorf("cannot map the VMM's user: %w", err)
		}
	}
	if err := child.Continue(); err != nil {
		return nil, err
	}
	return child, child.WaitExec()
}

// buildRoot adds the calls that make the root directory and enter it.
func buildRoot(p *sys.Program, dir string, paths []string) error {
	p.Mount("vmm", dir, "tmpfs", rootFlags, "mode=0755,size=1m,nr_inodes=1k")
	p.Call("enter the new root", syscall.SYS_CHDIR, p.String(dir))
	p.Call("reset the umask", syscall.SYS_UMASK, sys.Int(0))
	made := map[string]bool{".": true}
	for _, path := range paths {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return fmt.Errorf("cannot show %q to the VMM: %w: not a clean absolute path", path, errdefs.ErrInvalidArgument)
		}
		inside := path[1:]
		for i, c := range inside {
			if c == '/' && !made[inside[:i]] {
				made[inside[:i]] = true
				p.Call(fmt.Sprintf("make directory %q in the new root", inside[:i]), syscall.SYS_MKDIRAT, atCWD, p.String(inside[:i]), sys.Int(0o755))
			}
		}
		if made[inside] {
			continue
		}
		made[inside] = true
		if strings.HasPrefix(path, "/dev/") {
			// A node of our own: the host's /dev/kvm is for a group that the jailed user is not in.
			var st syscall.Stat_t
			if err := syscall.Stat(path, &st); err != nil {
				return fmt.Errorf("cannot show %q to the VMM: %w", path, err)
			}
			p.Call(fmt.Sprintf("make device %q in the new root", inside), syscall.SYS_MKNODAT, atCWD, p.String(inside), sys.Int(st.Mode&syscall.S_IFMT|0o666), sys.Int(st.Rdev))
			continue
		}
		p.Call(fmt.Sprintf("make file %q in the new root", inside), syscall.SYS_MKNODAT, atCWD, p.String(inside), sys.Int(syscall.S_IFREG|0o444), sys.Int(0))
		p.Mount(path, inside, "", syscall.MS_BIND, "")
		p.Mount("", inside, "", fileFlags, "")
	}
	p.Mount("", dir, "", doneFlags, "")
	root := p.Call("open the new root", syscall.SYS_OPENAT, atCWD, p.String(dir), sys.Int(syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC), sys.Int(0))
	p.PivotRoot(sys.Of(root))
	return p.Err()
}

// atCWD is AT_FDCWD.
var atCWD = sys.Int(-100)
