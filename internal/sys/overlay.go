package sys

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Overlay makes a detached overlay of the detached mounts lowers, the topmost
// first, and layer, which holds "upper" and "work". It works with the ids of the
// calling thread (Thread.FileIDs), which must be those of the container's root
// where the layers are idmapped. attr is a set of MOUNT_ATTR_ flags. With
// volatile nothing is ever synced.
func Overlay(lowers []*os.File, layer *os.File, attr int, volatile bool) (*os.File, error) {
	// index and its file handles are of no use to one mount of one upper. Without
	// the other two every file of the upper is whole, whatever the kernel's
	// default is: layers are made of it (rootfs.WriteLayer).
	rest := []FSConfig{{Key: "index", Value: "off"}, {Key: "redirect_dir", Value: "off"}, {Key: "metacopy", Value: "off"}, {Key: "source", Value: "overlay"}}
	if volatile {
		rest = append(rest, FSConfig{Key: "volatile", Flag: true})
	}
	if !oldOverlay.Load() {
		m, err := overlayDetached(lowers, layer, attr, rest)
		if err == nil {
			return m, nil
		}
		// EOPNOTSUPP: an overlay takes nothing but names (before Linux 6.5);
		// EINVAL: no descriptors (6.13), or no detached layers (6.15).
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, err
		}
	}
	m, err := overlayAttached(lowers, layer, attr, rest)
	if err == nil {
		oldOverlay.Store(true)
	}
	return m, err
}

// oldOverlay remembers that only overlayAttached works here.
var oldOverlay atomic.Bool

// overlayDetached gives the layers as descriptors of detached mounts (Linux 6.15).
func overlayDetached(lowers []*os.File, layer *os.File, attr int, rest []FSConfig) (*os.File, error) {
	upper, work, err := writableDirs(layer)
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	defer work.Close()
	config := append([]FSConfig{{Key: "upperdir", File: upper}, {Key: "workdir", File: work}}, rest...)
	for _, l := range lowers {
		config = append(config, FSConfig{Key: "lowerdir+", File: l})
	}
	return NewFS("overlay", attr, config...)
}

// overlayAttached is overlayDetached for older kernels.
func overlayAttached(lowers []*os.File, layer *os.File, attr int, rest []FSConfig) (*os.File, error) {
	return overlayOfAttached(append(slices.Clone(lowers), layer), func() (m *os.File, err error) {
		upper, work, err := writableDirs(layer)
		if err != nil {
			return nil, err
		}
		defer upper.Close()
		defer work.Close()
		names := make([]string, 0, len(lowers))
		for _, l := range lowers {
			names = append(names, ownName(l))
		}
		return NewFS("overlay", attr, append([]FSConfig{
			{Key: "lowerdir", Value: strings.Join(names, ":")}, {Key: "upperdir", Value: ownName(upper)}, {Key: "workdir", Value: ownName(work)},
		}, rest...)...)
	})
}

// OverlayReadonly makes a detached, read-only overlay of two detached mounts,
// the second of which lies above the first and may have been the upper
// directory of another overlay. It has no lock on that and does not write to it.
// Ids and attr as with Overlay.
func OverlayReadonly(lower, upper *os.File, attr int) (*os.File, error) {
	attr |= MountReadonly
	rest := []FSConfig{{Key: "source", Value: "overlay"}, {Key: "redirect_dir", Value: "off"}, {Key: "metacopy", Value: "off"}}
	if !oldOverlay.Load() {
		m, err := NewFS("overlay", attr, append([]FSConfig{{Key: "lowerdir+", File: upper}, {Key: "lowerdir+", File: lower}}, rest...)...)
		if err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return m, err
		}
	}
	return overlayOfAttached([]*os.File{lower, upper}, func() (*os.File, error) {
		return NewFS("overlay", attr, append([]FSConfig{{Key: "lowerdir", Value: ownName(upper) + ":" + ownName(lower)}}, rest...)...)
	})
}

// ownName is a name for what the calling thread has open.
func ownName(f *os.File) string { return "/proc/thread-self/fd/" + strconv.Itoa(RawFD(f)) }

// overlayOfAttached has an overlay made of layers for kernels that take names
// and no layers that are not mounted in the caller's mount namespace. So a
// thread makes a namespace that ends with it and mounts them there; the overlay
// keeps private clones of them. They are attached afterwards and cannot be
// attached again.
func overlayOfAttached(layers []*os.File, do func() (*os.File, error)) (m *os.File, err error) {
	uid, gid := fileIDs()
	err = OnThread(func(t *Thread) error {
		if err := t.FileIDs(uid, gid); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("cannot make a mount namespace for an overlay: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("cannot make the root mount private: %w", err)
		}
		// One above the other on the root, where a place is always: names are
		// still looked up below, from the thread's own root.
		for _, f := range layers {
			// A clone of a shared mount is a peer of it: what is mounted on the
			// one would appear on the other, which is the host's.
			if err := SetPropagation(f, "private"); err != nil {
				return err
			}
			if err := Attach(f, "/"); err != nil {
				return err
			}
		}
		m, err = do()
		return err
	})
	return m, err
}

// writableDirs opens the two directories of a writable layer.
func writableDirs(layer *os.File) (upper, work *os.File, err error) {
	if upper, err = OpenPlainDir(layer, "upper"); err != nil {
		return nil, nil, fmt.Errorf("cannot open the writable layer: %w", err)
	}
	if work, err = OpenPlainDir(layer, "work"); err != nil {
		_ = upper.Close()
		return nil, nil, fmt.Errorf("cannot open the writable layer: %w", err)
	}
	return upper, work, nil
}
