package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// Put unpacks a tar stream into the directory r.Path, which must exist. As
// Docker does, a file takes the place of whatever has its name, a directory is
// merged with one that is there, missing parents are made, and times of
// directories are set last. Every path is resolved inside, through the links
// that are there; names that go up by ".." are refused. A file that cannot be
// written whole is removed again.
//
// The thread that calls it must make files with the ids of the root's root.
func (t *Tree) Put(ctx context.Context, r *Request, in io.Reader) error {
	dir, err := t.pin(strings.TrimSuffix(r.Path, "/") + "/.")
	if err != nil {
		if p, perr := t.pin(r.Path); perr == nil {
			p.close()
			return fmt.Errorf("cannot unpack at %q: extraction point is not a directory: %w", r.Path, errdefs.ErrInvalidArgument)
		}
		return err
	}
	defer dir.close()
	p := &put{t: t, r: r, buf: make([]byte, 64<<10)}
	defer p.abandon()
	if r.User != "" {
		uid, gid, err := t.User(r.User)
		if err != nil {
			return err
		}
		p.owner = &[2]uint32{uid, gid}
	}
	err = p.stream(ctx, in)
	if t.Sync != nil {
		err = errors.Join(err, t.Sync())
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	} else if errors.Is(err, syscall.EROFS) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

type put struct {
	t     *Tree
	r     *Request
	owner *[2]uint32
	times []dirTime
	said  int // bytes of the paths in times
	buf   []byte

	// The directories of the archive that lead to the entry before, outer ones
	// first. Each is held open until the stream leaves it and then gets its owner
	// and mode: by the descriptor, because by then its path may lead a process
	// inside to have somebody else's directory changed, and not before, because
	// what still comes is put into it.
	held []heldDir

	// The parent of the entry before, which most entries share.
	parent     *os.File
	parentPath string
}

// heldDir is a directory of the archive that more may be put into.
type heldDir struct {
	path string
	f    *os.File
	m    sys.Metadata
}

// dirTime is a directory whose time is set once more at the end, for archives
// that come back to it.
type dirTime struct {
	path string
	sec  int64
	nsec uint32
}

const (
	// maxHeld is how many directories are held open; deeper ones get their owner
	// and mode at once.
	maxHeld = 256
	// maxPaths bounds the memory of the times in bytes of their paths, which a
	// guest may choose (CWE-770).
	maxPaths = 256 << 20
)

// abandon lets go of everything.
func (p *put) abandon() {
	p.leave()
	for _, d := range p.held {
		_ = d.f.Close()
	}
	p.held = nil
}

// finish gives the directories that do not lead to full their owner and mode.
func (p *put) finish(full string) error {
	for n := len(p.held); n > 0; n = len(p.held) {
		d := p.held[n-1]
		if strings.HasPrefix(full, d.path+"/") || full == d.path {
			return nil
		}
		p.held = p.held[:n-1]
		err := sys.SetMetadata(d.f, d.m)
		_ = d.f.Close()
		if err != nil {
			return fmt.Errorf("cannot unpack %q: %w", d.path, err)
		}
	}
	return nil
}

// enterDir takes a directory of the archive in, whose descriptor is p's now.
func (p *put) enterDir(full string, f *os.File, m sys.Metadata) error {
	if p.said += len(full); p.said > maxPaths || len(p.times) >= maxNames {
		_ = f.Close()
		return fmt.Errorf("there are more than %d directories, or their names are too long: %w", maxNames, errdefs.ErrResourceExhausted)
	}
	p.times = append(p.times, dirTime{full, m.Sec, m.Nsec})
	if n := len(p.held); n > 0 && p.held[n-1].path == full { // twice in a row
		_ = p.held[n-1].f.Close()
		p.held = p.held[:n-1]
	}
	if len(p.held) < maxHeld {
		p.held = append(p.held, heldDir{full, f, m})
		return nil
	}
	defer f.Close()
	return sys.SetMetadata(f, m)
}

func (p *put) stream(ctx context.Context, in io.Reader) error {
	for tr := tar.NewReader(in); ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // names are checked below
			if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
			}
			return fmt.Errorf("cannot read the archive: %w", err)
		}
		if err := p.entry(ctx, h, tr); err != nil {
			return fmt.Errorf("cannot unpack %q: %w", h.Name, err)
		}
	}
	p.leave()
	if err := p.finish(""); err != nil {
		return err
	}
	for _, d := range slices.Backward(p.times) {
		f, err := p.openDir(d.path)
		if gone(err) {
			continue // it was removed by what came later, or by a process inside
		}
		if err != nil {
			return err
		}
		err = sys.SetTime(f, d.sec, d.nsec)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("cannot unpack %q: %w", d.path, err)
		}
	}
	return nil
}

