package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"proa/internal/event"
	"proa/internal/filters"
	"proa/internal/sys"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Remove removes a volume and all it holds. One that is in use is
// errdefs.ErrConflict, also with force; one that does not exist is
// errdefs.ErrNotFound unless force is set.
//
// The directory is renamed aside, then the record goes, then the contents: a
// crash in between leaves a volume that is whole, or one that is gone and
// whose remains the next Open removes.
func (s *Store) Remove(ctx context.Context, name string, force bool) error {
	aside, err := s.putAside(name, nil)
	if force && errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("cannot remove what volume %q holds (it will be tried again when the engine starts): %w", name, err)
	}
	return nil
}

// putAside makes a volume cease to exist if it is unused and still as ok
// wants it, and tells where its contents are now.
func (s *Store) putAside(name string, ok func(record) bool) (aside string, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	aside = filepath.Join(s.root, asideName(name))
	moved := false
	err = s.db.Update(func(tx *bolt.Tx) error {
		r, err := records.Get(tx, name)
		if errdefs.IsNotFound(err) {
			return noVolume(name)
		}
		if err != nil && !errdefs.IsDataLoss(err) {
			return err
		}
		users, err := holdersOf(tx, name)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return fmt.Errorf("remove %s: volume is in use - %v: %w", name, users, errdefs.ErrConflict)
		}
		if ok != nil && !ok(r) {
			return errChanged
		}
		if err := records.Delete(tx, name); err != nil {
			return err
		}
		// Within the transaction, so that nobody can hold it in between. If
		// the commit fails, the directory moves back.
		if err := os.Rename(s.dir(name), aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove volume %q: %w", name, err)
		}
		moved = true
		return nil
	})
	if err != nil && moved {
		if back := os.Rename(aside, s.dir(name)); back != nil && !errors.Is(back, fs.ErrNotExist) {
			err = errors.Join(err, back)
		}
	}
	if err == nil {
		s.Events.Publish(event.VolumeDestroy.Of(name, nil, Driver))
	}
	return aside, err
}

var errChanged = errors.New("the volume has changed")

// Prune removes unused volumes that filters.VolumePrune selects: anonymous
// ones, or with "all" every one. It returns the names and how many bytes of
// disk that freed.
func (s *Store) Prune(ctx context.Context, f filters.Args) ([]string, int64, error) {
	if err := filters.VolumePrune.Check(f); err != nil {
		return nil, 0, err
	}
	all, err := f.All("all")
	if err != nil {
		return nil, 0, err
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	var gone []string
	var freed int64
	for _, v := range list {
		if err := ctx.Err(); err != nil {
			return gone, freed, err
		}
		if !all && !v.Anonymous || !f.Labels(v.Labels) {
			continue
		}
		aside, err := s.putAside(v.Name, func(r record) bool { return r.Created.Equal(v.Created) })
		if errdefs.IsConflict(err) || errdefs.IsNotFound(err) || errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			return gone, freed, err
		}
		gone = append(gone, v.Name)
		n, err := sys.DiskUsage(ctx, aside)
		if err != nil {
			return gone, freed, err
		}
		if err := os.RemoveAll(aside); err != nil {
			return gone, freed, fmt.Errorf("cannot remove what volume %q holds (it will be tried again when the engine starts): %w", v.Name, err)
		}
		freed += n
	}
	s.Events.Publish(event.VolumePrune.Of("", nil, strconv.FormatInt(freed, 10)))
	return gone, freed, nil
}

// Usage is what one volume takes.
type Usage struct {
	Volume *Volume
	Size   int64 // bytes of disk
	Users  int   // holders
}

// Usage measures all volumes.
func (s *Store) Usage(ctx context.Context) ([]Usage, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	users, err := s.Holders(ctx)
	if err != nil {
		return nil, err
	}
	var out []Usage
	for _, v := range list {
		n, err := sys.DiskUsage(ctx, v.Mountpoint)
		if err != nil {
			return nil, err
		}
		out = append(out, Usage{Volume: v, Size: n, Users: len(users[v.Name])})
	}
	return out, nil
}
