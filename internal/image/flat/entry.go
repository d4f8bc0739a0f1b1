package flat

import (
	"archive/tar"
	"encoding/base64"
	"io"
	"math"
	"net/url"
	"slices"
	"strings"

	"proa/internal/image/erofs"
)

// Names of the OCI image layer specification: ".wh." in front of a name
// deletes that name of the layers below, the opaque mark deletes everything
// that they have in the directory. Other names with the double prefix are
// remains of aufs and mean nothing.
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueMark     = ".wh..wh..opq"
)

// maxTarget is the longest target of a symlink, in bytes: PATH_MAX without its NUL.
const maxTarget = 4095

// maxHops is how many symlinks a path may go through, as in Linux.
const maxHops = 40

// splitPath returns the components of a path in a tar stream: as tar does,
// leading slashes and dots mean nothing. ".." takes back the name before it, as
// containerd and Docker read it; above the root it is refused.
func splitPath(name string) ([]string, error) {
	parts := strings.Split(name, "/")
	keep := parts[:0]
	for _, p := range parts {
		switch {
		case p == "" || p == ".":
		case p == "..":
			if len(keep) == 0 {
				return nil, invalid("the path goes up by %q and leaves the root", "..")
			}
			keep = keep[:len(keep)-1]
		case !erofs.ValidName(p):
			return nil, invalid("a name has %d bytes (at most 255) or a NUL", len(p))
		default:
			keep = append(keep, p)
		}
	}
	return keep, nil
}

// add puts one tar entry into the layer.
func (w *writer) add(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := splitPath(h.Name)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		if h.Typeflag != tar.TypeDir {
			return invalid("the root is no directory")
		}
		w.root.ino, err = inode(h)
		return err
	}
	dirs, base := path[:len(path)-1], path[len(path)-1]
	if path[0] == linkDir {
		return w.hide(base, h, r)
	}
	for _, p := range path {
		if strings.HasPrefix(p, metaPrefix) && p != opaqueMark {
			return nil
		}
	}
	for _, p := range dirs {
		if strings.HasPrefix(p, whiteoutPrefix) {
			return invalid("a whiteout is no directory")
		}
	}
	parent, err := w.parent(dirs)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return w.whiteout(parent, base)
	}
	if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
		// Overlayfs's own whiteout, in a layer that is a tar of an upper directory.
		delete(parent.dir.kids, base)
		return w.whiteout(parent, whiteoutPrefix+base)
	}
	e, err := w.entry(h, r)
	if err != nil {
		return err
	}
	if e.dir != nil && h.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] == "y" {
		e.dir.opaque = true
	}
	if w.meta += len(base) + metaSize(e); w.meta > maxMeta {
		return invalid("the names and attributes of the layer have more than %d bytes", maxMeta)
	}
	old := parent.dir.kids[base]
	if old == nil {
		if err := w.another(); err != nil {
			return err
		}
	} else if old.dir != nil && e.dir != nil {
		old.ino = e.ino
		old.dir.opaque = old.dir.opaque || e.dir.opaque
		return nil
	}
	parent.dir.kids[base] = e
	return nil
}

// linkDir is where aufs kept files that had several names.
const linkDir = ".wh..wh.plnk"

// hide keeps a file below linkDir for the hard links that lead there; it has no
// name of its own.
func (w *writer) hide(base string, h *tar.Header, r io.Reader) error {
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	if err := w.another(); err != nil {
		return err
	}
	e, err := w.entry(h, r)
	if err != nil {
		return err
	}
	if w.meta += len(base) + metaSize(e); w.meta > maxMeta {
		return invalid("the names and attributes of the layer have more than %d bytes", maxMeta)
	}
	if w.hidden == nil {
		w.hidden = map[string]*entry{}
	}
	w.hidden[base] = e
	return nil
}

// another counts one more entry.
func (w *writer) another() error {
	if w.count++; w.count > w.limits.Entries {
		return invalid("the layer has more than %d entries", w.limits.Entries)
	}
	return nil
}

func metaSize(e *entry) int {
	n := len(e.link)
	if e.ino != nil {
		n += len(e.ino.Target)
		for _, x := range e.ino.Xattrs {
			n += len(x.Name) + len(x.Value)
		}
	}
	return n
}

