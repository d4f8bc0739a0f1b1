package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// CopyTree copies what is in the directory from into the directory to: owners,
// modes, extended attributes, times, hard links, symbolic links, FIFOs and
// device nodes; to itself becomes like from as well. Sockets are left out, as
// Docker does. Everything goes by descriptor and no symbolic link is followed.
func CopyTree(from, to *os.File) error {
	t := treeCopy{to: to, links: map[[2]uint64]string{}}
	return t.dir(from, to, "")
}

type treeCopy struct {
	to    *os.File
	links map[[2]uint64]string // device and inode of a source with several links: where it went
}

func (t *treeCopy) dir(from, to *os.File, at string) error {
	names, err := from.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("cannot list %q: %w", at, err)
	}
	for _, name := range names {
		if err := t.entry(from, to, name, at+name); err != nil {
			return fmt.Errorf("cannot copy %q: %w", at+name, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(RawFD(from), &st); err != nil {
		return err
	}
	return likeFile(RawFD(from), RawFD(to), &st)
}

func (t *treeCopy) entry(from, to *os.File, name, at string) error {
	src, dst := RawFD(from), RawFD(to)
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	id := [2]uint64{st.Dev, st.Ino}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := t.links[id]; ok {
			how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
			if i := strings.LastIndexByte(first, '/'); i >= 0 && kind != unix.S_IFLNK {
				how.Resolve |= unix.RESOLVE_NO_SYMLINKS
			}
			fd, err := unix.Openat2(RawFD(t.to), first, &how)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Linkat(fd, "", dst, name, unix.AT_EMPTY_PATH)
		}
		t.links[id] = at
	}
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		a, err := unix.Openat(src, name, flags, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(a), name)
		defer f.Close()
		b, err := unix.Openat(dst, name, flags, 0)
		if err != nil {
			return err
		}
		g := os.NewFile(uintptr(b), name)
		defer g.Close()
		return t.dir(f, g, at+"/")
	case unix.S_IFREG:
		a, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(a), name)
		defer f.Close()
		b, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		g := os.NewFile(uintptr(b), name)
		defer g.Close()
		if _, err := io.Copy(g, f); err != nil { // copy_file_range where it works
			return err
		}
		return likeFile(a, b, &st)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, name, buf)
		if err == nil {
			err = unix.Symlinkat(string(buf[:n]), dst, name)
		}
		if err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO:
		if err := unix.Mknodat(dst, name, kind|0o600, int(st.Rdev)); err != nil {
			return err
		}
	default:
		return nil
	}
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if kind != unix.S_IFLNK {
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// likeFile gives the open file or directory b owner, mode, extended attributes
// and times of a. The order matters: a change of owner clears set-id bits and
// file capabilities.
func likeFile(a, b int, st *unix.Stat_t) error {
	if err := unix.Fchown(b, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(b, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(a, b); err != nil {
		return err
	}
	return futimens(b, st)
}

func copyXattrs(a, b int) error {
	size, err := unix.Flistxattr(a, nil)
	if errors.Is(err, unix.EOPNOTSUPP) || size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	list := make([]byte, size)
	if size, err = unix.Flistxattr(a, list); err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for _, name := range strings.Split(strings.TrimRight(string(list[:size]), "\x00"), "\x00") {
		n, err := unix.Fgetxattr(a, name, value)
		if err != nil {
			if errors.Is(err, unix.ENODATA) {
				continue
			}
			return fmt.Errorf("cannot read attribute %q: %w", name, err)
		}
		// A file system without attributes of that kind is no reason to fail.
		if err := unix.Fsetxattr(b, name, value[:n], 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("cannot set attribute %q: %w", name, err)
		}
	}
	return nil
}

func futimens(fd int, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
}
