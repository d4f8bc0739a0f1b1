package build

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"proa/internal/build/wire"
)

// Connect reaches the engine's store and steps through its socket.
func Connect(_ context.Context, cfg wire.Config) (Parts, func() error, error) {
	return Parts{}, nil, fmt.Errorf("cannot reach the store of the engine in %q: %w", cfg.Run, errdefs.ErrNotImplemented)
}
