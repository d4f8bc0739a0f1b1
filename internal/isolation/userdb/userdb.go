// Package userdb answers whom Docker's USER string means inside a root: it
// reads that root's own /etc/passwd and /etc/group. It owns the rules (a
// number needs no entry, a name does, what the supplementary groups are); it
// never asks the host's user database and never leaves the root.
package userdb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"proa/internal/sys"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
)

// maxBytes bounds what is read of one database; the files belong to the image.
const maxBytes = 16 << 20

// Lookup resolves spec ("", "app", "1000", "app:grp", "1000:1000") and the
// additional groups (names or numbers) below root, which is an open directory
// (O_PATH will do). gids are the supplementary groups with gid first, as
// CVE-2022-36109 taught; home is "/" where there is no entry. Missing
// databases are empty ones. A name without an entry is errdefs.ErrNotFound
// with Docker's text: "unable to find user X: no matching entries in passwd file".
func Lookup(root *os.File, spec string, groups []string) (uid, gid uint32, gids []uint32, home string, err error) {
	passwd, err := read(root, "/etc/passwd")
	if err != nil {
		return 0, 0, nil, "", err
	}
	group, err := read(root, "/etc/group")
	if err != nil {
		return 0, 0, nil, "", err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, reader(passwd), reader(group))
	if err != nil {
		return 0, 0, nil, "", kind(err)
	}
	extra, err := user.GetAdditionalGroups(groups, reader(group))
	if err != nil {
		return 0, 0, nil, "", kind(err)
	}
	slices.Sort(extra) // the library returns them in map order
	if u.Home == "" {
		u.Home = "/"
	}
	gids = []uint32{uint32(u.Gid)}
	for _, g := range append(u.Sgids, extra...) {
		if !slices.Contains(gids, uint32(g)) {
			gids = append(gids, uint32(g))
		}
	}
	return uint32(u.Uid), uint32(u.Gid), gids, u.Home, nil
}

// kind gives an error of the parser its kind and keeps its text.
func kind(err error) error {
	if errors.Is(err, user.ErrNoPasswdEntries) || errors.Is(err, user.ErrNoGroupEntries) {
		return typed{err, errdefs.ErrNotFound}
	}
	return typed{err, errdefs.ErrInvalidArgument}
}

// typed is an error whose text is Docker's and whose kind is ours.
type typed struct {
	error
	kind error
}

func (t typed) Unwrap() []error { return []error{t.error, t.kind} }

// read returns the contents of a database, nil if it is not there. O_NONBLOCK
// keeps an image that ships a FIFO from hanging us.
func read(root *os.File, path string) ([]byte, error) {
	f, err := sys.OpenInRoot(root, path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) {
			return nil, nil
		}
		return nil, fmt.Errorf("cannot open %q of the image: %w", path, err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, nil // Docker, too, treats what it cannot read as absent
	}
	b, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read %q of the image: %w", path, err)
	}
	if len(b) > maxBytes {
		return nil, fmt.Errorf("cannot read %q of the image: larger than %d bytes: %w", path, maxBytes, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// reader keeps the difference that the parser makes between no database (nil) and an empty one.
func reader(b []byte) io.Reader {
	if b == nil {
		return nil
	}
	return bytes.NewReader(b)
}
