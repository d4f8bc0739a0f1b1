package flat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"proa/internal/image/erofs"
	"proa/internal/sys"
)

// Merge writes the image index of layers, lowest first, to the file out, which
// appears whole or not at all. Device i+1 of the index is layers[i].Data().
// Layers that do not fit together (a hard link whose target no lower layer
// has) are ErrInvalidArgument, damaged ones ErrDataLoss.
//
// Each layer's whiteouts and opaque marks are applied to what lies below it,
// then its entries are put on top, so that a mark never hides an entry of its
// own layer. A directory over a directory keeps the children and takes the new
// metadata, extended attributes included; everything else replaces. A
// directory that a layer only implies changes nothing about one that exists;
// where the layers below have a symlink in its place, the symlink is followed,
// inside the image, as containerd does (a layer with lib/x over a base whose
// lib is usr/lib).
func Merge(layers []*Layer, out string) error {
	_, err := MergeOwners(layers, out)
	return err
}

// MergeOwners is Merge that also lists the owners above 65535.
func MergeOwners(layers []*Layer, out string) ([]Owner, error) {
	root, devices, err := mergeTrees(layers)
	if err != nil {
		return nil, fmt.Errorf("cannot merge %d layers: %w", len(layers), err)
	}
	if err := writeIndex(root, devices, out); err != nil {
		return nil, fmt.Errorf("cannot write image index %q: %w", out, err)
	}
	return ownersOf(root), nil
}

// mergeTrees reads the layers' trees and returns the merged one.
func mergeTrees(layers []*Layer) (*erofs.Inode, []erofs.Device, error) {
	m := &merger{root: impliedDir()}
	var devices []erofs.Device
	for i, l := range layers {
		b, err := os.ReadFile(l.Tree())
		if err != nil {
			return nil, nil, err
		}
		have, tree, err := decodeTree(b, uint16(i+1))
		if err != nil {
			return nil, nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
		if have.DiffID != l.DiffID || have.Blocks != l.Blocks {
			return nil, nil, damaged("%q holds layer %s, not %s", l.Dir, have.DiffID, l.DiffID)
		}
		if err := m.apply(tree); err != nil {
			return nil, nil, fmt.Errorf("layer %s: %w", l.DiffID, err)
		}
		devices = append(devices, erofs.Device{Tag: l.DiffID.Encoded(), Blocks: uint32(l.Blocks)})
	}
	return m.root, devices, nil
}

func writeIndex(root *erofs.Inode, devices []erofs.Device, out string) error {
	dir := filepath.Dir(out)
	f, err := os.CreateTemp(dir, TempPrefix)
	if err != nil {
		return err
	}
	err = erofs.Write(f, root, devices)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), out)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return sys.SyncDir(dir)
}

// merger holds the image so far. Its directories are its own; files may be
// shared with the trees that they came from.
type merger struct {
	root *erofs.Inode
}

func impliedDir() *erofs.Inode {
	return &erofs.Inode{Mode: erofs.TypeDir | 0o755, Children: map[string]*erofs.Inode{}}
}

// trail is a directory and those above it, the root first.
type trail []*erofs.Inode

func (t trail) dir() *erofs.Inode { return t[len(t)-1] }

func (t trail) down(d *erofs.Inode) trail { return append(t[:len(t):len(t)], d) }

func (m *merger) apply(layer *entry) error {
	root := trail{m.root}
	m.clear(layer.dir, root)
	if err := m.links(layer.dir); err != nil {
		return err
	}
	if layer.ino != nil {
		setMetadata(m.root, layer.ino)
	}
	return m.put(layer.dir, root)
}

// clear applies whiteouts and opaque marks to the directory at and below.
func (m *merger) clear(d *dirent, at trail) {
	if !d.marked {
		return
	}
	have := at.dir().Children
	if d.opaque {
		clear(have)
	}
	for name := range d.whiteouts {
		delete(have, name)
	}
	for _, name := range sortedKeys(d.kids) {
		kid, lower := d.kids[name], have[name]
		if kid.dir == nil || lower == nil {
			continue
		}
		if lower.IsDir() {
			m.clear(kid.dir, at.down(lower))
		} else if kid.ino == nil && isSymlink(lower) {
			if to, missing := m.follow(at, lower.Target); to != nil && len(missing) == 0 {
				m.clear(kid.dir, to)
			}
		}
	}
}

