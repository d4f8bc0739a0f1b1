package image

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"proa/internal/image/snapshot"
	"proa/internal/state"
)

// containerd's own suite, which every snapshotter passes.
func TestSnapshotterSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, snapshot.Name, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		db, err := state.Open(filepath.Join(root, "proa.db"))
		if err != nil {
			return nil, nil, err
		}
		s, err := Open(ctx, Config{
			Root: filepath.Join(root, "image"), Mounts: filepath.Join(root, "mounts"), DB: db,
			Warn: func(err error) { t.Errorf("warning: %v", err) },
		})
		if err != nil {
			return nil, nil, err
		}
		return s.Snapshots(), func() error {
			if err := s.Close(); err != nil {
				return err
			}
			return db.Close()
		}, nil
	})
}
