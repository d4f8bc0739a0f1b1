package image

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"proa/internal/image/remote"
)

// PushOptions are what a push can be told.
type PushOptions struct {
	Auth remote.Credentials
	// Platform, if set, is the one variant that is sent.
	Platform *ocispec.Platform
	// Progress gets what happens, from one goroutine at a time.
	Progress func(Progress)
	// Begun is called when the registry has let us in.
	Begun func()
}

// PushResult is what the registry has now.
type PushResult struct {
	Name   string // as people write it, with its tag
	Tag    string
	Target ocispec.Descriptor // what the tag points to there
	// Part is set when the image came from an Index of several platforms that
	// are not all here: then the tag points to the manifest of the one that is.
	Part  bool
	Index ocispec.Descriptor
}

// Push sends an image to the registry that its name says, under its tag: the
// very bytes that were pulled, loaded or built, so that the digest stays. An
// index is sent with all its manifests when all of them are here; else the
// manifest of the image that the name stands for is sent alone, as Docker does
// it, since a registry refuses an index with holes. Blobs that the registry
// has are not sent; those that it is known to have in another repository are
// mounted from there. With a platform the manifest of that one is sent alone; one
// that is not here is errdefs.ErrNotFound.
//
// Errors: errdefs.ErrNotFound, ErrUnauthenticated, ErrPermissionDenied,
// ErrUnavailable.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) (_ PushResult, err error) {
	named, tag, err := parseRemote(ref)
	if err != nil {
		return PushResult{}, err
	}
	if _, ok := named.(reference.Digested); ok {
		return PushResult{}, fmt.Errorf("cannot push %s: a digest cannot be pushed to; give the image a name with a tag: %w", ref, errdefs.ErrInvalidArgument)
	}
	out := PushResult{Name: reference.FamiliarString(named), Tag: tag}
	defer func() {
		if err != nil {
			err = s.explain(fmt.Errorf("cannot push %s: %w", out.Name, err))
		}
	}()
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return out, err
	}
	// Like a save it makes nothing and may take long: the lease alone keeps
	// what it reads.
	j.detachWork()
	defer func() { err = j.end(ctx, err) }()
	chosen, err := s.choices(ctx, j, []string{named.String()}, false)
	if errdefs.IsNotFound(err) {
		return out, fmt.Errorf("An image does not exist locally with the tag: %s: %w", reference.FamiliarName(named), errdefs.ErrNotFound) //nolint:staticcheck // Docker's words
	}
	if err != nil {
		return out, err
	}
	p := &pusher{s: s, repo: s.cfg.Registries.Repository(named, o.Auth), tell: o.Progress}
	if p.tell == nil {
		p.tell = func(Progress) {}
	}
	target, err := p.plan(ctx, chosen[0], o.Platform)
	if err != nil {
		return out, err
	}
	// Before anything is sent: does it answer, are the credentials good?
	if _, err := p.repo.HasManifest(ctx, target.Digest); err != nil {
		return out, err
	}
	if o.Begun != nil {
		o.Begun()
	}
	out.Target = target
	if out.Part = o.Platform == nil && target.Digest != chosen[0].target.Digest; out.Part {
		out.Index = chosen[0].target
	}
	if err := p.blobs(ctx); err != nil {
		return out, err
	}
	return out, p.manifests(ctx, tag)
}

// pusher is one push.
type pusher struct {
	s    *Store
	repo *remote.Repository
	tell func(Progress)

	parts []part               // blobs, in the order of their layers
	docs  []ocispec.Descriptor // manifests, the one with the tag last
}

// part is a blob to send, and the name under which people see it.
type part struct {
	desc  ocispec.Descriptor
	shown digest.Digest // "": it is not shown
}

