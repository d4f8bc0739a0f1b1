package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"proa/internal/image/remote"
	"proa/internal/image/remote/pick"
	"proa/internal/platform"
)

// atOnce is how many layers of one image are fetched or sent at a time.
const atOnce = 3

// sourceLabel, with a host behind it, on a blob holds the repositories of that
// host that have it, joined by commas: containerd's own label.
const sourceLabel = "containerd.io/distribution.source."

// Stage is how far a layer has come on its way from or to a registry.
type Stage int

// The stages of a layer that is pulled, then of one that is pushed.
const (
	Announced   Stage = iota // the manifest names it
	Exists                   // nothing to be done
	Downloading              // Done of Total bytes
	Verifying
	Downloaded
	Unpacking // Done of Total bytes: those packed, which pass as they arrive
	Pulled

	Preparing
	Pushing // Done of Total bytes
	Pushed
	Present // the registry has it
	Linked  // Note is the repository it was mounted from
)

// Progress says what happens to one layer.
type Progress struct {
	Layer       digest.Digest // the blob's for a pull, the diffID for a push
	Stage       Stage
	Done, Total int64
	Note        string
}

// PullOptions are what a pull can be told; zero values are the defaults.
type PullOptions struct {
	// Platform, os/arch[/variant], is wanted instead of this host's.
	Platform string
	Auth     remote.Credentials
	// Progress gets what happens, from one goroutine at a time.
	Progress func(Progress)
	// Found is called when the registry has said what the name stands for.
	Found func(digest.Digest)
}

// PullResult is what a pull brought.
type PullResult struct {
	ID     digest.Digest // of the image
	Name   string        // as people write it, with a tag or a digest
	Digest digest.Digest // of what the registry has under that name
	// Current is set when the image was here already under that name.
	Current bool
}

// parseRemote makes the name of an image full for a registry: with a tag, or
// with a digest alone, which then is what counts, as Docker has it.
func parseRemote(ref string) (named reference.Named, at string, err error) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, "", fmt.Errorf("invalid image name %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if d, ok := n.(reference.Digested); ok {
		if err := checkDigest(d.Digest()); err != nil {
			return nil, "", fmt.Errorf("invalid image name %q: %w", ref, err)
		}
		c, err := reference.WithDigest(reference.TrimNamed(n), d.Digest())
		return c, d.Digest().String(), err
	}
	t := reference.TagNameOnly(n).(reference.NamedTagged)
	return t, t.Tag(), nil
}

// Pull brings an image from its registry: of an index, the manifest for one
// platform. Layers that are here are not fetched; the others are fetched three
// at a time and unpacked while they arrive, once also when several pulls want
// them. The name points to exactly what the registry has: an index stays one.
// Until the last layer is in place nothing of the image can be seen, and after
// an error nothing is left.
//
// Errors: *TagError, *PlatformError, *DigestError, errdefs.ErrUnauthenticated
// and ErrPermissionDenied, ErrUnavailable for a registry that cannot be
// reached, ErrInvalidArgument for what is no image, ErrResourceExhausted for a
// full disk.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (_ PullResult, err error) {
	named, at, err := parseRemote(ref)
	if err != nil {
		return PullResult{}, err
	}
	short := reference.FamiliarString(named)
	defer func() {
		if err != nil {
			err = s.explain(fmt.Errorf("cannot pull %s: %w", short, err))
		}
	}()
	c := candidate{names: []string{named.String()}}
	if o.Platform != "" {
		p, err := platforms.Parse(o.Platform)
		if err != nil {
			return PullResult{}, fmt.Errorf("platform %w: %w", err, errdefs.ErrInvalidArgument)
		}
		c.plf = &p
	}
	t := newTeller(o.Progress)
	defer t.close() // after the job has ended: nobody waits for who listens slowly but Pull
	p := &puller{s: s, repo: s.cfg.Registries.Repository(named, o.Auth), tell: t.tell}
	top, err := p.repo.Manifest(ctx, at)
	if err != nil {
		return PullResult{}, pick.Denied(p.repo, named, pick.Missing(ctx, p.repo, named, at, err))
	}
	if o.Found != nil {
		o.Found(top.Digest)
	}
	c.target = top.Descriptor
	if id, ok := s.current(ctx, c); ok {
		return PullResult{ID: id, Name: short, Digest: top.Digest, Current: true}, nil
	}
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return PullResult{}, err
	}
	defer func() { err = j.end(ctx, err) }()
	p.job = j
	img, err := p.pull(ctx, top, c)
	if err != nil {
		return PullResult{}, err
	}
	return PullResult{ID: img.id, Name: short, Digest: top.Digest}, nil
}

