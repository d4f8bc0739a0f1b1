package sys

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The functions of this file make files by one name in an open directory.
// Nothing that exists is opened, followed or replaced: a name that is taken is
// an error. That makes them safe for names that come from an image.

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("cannot use %q as the name of a file", name)
	}
	return nil
}

// MakeDirAt makes a directory that only its owner may enter, and opens it.
func MakeDirAt(dir *os.File, name string) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := unix.Mkdirat(int(dir.Fd()), name, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

// MakeFileAt makes an empty regular file and opens it for writing.
func MakeFileAt(dir *os.File, name string) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name)), nil
}

// MakeSymlinkAt makes a symbolic link.
func MakeSymlinkAt(dir *os.File, name, target string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := unix.Symlinkat(target, int(dir.Fd()), name); err != nil {
		return &os.PathError{Op: "symlink", Path: name, Err: err}
	}
	return nil
}

// MakeNodeAt makes a device, fifo or socket; mode holds its type, as in stat(2).
func MakeNodeAt(dir *os.File, name string, mode, major, minor uint32) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := unix.Mknodat(int(dir.Fd()), name, mode&unix.S_IFMT|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return &os.PathError{Op: "mknod", Path: name, Err: err}
	}
	return nil
}

// LinkAt makes a hard link to the file oldName of oldDir, to a symbolic link itself.
func LinkAt(oldDir *os.File, oldName string, dir *os.File, name string) error {
	if err := checkName(oldName); err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	if err := unix.Linkat(int(oldDir.Fd()), oldName, int(dir.Fd()), name, 0); err != nil {
		return &os.PathError{Op: "link", Path: name, Err: err}
	}
	return nil
}

// Xattr is one extended attribute.
type Xattr struct {
	Name, Value string
}

// Metadata is what SetMetadataAt sets.
type Metadata struct {
	Mode     uint32 // type and permissions, as in stat(2)
	UID, GID uint32
	Sec      int64 // modification time
	Nsec     uint32
	Xattrs   []Xattr
}

// SetMetadataAt gives the file name in dir its owner, permissions, extended
// attributes and time, in the order in which none undoes another (a change of
// owner clears set-user-ID bits and file capabilities).
func SetMetadataAt(dir *os.File, name string, m Metadata) error {
	if err := checkName(name); err != nil {
		return err
	}
	fd := int(dir.Fd())
	if err := unix.Fchownat(fd, name, int(m.UID), int(m.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "chown", Path: name, Err: err}
	}
	if m.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(fd, name, m.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: name, Err: err}
		}
	}
	for _, x := range m.Xattrs {
		if err := unix.Lsetxattr(viaFD(fd, name), x.Name, []byte(x.Value), 0); err != nil {
			return &os.PathError{Op: "set extended attribute " + x.Name + " of", Path: name, Err: err}
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: m.Sec, Nsec: int64(m.Nsec)}}
	if err := unix.UtimesNanoAt(fd, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set the time of", Path: name, Err: err}
	}
	return nil
}

// SyncFS writes everything of the file system that f lies on to the disk.
func SyncFS(f *os.File) error {
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("cannot sync the file system of %q: %w", f.Name(), err)
	}
	return nil
}

// DropCache asks the kernel to forget the clean cached pages of a file.
func DropCache(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("cannot drop the cached pages of %q: %w", f.Name(), err)
	}
	return nil
}

// ReadAhead asks the kernel to read a part of a file into its cache, and does
// not wait for it.
func ReadAhead(f *os.File, off, n int64) error {
	if err := unix.Fadvise(int(f.Fd()), off, n, unix.FADV_WILLNEED); err != nil {
		return fmt.Errorf("cannot read %q ahead: %w", f.Name(), err)
	}
	return nil
}

// StartWriteback begins to write the dirty pages of a part of a file to the
// disk and does not wait for it, so that a later sync has less to wait for.
func StartWriteback(f *os.File, off, n int64) error {
	if err := unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return fmt.Errorf("cannot start writing %q to the disk: %w", f.Name(), err)
	}
	return nil
}
