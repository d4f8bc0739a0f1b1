package image

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// ready is a candidate of which all is here and checked.
type ready struct {
	candidate
	id       digest.Digest
	config   *parsed
	manifest *ocispec.Manifest
	from     ocispec.Descriptor // of manifest
}

// Adopt makes an image of a manifest, or of the index that leads to one for
// this host or else for another, all of whose blobs are in the content store: its flat layers and
// index are made where they are missing, and it takes names (familiar or full
// ones) from the images that have them; without any it is dangling. The
// content may be kept by nothing but a lease of the caller's: from here on a
// lease of its own and then the image keep it. Nothing is left after an error.
// Errors: errdefs.ErrInvalidArgument for a blob that is missing or makes no sense, errdefs.ErrResourceExhausted for a full disk.
func (s *Store) Adopt(ctx context.Context, target ocispec.Descriptor, names []string) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = s.explain(fmt.Errorf("cannot make an image of %s: %w", target.Digest, err))
		}
	}()
	c := candidate{target: target}
	for _, name := range names {
		n, err := parseName(name)
		if err != nil {
			return nil, err
		}
		c.names = append(c.names, n.String())
	}
	// The job's lease takes the place of one in ctx, which is its owner's.
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = j.end(ctx, err) }()
	all, err := s.adopt(ctx, []candidate{c}, func(string) {})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, all[0].id.String())
}

// adopt is the end of all that brings images: what is in the content store and
// leased by a job becomes images, all of them or none.
func (s *Store) adopt(ctx context.Context, found []candidate, progress func(string)) ([]*ready, error) {
	all, err := s.resolveAll(ctx, found)
	if err != nil {
		return nil, err
	}
	for _, img := range all {
		if err := s.prepare(ctx, img, progress); err != nil {
			return nil, err
		}
		if err := s.label(ctx, img.target, img.only); err != nil {
			return nil, err
		}
	}
	return all, s.publish(ctx, all, progress)
}

// publish makes images exist: all names in one transaction.
func (s *Store) publish(ctx context.Context, all []*ready, progress func(string)) error {
	return s.meta.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		for _, img := range all {
			recs, err := s.records.List(ctx)
			if err != nil {
				return fmt.Errorf("cannot list images: %w", err)
			}
			for _, n := range img.names {
				if i := slices.IndexFunc(recs, func(r images.Image) bool { return r.Name == n }); i >= 0 && recordID(recs[i]) != img.id {
					progress(fmt.Sprintf("The image %s already exists, renaming the old one with ID %s to empty string", familiar(n), recordID(recs[i])))
				}
			}
			if err := s.name(ctx, recs, img.id, img.target, img.names); err != nil {
				return err
			}
		}
		return nil
	})
}
