package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// openDir opens one directory of a hierarchy.
func openDir(p string) (int, error) {
	return unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

// makeDir makes mount/rel and the parents that are missing. The directory
// itself must be new. A parent may vanish between two steps, because Delete of
// another group takes empty parents away; then it is made again.
func makeDir(mount, rel string) (int, error) {
	full := filepath.Join(mount, rel)
	var err error
	for range 50 {
		if err = unix.Mkdir(full, 0o755); err == nil {
			var fd int
			if fd, err = openDir(full); err == nil {
				return fd, nil
			}
			break
		}
		if err == unix.EEXIST {
			return -1, fmt.Errorf("cannot make control group %q: %w", full, errdefs.ErrAlreadyExists)
		}
		if err != unix.ENOENT {
			break
		}
		for i, c := range rel {
			if c == '/' {
				if err := unix.Mkdir(filepath.Join(mount, rel[:i]), 0o755); err != nil && err != unix.EEXIST && err != unix.ENOENT {
					return -1, fmt.Errorf("cannot make control group %q: %w", filepath.Join(mount, rel[:i]), err)
				}
			}
		}
	}
	return -1, fmt.Errorf("cannot make control group %q: %w", full, err)
}

// write writes one value with one write(2), as the kernel wants it.
func (d *dir) write(file string, value []byte) error {
	fd, err := unix.Openat(d.fd, file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	return writeFD(fd, file, value)
}

func writeFD(fd int, file string, value []byte) error {
	for {
		_, err := unix.Write(fd, value)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.PathError{Op: "write " + string(value) + " to", Path: file, Err: err}
		}
	}
}

func writePath(p string, value []byte) error {
	d := dir{fd: unix.AT_FDCWD}
	return d.write(p, value)
}

// read reads a whole small file. Most fit into one page.
func (d *dir) read(file string) ([]byte, error) {
	fd, err := unix.Openat(d.fd, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: file, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// walk calls f for the directory rel and all below it, parents first. Groups
// that vanish meanwhile are skipped.
func walk(fd int, rel string, f func(rel string) error) error {
	if err := f(rel); err != nil {
		return err
	}
	sub, err := unix.Openat(fd, rel, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "open", Path: rel, Err: err}
	}
	d := os.NewFile(uintptr(sub), rel)
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := walk(fd, path.Join(rel, e.Name()), f); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing says whether a file is not there: a controller that is not enabled
// or a kernel that does not know it.
func missing(err error) bool { return errors.Is(err, unix.ENOENT) }

// field finds "key value" in a flat keyed file and parses the value.
func field(b []byte, key string) (uint64, bool) {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+" "); ok {
			return number(rest), true
		}
	}
	return 0, false
}

// number parses a decimal; "max" and what is too large is the greatest number.
func number(s string) uint64 {
	s = strings.TrimSpace(s)
	if s == "max" {
		return ^uint64(0)
	}
	var n uint64
	for _, c := range s {
		if c < '0' || c > '9' {
			break
		}
		if n > (1<<64-10)/10 {
			return ^uint64(0)
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}
