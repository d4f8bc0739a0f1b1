package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"proa/internal/sys"
)

// wake asks the collector to run soon.
func (s *Store) wake() {
	select {
	case s.collect <- struct{}{}:
	default:
	}
}

// collector removes what became unneeded while nobody waited for it.
func (s *Store) collector(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.collect:
			s.warn(s.clean(context.WithoutCancel(ctx))) // Close waits for it
		}
	}
}

// clean removes blobs, flat layers and indexes that no record and no lease
// needs. While something is being made or mounted it leaves the work to
// whoever ends that last.
func (s *Store) clean(ctx context.Context) error {
	s.cleaning.Lock()
	defer s.cleaning.Unlock()
	s.pending.Store(true)
	if !s.work.TryLock() {
		return nil
	}
	defer s.work.Unlock()
	s.pending.Store(false)
	// Files first: on a full disk they make the room that the transaction of
	// the blobs' collection needs.
	swept := func() error {
		var g grave
		defer func() { s.bury(g) }()
		return s.sweep(ctx, &g)
	}
	ferr := swept()
	var pruned func()
	c := &collection{db: s.cfg.DB.Bolt(), also: func(tx *bolt.Tx) (err error) {
		pruned, err = s.snapshots.Prune(tx)
		return err
	}}
	defer c.abandon()
	blobs := buryingBlobs{s.backend, filepath.Join(s.cfg.Root, "content"), new(grave)}
	_, err := metadata.NewDB(c, blobs, nil).GarbageCollect(in(ctx))
	s.bury(*blobs.grave)
	if err != nil {
		return errors.Join(ferr, fmt.Errorf("cannot remove unneeded blobs and snapshots: %w", err))
	}
	if pruned != nil { // what those snapshots needed shows only now
		pruned()
		ferr = errors.Join(ferr, swept())
	}
	if s.strays.Swap(false) {
		ferr = errors.Join(ferr, s.removeStrays(ctx))
	}
	return ferr
}

// collection makes containerd's garbage collection mark and sweep in one
// transaction. It uses two, and keeps writers out in between with a lock that
// Lease within a caller's transaction cannot take: the collection would remove
// a lease that was made between them.
type collection struct {
	db   *bolt.DB
	also func(*bolt.Tx) error // the end of the sweep
	tx   *bolt.Tx             // open from the mark to the end of the sweep
	// swept is set then; what follows only looks which blobs have a record.
	swept bool
}

// View is the mark the first time.
func (c *collection) View(fn func(*bolt.Tx) error) error {
	if c.swept {
		return c.db.View(fn)
	}
	if c.tx == nil {
		tx, err := c.db.Begin(true)
		if err != nil {
			return err
		}
		c.tx = tx
	}
	return fn(c.tx)
}

// Update is the sweep.
func (c *collection) Update(fn func(*bolt.Tx) error) error {
	if c.tx == nil {
		return c.db.Update(fn)
	}
	if err := fn(c.tx); err != nil {
		return err
	}
	if err := c.also(c.tx); err != nil {
		return err
	}
	tx := c.tx
	c.tx, c.swept = nil, true
	return tx.Commit()
}

// abandon ends a collection that did not come to its end.
func (c *collection) abandon() {
	if c.tx != nil {
		_ = c.tx.Rollback()
		c.tx = nil
	}
}

// needed gives the layers and chains of every image that has a record or a
// lease, and of every snapshot.
func (s *Store) needed(ctx context.Context) (layers, chains map[digest.Digest]bool, err error) {
	ids := map[digest.Digest]bool{}
	if err := s.cfg.DB.View(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		all, err := s.records.List(ctx)
		if err != nil {
			return fmt.Errorf("cannot list images: %w", err)
		}
		for _, r := range all {
			ids[recordID(r)] = true
		}
		held, err := s.holders(ctx)
		if err != nil {
			return err
		}
		for _, id := range held {
			ids[id] = true
		}
		layers, chains, err = s.snapshots.Needed(tx)
		return err
	}); err != nil {
		return nil, nil, err
	}
	for id := range ids {
		p, err := s.config(ctx, id)
		if err != nil {
			// Better too much on disk than too little.
			return nil, nil, fmt.Errorf("cannot tell what image %s needs, so nothing is removed: %w", id, err)
		}
		chains[p.chain] = true
		for _, d := range p.oci.RootFS.DiffIDs {
			layers[d] = true
		}
	}
	s.forget(ids, layers)
	return layers, chains, nil
}

