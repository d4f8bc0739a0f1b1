package build

import (
	"context"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/leases"

	"proa/internal/build/step"
	"proa/internal/build/store"
	"proa/internal/build/wire"
	"proa/internal/image/remote"
)

// Connect reaches the engine's store and steps through its socket; close gives
// the connection back.
func Connect(_ context.Context, cfg wire.Config) (_ Parts, closeConn func() error, err error) {
	conn, err := store.Dial(filepath.Join(cfg.Run, wire.EngineSocket))
	if err != nil {
		return Parts{}, nil, err
	}
	s := store.New(conn)
	return Parts{
		Content: s.Content, Snapshots: s.Snapshots, Applier: s.Applier, Differ: s.Differ, Images: s.Images,
		Leases: ownLeases{s.Leases, cfg.Kind}, Collect: s.Collect, Registries: remote.New(remote.Config{CertsDir: cfg.Certs}), Executor: step.New(conn),
	}, conn.Close, nil
}

// builderLabel marks the leases of one kind's builder.
const builderLabel = "proa.builder"

// ownLeases keeps the leases of the builders of one engine apart: at its start
// a builder gives up all temporary ones that it finds, and those of another
// are in use.
type ownLeases struct {
	leases.Manager
	kind string
}

func (l ownLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	return l.Manager.Create(ctx, append(opts, leases.WithLabel(builderLabel, l.kind))...)
}

func (l ownLeases) List(ctx context.Context, filters ...string) ([]leases.Lease, error) {
	all, err := l.Manager.List(ctx, filters...)
	var own []leases.Lease
	for _, one := range all {
		if one.Labels[builderLabel] == l.kind {
			own = append(own, one)
		}
	}
	return own, err
}
