package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// holderPrefix begins the leases that Lease makes.
const holderPrefix = "hold/"

// Lease makes holder keep the image with this full id: whatever happens to
// its names, its layers stay until Unlease. holder is a path of the caller's,
// "container/<id>". It writes within tx, so that a record and the lease of its
// image are one transaction; a nil tx means one of its own. Leasing what the
// holder holds already changes nothing; holding another image is
// errdefs.ErrAlreadyExists. An image that was removed meanwhile is
// errdefs.ErrNotFound.
//
// Files are marked in one moment and swept in another. Lease may run in
// between because it takes only images that have a record: such an image was
// marked, or made since, and making excludes collecting.
func (s *Store) Lease(ctx context.Context, tx *bolt.Tx, holder, id string) error {
	if tx == nil {
		return s.meta.Update(func(tx *bolt.Tx) error { return s.Lease(ctx, tx, holder, id) })
	}
	ctx = boltutil.WithTransaction(in(ctx), tx)
	all, err := s.records.List(ctx)
	if err != nil {
		return fmt.Errorf("cannot list images: %w", err)
	}
	var rec *images.Image
	for _, r := range all {
		if recordID(r) == digest.Digest(id) {
			rec = &r
			break
		}
	}
	if rec == nil {
		return fmt.Errorf("No such image: %s: %w", id, errdefs.ErrNotFound) //nolint:staticcheck // Docker's words
	}
	l, err := s.leases.Create(ctx, leases.WithID(holderPrefix+holder), leases.WithLabel(idLabel, id))
	if errdefs.IsAlreadyExists(err) {
		held, err := s.holders(ctx)
		if err != nil {
			return err
		}
		if held[holder] == digest.Digest(id) {
			return nil
		}
		return fmt.Errorf("cannot lease image %s for %q: it holds image %s: %w", id, holder, held[holder], errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("cannot lease image %s for %q: %w", id, holder, err)
	}
	if err := s.leases.AddResource(ctx, l, leases.Resource{ID: rec.Target.Digest.String(), Type: "content"}); err != nil {
		return fmt.Errorf("cannot lease image %s for %q: %w", id, holder, err)
	}
	return nil
}

// Unlease ends what Lease began, within tx or, when tx is nil, on its own. A
// holder that holds nothing is no error. What nobody needs any more is
// removed soon after.
func (s *Store) Unlease(ctx context.Context, tx *bolt.Tx, holder string) error {
	if tx == nil {
		return s.meta.Update(func(tx *bolt.Tx) error { return s.Unlease(ctx, tx, holder) })
	}
	ctx = boltutil.WithTransaction(in(ctx), tx)
	held, err := s.holders(ctx)
	if err != nil {
		return err
	}
	id, ok := held[holder]
	if !ok {
		return nil
	}
	if err := s.leases.Delete(ctx, leases.Lease{ID: holderPrefix + holder}); err != nil {
		return fmt.Errorf("cannot end the lease of %q: %w", holder, err)
	}
	all, err := s.records.List(ctx)
	if err != nil {
		return fmt.Errorf("cannot list images: %w", err)
	}
	for _, r := range all {
		if recordID(r) == id {
			return nil // it has a record, so nothing can be removed
		}
	}
	tx.OnCommit(s.wake)
	return nil
}

// Leases tells who holds which image.
func (s *Store) Leases(ctx context.Context) (map[string]digest.Digest, error) {
	return s.holders(in(ctx))
}

func (s *Store) holders(ctx context.Context) (map[string]digest.Digest, error) {
	all, err := s.leases.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list image leases: %w", err)
	}
	out := map[string]digest.Digest{}
	for _, l := range all {
		if h, ok := strings.CutPrefix(l.ID, holderPrefix); ok {
			out[h] = digest.Digest(l.Labels[idLabel])
		}
	}
	return out, nil
}
