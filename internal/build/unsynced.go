package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/buildkit/cache/metadata"
	bolt "go.etcd.io/bbolt"

	"proa/internal/sys"
)

// The builder does not wait for the disk: a build makes some hundred small
// transactions, and what they hold is a cache. A process that is killed loses
// nothing by that; a power cut may leave files that are damaged in a way that
// nobody notices. So a file says in which boot the databases were written
// without care, and another boot that finds it begins with an empty cache.
const unsyncedMark = "unsynced"

// openUnsynced marks root before anything is written there, and empties it if
// the machine went down in between. The leases of the lost cache are given up,
// so that the engine removes what it kept. boot names this boot.
func openUnsynced(ctx context.Context, root, boot string, lm leases.Manager) (lost bool, err error) {
	if boot == "" {
		return false, errors.New("cannot tell this boot from the last: the engine names none")
	}
	mark := filepath.Join(root, unsyncedMark)
	old, err := os.ReadFile(mark)
	switch {
	case err == nil && strings.TrimSpace(string(old)) == boot:
		return false, nil
	case err == nil:
		if err := dropCache(ctx, root, lm); err != nil {
			return false, fmt.Errorf("cannot empty the build cache after a power cut: %w", err)
		}
		lost = true
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	if err := sys.ReplaceSynced(mark, []byte(boot+"\n"), 0o600); err != nil {
		return lost, fmt.Errorf("cannot mark the build cache: %w", err)
	}
	return lost, nil
}

func dropCache(ctx context.Context, root string, lm leases.Manager) error {
	all, err := lm.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range all {
		if err := lm.Delete(ctx, l); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == unsyncedMark {
			continue // the last to be replaced, should this be cut off as well
		}
		if err := os.RemoveAll(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Settle brings the build cache to the disk, so that it outlives the machine.
// Nothing may be built meanwhile or after it.
func (b *Builder) Settle() error { return settle(b.cfg.Root) }

func settle(root string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".db") {
			continue
		}
		f, err := os.Open(filepath.Join(root, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	if err := sys.SyncDir(root); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(root, unsyncedMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return sys.SyncDir(root)
}

// noSync opens the database of the cache's records, whose constructor knows no
// such option.
func noSync(records *metadata.Store) error {
	return records.DB().View(func(tx *bolt.Tx) error {
		tx.DB().NoSync = true
		return nil
	})
}
