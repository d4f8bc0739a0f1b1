// Package sys is the only door to Linux: mounts, namespaces, processes, loop
// devices, safe paths. It is the one package that imports golang.org/x/sys/unix;
// everybody else asks it. It owns no state and knows nothing of images,
// containers or Docker. Each file holds one subject.
package sys

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// FSConfig is one parameter of a new file system: a flag (Value and File
// empty), a string, or an open descriptor.
type FSConfig struct {
	Key   string
	Value string
	File  *os.File
	Flag  bool
}

// NewFS creates a file system of type fstype with fsopen(2) and returns it as
// a detached mount (Linux 5.2). Closing the file unmounts it unless it was
// attached or cloned. attr is a set of MOUNT_ATTR_ flags. What the kernel
// logged into the file system context becomes part of the error.
func NewFS(fstype string, attr int, params ...FSConfig) (*os.File, error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot open file system type %q: %w", fstype, err)
	}
	defer unix.Close(fd)
	for _, p := range params {
		switch {
		case p.File != nil:
			err = unix.FsconfigSetFd(fd, p.Key, int(p.File.Fd()))
		case p.Flag:
			err = unix.FsconfigSetFlag(fd, p.Key)
		default:
			err = unix.FsconfigSetString(fd, p.Key, p.Value)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot set %s of a new %s: %w%s", p.Key, fstype, err, fsLog(fd))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("cannot create %s: %w%s", fstype, err, fsLog(fd))
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("cannot make a mount of %s: %w%s", fstype, err, fsLog(fd))
	}
	return os.NewFile(uintptr(mfd), fstype), nil
}

// fsLog reads the messages that the kernel kept in a file system context.
func fsLog(fd int) string {
	var b [512]byte
	var out []string
	for {
		n, err := unix.Read(fd, b[:])
		if n <= 0 || err != nil {
			break
		}
		line := strings.TrimSpace(string(b[:n]))
		if len(line) > 2 && line[1] == ' ' { // "e message"
			line = line[2:]
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// CloneTree makes a detached copy of the mount at path (or of dir itself when
// path is empty), with the mounts below it when recursive.
func CloneTree(dir *os.File, path string, recursive bool) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	at := unix.AT_FDCWD
	if dir != nil {
		at = int(dir.Fd())
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(at, path, flags)
	if err != nil {
		return nil, fmt.Errorf("cannot clone mount %q: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Attach puts a detached mount at an absolute path of the caller's mount namespace.
func Attach(mount *os.File, target string) error {
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot attach a mount at %q: %w", target, err)
	}
	return nil
}

// Idmap shifts the owners of a detached mount by the maps of a user namespace
// (Linux 5.12). The file system must support it; EINVAL says that it does not.
func Idmap(mount, userns *os.File, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	err := unix.MountSetattr(int(mount.Fd()), "", flags, &attr)
	if err == unix.EINVAL {
		return fmt.Errorf("cannot idmap mount %q: its file system cannot shift owners: %w", mount.Name(), err)
	}
	if err != nil {
		return fmt.Errorf("cannot idmap mount %q: %w", mount.Name(), err)
	}
	return nil
}

// SetMountAttr sets and clears MOUNT_ATTR_ flags of a mount (Linux 5.12).
func SetMountAttr(mount *os.File, set, clear uint64, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: set, Attr_clr: clear}
	if err := unix.MountSetattr(int(mount.Fd()), "", flags, &attr); err != nil {
		return fmt.Errorf("cannot set attributes of mount %q: %w", mount.Name(), err)
	}
	return nil
}

// Detach unmounts the mount at path lazily; a path that is no mount is no error.
func Detach(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("cannot unmount %q: %w", path, err)
	}
	return nil
}

// Mount attributes for NewFS and SetMountAttr (linux/mount.h).
const (
	MountReadonly    = unix.MOUNT_ATTR_RDONLY
	MountNosuid      = unix.MOUNT_ATTR_NOSUID
	MountNodev       = unix.MOUNT_ATTR_NODEV
	MountNoexec      = unix.MOUNT_ATTR_NOEXEC
	MountNoatime     = unix.MOUNT_ATTR_NOATIME
	MountStrictatime = unix.MOUNT_ATTR_STRICTATIME
	MountNodiratime  = unix.MOUNT_ATTR_NODIRATIME
)