// components checks a name of the archive; what it names lies below the directory.
func components(name string) ([]string, error) {
	var out []string
	for _, c := range strings.Split(name, "/") {
		switch {
		case c == "" || c == ".":
		case c == "..":
			return nil, fmt.Errorf("the name goes up by %q: %w", "..", errdefs.ErrInvalidArgument)
		case len(c) > 255 || strings.Contains(c, "\x00"):
			return nil, fmt.Errorf("a name of %d bytes or with a zero byte: %w", len(c), errdefs.ErrInvalidArgument)
		default:
			out = append(out, c)
		}
	}
	return out, nil
}

// at is the path of a name of the archive, from the root on.
func (p *put) at(name string) string { return path.Join("/", p.r.Path, name) }

func (p *put) openDir(full string) (*os.File, error) {
	return sys.OpenInRoot(p.t.Root, full, sys.OnlyPin|syscall.O_NOFOLLOW|syscall.O_DIRECTORY, 0)
}

// enter opens the directory that an entry lies in, and makes what is missing of
// it. It stays open until another one is entered.
func (p *put) enter(dir string) (*os.File, error) {
	if p.parent != nil && p.parentPath == dir {
		return p.parent, nil
	}
	p.leave()
	f, err := sys.OpenTarget(p.t.Root, p.at(dir), true)
	if err != nil {
		return nil, err
	}
	if ok, err := sys.IsDir(f); err != nil || !ok {
		_ = f.Close()
		return nil, errors.Join(err, fmt.Errorf("%q is no directory: %w", p.at(dir), errdefs.ErrInvalidArgument))
	}
	p.parent, p.parentPath = f, dir
	return f, nil
}

func (p *put) leave() {
	if p.parent != nil {
		_ = p.parent.Close()
		p.parent = nil
	}
}

