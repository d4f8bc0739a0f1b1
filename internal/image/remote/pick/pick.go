// Package pick owns what a name means at a registry: which manifest of an index
// is for a platform, and the words for a tag, a repository or a platform that is
// not there, which say what is. It fetches no layer, and keeps nothing.
package pick

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/remote"
	"proa/internal/platform"
)

// TagError says that a repository has no such tag, and what it has. Its kind
// is errdefs.ErrNotFound.
type TagError struct {
	Ref  string
	Tags []string // the nearest ones first, not all
	More int      // how many others there are
}

// Error lists them.
func (e *TagError) Error() string {
	out := fmt.Sprintf("manifest for %s not found: ", e.Ref)
	switch {
	case len(e.Tags) == 0:
		return out + "the registry has no such tag, and does not say which it has"
	case e.More > 0:
		return out + fmt.Sprintf("the repository has no such tag; the nearest are %s, and it has %d more", List(e.Tags), e.More)
	}
	return out + "the repository has no such tag; it has " + List(e.Tags)
}

// Unwrap gives the kind.
func (e *TagError) Unwrap() error { return errdefs.ErrNotFound }

// PlatformError says that an image is for other machines than this one. Its
// kind is errdefs.ErrNotFound, as a registry's answer would be.
type PlatformError struct {
	Want string   // "linux/amd64"
	Have []string // what the image offers
	// Asked is set when somebody named the platform, and it is not the host's.
	Asked bool
}

// Error names both platforms.
func (e *PlatformError) Error() string {
	if e.Asked {
		return fmt.Sprintf("the image was found but does not match the specified platform: it is for %s and not for %s, which was asked for", List(e.Have), e.Want)
	}
	return fmt.Sprintf("the image is for %s and this host is %s", List(e.Have), e.Want)
}

// Unwrap gives the kind.
func (e *PlatformError) Unwrap() error { return errdefs.ErrNotFound }

// List joins names as people do.
func List(names []string) string {
	switch len(names) {
	case 0:
		return "no known platform"
	case 1:
		return names[0]
	}
	out := names[0]
	for _, n := range names[1 : len(names)-1] {
		out += ", " + n
	}
	return out + " and " + names[len(names)-1]
}

// IsAttestation tells build provenance, which hides among an index's
// manifests, from images.
func IsAttestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown"
}

// Platform picks of an index's entries the one for a platform, passing over
// attestations; asked is set when it was named, else the best one for this host
// is picked. One without a platform is taken when
// nothing else can be meant.
func Platform(entries []ocispec.Descriptor, wanted ocispec.Platform, asked bool) (ocispec.Descriptor, error) {
	want := platforms.Only(wanted)
	var fits []ocispec.Descriptor
	var have []string
	var unnamed []ocispec.Descriptor
	for _, d := range entries {
		if IsAttestation(d) || d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 || d.MediaType != "" && !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			continue
		}
		if d.Platform == nil || d.Platform.OS == "" && d.Platform.Architecture == "" {
			unnamed = append(unnamed, d)
			continue
		}
		have = append(have, platform.Name(platform.Of(*d.Platform)))
		if asked && want.Match(platform.Of(*d.Platform)) || !asked && platform.Fits(*d.Platform) {
			fits = append(fits, d)
		}
	}
	switch {
	case len(fits) > 0 && asked:
		return slices.MinFunc(fits, func(a, b ocispec.Descriptor) int {
			switch {
			case want.Less(*a.Platform, *b.Platform):
				return -1
			case want.Less(*b.Platform, *a.Platform):
				return 1
			}
			return 0
		}), nil
	case len(fits) > 0:
		of := make([]ocispec.Platform, len(fits))
		for i, d := range fits {
			of[i] = *d.Platform
		}
		return fits[platform.Best(of)], nil
	case len(have) == 0 && len(unnamed) == 1:
		return unnamed[0], nil
	}
	slices.Sort(have)
	return ocispec.Descriptor{}, &PlatformError{Want: platform.Name(wanted), Have: slices.Compact(have), Asked: asked}
}