func (w *writer) whiteout(parent *entry, base string) error {
	d := parent.dir
	if base == opaqueMark {
		d.opaque = true
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if !erofs.ValidName(name) {
		return invalid("a whiteout of %q", name)
	}
	if _, ok := d.whiteouts[name]; ok {
		return nil
	}
	if d.whiteouts == nil {
		d.whiteouts = map[string]struct{}{}
	}
	d.whiteouts[name] = struct{}{}
	return w.another()
}

// entry makes the layer's entry of a tar header.
func (w *writer) entry(h *tar.Header, r io.Reader) (*entry, error) {
	if h.Typeflag == tar.TypeLink {
		return w.hardLink(h.Linkname)
	}
	ino, err := inode(h)
	if err != nil {
		return nil, err
	}
	switch ino.Mode & erofs.TypeMask {
	case erofs.TypeDir:
		e := newDir()
		e.ino = ino
		return e, nil
	case erofs.TypeRegular:
		ino.Extents, err = w.contents(r, h.Size)
		ino.Size = uint64(h.Size)
	}
	return &entry{ino: ino}, err
}

// parent finds the directory that path names inside the layer, through
// symlinks of the layer, and makes what is missing of it.
func (w *writer) parent(path []string) (*entry, error) {
	at, rest, err := w.walk(path)
	if err != nil {
		return nil, err
	}
	if len(at)+len(rest) > w.limits.Depth {
		return nil, invalid("the path has more than %d components", w.limits.Depth)
	}
	d := at[len(at)-1].entry
	for _, name := range rest {
		if err := w.another(); err != nil {
			return nil, err
		}
		next := newDir()
		d.dir.kids[name] = next
		d = next
	}
	return d, nil
}

// step is a directory on the way down and the name that led there.
type step struct {
	name string
	*entry
}

// walk goes down path as far as the layer has it, and returns the directories
// that it went through, the root first, and what is left. Symlinks are
// followed inside the layer only: their ".." stops at its root. A path through
// anything else than a directory is refused.
func (w *writer) walk(path []string) (at []step, rest []string, err error) {
	at, rest = []step{{"", w.root}}, path
	for hops := 0; len(rest) > 0; {
		name := rest[0]
		if name == ".." {
			at, rest = at[:max(1, len(at)-1)], rest[1:]
			continue
		}
		next := at[len(at)-1].dir.kids[name]
		switch {
		case next == nil:
			for _, p := range rest { // a symlink's target may hold anything
				if !erofs.ValidName(p) {
					return nil, nil, invalid("the path goes through a symlink to %q, which is missing, and on to %q", name, p)
				}
			}
			return at, rest, nil
		case next.dir != nil:
			at, rest = append(at, step{name, next}), rest[1:]
		case next.ino != nil && next.ino.Mode&erofs.TypeMask == erofs.TypeSymlink:
			if hops++; hops > maxHops {
				return nil, nil, invalid("the path goes through more than %d symlinks", maxHops)
			}
			if strings.HasPrefix(next.ino.Target, "/") {
				at = at[:1]
			}
			rest = append(targetPath(next.ino.Target), rest[1:]...)
		default:
			return nil, nil, invalid("the path goes through %q, which is no directory", name)
		}
	}
	return at, nil, nil
}

// targetPath returns the components of a symlink's target.
func targetPath(target string) []string {
	parts := strings.Split(target, "/")
	return slices.DeleteFunc(parts, func(p string) bool { return p == "" || p == "." })
}

// hardLink finds a hard link's target: a file of this layer, or else a path in
// the layers below, which Merge looks up.
func (w *writer) hardLink(target string) (*entry, error) {
	path, err := splitPath(target)
	if err != nil {
		return nil, invalid("hard link to %q, which is outside", target)
	}
	if len(path) == 0 {
		return nil, invalid("hard link to a directory")
	}
	last := len(path) - 1
	if e := w.hidden[path[last]]; e != nil && path[0] == linkDir {
		return &entry{ino: e.ino}, nil
	}
	at, rest, err := w.walk(path[:last])
	if err != nil {
		return nil, err
	}
	if len(rest) == 0 {
		if e := at[len(at)-1].dir.kids[path[last]]; e != nil {
			if e.dir != nil {
				return nil, invalid("hard link to the directory %q", target)
			}
			return &entry{ino: e.ino, link: e.link}, nil
		}
	}
	// Symlinks of this layer have been followed; what they led to counts.
	var lower []string
	for _, d := range at[1:] {
		lower = append(lower, d.name)
	}
	lower = append(append(lower, rest...), path[last])
	return &entry{link: strings.Join(lower, "/")}, nil
}

// inode makes the inode of a tar header, without contents.
func inode(h *tar.Header) (*erofs.Inode, error) {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || uint64(id) >= math.MaxUint32 { // the highest means "no change" to chown(2)
			return nil, invalid("owner %d:%d", h.Uid, h.Gid)
		}
	}
	ino := &erofs.Inode{
		Mode: uint32(h.Mode & 0o7777),
		UID:  uint32(h.Uid), GID: uint32(h.Gid),
		Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()),
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		ino.Mode |= erofs.TypeRegular
	case tar.TypeDir:
		ino.Mode |= erofs.TypeDir
	case tar.TypeFifo:
		ino.Mode |= erofs.TypeFifo
	case tar.TypeSymlink:
		ino.Mode |= erofs.TypeSymlink
		ino.Mode |= 0o777 // as Linux shows every symlink
		if h.Linkname == "" || len(h.Linkname) > maxTarget || strings.Contains(h.Linkname, "\x00") {
			return nil, invalid("symlink with a target of %d bytes", len(h.Linkname))
		}
		ino.Target = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return nil, invalid("device number %d:%d", h.Devmajor, h.Devminor)
		}
		ino.Mode |= erofs.TypeBlock
		if h.Typeflag == tar.TypeChar {
			ino.Mode = ino.Mode&^erofs.TypeMask | erofs.TypeChar
		}
		ino.Major, ino.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	default:
		return nil, invalid("unknown type %q", h.Typeflag)
	}
	var err error
	ino.Xattrs, err = xattrs(h, ino.Mode&erofs.TypeMask)
	return ino, err
}

