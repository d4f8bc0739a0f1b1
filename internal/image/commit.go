package image

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions describe the image that Commit makes.
type CommitOptions struct {
	// Parent is the target of the image that the new one is built upon: a
	// manifest, or the index that leads to it. The caller holds a lease on it.
	Parent  ocispec.Descriptor
	Name    string // "" for none
	Author  string
	Message string
	Command string // for the history: what made the layer
	Config  dockerspec.DockerOCIImageConfig
}

// emptyTar is the diffID of a layer in which nothing is.
var emptyTar = digest.FromBytes(make([]byte, 1024))

// ApplyChanges carries out lines of a Dockerfile on a config, see Import.
func ApplyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	return applyChanges(c, changes)
}

// Commit makes an image of another one and one more layer, an uncompressed tar
// stream. Nothing is left after an error; those of the stream are passed on.
func (s *Store) Commit(ctx context.Context, layer io.Reader, o CommitOptions) (_ *Image, err error) {
	defer func() {
		if err != nil {
			err = s.explain(fmt.Errorf("cannot commit: %w", err))
		}
	}()
	var names []string
	if o.Name != "" {
		n, err := parseName(o.Name)
		if err != nil {
			return nil, err
		}
		names = []string{n.String()}
	}
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = j.end(ctx, err) }()
	parent, err := s.resolve(ctx, candidate{target: o.Parent})
	if err != nil {
		return nil, err
	}
	m := parent.manifest
	raw, err := s.readJSON(ctx, m.Config, "image config")
	if err != nil {
		return nil, err
	}
	var config struct {
		dockerspec.DockerOCIImage
		Comment string `json:"comment,omitempty"`
	}
	if err := decodeJSON(raw, "image config "+m.Config.Digest.String(), &config); err != nil {
		return nil, err
	}
	blob, made, err := s.split(ctx, j, layer)
	if err != nil {
		return nil, err
	}

	now := time.Now().UTC()
	layers := slices.Clone(m.Layers)
	for i := range layers {
		layers[i].MediaType = ociLayer(layers[i].MediaType)
	}
	empty := made.DiffID == emptyTar
	if !empty {
		layers = append(layers, blob)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, made.DiffID)
	}
	config.Created, config.Author, config.Comment, config.Config = &now, o.Author, o.Message, o.Config
	config.History = append(config.History, ocispec.History{
		Created: &now, CreatedBy: o.Command, Author: o.Author, Comment: o.Message, EmptyLayer: empty,
	})
	return s.compose(ctx, j, config, layers, names)
}

// ociLayer is a layer's media type in the words of the OCI, which an OCI
// manifest is read by.
func ociLayer(mediaType string) string {
	switch mediaType {
	case images.MediaTypeDockerSchema2Layer:
		return ocispec.MediaTypeImageLayer
	case images.MediaTypeDockerSchema2LayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case images.MediaTypeDockerSchema2LayerZstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return mediaType
}