// links finds the targets of the layer's hard links to lower layers, before
// any entry of the layer can take their place.
func (m *merger) links(d *dirent) error {
	for name, kid := range d.kids {
		if kid.dir != nil {
			if err := m.links(kid.dir); err != nil {
				return err
			}
			continue
		}
		if kid.ino != nil {
			continue
		}
		dir, base := "", kid.link
		if i := strings.LastIndexByte(base, '/'); i >= 0 {
			dir, base = base[:i], base[i+1:]
		}
		to, missing := m.follow(trail{m.root}, dir)
		if to == nil || len(missing) > 0 || to.dir().Children[base] == nil || to.dir().Children[base].IsDir() {
			return invalid("%q is a hard link to %q, which is no file of this layer or of those below", name, kid.link)
		}
		kid.ino = to.dir().Children[base]
	}
	return nil
}

// put lays the entries of a layer's directory over the directory at.
func (m *merger) put(d *dirent, at trail) error {
	have := at.dir().Children
	for _, name := range sortedKeys(d.kids) {
		kid, lower := d.kids[name], have[name]
		if kid.dir == nil {
			have[name] = kid.ino
			continue
		}
		if kid.ino == nil && !kid.dir.entries { // implied by whiteouts, which make nothing
			continue
		}
		var to trail
		switch {
		case lower != nil && lower.IsDir():
			to = at.down(lower)
		case lower != nil && kid.ino == nil && isSymlink(lower):
			to = m.makeTarget(at, lower.Target)
		}
		if to == nil {
			have[name] = impliedDir()
			to = at.down(have[name])
		}
		if kid.ino != nil {
			setMetadata(to.dir(), kid.ino)
		}
		if len(to) > 2*maxTreeDepth {
			return invalid("%q is more than %d directories deep", name, 2*maxTreeDepth)
		}
		if err := m.put(kid.dir, to); err != nil {
			return err
		}
	}
	return nil
}

// makeTarget follows a symlink to a directory and makes what is missing of it.
// It is nil when the symlink leads to anything else, or nowhere.
func (m *merger) makeTarget(at trail, target string) trail {
	to, missing := m.follow(at, target)
	if to == nil {
		return nil
	}
	for _, name := range missing {
		d := impliedDir()
		to.dir().Children[name] = d
		to = to.down(d)
	}
	return to
}

// follow resolves a path from the directory at, inside the image: ".." and
// absolute symlinks stay below its root. It returns the directories on the way
// and what does not exist of the path; nil when the path goes through anything
// but directories, or through too many symlinks.
func (m *merger) follow(at trail, path string) (to trail, missing []string) {
	rest := targetPath(path)
	if strings.HasPrefix(path, "/") {
		at = at[:1]
	}
	for hops := 0; len(rest) > 0; {
		name := rest[0]
		if name == ".." {
			at, rest = at[:max(1, len(at)-1)], rest[1:]
			continue
		}
		next := at.dir().Children[name]
		switch {
		case next == nil:
			for _, p := range rest {
				if !erofs.ValidName(p) {
					return nil, nil
				}
			}
			return at, rest
		case next.IsDir():
			at, rest = at.down(next), rest[1:]
		case isSymlink(next):
			if hops++; hops > maxHops {
				return nil, nil
			}
			if strings.HasPrefix(next.Target, "/") {
				at = at[:1]
			}
			rest = append(targetPath(next.Target), rest[1:]...)
		default:
			return nil, nil
		}
	}
	return at, nil
}

func isSymlink(i *erofs.Inode) bool { return i.Mode&erofs.TypeMask == erofs.TypeSymlink }

// setMetadata gives directory d everything of from but its children.
func setMetadata(d, from *erofs.Inode) {
	children := d.Children
	*d = *from
	d.Children = children
}
