package sys

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Thread is an operating system thread of one function, which may change what
// Linux keeps per thread: its mount namespace and the ids with which it makes
// files. The thread ends with the function, so nothing has to be undone.
type Thread struct{}

// OnThread runs f on a thread of its own. Goroutines that f starts do not run
// there.
func OnThread(f func(t *Thread) error) (err error) {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end with its goroutine, and it is what
			// /proc/self shows. It is kept busy while another one does the work.
			defer runtime.UnlockOSThread()
			defer wg.Done()
			err = OnThread(f)
			return
		}
		defer wg.Done()
		if e := unix.Unshare(unix.CLONE_FS); e != nil {
			err = fmt.Errorf("cannot give a thread its own root and working directory: %w", e)
			return
		}
		err = f(&Thread{})
	}()
	wg.Wait()
	return err
}

// FileIDs makes the thread create files as uid and gid, with all capabilities
// kept: as the container's root, seen from outside.
func (t *Thread) FileIDs(uid, gid uint32) error {
	// Without it, leaving fsuid 0 would drop the capabilities that concern files.
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot keep capabilities over a change of ids: %w", err)
	}
	// The calls return the former id and no error; a second one shows the present id.
	for _, c := range []struct {
		nr uintptr
		id uint32
	}{{unix.SYS_SETFSGID, gid}, {unix.SYS_SETFSUID, uid}} {
		unix.RawSyscall(c.nr, uintptr(c.id), 0, 0)
		if now, _, _ := unix.RawSyscall(c.nr, ^uintptr(0), 0, 0); uint32(now) != c.id {
			return fmt.Errorf("cannot make files as %d: %w", c.id, unix.EPERM)
		}
	}
	return nil
}

// fileIDs are the ids with which the calling thread makes files.
func fileIDs() (uid, gid uint32) {
	u, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0)
	g, _, _ := unix.RawSyscall(unix.SYS_SETFSGID, ^uintptr(0), 0, 0)
	return uint32(u), uint32(g)
}

const secbitNoSetuidFixup = 1 << 2 // linux/securebits.h

// EnterMounts moves the thread into the mount namespace of a process (Linux 5.8).
func (t *Thread) EnterMounts(pidfd *os.File) error {
	if err := unix.Setns(RawFD(pidfd), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot enter a mount namespace: %w", err)
	}
	return nil
}

// PivotRoot makes a detached mount the root of the thread's mount namespace and
// takes everything that was there before away, after making it private so that
// nothing of it reaches other namespaces. Processes of the namespace that had
// the old root have the new one.
func (t *Thread) PivotRoot(root *os.File) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := Attach(root, "/"); err != nil {
		return err
	}
	if err := unix.Fchdir(RawFD(root)); err != nil {
		return fmt.Errorf("cannot enter the new root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("cannot detach the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("cannot enter the root: %w", err)
	}
	return nil
}

// OwnMounts gives the thread a mount namespace of its own, a copy of the
// present one, in which nothing that is mounted is seen by anybody else.
func (t *Thread) OwnMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("cannot make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	return nil
}

// RootOf opens the root of the process's mount namespace as a place to look
// below (O_PATH). It is the namespace's root, whatever the process took for its own.
func RootOf(pidfd *os.File) (root *os.File, err error) {
	err = OnThread(func(t *Thread) error {
		if err := t.EnterMounts(pidfd); err != nil {
			return err
		}
		root, err = OpenPath("/")
		return err
	})
	return root, err
}

// CloneRootOf makes a detached copy of the root of the process's mount
// namespace, with the mounts below it when recursive. Nothing of the process's
// files is looked up.
func CloneRootOf(pidfd *os.File, recursive bool) (root *os.File, err error) {
	err = OnThread(func(t *Thread) error {
		if err := t.EnterMounts(pidfd); err != nil {
			return err
		}
		// Entering makes its root the thread's.
		root, err = CloneTree(nil, "/", recursive)
		return err
	})
	return root, err
}
