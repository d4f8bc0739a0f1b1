package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/image/flat"
	"proa/internal/image/remote/pick"
	"proa/internal/platform"
)

// This file is about the several images that one index leads to, its variants:
// each is a manifest for a platform. The record of a name selects one of them,
// which is unpacked; the others lie in the content store.

// Variant is one manifest of an image's target.
type Variant struct {
	Desc ocispec.Descriptor
	// Attestation is set for what describes another manifest, For.
	Attestation bool
	For         digest.Digest
	// Platform is that of an image; nil where it is not known.
	Platform *ocispec.Platform
	// ID is the digest of the config of an image that is here.
	ID digest.Digest
	// Available is set when the manifest and all that it names is here.
	Available bool
	// Content and Unpacked are the bytes here, packed and as flat layers.
	Content, Unpacked int64
	// Holders are the names of the leases on it.
	Holders []string

	layers []digest.Digest // diffIDs
}

// Variants lists the manifests of an image, those of an index that are not here
// among them.
func (s *Store) Variants(ctx context.Context, img *Image) ([]Variant, error) {
	held, err := s.Leases(ctx)
	if err != nil {
		return nil, err
	}
	out, err := s.variants(ctx, img.Target, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot list the manifests of image %s: %w", img.ID, err)
	}
	for i := range out {
		for h, id := range held {
			if id == out[i].ID {
				out[i].Holders = append(out[i].Holders, h)
			}
		}
		slices.Sort(out[i].Holders)
	}
	return out, nil
}

