package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"proa/internal/image/flat"
	"proa/internal/interrupt"
	"proa/internal/sys"
)

// layerSize is what one flat layer takes.
type layerSize struct {
	files int64 // sum of the sizes of its files, in bytes
	disk  int64 // what its own files take on this disk, in bytes
}

func (s *Store) layerDir(diffID digest.Digest) string {
	return filepath.Join(s.cfg.Root, "flat", dir(diffID))
}

func (s *Store) indexPath(chain digest.Digest) string {
	return filepath.Join(s.cfg.Root, "index", dir(chain))
}

func (s *Store) extractDir(chain digest.Digest) string {
	return filepath.Join(s.cfg.Root, "extract", dir(chain))
}

// layerSize measures a layer once; layers do not change.
func (s *Store) layerSize(diffID digest.Digest) (layerSize, error) {
	s.cacheMu.Lock()
	sz, ok := s.sizes[diffID]
	s.cacheMu.Unlock()
	if ok {
		return sz, nil
	}
	l, err := flat.ReadLayer(s.layerDir(diffID))
	if err != nil {
		return layerSize{}, fmt.Errorf("cannot read layer %s: %w", diffID, err)
	}
	disk, err := sys.DiskUsage(context.Background(), l.Dir)
	if err != nil {
		return layerSize{}, err
	}
	sz = layerSize{files: l.Size, disk: disk}
	s.cacheMu.Lock()
	s.sizes[diffID] = sz
	s.cacheMu.Unlock()
	return sz, nil
}

// packing tells how a blob is packed.
func (s *Store) packing(ctx context.Context, d ocispec.Descriptor) (compression, error) {
	ra, err := s.blobs.ReaderAt(in(ctx), d)
	if err != nil {
		return plain, fmt.Errorf("cannot read blob %s: %w", d.Digest, err)
	}
	defer ra.Close()
	return sniff(bufio.NewReader(content.NewReader(ra))), nil
}

// prepare makes the flat layers and the index of an image.
func (s *Store) prepare(ctx context.Context, img *ready, progress func(string)) error {
	diffIDs := img.config.oci.RootFS.DiffIDs
	layers := make([]*flat.Layer, len(diffIDs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, d := range diffIDs {
		g.Go(func() (err error) {
			layers[i], err = s.layer(gctx, img.manifest.Layers[i], d)
			if err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(diffIDs), err)
			}
			progress(fmt.Sprintf("%s: Loaded layer %d of %d", short(d), i+1, len(diffIDs)))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return s.index(img.config.chain, layers)
}

// layer gives the flat layer diffID, unpacking the blob if there is none yet.
// The same layer asked for twice at once is unpacked once.
func (s *Store) layer(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest) (*flat.Layer, error) {
	for {
		v, err, shared := s.layers.Do(diffID.String(), func() (any, error) {
			return s.unpack(ctx, blob, diffID)
		})
		// Whoever did it for all of us may have given up, or had a damaged
		// blob where ours is whole.
		if err != nil && shared && ctx.Err() == nil {
			l, own := s.unpack(ctx, blob, diffID)
			return l, own
		}
		if err != nil {
			return nil, err
		}
		return v.(*flat.Layer), nil
	}
}

func (s *Store) unpack(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest) (*flat.Layer, error) {
	if l, err := s.haveLayer(diffID); l != nil || err != nil {
		return l, err
	}
	return s.write(ctx, blob, diffID)
}

// write makes the flat layer of a blob, which must have the diffID unless that
// is empty.
func (s *Store) write(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest) (*flat.Layer, error) {
	ra, err := s.blobs.ReaderAt(in(ctx), blob)
	if err != nil {
		return nil, fmt.Errorf("cannot read blob %s: %w", blob.Digest, err)
	}
	defer ra.Close()
	r, _, err := decompress(interrupt.Reader(ctx, content.NewReader(ra)))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	a := readAhead(r)
	defer a.Close()
	return flat.Write(ctx, a, filepath.Join(s.cfg.Root, "flat"), flat.Limits{Bytes: s.cfg.MaxLayerBytes, Want: diffID})
}

// haveLayer gives the flat layer diffID if there is one. A damaged one is
// removed.
func (s *Store) haveLayer(diffID digest.Digest) (*flat.Layer, error) {
	at := s.layerDir(diffID)
	l, err := flat.ReadLayer(at)
	switch {
	case err == nil:
		return l, nil
	case errdefs.IsDataLoss(err):
		s.warn(fmt.Errorf("layer %s is damaged and will be made again: %w", diffID, err))
		if err := os.RemoveAll(at); err != nil {
			return nil, fmt.Errorf("cannot remove damaged layer %s: %w", diffID, err)
		}
		return nil, nil
	case errdefs.IsNotFound(err):
		return nil, nil
	}
	return nil, err
}

// index makes the merged index of a stack of layers if there is none.
func (s *Store) index(chain digest.Digest, layers []*flat.Layer) error {
	_, err, _ := s.indexes.Do(chain.String(), func() (any, error) {
		at := s.indexPath(chain)
		if fi, err := os.Stat(at); err == nil && fi.Size() > 0 {
			return nil, nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot look for an image index: %w", err)
		}
		owners, err := flat.MergeOwners(layers, at)
		if err == nil {
			err = s.keepOwners(chain, owners)
		}
		return nil, err
	})
	return err
}
