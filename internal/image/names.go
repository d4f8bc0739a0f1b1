package image

import (
	"context"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/platform"
)

// idLabel, on a record of containerd's image store, holds the digest of the
// config for this host's platform, which is Docker's image id.
const idLabel = "proa.image.id"

// danglingPrefix begins the record names of images that have no name; a
// person cannot type it, because "@" ends a repository.
const danglingPrefix = "@dangling/"

var hexID = regexp.MustCompile(`^[a-f0-9]{1,64}$`)

// recordID is the image id of a record.
func recordID(r images.Image) digest.Digest { return digest.Digest(r.Labels[idLabel]) }

func isDangling(r images.Image) bool { return strings.HasPrefix(r.Name, danglingPrefix) }

// isTagged tells whether a record's name is one that people give: neither a
// dangling image's nor that of one that was pulled by its digest.
func isTagged(r images.Image) bool { return !strings.Contains(r.Name, "@") }

// parseName makes a name full: "busybox" becomes
// "docker.io/library/busybox:latest". A digest is not a name.
func parseName(name string) (reference.NamedTagged, error) {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("invalid image name %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	if _, ok := n.(reference.Digested); ok {
		return nil, fmt.Errorf("invalid image name %q: a digest cannot be given to an image as a name: %w", name, errdefs.ErrInvalidArgument)
	}
	if reference.FamiliarName(n) == digest.Canonical.String() {
		return nil, fmt.Errorf("refusing to create an ambiguous tag using digest algorithm as name (%q): %w", name, errdefs.ErrInvalidArgument)
	}
	return reference.TagNameOnly(n).(reference.NamedTagged), nil
}

// familiar is the short way to write a full name.
func familiar(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(n)
}

