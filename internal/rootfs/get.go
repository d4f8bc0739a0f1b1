package rootfs

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	"proa/internal/sys"
)

// Get writes a file, or a directory with all below it, as a tar stream. The
// entries begin with the last part of the path, as Docker's do: "/etc" gives
// "etc/passwd", "/etc/." gives "./passwd", "/" gives "/bin", "/." gives "./bin". Links are kept as
// they are, mounts are gone into, sockets are left out. What changes meanwhile
// leaves the stream whole.
func (t *Tree) Get(ctx context.Context, name string, w io.Writer) error {
	return t.GetAs(ctx, name, EntryBase(name), w)
}

// GetAs is Get of what has another name in the stream.
func (t *Tree) GetAs(ctx context.Context, name, base string, w io.Writer) error {
	p, err := t.pin(name)
	if err != nil {
		return err
	}
	defer p.close()
	o := newTarOut(ctx, w, layerXattr)
	o.owner = func(p *pinned) (uid, gid uint32, err error) { return t.inside(p, t.Root) }
	if err := o.tree(base, p, 0); err != nil {
		return fmt.Errorf("cannot read %q: %w", name, err)
	}
	return o.close()
}

// Export writes the whole root, without mounts, as a tar stream.
func (t *Tree) Export(ctx context.Context, w io.Writer) error {
	p, err := pin(t.Bare)
	if err != nil {
		return err
	}
	o := newTarOut(ctx, w, layerXattr)
	o.owner = func(p *pinned) (uid, gid uint32, err error) { return t.inside(p, t.Bare) }
	if err := o.below("", p, 0); err != nil {
		return fmt.Errorf("cannot export: %w", err)
	}
	return o.close()
}

// tree writes a file and, if it is a directory, what is below it.
func (t *tarOut) tree(name string, p *pinned, depth int) error {
	if p.st.Type() != sys.TypeDir {
		return t.put(name, p)
	}
	name += "/"
	if err := t.put(name, p); err != nil {
		return err
	}
	return t.below(name, p, depth)
}

// below writes what is in a directory; at is its name with a slash at the end.
func (t *tarOut) below(at string, dir *pinned, depth int) error {
	names, err := t.list(dir.f, at, depth)
	if err != nil {
		return err
	}
	for _, n := range names {
		p, err := pinEntry(dir.f, n)
		if gone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%q: %w", at+n, err)
		}
		err = t.tree(at+n, p, depth+1)
		p.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// trimRoot is a path inside without what stands before its first name.
func trimRoot(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