// xattrs returns the extended attributes of a header, sorted by name.
func xattrs(h *tar.Header, fileType uint32) ([]erofs.Xattr, error) {
	const schily, libarchive = "SCHILY.xattr.", "LIBARCHIVE.xattr."
	values := map[string]string{}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, libarchive); ok {
			name, err := url.PathUnescape(name)
			if err != nil {
				return nil, invalid("extended attribute %q", key)
			}
			raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return nil, invalid("the value of extended attribute %q is not base64", key)
			}
			values[name] = string(raw)
		}
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, schily); ok {
			// GNU tar writes "=" and "%" so, because "=" ends a PAX key.
			values[strings.NewReplacer("%3D", "=", "%25", "%").Replace(name)] = value
		}
	}
	var out []erofs.Xattr
	total := 0
	for _, name := range sortedKeys(values) {
		value := values[name]
		// These would steer the overlay of a container; add reads what they say of a
		// directory, the rest means nothing outside the stack that it was made in.
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if !erofs.KnownXattr(name) || !storable(name, fileType) {
			continue
		}
		total += len(name) + len(value) + 8
		if len(value) > math.MaxUint16 || total > 128<<10 {
			return nil, invalid("extended attributes of more than %d bytes", 128<<10)
		}
		if !wellFormed(name, value) {
			return nil, invalid("the value of extended attribute %q is malformed", name)
		}
		out = append(out, erofs.Xattr{Name: name, Value: value})
	}
	return out, nil
}

// storable says whether Linux would store the attribute for a file of the type.
func storable(name string, fileType uint32) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return fileType == erofs.TypeRegular || fileType == erofs.TypeDir
	case name == "system.posix_acl_default":
		return fileType == erofs.TypeDir
	case name == "system.posix_acl_access":
		return fileType != erofs.TypeSymlink
	case name == "security.capability":
		return fileType == erofs.TypeRegular
	}
	return true
}

// wellFormed checks the values that Linux checks when it stores them. A file
// system that is mounted with a malformed one would fail much later.
func wellFormed(name, value string) bool {
	switch name {
	case "security.capability": // struct vfs_ns_cap_data
		if len(value) < 4 {
			return false
		}
		size, ok := map[byte]int{1: 12, 2: 20, 3: 24}[value[3]]
		return ok && len(value) == size
	case "system.posix_acl_access", "system.posix_acl_default":
		return len(value) >= 4 && (len(value)-4)%8 == 0 && value[:4] == "\x02\x00\x00\x00"
	}
	return true
}
