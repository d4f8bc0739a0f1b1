package flat

import (
	"cmp"
	"path"
	"slices"

	"proa/internal/image/erofs"
)

// Owner is an id above 65535 that a file of an image belongs to.
type Owner struct {
	ID   uint32 `json:"id"`
	Path string `json:"path"` // of one such file, the first by its name
}

// maxOwners bounds the owners that are recorded of an image, and with them the
// size of the record that an untrusted image can cause.
const maxOwners = 1024

// ownersOf lists the owners above 65535 of a merged tree, in ascending order.
func ownersOf(root *erofs.Inode) []Owner {
	found := map[uint32]string{}
	ownersBelow(root, "/", found)
	var out []Owner
	for id, at := range found {
		out = append(out, Owner{id, at})
	}
	slices.SortFunc(out, func(a, b Owner) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func ownersBelow(i *erofs.Inode, at string, found map[uint32]string) {
	note := func(i *erofs.Inode, dir, name string) {
		for _, id := range [2]uint32{i.UID, i.GID} {
			if id < 1<<16 {
				continue
			}
			full := path.Join(dir, name)
			if old, ok := found[id]; ok && old <= full || !ok && len(found) == maxOwners {
				continue
			}
			found[id] = full
		}
	}
	if at == "/" {
		note(i, at, "")
	}
	for name, kid := range i.Children {
		note(kid, at, name)
		if len(kid.Children) > 0 {
			ownersBelow(kid, path.Join(at, name), found)
		}
	}
}

// Owners lists the owners above 65535 of layers, lowest first, as Merge would
// put them together.
func Owners(layers []*Layer) ([]Owner, error) {
	root, _, err := mergeTrees(layers)
	if err != nil {
		return nil, err
	}
	return ownersOf(root), nil
}
