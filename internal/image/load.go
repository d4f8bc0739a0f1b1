package image

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/remote/pick"
	"proa/internal/interrupt"
	"proa/internal/platform"
)

// workPrefix begins the leases of unfinished work. None outlives its engine.
const workPrefix = "work/"

// job is one piece of work that makes content which no record needs yet.
type job struct {
	s     *Store
	lease leases.Lease
	ref   string // begins the names of this job's writers
	free  bool   // it does not hold work
}

// begin leases all that is written with the returned context until end.
func (s *Store) begin(ctx context.Context) (context.Context, *job, error) {
	var b [12]byte
	_, _ = rand.Read(b[:])
	j := &job{s: s, ref: workPrefix + hex.EncodeToString(b[:])}
	s.work.RLock()
	l, err := s.leases.Create(in(ctx), leases.WithID(j.ref))
	if err != nil {
		s.work.RUnlock()
		return nil, nil, fmt.Errorf("cannot lease new content: %w", err)
	}
	j.lease = l
	return leases.WithLease(ctx, l.ID), j, nil
}

// end gives up the job's lease. After a failure, what the job made is removed
// before end returns.
func (j *job) end(ctx context.Context, err error) error {
	ctx = context.WithoutCancel(ctx)
	if derr := j.s.leases.Delete(in(ctx), j.lease); derr != nil {
		j.s.warn(fmt.Errorf("cannot give up lease %q: %w", j.lease.ID, derr))
	}
	j.detachWork()
	if err != nil {
		j.s.warn(j.s.clean(ctx))
	} else {
		j.s.wake() // for what the archive held besides
	}
	return err
}

// detachWork lets collections run although the job goes on.
func (j *job) detachWork() {
	if !j.free {
		j.free = true
		j.s.unshare()
	}
}

// Load takes the images of an archive, a docker archive or an OCI layout, as
// a tar that may be packed with gzip, zstd or bzip2. It returns their names,
// or ids where they have none, as people write them. progress, which may be
// nil, gets lines for people. Either all images of the archive are there
// afterwards or none. only, if not empty, are the platforms that are taken of
// each image. Errors: *DigestError, *PlatformError for an image that is for
// none of them, errdefs.ErrInvalidArgument for any other damaged, truncated or foreign
// archive, errdefs.ErrResourceExhausted for a full disk.
func (s *Store) Load(ctx context.Context, r io.Reader, progress func(string), only ...ocispec.Platform) (_ []string, err error) {
	progress = oneAtATime(progress)
	defer func() {
		if err != nil {
			err = s.explain(fmt.Errorf("cannot load image: %w", err))
		}
	}()
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = j.end(ctx, err) }()

	stream, _, err := decompress(interrupt.Reader(ctx, r))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	a, err := s.scan(ctx, stream, j.ref)
	if err != nil {
		return nil, err
	}
	found, err := s.candidates(ctx, a, j.ref)
	if err != nil {
		return nil, err
	}
	for i := range found {
		found[i].only = only
	}
	all, err := s.adopt(ctx, found, progress)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, img := range all {
		if len(img.names) == 0 {
			out = append(out, img.id.String())
		}
		for _, n := range img.names {
			out = append(out, familiar(n))
		}
	}
	return out, nil
}

// oneAtATime makes fn, which may be nil, safe for many goroutines.
func oneAtATime(fn func(string)) func(string) {
	var mu sync.Mutex
	return func(line string) {
		if fn == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		fn(line)
	}
}

// errNoImage marks a manifest that is of another kind than a container image.
var errNoImage = errors.New("no container image")

