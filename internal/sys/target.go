package sys

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenTarget opens (O_PATH) what path means below root, as a process with that
// root would see it, and makes what is missing: directories on the way, and at
// the end a directory or an empty file. Symbolic links, dangling ones included,
// are resolved inside; each step is by descriptor, so that nobody who renames
// things below root can lead it elsewhere (CVE-2021-30465).
func OpenTarget(root *os.File, path string, dir bool) (*os.File, error) {
	f, _, err := MakeTarget(root, path, dir)
	return f, err
}

// MakeTarget is OpenTarget and tells what it had to make, outer ones first.
func MakeTarget(root *os.File, path string, dir bool) (_ *os.File, made []Stub, _ error) {
	fail := func(err error) (*os.File, []Stub, error) {
		return nil, made, fmt.Errorf("cannot open or make %q inside: %w", path, err)
	}
	// The usual case needs one call.
	f, err := OpenInRoot(root, path, unix.O_PATH, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		if err != nil {
			return fail(errors.Unwrap(err))
		}
		return f, nil, nil
	}
	todo := strings.Split(path, "/")
	stack := []int{}   // directories below root that are being gone through
	var names []string // their names
	defer func() {
		for _, fd := range stack {
			_ = unix.Close(fd)
		}
	}()
	top := func() int {
		if len(stack) == 0 {
			return RawFD(root)
		}
		return stack[len(stack)-1]
	}
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 0 {
				_ = unix.Close(top())
				stack, names = stack[:len(stack)-1], names[:len(names)-1]
			}
			continue
		}
		last := strings.Trim(strings.Join(todo, ""), "/.") == ""
		fd, err := unix.Openat(top(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			stub := Stub{Path: strings.Join(append(slices.Clone(names), name), "/"), Last: last}
			_ = unix.Fstat(top(), &stub.before) // an open directory; no times at the worst
			if dir || !last {
				err = unix.Mkdirat(top(), name, 0o755)
			} else {
				err = unix.Mknodat(top(), name, unix.S_IFREG|0o644, 0)
			}
			if err != nil && err != unix.EEXIST {
				return fail(err)
			}
			if err == nil {
				_ = unix.Fstat(top(), &stub.after)
				made = append(made, stub)
			}
			fd, err = unix.Openat(top(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			return fail(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			_ = unix.Close(fd)
			return fail(err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			stack, names = append(stack, fd), append(names, name)
			continue
		}
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		_ = unix.Close(fd)
		if err == nil && links >= 40 {
			err = unix.ELOOP
		}
		if err != nil {
			return fail(err)
		}
		links++
		if buf[0] == '/' {
			for _, fd := range stack {
				_ = unix.Close(fd)
			}
			stack, names = stack[:0], names[:0]
		}
		todo = append(strings.Split(string(buf[:n]), "/"), todo...)
	}
	fd, err := unix.FcntlInt(uintptr(top()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(fd), path), made, nil
}

// OpenPlainDir opens (O_PATH) or makes the directory name directly below dir.
// A symbolic link is refused: what is mounted there must be where it seems to
// be (CVE-2019-19921, CVE-2023-27561).
func OpenPlainDir(dir *os.File, name string) (*os.File, error) {
	const flags = unix.O_PATH | unix.O_NOFOLLOW | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := unix.Openat(RawFD(dir), name, flags, 0)
	if err == unix.ENOENT {
		if err = unix.Mkdirat(RawFD(dir), name, 0o755); err == nil || err == unix.EEXIST {
			fd, err = unix.Openat(RawFD(dir), name, flags, 0)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open or make the directory %q inside (it must not be a symbolic link): %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// AttachAt puts a detached mount onto what an O_PATH descriptor stands for, in
// the mount namespace of the calling thread.
func AttachAt(mount, target *os.File) error {
	if err := unix.MoveMount(RawFD(mount), "", RawFD(target), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("cannot attach a mount at %q: %w", target.Name(), err)
	}
	return nil
}

// SetPropagation sets how mounts below a mount travel: "private", "slave",
// "shared", "unbindable", or the same for all mounts below it with an "r" in front. A detached
// clone of a shared mount is shared already.
func SetPropagation(mount *os.File, how string) error {
	kind, recursive := strings.CutPrefix(how, "r")
	attr := unix.MountAttr{}
	switch kind {
	case "", "private":
		attr.Propagation = unix.MS_PRIVATE
	case "slave":
		attr.Propagation = unix.MS_SLAVE
	case "shared":
		attr.Propagation = unix.MS_SHARED
	case "unbindable":
		attr.Propagation = unix.MS_UNBINDABLE
	default:
		return fmt.Errorf("cannot set propagation %q: %w", how, unix.EINVAL)
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(RawFD(mount), "", flags, &attr); err != nil {
		return fmt.Errorf("cannot set propagation %q: %w", how, err)
	}
	return nil
}

// MakeNode makes the device node name directly below dir with the given
// permission bits, whatever the umask. Its owner is the thread's (FileIDs).
func MakeNode(dir *os.File, name string, block bool, major, minor, mode uint32) error {
	kind := uint32(unix.S_IFCHR)
	if block {
		kind = unix.S_IFBLK
	}
	err := unix.Mknodat(RawFD(dir), name, kind|mode, int(unix.Mkdev(major, minor)))
	if err == nil {
		err = unix.Fchmodat(RawFD(dir), name, mode, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot make the device node %q: %w", name, err)
	}
	return nil
}

// MakeDir makes the directory name directly below dir with these permission
// bits, whatever the umask.
func MakeDir(dir *os.File, name string, mode uint32) error {
	err := unix.Mkdirat(RawFD(dir), name, mode)
	if err == nil {
		err = unix.Fchmodat(RawFD(dir), name, mode, 0)
	}
	if err != nil {
		return fmt.Errorf("cannot make the directory %q: %w", name, err)
	}
	return nil
}

// CopyMode gives the root of a mount that is attached nowhere the permission
// bits of an open file, also where the mount is read-only.
func CopyMode(from, mount *os.File) error {
	var st unix.Stat_t
	err := unix.Fstat(RawFD(from), &st)
	if err == nil {
		err = unix.Fchmodat(RawFD(mount), ".", st.Mode&0o7777, 0)
	}
	if err == unix.EROFS {
		if err := SetMountAttr(mount, 0, MountReadonly, false); err != nil {
			return err
		}
		err = unix.Fchmodat(RawFD(mount), ".", st.Mode&0o7777, 0)
		if err := SetMountAttr(mount, MountReadonly, 0, false); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("cannot copy the mode of %q: %w", from.Name(), err)
	}
	return nil
}

// MakeLink makes the symbolic link name directly below dir.
func MakeLink(dir *os.File, name, to string) error {
	if err := unix.Symlinkat(to, RawFD(dir), name); err != nil {
		return fmt.Errorf("cannot make the symbolic link %q: %w", name, err)
	}
	return nil
}

// IsProc says whether an open file lies in a procfs.
func IsProc(f *os.File) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(RawFD(f), &st); err != nil {
		return false, fmt.Errorf("cannot ask for the file system of %q: %w", f.Name(), err)
	}
	return st.Type == unix.PROC_SUPER_MAGIC, nil
}
