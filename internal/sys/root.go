package sys

import (
	"fmt"
	"os"

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
// takes owner, mode, attributes and times from the root of lower, since the merged root shows its;
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
	made, err := makeUpper(dir, RawFD(lower))
	if err != nil {
		return fail(err)
	}
	if !made {
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
