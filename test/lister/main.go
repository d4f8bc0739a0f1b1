// Command lister prints everything that Linux says of every file below a
// directory, one line a file, sorted by path: type and mode, owner, time, link
// count, and as the type asks size and SHA-256 of the content, target or
// device number, then which earlier path is the same file, then the extended
// attributes. It is put into images by the tests, so it is static and needs
// nothing around it. It owns no judgement: tests compare its lines.
//
//	lister DIR [SKIPPED-PATH...]
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: lister DIR [SKIPPED-PATH...]")
		os.Exit(2)
	}
	l := lister{root: os.Args[1], out: bufio.NewWriter(os.Stdout), skip: map[string]bool{}, first: map[file]string{}}
	for _, p := range os.Args[2:] {
		l.skip[p] = true
	}
	err := l.list("/")
	if err == nil {
		err = l.out.Flush()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "lister: %v\n", err)
		os.Exit(1)
	}
}

type file struct{ dev, ino uint64 }

type lister struct {
	root  string
	out   *bufio.Writer
	skip  map[string]bool
	first map[file]string // the first path of a file with several
}

// list prints the file p and, for a directory, all below it. What cannot be
// read is part of the answer; what cannot be listed is an error.
func (l *lister) list(p string) error {
	if l.skip[p] {
		return nil
	}
	real := filepath.Join(l.root, p)
	var st syscall.Stat_t
	if err := syscall.Lstat(real, &st); err != nil {
		return fmt.Errorf("cannot look at %q: %w", p, err)
	}
	fmt.Fprintf(l.out, "%q mode=%o uid=%d gid=%d time=%d.%09d links=%d", p, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink)
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		fmt.Fprintf(l.out, " size=%d sha256=%s", st.Size, sum(real))
	case syscall.S_IFLNK:
		target, err := os.Readlink(real)
		if err != nil {
			return fmt.Errorf("cannot read the link %q: %w", p, err)
		}
		fmt.Fprintf(l.out, " size=%d target=%q", st.Size, target)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		fmt.Fprintf(l.out, " device=%#x", st.Rdev)
	}
	if st.Nlink > 1 && st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		id := file{st.Dev, st.Ino}
		if l.first[id] == "" {
			l.first[id] = p
		}
		fmt.Fprintf(l.out, " same=%q", l.first[id])
	}
	if err := l.xattrs(real); err != nil {
		return fmt.Errorf("cannot read the extended attributes of %q: %w", p, err)
	}
	fmt.Fprintln(l.out)
	if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return nil
	}
	kids, err := os.ReadDir(real)
	if err != nil {
		return fmt.Errorf("cannot list %q: %w", p, err)
	}
	for _, k := range kids {
		if err := l.list(filepath.Join(p, k.Name())); err != nil {
			return err
		}
	}
	return nil
}

func sum(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "unreadable"
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "unreadable:" + err.Error()
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// xattrs prints the extended attributes of the file itself; the syscall
// package has only the calls that follow symlinks.
func (l *lister) xattrs(path string) error {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	n, _, errno := syscall.Syscall(syscall.SYS_LLISTXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	if errno == syscall.EOPNOTSUPP || n == 0 && errno == 0 {
		return nil
	}
	if errno != 0 {
		return errno
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	sort.Strings(names)
	for _, name := range names {
		a, err := syscall.BytePtrFromString(name)
		if err != nil {
			return err
		}
		n, _, errno := syscall.Syscall6(syscall.SYS_LGETXATTR, uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
		if errno != 0 {
			return errno
		}
		fmt.Fprintf(l.out, " %s=%q", name, buf[:n])
	}
	return nil
}
