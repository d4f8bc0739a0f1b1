package rootfs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// inside gives the owners of a file as a process inside names them. An owner
// outside the map shows as the overflow id through an idmapped mount; it is
// looked up on the disk, and never written as that id (or as root).
func (t *Tree) inside(p *pinned, root *os.File) (uid, gid uint32, err error) {
	if len(t.IDs) == 0 {
		return p.st.UID, p.st.GID, nil
	}
	uid, okU := t.IDs.Inside(p.st.UID)
	gid, okG := t.IDs.Inside(p.st.GID)
	if okU && okG {
		return uid, gid, nil
	}
	uid, gid, err = t.onDisk(p, root)
	if err != nil {
		return 0, 0, fmt.Errorf("its owner lies outside the ids of the container's user namespace (%s), and where it is mounted does not show it: stop the container first, or create it with --userns host: %w: %w", t.IDs, err, errdefs.ErrFailedPrecondition)
	}
	return uid, gid, nil
}

// onDisk gives the owners of a file of the root's own overlay (not of a mount
// below it) as its upper or lower directory has them.
func (t *Tree) onDisk(p *pinned, root *os.File) (uid, gid uint32, err error) {
	if t.Upper == nil || t.Lower == nil {
		return 0, 0, errors.New("no layers")
	}
	if same, err := sys.SameMount(p.f, root); err != nil || !same {
		return 0, 0, errors.Join(errors.New("it lies on another mount"), err)
	}
	at, err := sys.PathOf(p.f)
	if err != nil {
		return 0, 0, err
	}
	top, err := sys.PathOf(root)
	if err != nil {
		return 0, 0, err
	}
	rel, ok := strings.CutPrefix(at, strings.TrimSuffix(top, "/"))
	if !ok {
		return 0, 0, fmt.Errorf("%q does not lie below %q", at, top)
	}
	for _, layer := range []*os.File{t.Upper, t.Lower} {
		f, err := sys.OpenInRoot(layer, rel, sys.OnlyPin|syscall.O_NOFOLLOW, 0)
		if gone(err) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		st, err := sys.StatFile(f)
		_ = f.Close()
		if err != nil || st.Type() == p.st.Type() {
			return st.UID, st.GID, err
		}
	}
	return 0, 0, fmt.Errorf("%q is in no layer: %w", rel, os.ErrNotExist)
}

// outside is what an owner has to be set to through the mounts of the root. The
// kernel refuses one that the map lacks.
func (t *Tree) outside(uid, gid uint32) (hostUID, hostGID uint32, err error) {
	if len(t.IDs) == 0 {
		return uid, gid, nil
	}
	hostUID, ok := t.IDs.Outside(uid)
	if !ok {
		return 0, 0, fmt.Errorf("%s: %w", isolation.NoID("user", uid, t.IDs), errdefs.ErrInvalidArgument)
	}
	if hostGID, ok = t.IDs.Outside(gid); !ok {
		return 0, 0, fmt.Errorf("%s: %w", isolation.NoID("group", gid, t.IDs), errdefs.ErrInvalidArgument)
	}
	return hostUID, hostGID, nil
}
