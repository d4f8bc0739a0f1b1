package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"sync"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/rootfs"
	"proa/internal/sys"
)

// copiesDir holds a place for each copied mount, by its number in the setup
// counted from 1: "data" is what the host put there, "rw" the writable layer
// above it. It lies on the writable disk, outside of the root's layer.
const copiesDir = diskDir + "/copies"

// copyData is the name under which the host puts files into a place.
const copyData = "data"

func copyPlace(i int) string { return path.Join(copiesDir, strconv.Itoa(i+1)) }

// unstubber knows the mount points that the agent made in the root, to be taken away
// before the root's layer is read.
type unstubber struct {
	once    sync.Once
	err     error
	bare    *os.File // the root without mounts
	made    []sys.Stub
	parents bool
}

// note remembers what was made. With a nil receiver nothing is.
func (u *unstubber) note(made []sys.Stub) {
	if u != nil {
		u.made = append(u.made, made...)
	}
}

// remove takes the mount points away, once. The user's processes have ended;
// what is still mounted is in the agent's own view, where it keeps them.
func (u *unstubber) remove() error {
	if u == nil {
		return nil
	}
	u.once.Do(func() {
		for _, dir := range []string{rootDir, viewDir} {
			if u.err = sys.DetachBelow(dir); u.err != nil {
				return
			}
		}
		u.err = sys.RemoveStubs(u.bare, u.made, u.parents)
	})
	return u.err
}

// makePlaces makes the places of copied mounts, empty.
func makePlaces(mounts []isolation.Mount) error {
	for i := range mounts {
		m := &mounts[i]
		if m.Type != isolation.MountCopy {
			continue
		}
		at := copyPlace(i)
		err := os.MkdirAll(at, 0o700)
		if err == nil && m.InMemory {
			err = mount("tmpfs", sys.MountNodev, at, sys.FSConfig{Key: "source", Value: "tmpfs"}, sys.FSConfig{Key: "mode", Value: "0700"})
		}
		if err != nil {
			return failed("make a place for the mount at "+m.Target, err)
		}
	}
	return nil
}

// attach mounts what the user wants, in its order: later ones may lie in
// earlier ones. It does so once.
func (r *room) attach() error {
	mounts := r.mounts
	r.mounts = nil
	for i := range mounts {
		m := &mounts[i]
		var err error
		switch m.Type {
		case isolation.MountTmpfs:
			err = r.tmpfs(m)
		case isolation.MountCopy:
			if err = r.copied(i, m); err != nil {
				err = failed("mount the files at "+m.Target, err)
			}
		default:
			err = &isolation.StartError{Kind: isolation.StartFailed, Step: fmt.Sprintf("mount %s at %s", m.Type, m.Target), Why: "the guest agent mounts tmpfs and copies only"}
		}
		if err != nil {
			return err
		}
	}
	return r.showFiles() // last, so that no mount above hides them
}

// copied mounts what the host put into a place.
func (r *room) copied(i int, m *isolation.Mount) error {
	place, err := sys.OpenPath(copyPlace(i))
	if err != nil {
		return err
	}
	defer place.Close()
	data, err := sys.OpenPathInRoot(place, copyData)
	if err != nil {
		return err
	}
	defer data.Close()
	dir, err := sys.IsDir(data)
	if err != nil {
		return err
	}
	mnt, err := sys.CloneTree(data, "", false)
	if err != nil {
		return err
	}
	if dir && !m.Readonly {
		mnt, err = writable(mnt, path.Join(copyPlace(i), "rw"))
	}
	defer mnt.Close()
	if err != nil {
		return err
	}
	if m.Readonly {
		if err := sys.SetMountAttr(mnt, sys.MountReadonly, 0, false); err != nil {
			return err
		}
	}
	at, made, err := sys.MakeTarget(r.root, m.Target, dir)
	r.stubs.note(made)
	if err != nil {
		return err
	}
	defer at.Close()
	return sys.AttachTo(mnt, at)
}

// writable joins files with an empty layer above them; lower is taken over.
func writable(lower *os.File, dir string) (*os.File, error) {
	layer, err := sys.WritableLayer(dir, lower)
	if err != nil {
		return lower, err
	}
	defer layer.Close()
	both, err := sys.Overlay([]*os.File{lower}, layer, sys.MountNodev, true)
	if err != nil {
		return lower, err
	}
	lower.Close()
	return both, nil
}

// mountTree is the tree of a copied mount.
func (a *Agent) mountTree(number int) (t rootfs.Tree, err error) {
	at := copyPlace(number - 1)
	if t.Root, err = sys.OpenPath(at); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return t, &wire.Failure{Kind: wire.FailNoFile, Step: "reach files", Why: "there is no mount " + strconv.Itoa(number)}
		}
		return t, err
	}
	t.User = a.files.tree.User
	t.Lower, err = sys.OpenPath(path.Join(at, copyData))
	if err == nil {
		t.Upper, err = sys.OpenPath(path.Join(at, "rw/upper"))
	}
	if errors.Is(err, os.ErrNotExist) { // nothing put, or not writable
		err = nil
	}
	return t, err
}

func closeTree(t *rootfs.Tree) {
	for _, f := range []*os.File{t.Root, t.Lower, t.Upper} {
		if f != nil {
			f.Close()
		}
	}
}
