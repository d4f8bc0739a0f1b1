package sys

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RemoveTree removes path and all below it. What is in the tree may be hostile:
// every step goes by descriptors of directories that were opened without
// following links, and the walk never enters another file system; a mount
// inside is an error and stays. No such path is no error.
func RemoveTree(path string) error {
	parent, err := OpenPath(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	return removeTree(parent, filepath.Base(path), path)
}

// RemoveTreeAt is RemoveTree for one name in an open directory.
func RemoveTreeAt(dir *os.File, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return removeTree(dir, name, name)
}

func removeTree(parent *os.File, name, path string) error {
	dirfd := RawFD(parent)
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	r := &remover{top: -1, dev: uint64(st.Dev)}
	return r.remove(dirfd, name, path, 0)
}

// deepest is how many directories are held open at once. What lies deeper is
// moved up to the top of the tree first: a process in a container can make
// directories a million levels deep.
const deepest = 128

// remover is one removal of a tree.
type remover struct {
	dev   uint64
	top   int  // the open directory at the top of the tree
	moved int  // how many were moved up; a number is never used twice
	again bool // something was moved up since the top was last read
}

// remove removes name below the open directory dirfd. It tries unlink first,
// which is one call for everything but directories.
func (r *remover) remove(dirfd int, name, full string, depth int) error {
	err := unix.Unlinkat(dirfd, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM && err != unix.EBUSY {
		return &os.PathError{Op: "unlink", Path: full, Err: err}
	}
	unlinkErr := err
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP { // immutable, or busy
		return &os.PathError{Op: "unlink", Path: full, Err: unlinkErr}
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: full, Err: err}
	}
	dir := os.NewFile(uintptr(fd), full)
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: full, Err: err}
	}
	if uint64(st.Dev) != r.dev {
		return fmt.Errorf("cannot remove %q: another file system is mounted there: %w", full, unix.EBUSY)
	}
	if depth == 0 {
		r.top = fd
	}
	if depth == deepest {
		r.moved, r.again = r.moved+1, true
		if err := unix.Renameat2(dirfd, name, r.top, fmt.Sprintf(".proa-deep-%d", r.moved), unix.RENAME_NOREPLACE); err != nil {
			return &os.PathError{Op: "move up", Path: full, Err: err}
		}
		return nil
	}
	var first error
	for {
		// Names are removed while the directory is read; reading goes on until
		// a pass finds nothing new.
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if err := r.remove(fd, n, filepath.Join(full, n), depth+1); err != nil && first == nil {
				first = err
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 {
			if depth == 0 && r.again && first == nil {
				r.again = false
				if _, err := dir.Seek(0, io.SeekStart); err != nil {
					return err
				}
				continue
			}
			break
		}
		if err != nil {
			return err
		}
	}
	if first != nil {
		return first
	}
	err = unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR)
	if err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: full, Err: err}
	}
	return nil
}