// Denied makes "not found" of a registry's refusal to give an image to a client
// without credentials or rights: a registry answers so for what is not there.
// Clients match Docker's message and its status 404.
func Denied(repo *remote.Repository, named reference.Named, err error) error {
	if !errdefs.IsPermissionDenied(err) && !(errdefs.IsUnauthorized(err) && repo.Anonymous()) {
		return err
	}
	return fmt.Errorf("pull access denied for %s, repository does not exist or may require 'docker login': denied: %s: %w", reference.FamiliarName(named), err.Error(), errdefs.ErrNotFound)
}

// Missing adds what there is to a registry's word that something is not there.
func Missing(ctx context.Context, repo *remote.Repository, named reference.Named, at string, err error) error {
	if !errdefs.IsNotFound(err) {
		return err
	}
	if _, ok := named.(reference.Digested); ok {
		return fmt.Errorf("the registry has no manifest with this digest: %w", err)
	}
	tags, terr := repo.Tags(ctx)
	if errdefs.IsNotFound(terr) {
		return fmt.Errorf("the registry has no repository %q (repository does not exist or may require 'docker login'): %w", reference.Path(named), err)
	}
	e := &TagError{Ref: reference.FamiliarString(named)}
	if terr == nil {
		e.Tags, e.More = nearest(at, tags, 8)
	}
	return e
}

// nearest gives at most n names, those first that differ least from want.
func nearest(want string, names []string, n int) (some []string, more int) {
	type scored struct {
		name string
		far  int
	}
	all := make([]scored, 0, len(names))
	for _, name := range names {
		if !reference.TagRegexp.MatchString(name) || len(name) > 128 {
			continue
		}
		far := distance(want, name)
		if strings.HasPrefix(name, want) || strings.HasPrefix(want, name) {
			far = min(far, 1)
		}
		all = append(all, scored{name, far})
	}
	slices.SortStableFunc(all, func(a, b scored) int {
		if a.far != b.far {
			return a.far - b.far
		}
		return strings.Compare(a.name, b.name)
	})
	for _, s := range all[:min(n, len(all))] {
		some = append(some, s.name)
	}
	return some, len(all) - len(some)
}

// distance is how many bytes must be changed, added or left out to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := left
			if a[i] != b[j] {
				change++
			}
			left = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Why asks a registry for the manifest that a name stands for on a platform and
// tells why it cannot be had, in the words of a pull; nil if it can.
func Why(ctx context.Context, repo *remote.Repository, named reference.Named, wanted ocispec.Platform, asked bool) error {
	at := "latest"
	switch n := named.(type) {
	case reference.Digested:
		at = n.Digest().String()
	case reference.Tagged:
		at = n.Tag()
	}
	m, err := repo.Manifest(ctx, at)
	if err != nil {
		return Missing(ctx, repo, named, at, err)
	}
	for range depth {
		if !images.IsIndexType(m.MediaType) {
			break
		}
		var idx ocispec.Index
		if err := json.Unmarshal(m.Raw, &idx); err != nil {
			return fmt.Errorf("cannot read the index %s: %w: %w", m.Digest, err, errdefs.ErrInvalidArgument)
		}
		d, err := Platform(idx.Manifests, wanted, asked)
		if err != nil {
			return err
		}
		if m, err = repo.Manifest(ctx, d.Digest.String()); err != nil {
			return fmt.Errorf("its index names manifest %s: %w", d.Digest, err)
		}
	}
	if !images.IsManifestType(m.MediaType) {
		return fmt.Errorf("%s is no image: its media type is %q: %w", m.Digest, m.MediaType, errdefs.ErrInvalidArgument)
	}
	return nil
}

// depth is how many indexes may lie within each other.
const depth = 4
