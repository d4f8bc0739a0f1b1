package rootfs

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// Bounds of one tree. A process in a root can make directories without end and
// names without number; an image could not hold them either.
const (
	maxDepth = 1024
	maxNames = 2_000_000
)

// tarOut writes files as entries of a tar stream in the PAX format, which holds
// nanoseconds, any owner and extended attributes.
type tarOut struct {
	ctx   context.Context
	out   *bufio.Writer
	tw    *tar.Writer
	keep  func(name string) bool
	owner func(*pinned) (uid, gid uint32, err error) // nil: what stat(2) says
	links map[[2]uint64]string                       // device and inode of a file with several links: its first name
	names int
	buf   []byte
}

func newTarOut(ctx context.Context, w io.Writer, keep func(string) bool) *tarOut {
	if w == nil {
		w = io.Discard
	}
	out := bufio.NewWriterSize(w, 64<<10)
	return &tarOut{ctx: ctx, out: out, tw: tar.NewWriter(out), keep: keep, links: map[[2]uint64]string{}, buf: make([]byte, 64<<10)}
}

// close ends the stream.
func (t *tarOut) close() error {
	if err := t.tw.Close(); err != nil {
		return err
	}
	return t.out.Flush()
}

// list gives the names in a directory in the order of their bytes.
func (t *tarOut) list(dir *os.File, at string, depth int) ([]string, error) {
	if depth >= maxDepth {
		return nil, fmt.Errorf("%.60q... lies more than %d directories deep: %w", at, maxDepth, errdefs.ErrFailedPrecondition)
	}
	d, err := sys.OpenPinned(dir, os.O_RDONLY|syscall.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var names []string
	for {
		if err := t.ctx.Err(); err != nil {
			return nil, context.Cause(t.ctx)
		}
		some, err := d.Readdirnames(4096)
		names = append(names, some...)
		if t.names += len(some); t.names > maxNames {
			return nil, fmt.Errorf("there are more than %d files: %w", maxNames, errdefs.ErrResourceExhausted)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// mark writes an empty file of nobody's: a whiteout.
func (t *tarOut) mark(name string) error {
	return t.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// put writes one file under a name, contents included. A directory's name ends
// in a slash.
func (t *tarOut) put(name string, p *pinned) error {
	st := &p.st
	if err := t.ctx.Err(); err != nil {
		return context.Cause(t.ctx)
	}
	if st.Type() != sys.TypeDir && st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := t.links[id]; ok {
			h, err := t.header(name, p)
			if err != nil {
				return err
			}
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.writeHeader(h)
		}
		defer func() { t.links[id] = name }()
	}
	h, err := t.header(name, p)
	if err != nil {
		return err
	}
	switch st.Type() {
	case sys.TypeDir:
		h.Typeflag = tar.TypeDir
	case sys.TypeRegular:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case sys.TypeSymlink:
		target, err := sys.ReadLink(p.f)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case sys.TypeFifo:
		h.Typeflag = tar.TypeFifo
	case sys.TypeChar, sys.TypeBlock:
		h.Typeflag = tar.TypeBlock
		if st.Type() == sys.TypeChar {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = int64(st.Major), int64(st.Minor)
	default:
		return nil
	}
	for _, x := range ownXattrs(p.attrs, t.keep) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+xattrKey.Replace(x.Name)] = x.Value
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return t.writeHeader(h)
	}
	in, err := sys.OpenPinned(p.f, os.O_RDONLY|syscall.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := t.writeHeader(h); err != nil {
		return err
	}
	return t.contents(in, h.Size)
}

func (t *tarOut) writeHeader(h *tar.Header) error {
	if err := t.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("cannot write %q: %w", h.Name, err)
	}
	return nil
}

// contents writes exactly size bytes: no more if the file grows, and zeros if
// it is cut off meanwhile.
func (t *tarOut) contents(in *os.File, size int64) error {
	for size > 0 {
		if err := t.ctx.Err(); err != nil {
			return context.Cause(t.ctx)
		}
		b := t.buf[:min(int64(len(t.buf)), size)]
		n, err := io.ReadFull(in, b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			clear(b[n:])
		} else if err != nil {
			return err
		}
		if _, err := t.tw.Write(b); err != nil {
			return err
		}
		size -= int64(len(b))
	}
	return nil
}

func (t *tarOut) header(name string, p *pinned) (*tar.Header, error) {
	st := &p.st
	uid, gid := st.UID, st.GID
	if t.owner != nil {
		var err error
		if uid, gid, err = t.owner(p); err != nil {
			return nil, fmt.Errorf("cannot write %q: %w", name, err)
		}
	}
	return &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(uid), Gid: int(gid),
		ModTime: time.Unix(st.Sec, int64(st.Nsec)), Format: tar.FormatPAX,
	}, nil
}

// xattrKey writes a name into a PAX key, which ends at "=", as GNU tar does.
var xattrKey = strings.NewReplacer("%", "%25", "=", "%3D")

// layerXattr says whether an extended attribute belongs into an image: one that
// means something on another host.
func layerXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."):
		return false
	case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "trusted."):
		return true
	}
	return name == "security.capability" || name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// ownXattrs gives the attributes to keep in the order of their names.
func ownXattrs(attrs []sys.Xattr, keep func(string) bool) []sys.Xattr {
	var out []sys.Xattr
	for _, x := range attrs {
		if !keep(x.Name) {
			continue
		}
		if x.Name == "security.capability" {
			x.Value = plainCapability(x.Value)
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b sys.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// plainCapability turns file capabilities that belong to a user namespace
// (revision 3 of struct vfs_ns_cap_data, which ends in the root id) into those
// that an image holds (revision 2).
func plainCapability(v string) string {
	if len(v) == 24 && v[3] == 3 {
		return v[:3] + "\x02" + v[4:20]
	}
	return v
}

// gone says whether something vanished while it was looked at.
func gone(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ESTALE)
}