// forget drops what is remembered of images and layers that are gone.
func (s *Store) forget(ids, layers map[digest.Digest]bool) {
	s.cacheMu.Lock()
	defer s.cacheMu.Unlock()
	for id := range s.cache {
		if !ids[id] {
			delete(s.cache, id)
		}
	}
	for d := range s.sizes {
		if !layers[d] {
			delete(s.sizes, d)
		}
	}
}

// sweep removes the files of layers and chains that nothing needs. The caller
// holds work exclusively.
func (s *Store) sweep(ctx context.Context, g *grave) error {
	layers, chains, err := s.needed(ctx)
	if err != nil {
		return err
	}
	var errs []error
	if err := s.dropMounts(chains); err != nil {
		errs = append(errs, err)
	}
	for sub, keep := range map[string]map[digest.Digest]bool{"flat": layers, "index": chains, "owners": chains, "extract": chains} {
		errs = append(errs, removeOthers(filepath.Join(s.cfg.Root, sub), keep, g))
	}
	return errors.Join(errs...)
}

// removeOthers removes every entry of a directory that is not the name of a
// digest in keep: what nobody needs, and what somebody was making.
func removeOthers(parent string, keep map[digest.Digest]bool, g *grave) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("cannot sweep image files: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if isDir(e.Name()) && keep[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] {
			continue
		}
		path := filepath.Join(parent, e.Name())
		g.dig(path)
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, fmt.Errorf("cannot remove unneeded image files: %w", err))
		}
	}
	return errors.Join(errs...)
}

// recover removes what a killed engine left: mounts, leases of unfinished
// work, half-written blobs, and blobs that were renamed into place just
// before the transaction that would have recorded them.
func (s *Store) recover(ctx context.Context) error {
	if err := detachAll(s.cfg.Mounts); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(s.cfg.Root, "content", "ingest")); err != nil {
		return fmt.Errorf("cannot remove unfinished blobs: %w", err)
	}
	ctx = in(ctx)
	all, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("cannot list image leases: %w", err)
	}
	for _, l := range all {
		if !strings.HasPrefix(l.ID, workPrefix) {
			continue
		}
		if err := s.leases.Delete(ctx, leases.Lease{ID: l.ID}); err != nil {
			return fmt.Errorf("cannot end lease %q: %w", l.ID, err)
		}
	}
	if err := s.clean(ctx); err != nil {
		return err
	}
	return s.removeStrays(ctx)
}

// removeStrays removes blobs that have no record.
func (s *Store) removeStrays(ctx context.Context) error {
	ctx = in(ctx)
	var strays []digest.Digest
	err := s.backend.Walk(ctx, func(info content.Info) error {
		_, err := s.blobs.Info(ctx, info.Digest)
		if errdefs.IsNotFound(err) {
			strays = append(strays, info.Digest)
			return nil
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot list blobs: %w", err)
	}
	for _, d := range strays {
		if err := s.backend.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("cannot remove blob %s: %w", d, err)
		}
	}
	return nil
}

// detachAll unmounts and removes what lies in the directory for mounts. In a
// new mount namespace nothing is mounted there, only the directories are left.
func detachAll(mounts string) error {
	entries, err := os.ReadDir(mounts)
	if err != nil {
		return fmt.Errorf("cannot clear image mounts: %w", err)
	}
	for _, e := range entries {
		at := filepath.Join(mounts, e.Name())
		if err := sys.Detach(at); err != nil {
			return err
		}
		// Not RemoveAll: were it still mounted, that would reach into an image.
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot clear image mounts: %w", err)
		}
	}
	return nil
}
