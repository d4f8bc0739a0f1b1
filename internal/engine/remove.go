package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
	bolt "go.etcd.io/bbolt"

	"proa/internal/event"
	"proa/internal/filters"
	"proa/internal/sys"
)

// A container's directory is renamed with one of these before anything of the
// container is removed. An engine that is killed in between finds it and goes
// on; a container is never half there.
const (
	goneSuffix        = ".gone"
	goneVolumesSuffix = ".gone-with-volumes"
)

// Remove deletes a container and all that it left. One that runs gives
// errdefs.ErrConflict unless forced.
func (e *Engine) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := e.quiet(ctx, b, o.Force); err != nil {
		return err
	}
	defer b.unlock()
	if b.isGone() { // somebody else was quicker, or --rm after our kill
		if o.Force {
			return nil
		}
		return noSuch(ref)
	}
	if _, err := b.step(Removing, nil); err != nil {
		return err
	}
	return e.erase(context.WithoutCancel(ctx), b, o.Volumes)
}

// quiet takes op of a container that does not run, killing it if forced.
func (e *Engine) quiet(ctx context.Context, b *box, force bool) error {
	for {
		c := b.snap.Load()
		switch {
		case c.State.alive() && !force:
			what := "stop the container before removing or force remove"
			if c.State == Paused {
				what = "unpause and then " + what
			}
			return conflict("cannot remove container %q: container is %s: %s", "/"+c.Name, c.State, what)
		case c.State == Restarting && !force:
			return conflict("cannot remove container %q: container is restarting: stop the container before removing or force remove", "/"+c.Name)
		case c.State == Restarting:
			if _, err := e.giveUpRestart(ctx, b); err != nil {
				return err
			}
		case c.State.alive():
			b.change(func(r *record, _ *live) { r.StoppedByUser = true })
			if err := e.killRun(ctx, b); err != nil {
				return err
			}
		}
		if err := b.lock(ctx); err != nil {
			return err
		}
		if s := b.snap.Load().State; !s.alive() && s != Restarting {
			return nil
		}
		b.unlock() // started again meanwhile
	}
}

func (b *box) isGone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gone
}

// erase removes everything of a container that does not run, its record last
// of what counts. The caller holds op, and the state is Removing, or the
// container was never published. What fails leaves a dead container, which can
// be removed again.
func (e *Engine) erase(ctx context.Context, b *box, volumes bool) (err error) {
	defer func() {
		if err != nil {
			b.change(func(r *record, _ *live) { r.State, r.Error = Dead, err.Error() })
			err = fmt.Errorf("cannot remove container %s: %w", short(b.id), err)
		}
	}()
	e.endService(b)
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })
	marker, err := e.markGone(b.id, volumes)
	if err != nil {
		return err
	}
	step("remove: marked")
	e.sweep(b.id, resourcesOf(rec.Host, e.cfg.CgroupParent).CgroupParent)
	if err := e.cfg.Network.Release(ctx, b.id); err != nil {
		return err
	}
	step("remove: network released")
	if err := e.dropVolumes(ctx, &rec, volumes); err != nil {
		return err
	}
	step("remove: volumes dropped")

	b.mu.Lock()
	b.gone = true // from here on nobody saves it
	b.mu.Unlock()
	err = e.cfg.DB.Update(func(tx *bolt.Tx) error {
		if err := records.Delete(tx, b.id); err != nil {
			return err
		}
		return e.cfg.Images.Unlease(ctx, tx, holder(b.id))
	})
	if err != nil {
		b.mu.Lock()
		b.gone = false
		b.mu.Unlock()
		return err
	}
	step("remove: record deleted")
	if err := sys.RemoveTree(marker); err != nil {
		// The record is gone and so is the container; the next engine tries again.
		e.cfg.Log.Error("cannot remove the files of a removed container", "dir", marker, "err", err)
	}
	e.mu.Lock()
	delete(e.byID, b.id)
	if e.byName[rec.Name] == b.id {
		delete(e.byName, rec.Name)
	}
	e.mu.Unlock()
	e.dropExecs(b.id)
	c := b.change(func(r *record, l *live) {
		l.tell(WaitResult{ExitCode: r.ExitCode}, true)
	})
	e.refuseAttached(b)
	e.emit(c, event.ContainerDestroy)
	return nil
}

