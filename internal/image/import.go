package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/gzip"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"proa/internal/image/flat"
	"proa/internal/interrupt"
	"proa/internal/platform"
)

// Import makes an image of one layer from the tar of a root file system,
// packed with gzip, zstd, bzip2, xz or not at all. ref is the image's name and
// may be empty. changes are lines of a Dockerfile (see applyChanges); message
// goes into the history. plf ("" is this host's) may be any platform of Linux.
// Errors: errdefs.ErrInvalidArgument for a bad change, quoting it, for another
// operating system and for a stream that is no tar; errdefs.ErrResourceExhausted for a full disk. Nothing is left after one.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, changes []string, message, plf string) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = s.explain(fmt.Errorf("cannot import image: %w", err))
		}
	}()
	var names []string
	if ref != "" {
		n, err := parseName(ref)
		if err != nil {
			return nil, err
		}
		names = []string{n.String()}
	}
	target := platform.Host()
	if plf != "" {
		if target, err = platforms.Parse(plf); err != nil {
			return nil, fmt.Errorf("platform %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if target.OS != platform.Host().OS {
			return nil, fmt.Errorf("operating system is not supported: %q: %w", target.OS, errdefs.ErrInvalidArgument)
		}
	}
	// Before the stream is read: it may be long.
	var run dockerspec.DockerOCIImageConfig
	if err := applyChanges(&run, changes); err != nil {
		return nil, err
	}
	if message == "" {
		message = "Imported from -"
	}

	ctx, j, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	// The lease's context is for writing alone: end and Get take it as well,
	// and neither writes blobs.
	defer func() { err = j.end(ctx, err) }()
	blob, layer, err := s.split(ctx, j, r)
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC()
	config := struct {
		dockerspec.DockerOCIImage
		Comment string `json:"comment,omitempty"`
	}{Comment: message}
	config.Created = &now
	config.Platform = ocispec.Platform{Architecture: target.Architecture, OS: target.OS, Variant: target.Variant}
	config.Config = run
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.DiffID}}
	config.History = []ocispec.History{{Created: &now, Comment: message}}
	return s.compose(ctx, j, config, []ocispec.Descriptor{blob}, names)
}

// compose makes an image of a config and of layers that are in the content store.
func (s *Store) compose(ctx context.Context, j *job, config any, layers []ocispec.Descriptor, names []string) (*Image, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("cannot encode image config: %w", err)
	}
	cdesc, err := s.putJSON(ctx, j.ref+"/config", ocispec.MediaTypeImageConfig, raw)
	if err != nil {
		return nil, err
	}
	raw, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    cdesc,
		Layers:    layers,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot encode image manifest: %w", err)
	}
	target, err := s.putJSON(ctx, j.ref+"/manifest", ocispec.MediaTypeImageManifest, raw)
	if err != nil {
		return nil, err
	}
	all, err := s.adopt(ctx, []candidate{{target: target, names: names}}, func(string) {})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, all[0].id.String())
}

// split writes one tar stream to both places at once: gzipped to the content
// store, for save and push, and as a flat layer. gzip at its fastest, because
// a blob that is not packed would double the image's disk, and zstd, though
// faster, is refused by Docker before 23.
func (s *Store) split(ctx context.Context, j *job, r io.Reader) (ocispec.Descriptor, *flat.Layer, error) {
	stream, _, err := decompress(interrupt.Reader(ctx, r))
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer stream.Close()
	var (
		blob      ocispec.Descriptor
		layer     *flat.Layer
		flatR, fw = io.Pipe()
		blobR, bw = io.Pipe()
	)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		layer, err = flat.Write(gctx, flatR, filepath.Join(s.cfg.Root, "flat"), flat.Limits{Bytes: s.cfg.MaxLayerBytes})
		flatR.CloseWithError(orClosed(err))
		return err
	})
	g.Go(func() (err error) {
		blob, err = s.writeBlob(gctx, j.ref+"/layer", blobR, "", nil)
		blobR.CloseWithError(orClosed(err))
		return err
	})
	g.Go(func() error {
		z, err := gzip.NewWriterLevel(bw, gzip.BestSpeed)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(onlyWriter{io.MultiWriter(fw, z)}, interrupt.Reader(gctx, stream), make([]byte, 256<<10))
		if err == nil {
			err = z.Close()
		}
		// Both readers learn how it ended: nil is the end of the stream.
		fw.CloseWithError(err)
		bw.CloseWithError(err)
		return err
	})
	if err := g.Wait(); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	blob.MediaType = ocispec.MediaTypeImageLayerGzip
	return blob, layer, nil
}

// orClosed is what a writer gets who goes on after its reader is done.
func orClosed(err error) error {
	if err == nil {
		return errors.New("the reader is done")
	}
	return err
}
