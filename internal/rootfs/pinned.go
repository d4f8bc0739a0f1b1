package rootfs

import (
	"errors"
	"io"
	"os"
	"syscall"

	"proa/internal/sys"
)

// pinned is a file that cannot be exchanged for another one any more, and what
// it is. Nothing of it is open for reading.
type pinned struct {
	f     *os.File
	st    sys.FileStat
	attrs []sys.Xattr // all of them
	own   bool
}

// pin looks at what a descriptor means, which stays the caller's.
func pin(f *os.File) (*pinned, error) {
	p := &pinned{f: f}
	var err error
	if p.st, err = sys.StatFile(f); err != nil {
		return nil, err
	}
	if p.attrs, err = sys.Xattrs(f); err != nil {
		return nil, err
	}
	return p, nil
}

// pinOwned is pin for a descriptor that close is to close.
func pinOwned(f *os.File) (*pinned, error) {
	p, err := pin(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	p.own = true
	return p, nil
}

// pinEntry pins what one name in a directory means, a symbolic link itself included.
func pinEntry(dir *os.File, name string) (*pinned, error) {
	f, err := sys.OpenEntry(dir, name)
	if err != nil {
		return nil, err
	}
	return pinOwned(f)
}

func (p *pinned) close() {
	if p != nil && p.own {
		_ = p.f.Close()
	}
}

// isEmpty says whether it is an empty file or an empty directory.
func (p *pinned) isEmpty() (bool, error) {
	switch p.st.Type() {
	case sys.TypeRegular:
		return p.st.Size == 0, nil
	case sys.TypeDir:
		d, err := sys.OpenPinned(p.f, os.O_RDONLY|syscall.O_DIRECTORY)
		if err != nil {
			return false, err
		}
		defer d.Close()
		_, err = d.Readdirnames(1)
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		return false, err
	}
	return false, nil
}
