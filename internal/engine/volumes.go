package engine

import (
	"context"
	"fmt"
	"os"
	"path"

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
