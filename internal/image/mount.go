package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"proa/internal/image/flat"
	"proa/internal/sys"
)

// mounts are the images that are attached below Config.Mounts: each stack of
// layers once, so that all its users share one page cache.
type mounts struct {
	mu      sync.Mutex // guards the map, and users and timer of its values
	byChain map[digest.Digest]*mounted
}

type mounted struct {
	once  sync.Mutex // guards up; held while it is attached or detached; taken before mounts.mu
	up    bool
	users int
	timer *time.Timer // detaches it when nobody came back
}

// Mounted is one user's view of an image's files.
type Mounted struct {
	// Tree is a detached, read-only mount of the image's root. It outlives
	// the attached mount that it was cloned from, and the Store.
	Tree *os.File

	s     *Store
	chain digest.Digest
	once  sync.Once
}

// Close gives the tree up. What was mounted from it elsewhere stays.
func (m *Mounted) Close() error {
	var err error
	m.once.Do(func() {
		err = m.Tree.Close()
		m.s.leave(m.chain)
	})
	return err
}

// Mount gives the files of the image with this full id as a detached mount.
// The caller must hold a lease on the image. Close the result once what it is
// needed for has been mounted: a container's own clone keeps the image alive.
func (s *Store) Mount(ctx context.Context, id string) (*Mounted, error) {
	defer s.share()()
	files, chain, err := s.files(ctx, id)
	if err != nil {
		return nil, err
	}
	at, done, err := s.attach(chain, files)
	if err != nil {
		return nil, err
	}
	tree, err := sys.CloneTree(nil, at, false)
	done()
	if err != nil {
		s.leave(chain)
		return nil, err
	}
	return &Mounted{Tree: tree, s: s, chain: chain}, nil
}

// attach counts one more user of a stack of layers and attaches it unless it
// is. Nothing detaches it before done was called; afterwards it is attached
// for as long as it has a user, but in a Store that is closed.
func (s *Store) attach(chain digest.Digest, files flat.Files) (at string, done func(), err error) {
	m := s.mounts.enter(chain)
	at = filepath.Join(s.cfg.Mounts, dir(chain))
	m.once.Lock()
	defer func() {
		if err != nil {
			m.once.Unlock()
			s.leave(chain)
		}
	}()
	if !m.up {
		if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", nil, fmt.Errorf("cannot mount image: %w", err)
		}
		if err := s.mounter.Mount(files, at); err != nil {
			_ = os.Remove(at)
			return "", nil, s.explain(err)
		}
		m.up = true
	}
	return at, m.once.Unlock, nil
}

// share holds off the removal of files until the returned function is called.
func (s *Store) share() func() {
	s.work.RLock()
	return s.unshare
}

func (s *Store) unshare() {
	s.work.RUnlock()
	if s.pending.Load() {
		s.wake()
	}
}

// enter counts one more user.
func (ms *mounts) enter(chain digest.Digest) *mounted {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.byChain[chain]
	if m == nil {
		m = &mounted{}
		ms.byChain[chain] = m
	}
	m.users++
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	return m
}

// leave counts one user less; the last one starts the clock.
func (s *Store) leave(chain digest.Digest) {
	ms := &s.mounts
	ms.mu.Lock()
	defer ms.mu.Unlock()
	m := ms.byChain[chain]
	if m == nil {
		return
	}
	if m.users--; m.users == 0 {
		m.timer = time.AfterFunc(s.cfg.Idle, func() { s.warn(s.detach(chain, false)) })
	}
}

// detach unmounts an image that has no user, or with force any. Clones live on.
func (s *Store) detach(chain digest.Digest, force bool) error {
	ms := &s.mounts
	ms.mu.Lock()
	m := ms.byChain[chain]
	ms.mu.Unlock()
	if m == nil {
		return nil
	}
	m.once.Lock()
	defer m.once.Unlock()
	ms.mu.Lock()
	busy := m.users > 0 && !force
	ms.mu.Unlock()
	// A user that enters now waits for once and attaches again.
	if busy || !m.up {
		return nil
	}
	at := filepath.Join(s.cfg.Mounts, dir(chain))
	if err := s.mounter.Unmount(at); err != nil {
		return err
	}
	m.up = false
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot unmount image: %w", err)
	}
	return nil
}

// dropMounts unmounts every image whose chain is not in keep.
func (s *Store) dropMounts(keep map[digest.Digest]bool) error {
	s.mounts.mu.Lock()
	var gone []digest.Digest
	for c := range s.mounts.byChain {
		if !keep[c] {
			gone = append(gone, c)
		}
	}
	s.mounts.mu.Unlock()
	var errs []error
	for _, c := range gone {
		errs = append(errs, s.detach(c, true))
	}
	return errors.Join(errs...)
}

// Disk is what a machine gets of an image: files to be attached read-only.
type Disk struct {
	// Index is the EROFS image of all layers merged, the first device.
	Index string
	// Data are the layers' data files, the devices that Index points into, in
	// its order.
	Data []string
	// ChainID names the stack.
	ChainID digest.Digest
}

// Disk gives the files of the image with this full id. The caller must hold a
// lease on the image for as long as it uses them.
func (s *Store) Disk(ctx context.Context, id string) (*Disk, error) {
	defer s.share()()
	files, chain, err := s.files(ctx, id)
	if err != nil {
		return nil, err
	}
	return &Disk{Index: files.Index, Data: files.Data, ChainID: chain}, nil
}

// files gives an image's files, making the index again if it is missing.
func (s *Store) files(ctx context.Context, id string) (flat.Files, digest.Digest, error) {
	p, err := s.config(ctx, digest.Digest(id))
	if err != nil {
		return flat.Files{}, "", fmt.Errorf("cannot mount image %s: %w", id, err)
	}
	f, err := s.stack(p.chain, p.oci.RootFS.DiffIDs)
	if err != nil {
		return flat.Files{}, "", s.explain(fmt.Errorf("cannot mount image %s: %w", id, err))
	}
	return f, p.chain, nil
}

// stack gives the files of a stack of layers, making the index if there is
// none.
func (s *Store) stack(chain digest.Digest, diffIDs []digest.Digest) (flat.Files, error) {
	f := flat.Files{Index: s.indexPath(chain), Dir: s.extractDir(chain)}
	for _, d := range diffIDs {
		f.Data = append(f.Data, (&flat.Layer{Dir: s.layerDir(d)}).Data())
	}
	if _, err := os.Stat(f.Index); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	layers := make([]*flat.Layer, len(diffIDs))
	for i, d := range diffIDs {
		var err error
		if layers[i], err = flat.ReadLayer(s.layerDir(d)); err != nil {
			return f, fmt.Errorf("layer %s: %w", d, err)
		}
	}
	return f, s.index(chain, layers)
}