func (p *put) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := components(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return nil // the directory itself stays as it is
	}
	base, dir := parts[len(parts)-1], strings.Join(parts[:len(parts)-1], "/")
	full := p.at(path.Join(dir, base))
	if err := p.finish(full); err != nil {
		return err
	}
	parent, err := p.enter(dir)
	if err != nil {
		return err
	}
	m, err := p.metadata(h)
	if err != nil {
		return err
	}
	isDir := h.Typeflag == tar.TypeDir
	old, err := pinEntry(parent, base)
	if err != nil && !gone(err) {
		return err
	}
	var merged *os.File
	defer func() {
		if merged != nil {
			_ = merged.Close()
		}
	}()
	if err == nil {
		wasDir := old.st.Type() == sys.TypeDir
		if merged = old.f; !wasDir || !isDir {
			merged = nil
			old.close()
		}
		switch {
		case wasDir && isDir:
		case p.r.NoOverwriteDirNonDir && wasDir && !isDir:
			return fmt.Errorf("cannot overwrite directory %q with non-directory %q: %w", full, h.Name, errdefs.ErrInvalidArgument)
		case p.r.NoOverwriteDirNonDir && !wasDir && isDir:
			return fmt.Errorf("cannot overwrite non-directory %q with directory %q: %w", full, h.Name, errdefs.ErrInvalidArgument)
		default:
			if err := sys.RemoveTreeAt(parent, base); err != nil {
				return err
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		f := merged
		if merged = nil; f == nil {
			if f, err = sys.MakeDirAt(parent, base); err != nil {
				return err
			}
		}
		return p.enterDir(full, f, m)
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if h.Size > maxSparse && isSparse(h) {
			return fmt.Errorf("a sparse file of %d bytes, at most %d are allowed: %w", h.Size, int64(maxSparse), errdefs.ErrInvalidArgument)
		}
		return p.regular(ctx, parent, base, h.Size, m, r)
	case tar.TypeSymlink:
		if err := sys.MakeSymlinkAt(parent, base, h.Linkname); err != nil {
			return err
		}
	case tar.TypeLink:
		return p.hardLink(parent, base, h.Linkname)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return fmt.Errorf("device number %d:%d: %w", h.Devmajor, h.Devminor, errdefs.ErrInvalidArgument)
		}
		if err := sys.MakeNodeAt(parent, base, m.Mode, uint32(h.Devmajor), uint32(h.Devminor)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unhandled tar header type %q: %w", h.Typeflag, errdefs.ErrInvalidArgument)
	}
	f, err := sys.OpenEntry(parent, base)
	if err != nil {
		return err
	}
	defer f.Close()
	return setIfSame(f, m)
}

// maxSparse bounds a sparse file in bytes: its holes cost the sender nothing and
// us a look at each.
const maxSparse = 64 << 30

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// setIfSame sets metadata of a name that was just made. Another process may
// have put something else there: then that is left alone.
func setIfSame(f *os.File, m sys.Metadata) error {
	st, err := sys.StatFile(f)
	if err != nil || st.Type() != m.Mode&sys.TypeMask {
		return err
	}
	return sys.SetMetadata(f, m)
}

func (p *put) metadata(h *tar.Header) (sys.Metadata, error) {
	kind := map[byte]uint32{tar.TypeDir: sys.TypeDir, tar.TypeSymlink: sys.TypeSymlink, tar.TypeChar: sys.TypeChar,
		tar.TypeBlock: sys.TypeBlock, tar.TypeFifo: sys.TypeFifo}[h.Typeflag]
	if kind == 0 {
		kind = sys.TypeRegular
	}
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || uint64(id) >= math.MaxUint32 {
			return sys.Metadata{}, fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, errdefs.ErrInvalidArgument)
		}
	}
	uid, gid := uint32(h.Uid), uint32(h.Gid)
	if p.owner != nil {
		uid, gid = p.owner[0], p.owner[1]
	}
	uid, gid, err := p.t.outside(uid, gid)
	if err != nil {
		return sys.Metadata{}, err
	}
	m := sys.Metadata{
		Mode: kind | uint32(h.Mode&0o7777), UID: uid, GID: gid,
		Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()),
	}
	if h.ModTime.IsZero() {
		m.Sec, m.Nsec = 0, 0
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			if name = xattrName.Replace(name); layerXattr(name) {
				m.Xattrs = append(m.Xattrs, sys.Xattr{Name: name, Value: value})
			}
		}
	}
	return m, nil
}

// xattrName undoes xattrKey.
var xattrName = strings.NewReplacer("%3D", "=", "%25", "%")

// regular makes a file. Blocks of zeros become holes.
func (p *put) regular(ctx context.Context, parent *os.File, base string, size int64, m sys.Metadata, r io.Reader) (err error) {
	f, err := sys.MakeFileAt(parent, base)
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() {
		if err != nil {
			_ = sys.RemoveTreeAt(parent, base)
		}
	}()
	hole := int64(0)
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		b := p.buf[:min(int64(len(p.buf)), left)]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				err = fmt.Errorf("the archive ends in the middle: %w", errdefs.ErrInvalidArgument)
			}
			return err
		}
		left -= int64(len(b))
		if b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) {
			hole += int64(len(b))
			continue
		}
		if hole > 0 {
			if _, err := f.Seek(hole, io.SeekCurrent); err != nil {
				return err
			}
			hole = 0
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	if hole > 0 {
		if err := f.Truncate(size); err != nil {
			return err
		}
	}
	return sys.SetMetadata(f, m)
}

func (p *put) hardLink(parent *os.File, base, target string) error {
	parts, err := components(target)
	if err != nil || len(parts) == 0 {
		return fmt.Errorf("hard link to %q: %w", target, errdefs.ErrInvalidArgument)
	}
	last := len(parts) - 1
	dir, err := sys.OpenInRoot(p.t.Root, p.at(strings.Join(parts[:last], "/")), sys.OnlyPin|syscall.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer dir.Close()
	return sys.LinkAt(dir, parts[last], parent, base)
}
