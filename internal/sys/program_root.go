package sys

import (
	"golang.org/x/sys/unix"
)

// Guestroom adds what takes the first process of a guest's user out of the
// initramfs: a mount namespace of its own in which the mount at root is the
// root and the mounts at hidden are gone. An initramfs cannot be pivoted away,
// so the mount is moved over it; it stays below, unreachable by path. The result
// is a descriptor (O_PATH) of the new root for the parent to Take.
func (p *Program) Guestroom(root string, hidden ...string) Result {
	p.Unshare("make a mount namespace", unix.CLONE_NEWNS)
	p.PrivateMounts()
	for _, path := range hidden {
		p.Try("detach a mount of the initramfs", unix.SYS_UMOUNT2, p.String(path), Int(unix.MNT_DETACH))
	}
	p.Call("enter the new root", unix.SYS_CHDIR, p.String(root))
	p.Call("move the new root", unix.SYS_MOUNT, p.String("."), p.String("/"), p.String(""), Int(unix.MS_MOVE), Int(0))
	p.Call("change the root", unix.SYS_CHROOT, p.String("."))
	p.Call("enter the root", unix.SYS_CHDIR, p.String("/"))
	return p.OpenRoot()
}

// OpenRoot opens (O_PATH) the child's root for the parent to Take.
func (p *Program) OpenRoot() Result {
	at := int(unix.AT_FDCWD)
	r := p.Call("open the root", unix.SYS_OPENAT, Int(at), p.String("/"), Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), Int(0))
	p.closes(r, -1)
	return r
}

// Chroot makes the open directory dir the child's root and working directory.
func (p *Program) Chroot(dir Arg) {
	p.Call("enter the root", unix.SYS_FCHDIR, dir)
	p.Call("change the root", unix.SYS_CHROOT, p.String("."))
}

// Clone flags that a program's caller chooses from (linux/sched.h).
const (
	NewPID    = unix.CLONE_NEWPID
	NewMounts = unix.CLONE_NEWNS
	NewCgroup = unix.CLONE_NEWCGROUP
)
