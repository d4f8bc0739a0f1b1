package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"proa/internal/sys"
	"proa/internal/volume"
)

// makeVolumes makes the volumes of a container that do not exist, holds them
// all, and shows its mounts. It is done after create and again at each start:
// the record came first, so a crash in between leaves work and no orphan.
func (e *Engine) makeVolumes(ctx context.Context, b *box) error {
	var plans []MountPlan
	var flags map[string]string // --tmpfs, which inspect shows in HostConfig alone
	b.read(func(r *record, _ *live) { plans, flags = r.Mounts, r.Host.Tmpfs })
	points := make([]container.MountPoint, 0, len(plans))
	for _, m := range plans {
		dir := ""
		if m.Type == mount.TypeVolume {
			labels := m.Labels
			if m.Anonymous {
				labels = map[string]string{volume.AnonymousLabel: ""}
			}
			v, err := e.cfg.Volumes.Create(ctx, m.Volume, "", labels, m.DriverOpts)
			if err != nil {
				return err
			}
			if err := e.cfg.Volumes.Hold(ctx, nil, m.Volume, holder(b.id)); err != nil {
				return err
			}
			dir = v.Mountpoint
		}
		if m.Type == mount.TypeTmpfs && isFlag(flags, m.Target) {
			continue
		}
		points = append(points, m.point(dir))
	}
	b.change(func(_ *record, l *live) { l.points = points })
	return nil
}

// isFlag reports whether one of the paths of --tmpfs is target.
func isFlag(tmpfs map[string]string, target string) bool {
	for p := range tmpfs {
		if path.Clean(p) == target {
			return true
		}
	}
	return false
}

// fillVolumes copies what the image has at the target of each new, empty volume
// into it, owner and mode of the directory included. As in Docker that happens
// once, at create: what a user removes from a volume later does not come back.
func (e *Engine) fillVolumes(ctx context.Context, b *box) error {
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })
	for _, m := range rec.Mounts {
		if m.Type != mount.TypeVolume || m.NoCopy || m.Subpath != "" {
			continue
		}
		if err := e.fillVolume(ctx, &rec, m); err != nil {
			return fmt.Errorf("cannot fill volume %q from the image: %w", m.Volume, err)
		}
	}
	return nil
}

func (e *Engine) fillVolume(ctx context.Context, rec *record, m MountPlan) error {
	v, err := e.cfg.Volumes.Get(ctx, m.Volume)
	if err != nil {
		return err
	}
	to, err := os.Open(v.Mountpoint)
	if err != nil {
		return err
	}
	defer to.Close()
	// Two containers that are created at once fill it once.
	if err := syscall.Flock(sys.RawFD(to), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("cannot lock it: %w", err)
	}
	if _, err := to.Readdirnames(1); !errors.Is(err, io.EOF) {
		return err // not empty: nil
	}
	image, err := e.cfg.Images.Mount(ctx, rec.ImageID.String())
	if err != nil {
		return err
	}
	defer image.Close()
	from, err := sys.OpenInRoot(image.Tree, m.Target, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, syscall.ENOTDIR) && m.Anonymous:
		return invalid("cannot mount volume over existing file, file exists %s", m.Target)
	case errors.Is(err, syscall.ENOTDIR):
		return nil // the start says so, unless a mount above has a directory there
	case err != nil:
		return err
	}
	defer from.Close()
	if err := sys.CopyTree(from, to); err != nil {
		return errors.Join(err, clearDir(v.Mountpoint)) // a part of it would be taken for the whole by the next container
	}
	return nil
}

// clearDir removes all that is in a directory.
func clearDir(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	for _, name := range names {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}

// openVolume opens a volume's directory, or what Subpath names in it, which
// nothing in the volume can lead out of.
func (e *Engine) openVolume(ctx context.Context, m MountPlan) (*os.File, string, error) {
	v, err := e.cfg.Volumes.Get(ctx, m.Volume)
	if err != nil {
		return nil, "", err
	}
	f, err := sys.OpenPath(v.Mountpoint)
	if err != nil || m.Subpath == "" {
		return f, v.Mountpoint, err
	}
	defer f.Close()
	sub, err := sys.OpenPathInRoot(f, m.Subpath)
	if err != nil {
		return nil, "", invalid("cannot access path %q in volume %q: %w", m.Subpath, m.Volume, err)
	}
	return sub, v.Mountpoint, nil
}

// dropVolumes gives all volumes of a container back, and removes its
// anonymous ones if wanted and nobody else uses them.
func (e *Engine) dropVolumes(ctx context.Context, rec *record, remove bool) error {
	uses := false
	for _, m := range rec.Mounts {
		uses = uses || m.Type == mount.TypeVolume
	}
	if !uses {
		return nil
	}
	if err := e.cfg.Volumes.Release(ctx, nil, holder(rec.ID)); err != nil {
		return fmt.Errorf("cannot release volumes: %w", err)
	}
	if !remove {
		return nil
	}
	for _, name := range anonymous(rec.Mounts) {
		if err := e.cfg.Volumes.Remove(ctx, name, true); err != nil && !errdefs.IsConflict(err) {
			return err
		}
	}
	return nil
}