// Get finds an image by name, name:tag, name@digest, full id or the beginning
// of one. Errors: errdefs.ErrNotFound ("No such image: x", as Docker says it),
// errdefs.ErrInvalidArgument for an id prefix that fits several images or a
// name that cannot be one.
func (s *Store) Get(ctx context.Context, ref string) (*Image, error) {
	var id digest.Digest
	var all []images.Image
	err := s.cfg.DB.View(func(tx *bolt.Tx) (err error) {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		if all, err = s.records.List(ctx); err != nil {
			return fmt.Errorf("cannot list images: %w", err)
		}
		id, _, err = find(all, ref)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.image(ctx, id, all)
}

// find picks the image that ref means. name is the record's name when ref is
// a name of it, and empty when ref is an id or a digest.
func find(all []images.Image, ref string) (id digest.Digest, name string, err error) {
	notFound := fmt.Errorf("No such image: %s: %w", ref, errdefs.ErrNotFound) //nolint:staticcheck // Docker's words
	if ref == "" {
		return "", "", fmt.Errorf("an image name or id is needed: %w", errdefs.ErrInvalidArgument)
	}
	// An id or the digest of a manifest, whole.
	whole := digest.Digest(ref)
	if len(ref) == 64 && hexID.MatchString(ref) {
		whole = digest.NewDigestFromEncoded(digest.SHA256, ref)
	}
	if whole.Validate() == nil {
		for _, r := range all {
			if recordID(r) == whole || r.Target.Digest == whole {
				return recordID(r), "", nil
			}
		}
		return "", "", notFound
	}
	named, perr := reference.ParseNormalizedNamed(ref)
	if perr == nil {
		if d, ok := named.(reference.Digested); ok {
			for _, r := range all {
				n, err := reference.ParseNormalizedNamed(r.Name)
				if err == nil && n.Name() == named.Name() && (r.Target.Digest == d.Digest() || recordID(r) == d.Digest()) {
					return recordID(r), "", nil
				}
			}
			return "", "", notFound
		}
		full := reference.TagNameOnly(named).String()
		for _, r := range all {
			if r.Name == full {
				return recordID(r), full, nil
			}
		}
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	if hexID.MatchString(prefix) {
		var found []digest.Digest
		for _, r := range all {
			if d := recordID(r); strings.HasPrefix(d.Encoded(), prefix) && !slices.Contains(found, d) {
				found = append(found, d)
			}
		}
		switch len(found) {
		case 1:
			return found[0], "", nil
		case 0:
		default:
			return "", "", fmt.Errorf("image id prefix %q is ambiguous: it fits %d images (give more digits): %w", ref, len(found), errdefs.ErrInvalidArgument)
		}
	} else if perr != nil {
		return "", "", fmt.Errorf("invalid image reference %q: %w: %w", ref, perr, errdefs.ErrInvalidArgument)
	}
	return "", "", notFound
}

// List gives every image once, with all its names, newest build first.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	all, err := s.records.List(in(ctx))
	if err != nil {
		return nil, fmt.Errorf("cannot list images: %w", err)
	}
	var out []*Image
	seen := map[digest.Digest]bool{}
	for _, r := range all {
		id := recordID(r)
		if seen[id] {
			continue
		}
		seen[id] = true
		img, err := s.image(ctx, id, all)
		if errdefs.IsNotFound(err) {
			continue // removed since the list was read
		}
		if errdefs.IsDataLoss(err) {
			s.warn(err) // one damaged image must not hide the others
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	slices.SortStableFunc(out, func(a, b *Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return out, nil
}

// image assembles the image id from its records among all.
func (s *Store) image(ctx context.Context, id digest.Digest, all []images.Image) (*Image, error) {
	p, err := s.config(ctx, id)
	if err != nil {
		return nil, err
	}
	img := &Image{
		ID: id,
	}
	img.setConfig(p)
	for _, r := range all {
		if recordID(r) != id {
			continue
		}
		if img.Target.Digest == "" || !isDangling(r) {
			img.Target = r.Target
		}
		if r.UpdatedAt.After(img.Tagged) {
			img.Tagged = r.UpdatedAt
		}
		if isDangling(r) {
			continue
		}
		n, err := reference.ParseNormalizedNamed(r.Name)
		if err != nil {
			return nil, fmt.Errorf("cannot read image record %q: %w: %w", r.Name, err, errdefs.ErrDataLoss)
		}
		if isTagged(r) {
			img.Names = append(img.Names, reference.FamiliarString(n))
		}
		if d := reference.FamiliarName(n) + "@" + r.Target.Digest.String(); !slices.Contains(img.Digests, d) {
			img.Digests = append(img.Digests, d)
		}
	}
	slices.Sort(img.Names)
	slices.Sort(img.Digests)
	s.measure(img)
	return img, nil
}

// setConfig fills in what a config says.
func (img *Image) setConfig(p *parsed) {
	img.Platform, img.Config, img.DockerConfig = platform.Of(p.oci.Platform), p.oci, p.docker
	img.Comment, img.DockerVersion, img.RawConfig, img.ChainID = p.comment, p.version, slices.Clone(p.raw), p.chain
	img.Created = time.Time{}
	if p.oci.Created != nil {
		img.Created = *p.oci.Created
	}
}

// measure sums up the files of an image's layers.
func (s *Store) measure(img *Image) {
	img.Size, img.LayerSizes = 0, nil
	for _, d := range img.Config.RootFS.DiffIDs {
		l, err := s.layerSize(d)
		if err != nil {
			s.warn(err) // it can still be looked at, removed and loaded again
		}
		img.Size += l.files
		img.LayerSizes = append(img.LayerSizes, l.files)
	}
}

// Tag gives an image one more name, taking it from the image that has it now.
func (s *Store) Tag(ctx context.Context, ref, newRef string) error {
	name, err := parseName(newRef)
	if err != nil {
		return err
	}
	if hexID.MatchString(reference.FamiliarName(name)) && len(reference.FamiliarName(name)) == 64 {
		return fmt.Errorf("cannot tag image as %q: the name looks like an image id: %w", newRef, errdefs.ErrInvalidArgument)
	}
	return s.explain(s.meta.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		all, err := s.records.List(ctx)
		if err != nil {
			return fmt.Errorf("cannot list images: %w", err)
		}
		id, from, err := find(all, ref)
		if err != nil {
			return err
		}
		// Two names of one image can point to two manifests of it, as when one
		// was loaded and the other pulled: a tag keeps the one it is made of, so
		// that a push has the digest that came in.
		target := targetOf(all, id)
		for _, r := range all {
			if r.Name == from || recordID(r) == id && strings.HasSuffix(ref, r.Target.Digest.String()) {
				target = r.Target
			}
		}
		return s.name(ctx, all, id, target, []string{name.String()})
	}))
}

// targetOf is what the records of id point to, a named one first.
func targetOf(all []images.Image, id digest.Digest) (t ocispec.Descriptor) {
	for _, r := range all {
		if recordID(r) == id && (t.Digest == "" || !isDangling(r)) {
			t = r.Target
		}
	}
	return t
}

// name gives names (full ones) to the image id within the transaction of ctx.
// An image that loses its last name becomes dangling; one that has none and
// gets none is recorded as dangling. all are the records before.
func (s *Store) name(ctx context.Context, all []images.Image, id digest.Digest, target ocispec.Descriptor, names []string) error {
	byName := make(map[string]images.Image, len(all))
	for _, r := range all {
		byName[r.Name] = r
	}
	target.Annotations, target.Platform = nil, nil
	rec := images.Image{Target: target, Labels: map[string]string{idLabel: id.String()}}
	displaced := []images.Image{}
	for _, n := range names {
		rec.Name = n
		old, ok := byName[n]
		if !ok {
			if _, err := s.records.Create(ctx, rec); err != nil {
				return fmt.Errorf("cannot name image %q: %w", n, err)
			}
			byName[n] = rec
			continue
		}
		if _, err := s.records.Update(ctx, rec); err != nil {
			return fmt.Errorf("cannot name image %q: %w", n, err)
		}
		byName[n] = rec
		if recordID(old) != id {
			displaced = append(displaced, old)
		}
	}
	for _, old := range displaced {
		if err := s.keepDangling(ctx, byName, recordID(old), old.Target); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return s.keepDangling(ctx, byName, id, target)
	}
	if d := danglingPrefix + id.Encoded(); byName[d].Name != "" {
		if err := s.records.Delete(ctx, d); err != nil {
			return fmt.Errorf("cannot remove image record %q: %w", d, err)
		}
	}
	return nil
}

// keepDangling records an image without a name unless it has some record.
func (s *Store) keepDangling(ctx context.Context, byName map[string]images.Image, id digest.Digest, target ocispec.Descriptor) error {
	for _, r := range byName {
		if recordID(r) == id {
			return nil
		}
	}
	rec := images.Image{Name: danglingPrefix + id.Encoded(), Target: target, Labels: map[string]string{idLabel: id.String()}}
	if _, err := s.records.Create(ctx, rec); err != nil {
		return fmt.Errorf("cannot record image %s: %w", id, err)
	}
	byName[rec.Name] = rec
	return nil
}

// short is the first 12 digits of an id, as people see it.
func short(id digest.Digest) string {
	e := id.Encoded()
	if len(e) > 12 {
		e = e[:12]
	}
	return e
}

// dir is a digest as a file name.
func dir(d digest.Digest) string { return d.Encoded() }

// isDir tells whether a file name is one that dir made.
func isDir(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 32
}