// markGone renames the container's directory, or makes an empty one with that
// name, and returns its path.
func (e *Engine) markGone(id string, volumes bool) (string, error) {
	for _, suffix := range []string{goneSuffix, goneVolumesSuffix} {
		if _, err := os.Lstat(e.dir(id) + suffix); err == nil {
			return e.dir(id) + suffix, nil // begun earlier
		}
	}
	marker := e.dir(id) + goneSuffix
	if volumes {
		marker = e.dir(id) + goneVolumesSuffix
	}
	err := os.Rename(e.dir(id), marker)
	if errors.Is(err, os.ErrNotExist) {
		err = os.Mkdir(marker, 0o700)
	}
	return marker, err
}

// goneMarker reads the name of an entry of the containers' directory.
func goneMarker(name string) (id string, volumes, marked bool) {
	if id, ok := strings.CutSuffix(name, goneVolumesSuffix); ok {
		return id, true, true
	}
	if id, ok := strings.CutSuffix(name, goneSuffix); ok {
		return id, false, true
	}
	return name, false, false
}

// removeOrphans removes directories below dir that belong to no container.
func (e *Engine) removeOrphans(dir string, known func(id string) bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		e.cfg.Log.Error("cannot look for orphans", "dir", dir, "err", err)
		return
	}
	for _, entry := range entries {
		id, _, _ := goneMarker(entry.Name())
		if known(id) {
			continue
		}
		if err := sys.RemoveTree(filepath.Join(dir, entry.Name())); err != nil {
			e.cfg.Log.Error("cannot remove an orphan", "dir", entry.Name(), "err", err)
		}
	}
}

// Prune removes containers that do not run. Filters: until, label, label!.
func (e *Engine) Prune(ctx context.Context, f filters.Args) (*PruneResult, error) {
	keep, err := pruneFilter(f, e.cfg.Now())
	if err != nil {
		return nil, err
	}
	out := &PruneResult{}
	for _, b := range e.boxes() {
		c := b.snap.Load()
		if c.State != Created && c.State != Exited && c.State != Dead || !keep(c) {
			continue
		}
		size, err := e.Size(ctx, b.id)
		if err != nil {
			size = Size{}
		}
		if err := e.Remove(ctx, b.id, RemoveOptions{}); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			e.cfg.Log.Warn("cannot prune a container", "id", short(b.id), "err", err)
			continue
		}
		out.Deleted = append(out.Deleted, b.id)
		out.Reclaimed += size.RW
	}
	e.publish(event.ContainerPrune.Of("", nil, strconv.FormatInt(out.Reclaimed, 10)))
	return out, nil
}

// Size measures the disk use of a container.
func (e *Engine) Size(ctx context.Context, ref string) (Size, error) {
	b, err := e.find(ref)
	if err != nil {
		return Size{}, err
	}
	c := b.snap.Load()
	rw := filepath.Join(e.upperDir(b.id), "upper")
	if c.Kind != "container" {
		rw = e.dir(b.id)
	}
	n, err := sys.DiskUsage(ctx, rw)
	if err != nil {
		return Size{}, fmt.Errorf("cannot measure container %s: %w", short(b.id), err)
	}
	s := Size{RW: n, RootFS: n}
	if img, err := e.cfg.Images.Get(ctx, c.ImageID.String()); err == nil {
		s.RootFS += img.Size
	}
	return s, nil
}

// anonymous are the volumes that were made for this container alone.
func anonymous(plans []MountPlan) []string {
	var out []string
	for _, m := range plans {
		if m.Type == mount.TypeVolume && m.Anonymous {
			out = append(out, m.Volume)
		}
	}
	return out
}
