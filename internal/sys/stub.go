package sys

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Stub is a file or directory that MakeTarget had to make, so that something
// could be mounted on it.
type Stub struct {
	Path string // below the root, clean, through no symbolic link
	Last bool   // the target itself, not a directory on the way to it

	// Times of the directory that holds it, before and after it was made.
	before, after unix.Stat_t
}

// RemoveStubs takes stubs away again that are still empty and where they were
// made; nothing may be mounted on them any more. A directory that has changed
// for no other reason gets the times that it had before. Without parents only
// the targets go.
func RemoveStubs(root *os.File, stubs []Stub, parents bool) error {
	var errs error
	for i := len(stubs) - 1; i >= 0; i-- { // the inner ones were made last
		if s := &stubs[i]; s.Last || parents {
			errs = errors.Join(errs, s.remove(root))
		}
	}
	return errs
}

func (s *Stub) remove(root *os.File) error {
	fail := func(err error) error {
		return fmt.Errorf("cannot remove the mount point %q: %w", s.Path, err)
	}
	dir, err := unix.Openat2(RawFD(root), path.Dir(s.Path), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return nil // somebody put something else there
	default:
		return fail(err)
	}
	defer unix.Close(dir)
	name := path.Base(s.Path)
	var st, parent unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return fail(err)
	}
	if err := unix.Fstat(dir, &parent); err != nil {
		return fail(err)
	}
	flags := 0
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		flags = unix.AT_REMOVEDIR
	case unix.S_IFREG:
		if st.Size != 0 {
			return nil
		}
	default:
		return nil
	}
	switch err := unix.Unlinkat(dir, name, flags); err {
	case nil:
	case unix.ENOTEMPTY, unix.EEXIST, unix.ENOENT:
		return nil
	default:
		return fail(err)
	}
	if parent.Mtim == s.after.Mtim {
		parent = s.before
	}
	if err := futimens(dir, &parent); err != nil {
		return fail(err)
	}
	return nil
}
