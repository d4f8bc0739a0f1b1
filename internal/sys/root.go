package sys

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dup is a second descriptor for the same open file.
func Dup(fd int, name string) (*os.File, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("cannot duplicate the descriptor of %s: %w", name, err)
	}
	return os.NewFile(uintptr(dup), name), nil
}

// IsDir says whether an open file, or the root of a mount, is a directory.
func IsDir(f *os.File) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(RawFD(f), &st); err != nil {
		return false, fmt.Errorf("cannot look at %q: %w", f.Name(), err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// MakeFile makes the empty file name directly below dir.
func MakeFile(dir *os.File, name string, mode uint32) error {
	if err := unix.Mknodat(RawFD(dir), name, unix.S_IFREG|mode, 0); err != nil {
		return fmt.Errorf("cannot make the file %q: %w", name, err)
	}
	return nil
}

// WritableLayer opens the directory path, which holds "upper" and "work" of an
// overlay, as a detached mount. Missing ones are made; a new upper directory
// takes mode and owner from the root of lower, since the merged root shows its;
// so lower must not be idmapped yet.
// What a volatile overlay left behind is removed: it only says that a crash of
// the host would have lost data.
func WritableLayer(path string, lower *os.File) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("cannot open the writable layer %q: %w", path, err)
	}
	if err := unix.Mkdir(path, 0o700); err != nil && err != unix.EEXIST {
		return fail(err)
	}
	dir, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	err = unix.Mkdirat(dir, "upper", 0o755)
	switch {
	case err == nil:
		var st unix.Stat_t
		if err := unix.Fstat(RawFD(lower), &st); err != nil {
			return fail(err)
		}
		// Usually it is as wanted already, and each change is one of a journal.
		var made unix.Stat_t
		if err := unix.Fstatat(dir, "upper", &made, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fail(err)
		}
		if made.Uid != st.Uid || made.Gid != st.Gid {
			if err := unix.Fchownat(dir, "upper", int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fail(err)
			}
		}
		if made.Mode != st.Mode {
			if err := unix.Fchmodat(dir, "upper", st.Mode&0o7777, 0); err != nil {
				return fail(err)
			}
		}
	case err != unix.EEXIST:
		return fail(err)
	default:
		const mark = "work/work/incompat"
		for _, e := range []struct {
			name  string
			flags int
		}{{mark + "/volatile/dirty", 0}, {mark + "/volatile", unix.AT_REMOVEDIR}, {mark, unix.AT_REMOVEDIR}} {
			if err := unix.Unlinkat(dir, e.name, e.flags); err != nil && err != unix.ENOENT {
				return fail(err)
			}
		}
	}
	if err := unix.Mkdirat(dir, "work", 0o700); err != nil && err != unix.EEXIST {
		return fail(err)
	}
	fd, err := unix.OpenTree(dir, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Overlay makes a detached overlay of the mount lower and of "upper" and "work"
// below layer. It works with the ids of the calling thread (Thread.FileIDs),
// which must be those of the container's root where the layers are idmapped.
// attr is a set of MOUNT_ATTR_ flags. With volatile nothing is ever synced.
func Overlay(lower, layer *os.File, attr int, volatile bool) (*os.File, error) {
	open := func(name string) (*os.File, error) {
		fd, err := unix.Openat(RawFD(layer), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot open %q of the writable layer: %w", name, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	upper, err := open("upper")
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	work, err := open("work")
	if err != nil {
		return nil, err
	}
	defer work.Close()
	// index and its file handles are of no use to one mount of one upper.
	rest := []FSConfig{{Key: "index", Value: "off"}, {Key: "source", Value: "overlay"}}
	if volatile {
		rest = append(rest, FSConfig{Key: "volatile", Flag: true})
	}
	m, err := NewFS("overlay", attr, append(overlayFiles(lower, upper, work), rest...)...)
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return m, err
	}
	return NewFS("overlay", attr, append(overlayNames(lower, upper, work), rest...)...)
}

func overlayFiles(lower, upper, work *os.File) []FSConfig {
	return []FSConfig{{Key: "lowerdir+", File: lower}, {Key: "upperdir", File: upper}, {Key: "workdir", File: work}}
}

// overlayNames is overlayFiles for Linux before 6.13, which takes names only;
// those of descriptors will do.
func overlayNames(lower, upper, work *os.File) []FSConfig {
	name := func(f *os.File) string { return "/proc/thread-self/fd/" + strconv.Itoa(RawFD(f)) }
	return []FSConfig{{Key: "lowerdir", Value: name(lower)}, {Key: "upperdir", Value: name(upper)}, {Key: "workdir", Value: name(work)}}
}
