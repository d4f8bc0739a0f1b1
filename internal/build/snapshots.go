package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/snapshot"
)

// volatileSnapshots makes overlays that BuildKit mounts, to copy files into
// them, volatile: nothing of them is worth a sync, since what a killed builder
// has not committed is gone anyway. (What a step mounts, BuildKit does not
// mount: package step.)
type volatileSnapshots struct{ snapshot.Snapshotter }

// Mounts gives the mounts of an active snapshot.
func (s volatileSnapshots) Mounts(ctx context.Context, key string) (snapshot.Mountable, error) {
	m, err := s.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	return volatileMount{m}, nil
}

// volatileMount is an overlay whose unmounting does not wait for the disk.
type volatileMount struct{ snapshot.Mountable }

func (v volatileMount) Mount() ([]mount.Mount, func() error, error) {
	list, release, err := v.Mountable.Mount()
	if err != nil {
		return nil, nil, err
	}
	out := slices.Clone(list)
	for i, m := range out {
		work := ""
		for _, o := range m.Options {
			if w, ok := strings.CutPrefix(o, "workdir="); ok {
				work = w
			}
		}
		if m.Type != "overlay" || work == "" {
			continue
		}
		// The mark of an earlier volatile mount, a directory with a file in it,
		// which the kernel takes for one of a crash.
		if err := os.RemoveAll(filepath.Join(work, "work", "incompat")); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("cannot mount a snapshot once more: %w", err), release())
		}
		out[i].Options = append(slices.Clone(m.Options), "volatile")
	}
	return out, release, nil
}
