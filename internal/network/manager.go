package network

import (
	"context"
	"os"

	"github.com/containerd/errdefs"
)

// Manager is the owner of one bridge. Its methods can be called from many
// goroutines.
type Manager struct {
	cfg Config
}

// Open reads the leases of an earlier engine and chooses the subnets. It makes
// nothing in the kernel.
func Open(ctx context.Context, cfg Config) (*Manager, error) { return nil, errdefs.ErrNotImplemented }

// Close removes an unused bridge at once and closes the sockets. Endpoints stay.
func (m *Manager) Close() error { return errdefs.ErrNotImplemented }

// Reserve leases addresses, binds the host's ports and writes the files of id.
// It makes the bridge and the table if they are not there. A second Reserve of
// the same id is errdefs.ErrAlreadyExists.
func (m *Manager) Reserve(ctx context.Context, id string, r Request) (*Endpoint, error) {
	return nil, errdefs.ErrNotImplemented
}

// Plug puts the card of id into a network namespace as eth0 with its addresses
// and routes, and opens its ports.
func (m *Manager) Plug(ctx context.Context, id string, netns *os.File) error {
	return errdefs.ErrNotImplemented
}

// PlugTap makes the card of id as a tap on the bridge and opens its ports. The
// tap lives as long as the returned file, or a copy of it, is open.
func (m *Manager) PlugTap(ctx context.Context, id string) (*os.File, error) {
	return nil, errdefs.ErrNotImplemented
}

// Release removes all that belongs to id. Releasing what is not there is no error.
func (m *Manager) Release(ctx context.Context, id string) error { return errdefs.ErrNotImplemented }

// Reconcile releases every endpoint that is not in live and makes the kernel
// agree with the rest.
func (m *Manager) Reconcile(ctx context.Context, live map[string]bool) error {
	return errdefs.ErrNotImplemented
}

// Endpoint returns the lease of id without its sockets, or errdefs.ErrNotFound.
func (m *Manager) Endpoint(id string) (*Endpoint, error) { return nil, errdefs.ErrNotImplemented }

// Stats reads the counters of the card of id.
func (m *Manager) Stats(ctx context.Context, id string) (Stats, error) {
	return Stats{}, errdefs.ErrNotImplemented
}

// Blockers lists foreign rules that drop forwarded traffic of the bridge.
func (m *Manager) Blockers(ctx context.Context) ([]Blocker, error) {
	return nil, errdefs.ErrNotImplemented
}