func (s *Store) variants(ctx context.Context, d ocispec.Descriptor, depth int) ([]Variant, error) {
	if !images.IsIndexType(d.MediaType) {
		v, err := s.variant(ctx, d)
		return []Variant{v}, err
	}
	if depth > 4 {
		return nil, fmt.Errorf("indexes within indexes: %w", errdefs.ErrInvalidArgument)
	}
	kids, err := s.refs(ctx, d)
	if errdefs.IsNotFound(err) {
		return nil, nil // an inner index that is not here
	}
	if err != nil {
		return nil, err
	}
	var out []Variant
	for _, k := range kids {
		if checkDigest(k.Digest) != nil {
			continue
		}
		more, err := s.variants(ctx, k, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// variant looks at one manifest.
func (s *Store) variant(ctx context.Context, d ocispec.Descriptor) (Variant, error) {
	v := Variant{Desc: d, Attestation: pick.IsAttestation(d), For: digest.Digest(d.Annotations["vnd.docker.reference.digest"])}
	if d.Platform != nil && d.Platform.Architecture != "" && !v.Attestation {
		p := platform.Of(*d.Platform)
		v.Platform = &p
	}
	if !images.IsManifestType(d.MediaType) {
		return v, nil
	}
	m, err := s.manifest(ctx, d)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return v, nil // not here, or of another kind
	}
	if err != nil {
		return v, err
	}
	v.Available = true
	for _, b := range append([]ocispec.Descriptor{{Digest: d.Digest}, m.Config}, m.Layers...) {
		info, err := s.blobs.Info(in(ctx), b.Digest)
		switch {
		case errdefs.IsNotFound(err):
			v.Available = false
		case err != nil:
			return v, fmt.Errorf("cannot look for blob %s: %w", b.Digest, err)
		default:
			v.Content += info.Size
		}
	}
	if v.Attestation || m.Config.MediaType != "" && !images.IsConfigType(m.Config.MediaType) {
		return v, nil
	}
	p, err := s.config(ctx, m.Config.Digest)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	v.ID, v.layers = m.Config.Digest, p.oci.RootFS.DiffIDs
	if v.Platform == nil {
		of := platform.Of(p.oci.Platform)
		v.Platform = &of
	}
	for _, l := range unique(v.layers) {
		if _, err := flat.ReadLayer(s.layerDir(l)); err != nil {
			continue // not unpacked
		}
		if sz, err := s.layerSize(l); err == nil {
			v.Unpacked += sz.files
		}
	}
	return v, nil
}

// missing is the error about a platform that an image does not have here.
func missing(ref string, p ocispec.Platform, have []Variant) error {
	var names []ocispec.Platform
	for _, v := range have {
		if v.ID != "" && v.Available {
			names = append(names, *v.Platform)
		}
	}
	return fmt.Errorf("image with reference %s was found but does not provide the specified platform (%s); here it is for %s: %w",
		ref, platforms.FormatAll(platforms.Normalize(p)), pick.List(platform.Names(names)), errdefs.ErrNotFound)
}

// Platform gives the variant of an image for one platform; its Target is its
// manifest. No such variant here is errdefs.ErrNotFound, naming the platform.
func (s *Store) Platform(ctx context.Context, ref string, p ocispec.Platform) (*Image, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	all, err := s.Variants(ctx, img)
	if err != nil {
		return nil, err
	}
	i := indexOf(all, platform.Exact(p))
	if i < 0 {
		return nil, missing(ref, p, all)
	}
	return s.as(ctx, img, all[i])
}

func indexOf(all []Variant, m platforms.Matcher) int {
	return slices.IndexFunc(all, func(v Variant) bool { return v.ID != "" && v.Available && m.Match(*v.Platform) })
}

// as gives img as one of its variants.
func (s *Store) as(ctx context.Context, img *Image, v Variant) (*Image, error) {
	p, err := s.config(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	out := *img
	out.ID, out.Target = v.ID, v.Desc
	out.setConfig(p)
	if v.Unpacked == 0 && len(v.layers) > 0 { // its layers are packed; their sizes are the best that is known
		out.Size, out.LayerSizes = v.Content, nil
		if m, err := s.manifest(ctx, v.Desc); err == nil {
			for _, l := range m.Layers {
				out.LayerSizes = append(out.LayerSizes, l.Size)
			}
		}
		return &out, nil
	}
	s.measure(&out)
	return &out, nil
}

// Select gives the variant of an image that a container for a platform is made
// of, unpacked and with a record that can be leased: the platform itself or,
// where the image has no such variant, one that its machines run.
func (s *Store) Select(ctx context.Context, ref string, p ocispec.Platform) (*Image, error) {
	img, err := s.Get(ctx, ref)
	if err != nil || platform.Exact(p).Match(img.Platform) {
		return img, err
	}
	all, err := s.Variants(ctx, img)
	if err != nil {
		return nil, err
	}
	i := indexOf(all, platform.Exact(p))
	if i < 0 {
		p := platform.Of(p)
		i = slices.IndexFunc(all, func(v Variant) bool {
			return v.ID != "" && v.Available && v.Platform.Architecture == p.Architecture && platforms.Only(p).Match(*v.Platform)
		})
	}
	switch {
	case i < 0:
		return nil, missing(ref, p, all)
	case all[i].ID == img.ID:
		return img, nil
	}
	if other, err := s.Get(ctx, all[i].ID.String()); err == nil {
		return other, nil
	}
	return s.Adopt(ctx, all[i].Desc, nil)
}

// RemovePlatforms removes the variants of an image for some platforms, and the
// image with its last one. Their manifests are what Removed names. A platform
// that is not here is errdefs.ErrNotFound, a variant that a container uses
// errdefs.ErrConflict; then nothing is removed.
func (s *Store) RemovePlatforms(ctx context.Context, ref string, list []ocispec.Platform) ([]Removed, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	all, err := s.Variants(ctx, img)
	if err != nil {
		return nil, err
	}
	gone := map[digest.Digest]bool{}
	var out []Removed
	for _, p := range list {
		i := indexOf(all, platform.Exact(p))
		if i < 0 {
			return nil, missing(ref, p, all)
		}
		v := all[i]
		if len(v.Holders) > 0 {
			return nil, fmt.Errorf("conflict: unable to delete %s for %s - %s is using it: %w", short(img.ID), platform.Name(p), holderText(v.Holders[0]), errdefs.ErrConflict)
		}
		if !gone[v.Desc.Digest] {
			gone[v.Desc.Digest] = true
			out = append(out, Removed{Deleted: v.Desc.Digest.String()})
		}
	}
	left := slices.DeleteFunc(slices.Clone(all), func(v Variant) bool { return v.ID == "" || !v.Available || gone[v.Desc.Digest] })
	if err := s.dropVariants(ctx, img, gone, left); err != nil {
		return nil, err
	}
	s.warn(s.clean(context.WithoutCancel(ctx)))
	return out, nil
}

// dropVariants makes the records of an image select one that is left, or go,
// and the index forget what is gone.
func (s *Store) dropVariants(ctx context.Context, img *Image, gone map[digest.Digest]bool, left []Variant) (err error) {
	var next *ready
	if len(left) > 0 {
		of := make([]ocispec.Platform, len(left))
		for i, v := range left {
			of[i] = *v.Platform
		}
		// What is selected next is unpacked before anything is taken away.
		ctx, j, err := s.begin(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, j.end(ctx, nil)) }()
		if next, err = s.resolve(ctx, candidate{target: img.Target, want: left[platform.Best(of)].ID}); err != nil {
			return err
		}
		if err := s.prepare(ctx, next, func(string) {}); err != nil {
			return err
		}
	}
	return s.meta.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		recs, err := s.records.List(ctx)
		if err != nil {
			return fmt.Errorf("cannot list images: %w", err)
		}
		for _, r := range recs {
			if r.Target.Digest != img.Target.Digest || next != nil && recordID(r) == next.id {
				continue
			}
			if next == nil || isDangling(r) {
				err = s.records.Delete(ctx, r.Name)
			} else {
				r.Labels = map[string]string{idLabel: next.id.String()}
				_, err = s.records.Update(ctx, r)
			}
			if err != nil {
				return fmt.Errorf("cannot update image record %q: %w", r.Name, err)
			}
		}
		return s.unlabel(ctx, img.Target, gone)
	})
}

// unlabel takes the references of an index to some manifests away, so that they
// are collected unless another image has them.
func (s *Store) unlabel(ctx context.Context, index ocispec.Descriptor, gone map[digest.Digest]bool) error {
	if !images.IsIndexType(index.MediaType) {
		return nil
	}
	return s.walk(ctx, index, func(d ocispec.Descriptor, kids []ocispec.Descriptor) error {
		info, err := s.blobs.Info(ctx, d.Digest)
		if err != nil {
			return fmt.Errorf("cannot look for blob %s: %w", d.Digest, err)
		}
		var fields []string
		change := content.Info{Digest: d.Digest, Labels: map[string]string{}}
		for key, v := range info.Labels {
			if strings.HasPrefix(key, gcLabel) && gone[digest.Digest(v)] && images.IsIndexType(d.MediaType) {
				fields = append(fields, "labels."+key)
			}
		}
		if len(fields) == 0 {
			return nil
		}
		if _, err := s.blobs.Update(ctx, change, fields...); err != nil {
			return fmt.Errorf("cannot label %s: %w", d.Digest, err)
		}
		return nil
	})
}