// current tells whether a name points to what was found already, with all that
// belongs to it.
func (s *Store) current(ctx context.Context, c candidate) (digest.Digest, bool) {
	rec, err := s.records.Get(in(ctx), c.names[0])
	if err != nil || rec.Target.Digest != c.target.Digest {
		return "", false
	}
	img, err := s.resolve(ctx, c)
	if err != nil || img.id != recordID(rec) {
		return "", false
	}
	if c.plf == nil && images.IsIndexType(rec.Target.MediaType) && !platform.Fits(img.config.oci.Platform) {
		return "", false // the registry may have the one for this host
	}
	for _, d := range img.config.oci.RootFS.DiffIDs {
		if l, err := s.haveLayer(d); l == nil || err != nil {
			return "", false
		}
	}
	return img.id, true
}

// puller is one pull.
type puller struct {
	s    *Store
	repo *remote.Repository
	job  *job
	tell func(Progress)
}

// pull brings everything that the candidate needs and makes the image.
func (p *puller) pull(ctx context.Context, top remote.Manifest, c candidate) (*ready, error) {
	m, err := p.choose(ctx, top, c)
	if err != nil {
		return nil, err
	}
	for n, doc := range []remote.Manifest{m, top} {
		if _, err := p.s.writeBlob(ctx, fmt.Sprintf("%s/manifest-%d", p.job.ref, n), strings.NewReader(string(doc.Raw)), doc.Digest, nil); err != nil {
			return nil, err
		}
		if m.Digest == top.Digest {
			break
		}
	}
	manifest, err := p.s.manifest(ctx, m.Descriptor)
	if err != nil {
		return nil, err
	}
	if err := p.config(ctx, manifest); err != nil {
		return nil, err
	}
	// The config says what each layer unpacks to, so it comes first.
	cfg, err := p.s.config(ctx, manifest.Config.Digest)
	if err != nil {
		return nil, err
	}
	diffIDs := cfg.oci.RootFS.DiffIDs
	if len(manifest.Layers) != len(diffIDs) {
		return nil, fmt.Errorf("its manifest %s has %d layers and its config names %d: %w", m.Digest, len(manifest.Layers), len(diffIDs), errdefs.ErrInvalidArgument)
	}
	for i, l := range manifest.Layers {
		if err := checkLayerType(l); err != nil {
			return nil, fmt.Errorf("layer %d of image manifest %s: %w", i+1, m.Digest, err)
		}
		if l.Size < 0 || l.Size > maxBlobSize {
			return nil, fmt.Errorf("layer %d of image manifest %s has %d bytes: %w", i+1, m.Digest, l.Size, errdefs.ErrInvalidArgument)
		}
		p.tell(Progress{Layer: l.Digest, Stage: Announced})
	}
	if err := p.layers(ctx, manifest.Layers, diffIDs); err != nil {
		return nil, err
	}
	all, err := p.s.adopt(ctx, []candidate{c}, func(string) {})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// choose follows an index to the manifest for the platform that is wanted.
func (p *puller) choose(ctx context.Context, m remote.Manifest, c candidate) (remote.Manifest, error) {
	for range 4 {
		if !images.IsIndexType(m.MediaType) {
			break
		}
		var idx ocispec.Index
		if err := decodeJSON(m.Raw, "image index "+m.Digest.String(), &idx); err != nil {
			return m, err
		}
		want := platform.Host()
		if c.plf != nil {
			want = *c.plf
		}
		d, err := pick.Platform(idx.Manifests, want, c.plf != nil)
		if err != nil {
			return m, err
		}
		if m, err = p.repo.Manifest(ctx, d.Digest.String()); err != nil {
			return m, fmt.Errorf("its index names manifest %s: %w", d.Digest, err)
		}
	}
	if !images.IsManifestType(m.MediaType) {
		return m, fmt.Errorf("%s is no image: its media type is %q: %w", m.Digest, m.MediaType, errdefs.ErrInvalidArgument)
	}
	return m, nil
}

// config brings the config of an image.
func (p *puller) config(ctx context.Context, m *ocispec.Manifest) error {
	d := m.Config
	if d.MediaType != "" && !images.IsConfigType(d.MediaType) {
		return fmt.Errorf("it is no container image: its config is a %q: %w", d.MediaType, errdefs.ErrInvalidArgument)
	}
	if d.Size > maxJSON {
		return fmt.Errorf("its config has %d bytes, more than the %d that are allowed: %w", d.Size, maxJSON, errdefs.ErrInvalidArgument)
	}
	size, ok, err := p.s.holdBlob(ctx, d.Digest)
	if err != nil || ok && size == d.Size {
		return err
	}
	for try := 1; ; try++ {
		body := p.repo.Blob(ctx, d)
		_, err = p.s.writeBlob(ctx, fmt.Sprintf("%s/config-%d", p.job.ref, try), body, d.Digest, p.source(nil))
		body.Close()
		if try == maxDamaged || !isDigestError(err) {
			return err
		}
	}
}

// source gives the label that says where a blob comes from. old are those it has.
func (p *puller) source(old map[string]string) map[string]string {
	key := sourceLabel + p.repo.Host()
	if v := old[key]; v != "" && !slices.Contains(strings.Split(v, ","), p.repo.Name()) {
		return map[string]string{key: v + "," + p.repo.Name()}
	}
	return map[string]string{key: p.repo.Name()}
}

// layers brings the blobs of all layers and, as they arrive, the flat layers.
func (p *puller) layers(ctx context.Context, blobs []ocispec.Descriptor, diffIDs []digest.Digest) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	seen := map[digest.Digest]bool{}
	for i, l := range blobs {
		if seen[l.Digest] {
			continue // the same layer twice: the empty one of old builders
		}
		seen[l.Digest] = true
		g.Go(func() error {
			if err := p.layer(gctx, l, diffIDs[i], func(e Progress) { e.Layer = l.Digest; p.tell(e) }); err != nil {
				return fmt.Errorf("layer %d of %d: %w", i+1, len(blobs), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// teller hands on what happens to layers and holds nobody up: a client that is
// stopped and reads nothing must not keep the work, and with it every
// collection of garbage, from ending. What waits is bounded: of how far a layer
// is, the last word alone.
type teller struct {
	mu      sync.Mutex // guards what follows
	waiting []Progress
	closed  bool

	wake chan struct{} // holds one request
	done chan struct{}
}

// newTeller calls fn, which may be nil, from a goroutine of its own.
func newTeller(fn func(Progress)) *teller {
	t := &teller{wake: make(chan struct{}, 1), done: make(chan struct{})}
	if fn == nil {
		fn = func(Progress) {}
	}
	go func() {
		defer close(t.done)
		for range t.wake {
			t.mu.Lock()
			now, closed := t.waiting, t.closed
			t.waiting = nil
			t.mu.Unlock()
			for _, e := range now {
				fn(e)
			}
			if closed {
				return
			}
		}
	}()
	return t
}

func (t *teller) tell(e Progress) {
	t.mu.Lock()
	last := -1
	for i := range t.waiting {
		if t.waiting[i].Layer == e.Layer {
			last = i
		}
	}
	if last >= 0 && t.waiting[last].Stage == e.Stage {
		t.waiting[last] = e
	} else {
		t.waiting = append(t.waiting, e)
	}
	t.mu.Unlock()
	t.ring()
}

func (t *teller) ring() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// close waits until all was told.
func (t *teller) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.ring()
	<-t.done
}

// layer brings one layer unless it is here.
func (p *puller) layer(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest, tell func(Progress)) error {
	size, ok, err := p.s.holdBlob(ctx, blob.Digest)
	if err != nil {
		return err
	}
	if ok && size == blob.Size {
		if l, err := p.s.haveLayer(diffID); err != nil {
			return err
		} else if l == nil {
			tell(Progress{Stage: Unpacking, Total: blob.Size})
			if _, err := p.s.layer(ctx, blob, diffID); err != nil {
				return err
			}
		}
		tell(Progress{Stage: Exists})
		return p.alsoFrom(ctx, blob.Digest)
	}
	return p.fetch(ctx, blob, diffID, tell)
}

// alsoFrom records that the repository has a blob that is here.
func (p *puller) alsoFrom(ctx context.Context, d digest.Digest) error {
	info, err := p.s.blobs.Info(in(ctx), d)
	if err != nil {
		return fmt.Errorf("cannot look for blob %s: %w", d, err)
	}
	key := sourceLabel + p.repo.Host()
	if slices.Contains(strings.Split(info.Labels[key], ","), p.repo.Name()) || len(info.Labels[key]) > 2048 {
		return nil
	}
	if _, err := p.s.blobs.Update(in(ctx), content.Info{Digest: d, Labels: p.source(info.Labels)}, "labels."+key); err != nil {
		return fmt.Errorf("cannot label %s: %w", d, err)
	}
	return nil
}

// RemoteTags lists the tags that the registry has of a repository.
func (s *Store) RemoteTags(ctx context.Context, name string, auth remote.Credentials) ([]string, error) {
	named, _, err := parseRemote(name)
	if err != nil {
		return nil, err
	}
	repo := s.cfg.Registries.Repository(named, auth)
	tags, err := repo.Tags(ctx)
	if err != nil {
		err = pick.Denied(repo, named, err)
		return nil, fmt.Errorf("cannot list the tags of %s: %w", reference.FamiliarName(named), err)
	}
	return tags, nil
}

// Distribution asks a registry what a name stands for and for which platforms
// that is, bringing nothing.
func (s *Store) Distribution(ctx context.Context, ref string, auth remote.Credentials) (ocispec.Descriptor, []ocispec.Platform, error) {
	named, at, err := parseRemote(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	p := &puller{s: s, repo: s.cfg.Registries.Repository(named, auth)}
	m, err := p.repo.Manifest(ctx, at)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("cannot inspect %s: %w", reference.FamiliarString(named), pick.Missing(ctx, p.repo, named, at, err))
	}
	var out []ocispec.Platform
	switch {
	case images.IsIndexType(m.MediaType):
		var idx ocispec.Index
		if err := decodeJSON(m.Raw, "image index", &idx); err != nil {
			return m.Descriptor, nil, err
		}
		for _, d := range idx.Manifests {
			if d.Platform != nil && !pick.IsAttestation(d) {
				out = append(out, *d.Platform)
			}
		}
	case images.IsManifestType(m.MediaType):
		var doc ocispec.Manifest
		if err := decodeJSON(m.Raw, "image manifest", &doc); err != nil {
			return m.Descriptor, nil, err
		}
		if !images.IsConfigType(doc.Config.MediaType) || doc.Config.Size > maxJSON || checkDigest(doc.Config.Digest) != nil {
			break
		}
		raw, err := readBlob(ctx, p.repo, doc.Config)
		if err != nil {
			return m.Descriptor, nil, err
		}
		var plf ocispec.Platform
		if err := json.Unmarshal(raw, &plf); err == nil && checkJSON(raw) == nil {
			out = append(out, plf)
		}
	}
	return m.Descriptor, out, nil
}