// plan finds out what must be sent.
func (p *pusher) plan(ctx context.Context, c candidate, only *ocispec.Platform) (ocispec.Descriptor, error) {
	if only != nil {
		part, _, err := p.s.narrow(ctx, c, []ocispec.Platform{*only})
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		c = part
	}
	img, err := p.s.resolve(ctx, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	target := img.target
	if images.IsIndexType(target.MediaType) {
		whole, err := p.whole(ctx, target, 0)
		if err != nil {
			return target, err
		}
		if !whole {
			target = img.from
		}
	}
	shown := map[digest.Digest]digest.Digest{}
	for i, l := range img.manifest.Layers {
		shown[l.Digest] = img.config.oci.RootFS.DiffIDs[i]
	}
	return target, p.add(ctx, target, shown, map[digest.Digest]bool{}, 0)
}

// whole tells whether everything below an index is here.
func (p *pusher) whole(ctx context.Context, d ocispec.Descriptor, depth int) (bool, error) {
	if depth > 4 {
		return false, nil
	}
	if checkDigest(d.Digest) != nil {
		return false, nil
	}
	if _, err := p.s.blobs.Info(in(ctx), d.Digest); errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("cannot look for blob %s: %w", d.Digest, err)
	}
	kids, err := p.s.refs(ctx, d)
	if err != nil {
		return false, err
	}
	for _, k := range kids {
		if ok, err := p.whole(ctx, k, depth+1); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// add plans a manifest after all that it refers to.
func (p *pusher) add(ctx context.Context, d ocispec.Descriptor, shown map[digest.Digest]digest.Digest, seen map[digest.Digest]bool, depth int) error {
	if seen[d.Digest] || depth > 5 {
		return nil
	}
	seen[d.Digest] = true
	if !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType) {
		if images.IsNonDistributable(d.MediaType) && len(d.URLs) > 0 {
			return nil // the image says where else it is
		}
		p.parts = append(p.parts, part{d, shown[d.Digest]})
		return nil
	}
	kids, err := p.s.refs(ctx, d)
	if err != nil {
		return err
	}
	// The layers first, the config, which is small, last.
	for i := range kids {
		if err := p.add(ctx, kids[(i+1)%len(kids)], shown, seen, depth+1); err != nil {
			return err
		}
	}
	p.docs = append(p.docs, d)
	return nil
}

// blobs sends what the registry lacks, some at a time.
func (p *pusher) blobs(ctx context.Context) error {
	for _, b := range p.parts {
		if b.shown != "" {
			p.tell(Progress{Layer: b.shown, Stage: Preparing})
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	events := make(chan Progress)
	told := make(chan struct{})
	go func() {
		defer close(told)
		for e := range events {
			p.tell(e)
		}
	}()
	for _, b := range p.parts {
		g.Go(func() error { return p.blob(gctx, b, events) })
	}
	err := g.Wait()
	close(events)
	<-told
	return err
}

func (p *pusher) blob(ctx context.Context, b part, events chan<- Progress) error {
	info, err := p.s.blobs.Info(in(ctx), b.desc.Digest)
	if err != nil {
		return fmt.Errorf("blob %s is not here: %w", b.desc.Digest, err)
	}
	key := sourceLabel + p.repo.Host()
	tell := func(e Progress) {
		if e.Layer = b.shown; e.Layer != "" {
			events <- e
		}
	}
	var last atomic.Int64 // unix nanoseconds
	u := remote.Upload{
		Desc: ocispec.Descriptor{Digest: b.desc.Digest, Size: info.Size},
		Open: func(from int64) (io.ReadCloser, error) { return p.s.readFrom(ctx, b.desc.Digest, from) },
		Progress: func(done int64) {
			now := time.Now().UnixNano()
			if old := last.Load(); done == info.Size || now-old > int64(tellEvery) && last.CompareAndSwap(old, now) {
				tell(Progress{Stage: Pushing, Done: done, Total: info.Size})
			}
		},
	}
	if v := info.Labels[key]; v != "" {
		u.Sources = strings.Split(v, ",")
	}
	how, err := p.repo.Upload(ctx, u)
	if err != nil {
		return err
	}
	switch {
	case how.Existed:
		tell(Progress{Stage: Present})
	case how.MountedFrom != "":
		tell(Progress{Stage: Linked, Note: how.MountedFrom})
	default:
		tell(Progress{Stage: Pushed})
	}
	if slices.Contains(u.Sources, p.repo.Name()) || len(info.Labels[key]) > 2048 {
		return nil
	}
	labels := map[string]string{key: strings.Join(append(u.Sources, p.repo.Name()), ",")}
	if _, err := p.s.blobs.Update(in(ctx), content.Info{Digest: b.desc.Digest, Labels: labels}, "labels."+key); err != nil {
		return fmt.Errorf("cannot label %s: %w", b.desc.Digest, err)
	}
	return nil
}

// readFrom reads a blob from a byte on.
func (s *Store) readFrom(ctx context.Context, d digest.Digest, from int64) (io.ReadCloser, error) {
	ra, err := s.blobs.ReaderAt(in(ctx), ocispec.Descriptor{Digest: d})
	if err != nil {
		return nil, fmt.Errorf("cannot read blob %s: %w", d, err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(ra, from, ra.Size()-from), ra}, nil
}

// manifests sends the planned documents, the last one under the tag.
func (p *pusher) manifests(ctx context.Context, tag string) error {
	for i, d := range p.docs {
		raw, err := p.s.readJSON(ctx, d, "image manifest")
		if err != nil {
			return err
		}
		m := remote.Manifest{Descriptor: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(raw))}, Raw: raw}
		at := tag
		if i < len(p.docs)-1 {
			at = d.Digest.String()
			if have, err := p.repo.HasManifest(ctx, d.Digest); err != nil || have {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := p.repo.PutManifest(ctx, at, m); err != nil {
			return fmt.Errorf("the registry has all layers, but did not take the manifest: %w", err)
		}
	}
	return nil
}
