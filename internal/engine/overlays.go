package engine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// overlays are the writable views of snapshots that steps have mounted. An
// upper directory must have one overlay at a time, so steps at the same time
// (a cache that is shared) get the same.
type overlays struct {
	// mu guards byUpper, and is held while one is mounted or unmounted, which
	// waits for nobody.
	mu      sync.Mutex
	byUpper map[string]*sharedOverlay
}

type sharedOverlay struct {
	at      string // attached here in the engine's mount namespace
	shifted bool   // for the engine's user namespace
	users   int
}

// mountOverlay attaches a writable view of a snapshot, shifted for the engine's
// user namespace or not, and gives the place. release gives it up.
func (e *Engine) mountOverlay(f StepFiles, shifted bool) (at string, release func() error, err error) {
	o := &e.overlays
	o.mu.Lock()
	defer o.mu.Unlock()
	x := o.byUpper[f.Upper]
	switch {
	case x == nil:
		x = &sharedOverlay{shifted: shifted}
		if x.at, err = e.attachOverlay(f, shifted, false); err != nil {
			return "", nil, err
		}
		if o.byUpper == nil {
			o.byUpper = map[string]*sharedOverlay{}
		}
		o.byUpper[f.Upper] = x
	case x.shifted != shifted:
		return "", nil, refusef(errdefs.ErrUnavailable, "its files are in use by a step with another user namespace: build again when that has ended")
	}
	x.users++
	return x.at, sync.OnceValue(func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if x.users--; x.users > 0 {
			return nil
		}
		delete(o.byUpper, f.Upper)
		return errors.Join(sys.Detach(x.at), os.Remove(x.at), unmark(f.Upper))
	}), nil
}

// unmark removes what a volatile overlay leaves: whoever mounts this one next
// may, since the host is still up.
func unmark(upper string) error {
	if err := os.RemoveAll(filepath.Join(upper, "work", "work", "incompat")); err != nil {
		return fmt.Errorf("cannot release the writable layer of a step: %w", err)
	}
	return nil
}

// attachReadonly is mountOverlay for who only reads: everybody gets one.
func (e *Engine) attachReadonly(f StepFiles, shifted bool) (at string, release func() error, err error) {
	if at, err = e.attachOverlay(f, shifted, true); err != nil {
		return "", nil, err
	}
	return at, sync.OnceValue(func() error { return errors.Join(sys.Detach(at), os.Remove(at)) }), nil
}

func (e *Engine) attachOverlay(f StepFiles, shifted, readonly bool) (at string, err error) {
	m, err := e.joinOverlay(f, shifted, readonly)
	if err != nil {
		return "", err
	}
	defer m.Close()
	// Below the instances' directory, so that the next engine removes it.
	at = e.runDir("overlay-" + short(newID()))
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", fmt.Errorf("cannot make a mount point: %w", err)
	}
	if err := sys.Attach(m, at); err != nil {
		return "", errors.Join(err, os.Remove(at))
	}
	return at, nil
}

// joinOverlay makes a view of a snapshot as a detached mount: layers idmapped
// where it is shifted, because an overlay itself cannot be. A read-only one
// reads the upper directory of the snapshot and locks nothing.
func (e *Engine) joinOverlay(f StepFiles, shifted, readonly bool) (m *os.File, err error) {
	lower, err := sys.CloneTree(nil, f.Source, false)
	if err != nil {
		return nil, err
	}
	defer lower.Close()
	var layer *os.File
	if readonly {
		layer, err = sys.CloneTree(nil, filepath.Join(f.Upper, "upper"), false)
	} else {
		layer, err = sys.WritableLayer(f.Upper, lower)
	}
	if err != nil {
		return nil, err
	}
	defer layer.Close()
	err = sys.OnThread(func(t *sys.Thread) error {
		attr := 0
		if shifted {
			for _, l := range []*os.File{lower, layer} {
				if err := sys.Idmap(l, e.userns, false); err != nil {
					return err
				}
			}
			if err := t.FileIDs(e.ids.Root(), e.ids.Root()); err != nil {
				return err
			}
			attr = sys.MountNodev // device nodes of an image would work
		}
		if readonly {
			m, err = sys.OverlayReadonly(lower, layer, attr)
		} else {
			m, err = sys.Overlay([]*os.File{lower}, layer, attr, true)
		}
		return err
	})
	return m, err
}