// resolveAll resolves the candidates. One that does not fit this host is passed
// over only if one that does has all its names; one that is no image, if there
// is an image.
func (s *Store) resolveAll(ctx context.Context, found []candidate) ([]*ready, error) {
	var out, foreign []*ready
	var failed error
	var missing *PlatformError
	for _, c := range found {
		img, err := s.resolve(ctx, c)
		var p *PlatformError
		switch {
		case errors.As(err, &p) && missing != nil:
			missing.Have = append(missing.Have, p.Have...)
		case errors.As(err, &p):
			missing = p
		case errors.Is(err, errNoImage):
			failed = err
		case err != nil:
			return nil, err
		case platform.Fits(img.config.oci.Platform):
			out = append(out, img)
		default:
			foreign = append(foreign, img)
		}
	}
	if missing != nil {
		slices.Sort(missing.Have)
		missing.Have = slices.Compact(missing.Have)
		return nil, missing
	}
	fitting := out
	for _, f := range foreign {
		covered := len(f.names) > 0 && !slices.ContainsFunc(f.names, func(n string) bool {
			return !slices.ContainsFunc(fitting, func(r *ready) bool { return slices.Contains(r.names, n) })
		})
		if !covered {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		return nil, failed
	}
	return out, nil
}

// resolve follows a candidate to its manifest and config and checks that all
// it needs is in the content store.
func (s *Store) resolve(ctx context.Context, c candidate) (*ready, error) {
	desc := c.target
	if desc.MediaType == "" {
		kind, err := s.guessType(ctx, desc)
		if err != nil {
			return nil, err
		}
		desc.MediaType, c.target.MediaType = kind, kind
	}
	for range 4 {
		if !images.IsIndexType(desc.MediaType) {
			break
		}
		next, err := s.choose(ctx, desc, c)
		if err != nil {
			return nil, err
		}
		desc = next
	}
	if !images.IsManifestType(desc.MediaType) {
		return nil, fmt.Errorf("%s is no image: its media type is %q: %w: %w", desc.Digest, desc.MediaType, errNoImage, errdefs.ErrInvalidArgument)
	}
	m, err := s.manifest(ctx, desc)
	if err != nil {
		return nil, err
	}
	if t := m.Config.MediaType; t != "" && !images.IsConfigType(t) {
		return nil, fmt.Errorf("%s is no container image: its config is a %q: %w: %w", desc.Digest, t, errNoImage, errdefs.ErrInvalidArgument)
	}
	p, err := s.config(ctx, m.Config.Digest)
	if err != nil {
		return nil, err
	}
	switch have := platform.Of(p.oci.Platform); {
	case c.want != "" && m.Config.Digest != c.want:
		return nil, fmt.Errorf("%s is not the manifest of image %s: %w", desc.Digest, c.want, errdefs.ErrNotFound)
	case c.want == "" && !c.matches(have):
		return nil, c.mismatch([]string{platform.Name(have)})
	}
	if len(m.Layers) != len(p.oci.RootFS.DiffIDs) {
		return nil, fmt.Errorf("image manifest %s has %d layers and its config names %d: %w", desc.Digest, len(m.Layers), len(p.oci.RootFS.DiffIDs), errdefs.ErrInvalidArgument)
	}
	for i, l := range m.Layers {
		if err := s.checkLayer(ctx, l); err != nil {
			return nil, fmt.Errorf("layer %d of image manifest %s: %w", i+1, desc.Digest, err)
		}
	}
	return &ready{candidate: c, id: m.Config.Digest, config: p, manifest: m, from: desc}, nil
}

// choose picks the manifest of an index that the candidate wants, among those
// that are here: of several that match, the one that fits this host best.
func (s *Store) choose(ctx context.Context, index ocispec.Descriptor, c candidate) (ocispec.Descriptor, error) {
	kids, err := s.children(ctx, index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var fits, nested []ocispec.Descriptor
	var of []ocispec.Platform
	var have []string
	for _, d := range kids {
		id, err := s.describe(ctx, &d, c.want != "")
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		switch {
		case pick.IsAttestation(d) || !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType):
		case c.want != "" && id == c.want:
			return d, nil
		case d.Platform == nil && images.IsIndexType(d.MediaType):
			nested = append(nested, d)
		case d.Platform != nil && c.want == "":
			have = append(have, platform.Name(platform.Of(*d.Platform)))
			if c.matches(*d.Platform) {
				fits, of = append(fits, d), append(of, *d.Platform)
			}
		}
	}
	switch {
	case len(fits) > 0:
		return fits[c.best(of)], nil
	case len(nested) > 0:
		return nested[0], nil
	case c.want != "":
		return ocispec.Descriptor{}, fmt.Errorf("index %s holds no manifest of image %s: %w", index.Digest, c.want, errdefs.ErrNotFound)
	}
	return ocispec.Descriptor{}, c.mismatch(have)
}

// describe completes an index's entry that is here: its media type, and the
// platform of a manifest from its config where the entry does not name one. It
// returns the digest of the config if that was read or whole is set.
func (s *Store) describe(ctx context.Context, d *ocispec.Descriptor, whole bool) (id digest.Digest, err error) {
	if pick.IsAttestation(*d) {
		return "", nil
	}
	if d.MediaType == "" {
		if d.MediaType, err = s.guessType(ctx, *d); err != nil {
			return "", err
		}
	}
	named := d.Platform != nil && d.Platform.Architecture != ""
	if !images.IsManifestType(d.MediaType) || named && !whole {
		return "", nil
	}
	m, err := s.manifest(ctx, *d)
	if err != nil {
		return "", err
	}
	if named || m.Config.MediaType != "" && !images.IsConfigType(m.Config.MediaType) {
		return m.Config.Digest, nil
	}
	p, err := s.config(ctx, m.Config.Digest)
	if err != nil {
		return "", err
	}
	d.Platform = &ocispec.Platform{OS: p.oci.OS, Architecture: p.oci.Architecture, Variant: p.oci.Variant, OSVersion: p.oci.OSVersion}
	return m.Config.Digest, nil
}

// guessType tells an index from a manifest where a descriptor does not.
func (s *Store) guessType(ctx context.Context, d ocispec.Descriptor) (string, error) {
	raw, err := s.readJSON(ctx, d, "image manifest")
	if err != nil {
		return "", err
	}
	var doc struct {
		MediaType string                `json:"mediaType"`
		Manifests *[]ocispec.Descriptor `json:"manifests"`
		Config    *ocispec.Descriptor   `json:"config"`
	}
	if err := decodeJSON(raw, "image manifest "+d.Digest.String(), &doc); err != nil {
		return "", err
	}
	switch {
	case doc.MediaType != "":
		return doc.MediaType, nil
	case doc.Manifests != nil && doc.Config == nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.Config != nil && doc.Manifests == nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fmt.Errorf("%s is neither an image manifest nor an index: %w", d.Digest, errdefs.ErrInvalidArgument)
}

// checkLayer tells whether a layer's blob is here and of a kind that can be
// unpacked. What the media type says about packing is not trusted: the
// stream's first bytes tell.
func (s *Store) checkLayer(ctx context.Context, l ocispec.Descriptor) error {
	if err := checkLayerType(l); err != nil {
		return err
	}
	info, err := s.blobs.Info(in(ctx), l.Digest)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("blob %s is missing (a truncated archive?): %w", l.Digest, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("cannot look for blob %s: %w", l.Digest, err)
	}
	if info.Size != l.Size {
		return fmt.Errorf("blob %s has %d bytes and the manifest says %d: %w", l.Digest, info.Size, l.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkLayerType(l ocispec.Descriptor) error {
	if strings.Contains(l.MediaType, "+encrypted") || l.MediaType != "" && !images.IsLayerType(l.MediaType) || l.MediaType == images.MediaTypeErofsLayer {
		return fmt.Errorf("media type %q is not supported: %w", l.MediaType, errdefs.ErrInvalidArgument)
	}
	return nil
}
