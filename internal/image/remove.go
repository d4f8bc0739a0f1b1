package image

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"proa/internal/filters"
)

// Removed is one line of what Remove or Prune did; one field is set.
type Removed struct {
	Untagged string // a name, or name@digest, that is gone
	Deleted  string // an image id that is gone
}

// Remove is docker's rmi. ref as a name takes that name away, and the image
// with its last name; ref as an id takes the image away. Without force it is
// errdefs.ErrConflict when a lease holds the image, or when an id has names in
// several repositories. With force the image goes although a container that
// does not run holds it (whose lease keeps the files); what a running one
// holds only loses its name. Blobs, layers and indexes that nothing needs any
// more are gone when Remove returns, unless something is being loaded: then
// soon after. prune is accepted for Docker's sake: an image here has no
// untagged parents.
func (s *Store) Remove(ctx context.Context, ref string, force, prune bool) ([]Removed, error) {
	var out []Removed
	err := s.meta.Update(func(tx *bolt.Tx) (err error) {
		out, err = s.remove(boltutil.WithTransaction(in(ctx), tx), ref, force)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.warn(s.clean(context.WithoutCancel(ctx)))
	return out, nil
}

func (s *Store) remove(ctx context.Context, ref string, force bool) ([]Removed, error) {
	all, err := s.records.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list images: %w", err)
	}
	id, name, err := find(all, ref)
	if err != nil {
		return nil, err
	}
	user, running, err := s.user(ctx, id)
	if err != nil {
		return nil, err
	}
	var named []images.Image
	for _, r := range all {
		if recordID(r) == id && !isDangling(r) {
			named = append(named, r)
		}
	}
	if name == "" {
		same := sameReferences(named, ref)
		if len(same) > 1 && len(same) < len(named) {
			return s.untag(ctx, same, named)
		}
		if len(same) == 1 {
			name = same[0].Name
		}
	}
	switch {
	case name != "" && len(named) > 1:
		i := slices.IndexFunc(named, func(r images.Image) bool { return r.Name == name })
		return s.untag(ctx, named[i:i+1], named)
	case name != "" && user != "" && !force:
		return nil, fmt.Errorf("conflict: unable to remove repository reference %q (must force) - %s is using its referenced image %s: %w", ref, holderText(user), short(id), errdefs.ErrConflict)
	case name != "" && running:
		// As Docker: the name goes, the image stays until the container does.
		out, err := s.untag(ctx, named, named)
		if err != nil {
			return nil, err
		}
		return out, s.keepDangling(ctx, map[string]images.Image{}, id, named[0].Target)
	case running:
		return nil, fmt.Errorf("conflict: unable to delete %s (cannot be forced) - image is being used by running %s: %w", short(id), holderText(user), errdefs.ErrConflict)
	case name == "" && !force && !oneRepository(named):
		return nil, fmt.Errorf("conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories: %w", short(id), errdefs.ErrConflict)
	case user != "" && !force:
		return nil, fmt.Errorf("conflict: unable to delete %s (must be forced) - image is being used by stopped %s: %w", short(id), holderText(user), errdefs.ErrConflict)
	}
	out, err := s.untag(ctx, named, named)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if recordID(r) == id && isDangling(r) {
			if err := s.records.Delete(ctx, r.Name); err != nil {
				return nil, fmt.Errorf("cannot remove image record %q: %w", r.Name, err)
			}
		}
	}
	return append(out, Removed{Deleted: id.String()}), nil
}

// untag deletes the records gone; those are all that named holds or one of it.
func (s *Store) untag(ctx context.Context, gone, named []images.Image) ([]Removed, error) {
	var out []Removed
	for _, r := range gone {
		if err := s.records.Delete(ctx, r.Name); err != nil {
			return nil, fmt.Errorf("cannot remove image name %q: %w", r.Name, err)
		}
		if isTagged(r) {
			out = append(out, Removed{Untagged: familiar(r.Name)})
		}
	}
	// A repository that keeps no name of the image loses its digest, too.
	lost := map[string]bool{}
	for _, r := range gone {
		repo, ref := repository(r.Name), ""
		kept := slices.ContainsFunc(named, func(o images.Image) bool {
			return repository(o.Name) == repo && !slices.ContainsFunc(gone, func(g images.Image) bool { return g.Name == o.Name })
		})
		if ref = repo + "@" + r.Target.Digest.String(); !kept && !lost[ref] {
			lost[ref] = true
			out = append(out, Removed{Untagged: ref})
		}
	}
	return out, nil
}

