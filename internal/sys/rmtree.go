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
	name := filepath.Base(path)
	var st unix.Stat_t
	if err := unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return removeAt(int(parent.Fd()), name, path, uint64(st.Dev))
}

// removeAt removes name below the open directory dirfd. It tries unlink first,
// which is one call for everything but directories.
func removeAt(dirfd int, name, full string, dev uint64) error {
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
	if uint64(st.Dev) != dev {
		return fmt.Errorf("cannot remove %q: another file system is mounted there: %w", full, unix.EBUSY)
	}
	var first error
	for {
		// Names are removed while the directory is read; reading goes on until
		// a pass finds nothing new.
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if err := removeAt(fd, n, filepath.Join(full, n), dev); err != nil && first == nil {
				first = err
			}
		}
		if errors.Is(err, io.EOF) || len(names) == 0 {
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

// DiskUse adds up what the tree at path takes on disk in bytes, hard links once,
// as du(1) does. No such path takes nothing.
func DiskUse(path string) (int64, error) {
	var total int64
	seen := map[uint64]bool{}
	err := filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // it is in use; files come and go
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return nil
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}
