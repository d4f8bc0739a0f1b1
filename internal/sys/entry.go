package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The functions of this file look at files that may be hostile: nothing is
// opened for reading before its type is known, so that no FIFO blocks and no
// device is touched, and no symbolic link is followed.

// FileStat is what stat(2) says of one file.
type FileStat struct {
	Mode         uint32 // type and permissions
	UID, GID     uint32
	Nlink        uint64
	Dev, Ino     uint64
	Size         int64 // bytes
	Blocks       int64 // of 512 bytes, that the disk holds
	Sec          int64 // modification time
	Nsec         uint32
	Major, Minor uint32 // of a device node
}

// OnlyPin is O_PATH: a descriptor that pins a file and opens nothing.
const OnlyPin = unix.O_PATH

// Bits of FileStat.Mode, as in stat(2).
const (
	TypeMask    = unix.S_IFMT
	TypeDir     = unix.S_IFDIR
	TypeRegular = unix.S_IFREG
	TypeSymlink = unix.S_IFLNK
	TypeFifo    = unix.S_IFIFO
	TypeChar    = unix.S_IFCHR
	TypeBlock   = unix.S_IFBLK
	TypeSocket  = unix.S_IFSOCK
)

// Type is the file type of Mode.
func (s *FileStat) Type() uint32 { return s.Mode & TypeMask }

// StatFile looks at an open file, an O_PATH descriptor included.
func StatFile(f *os.File) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(RawFD(f), &st); err != nil {
		return FileStat{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return fileStat(&st), nil
}

func fileStat(st *unix.Stat_t) FileStat {
	return FileStat{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Dev: uint64(st.Dev), Ino: st.Ino,
		Size: st.Size, Blocks: st.Blocks, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec),
		Major: unix.Major(uint64(st.Rdev)), Minor: unix.Minor(uint64(st.Rdev)),
	}
}

// OpenEntry pins the file that one name in dir means (O_PATH), a symbolic link
// itself included.
func OpenEntry(dir *os.File, name string) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(RawFD(dir), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// OpenPinned opens what a descriptor pins, which is a regular file or a
// directory; anything else is refused. flags are those of open(2).
func OpenPinned(f *os.File, flags int) (*os.File, error) {
	st, err := StatFile(f)
	if err != nil {
		return nil, err
	}
	if t := st.Type(); t != TypeRegular && t != TypeDir {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: unix.ENXIO}
	}
	fd, err := unix.Open(pinned(f), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// pinned is a path that means exactly what the descriptor means.
func pinned(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(RawFD(f)) }

// ReadLink reads the target of a symbolic link that a descriptor pins.
func ReadLink(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(RawFD(f), "", buf)
	if err != nil {
		return "", &os.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(buf[:n]), nil
}

// Xattrs lists the extended attributes of the file that a descriptor pins, in
// no order. A file system without any has none.
func Xattrs(f *os.File) ([]Xattr, error) {
	path := pinned(f)
	fail := func(err error) error {
		return &os.PathError{Op: "read the extended attributes of", Path: f.Name(), Err: err}
	}
	var list []byte
	for { // another may be added between the two calls
		size, err := unix.Listxattr(path, nil)
		if errors.Is(err, unix.EOPNOTSUPP) || err == nil && size == 0 {
			return nil, nil
		}
		if err != nil {
			return nil, fail(err)
		}
		list = make([]byte, size)
		size, err = unix.Listxattr(path, list)
		if err == unix.ERANGE {
			continue
		}
		if err != nil {
			return nil, fail(err)
		}
		list = list[:size]
		break
	}
	var out []Xattr
	value := make([]byte, 512)
	for _, name := range strings.Split(strings.TrimRight(string(list), "\x00"), "\x00") {
		if name == "" { // overlayfs counts names that it does not show
			continue
		}
		n, err := unix.Getxattr(path, name, value)
		if err == unix.ERANGE {
			value = make([]byte, 64<<10) // XATTR_SIZE_MAX
			n, err = unix.Getxattr(path, name, value)
		}
		switch {
		case err == unix.ENODATA, err == unix.EOPNOTSUPP: // gone, or only listed
			continue
		case err != nil:
			return nil, fail(fmt.Errorf("%s: %w", name, err))
		}
		out = append(out, Xattr{Name: name, Value: string(value[:n])})
	}
	return out, nil
}

// SetMetadata gives the file that a descriptor pins, whatever its name is by
// now, its owner, permissions, extended attributes and time, in the order of
// SetMetadataAt. An attribute that the file system or a namespace does not allow
// is left out.
func SetMetadata(f *os.File, m Metadata) error {
	fd, path := RawFD(f), pinned(f)
	fail := func(op string, err error) error { return &os.PathError{Op: op, Path: f.Name(), Err: err} }
	if err := unix.Fchownat(fd, "", int(m.UID), int(m.GID), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("chown", err)
	}
	if m.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(path, m.Mode&0o7777); err != nil {
			return fail("chmod", err)
		}
	}
	for _, x := range m.Xattrs {
		err := unix.Setxattr(path, x.Name, []byte(x.Value), 0)
		if err != nil && err != unix.EOPNOTSUPP && err != unix.EPERM {
			return fail("set extended attribute "+x.Name+" of", err)
		}
	}
	return SetTime(f, m.Sec, m.Nsec)
}

// SetTime gives the file that a descriptor pins its modification time.
func SetTime(f *os.File, sec int64, nsec uint32) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: int64(nsec)}}
	if err := unix.UtimesNanoAt(RawFD(f), "", times, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "set the time of", Path: f.Name(), Err: err}
	}
	return nil
}