func repository(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarName(n)
}

// oneRepository reports whether an id is as good as a name: the image has at
// most one tag, and digests of the same repository alone.
func oneRepository(named []images.Image) bool {
	tags := 0
	for _, r := range named {
		if isTagged(r) {
			tags++
		}
		if repository(r.Name) != repository(named[0].Name) {
			return false
		}
	}
	return tags <= 1
}

// sameReferences are the names of an image that "repository@digest" stands for:
// all that the repository has for the digest, tags included.
func sameReferences(named []images.Image, ref string) []images.Image {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil
	}
	if _, ok := n.(reference.Digested); !ok {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(named), func(r images.Image) bool { return repository(r.Name) != reference.FamiliarName(n) })
}

// user gives one holder of the image, a running one if there is any.
func (s *Store) user(ctx context.Context, id digest.Digest) (holder string, running bool, err error) {
	held, err := s.holders(ctx)
	if err != nil {
		return "", false, err
	}
	for h, d := range held {
		if d != id {
			continue
		}
		if s.cfg.Running != nil && s.cfg.Running(h) {
			return h, true, nil
		}
		if holder == "" || h < holder {
			holder = h
		}
	}
	return holder, false, nil
}

// holderText makes "container 0123456789ab" of "container/<id>".
func holderText(holder string) string {
	kind, id, ok := strings.Cut(holder, "/")
	if !ok {
		return holder
	}
	if len(id) > 12 {
		id = id[:12]
	}
	return kind + " " + id
}

// Prune removes images that nothing holds and filters.ImagePrune selects:
// those without a name, or with dangling=false every one. It returns what is
// gone and how many bytes of disk that freed.
func (s *Store) Prune(ctx context.Context, f filters.Args) ([]Removed, int64, error) {
	if err := filters.ImagePrune.Check(f); err != nil {
		return nil, 0, err
	}
	dangling, err := f.Bool("dangling", true)
	if err != nil {
		return nil, 0, err
	}
	until := f.Until("until", time.Now())
	before, err := s.disk()
	if err != nil {
		return nil, 0, err
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, 0, err
	}
	var out []Removed
	for _, img := range list {
		if len(img.Digests) > 0 && dangling || !until.IsZero() && img.Created.After(until) || !LabelsMatch(f, img.Config.Config.Labels) {
			continue
		}
		gone, err := s.pruneOne(ctx, img)
		if err != nil {
			return out, 0, err
		}
		out = append(out, gone...)
	}
	if err := s.clean(ctx); err != nil {
		return out, 0, err
	}
	after, err := s.disk()
	if err != nil {
		return out, 0, err
	}
	return out, max(0, before-after), nil
}

// pruneOne removes an image with all its names unless something holds it or
// its names have changed since it was listed.
func (s *Store) pruneOne(ctx context.Context, img *Image) ([]Removed, error) {
	var out []Removed
	err := s.meta.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		out = nil
		holder, _, err := s.user(ctx, img.ID)
		if err != nil || holder != "" {
			return err
		}
		recs, err := s.records.List(ctx)
		if err != nil {
			return fmt.Errorf("cannot list images: %w", err)
		}
		var mine, named []images.Image
		tags := 0
		for _, r := range recs {
			if recordID(r) == img.ID {
				mine = append(mine, r)
				if !isDangling(r) {
					named = append(named, r)
				}
				if isTagged(r) {
					tags++
				}
			}
		}
		if len(mine) == 0 || tags != len(img.Names) {
			return nil
		}
		if out, err = s.untag(ctx, named, named); err != nil {
			return err
		}
		for _, r := range mine {
			if !isDangling(r) {
				continue
			}
			if err := s.records.Delete(ctx, r.Name); err != nil {
				return fmt.Errorf("cannot remove image record %q: %w", r.Name, err)
			}
		}
		out = append(out, Removed{Deleted: img.ID.String()})
		return nil
	})
	return out, err
}

// LabelsMatch tells whether labels fit "label" and "label!" as Docker reads
// them for images: each value by itself, and "key!=value" of either turned round.
func LabelsMatch(f filters.Args, labels map[string]string) bool {
	for _, key := range []string{"label", "label!"} {
		for want := range f[key] {
			k, v, exact := strings.Cut(want, "=")
			not := strings.HasSuffix(key, "!")
			if short, ok := strings.CutSuffix(k, "!"); ok {
				k, not = short, !not
			}
			got, ok := labels[k]
			if (ok && (!exact || got == v)) == not {
				return false
			}
		}
	}
	return true
}
