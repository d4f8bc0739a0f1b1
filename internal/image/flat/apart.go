package flat

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"proa/internal/image/erofs"
)

// Apart writes an index of one layer alone to the file out, in the form that
// an overlay's upper directory has: a whiteout is a character device 0:0, an
// opaque directory has the attribute trusted.overlay.opaque. Nothing but what
// makes layers again may be given a mount of it. root says whether the layer
// has an entry of its own for the root. A layer with a hard link to a file of
// another layer has no such form: ErrFailedPrecondition.
func Apart(l *Layer, out string) (root bool, err error) {
	b, err := os.ReadFile(l.Tree())
	if err != nil {
		return false, fmt.Errorf("cannot read layer %s: %w", l.DiffID, err)
	}
	_, tree, err := decodeTree(b, 1)
	if err != nil {
		return false, fmt.Errorf("cannot read layer %s: %w", l.DiffID, err)
	}
	top, err := apart(tree)
	if err != nil {
		return false, fmt.Errorf("cannot show layer %s apart: %w", l.DiffID, err)
	}
	if err := writeIndex(top, []erofs.Device{{Tag: l.DiffID.Encoded(), Blocks: uint32(l.Blocks)}}, out); err != nil {
		return false, fmt.Errorf("cannot show layer %s apart: %w", l.DiffID, err)
	}
	return tree.ino != nil, nil
}

// apart makes the inode of an entry.
func apart(e *entry) (*erofs.Inode, error) {
	if e.dir == nil {
		if e.ino == nil {
			return nil, fmt.Errorf("it has a hard link to %q of another layer: %w", e.link, errdefs.ErrFailedPrecondition)
		}
		return e.ino, nil
	}
	d := impliedDir()
	if e.ino != nil {
		setMetadata(d, e.ino)
	}
	if e.dir.opaque {
		d.Xattrs = append(d.Xattrs[:len(d.Xattrs):len(d.Xattrs)], erofs.Xattr{Name: "trusted.overlay.opaque", Value: "y"})
	}
	for name := range e.dir.whiteouts {
		d.Children[name] = &erofs.Inode{Mode: erofs.TypeChar}
	}
	for name, kid := range e.dir.kids {
		i, err := apart(kid)
		if err != nil {
			return nil, err
		}
		d.Children[name] = i
	}
	return d, nil
}
