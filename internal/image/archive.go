package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/remote/pick"
	"proa/internal/platform"
)

// archive is what one pass over an image archive found. Its names are keys
// and never paths of this host.
type archive struct {
	blobs map[string]ocispec.Descriptor // by name within the archive; digest and size only
	links map[string]string             // old archives share layers by links
	docs  map[string][]byte             // the archive's own documents
}

// candidate is one image of an archive: what its names point to.
type candidate struct {
	target ocispec.Descriptor
	names  []string // full
	// What is wanted: the image with this config, one for exactly one of some
	// platforms, or one that a machine of a platform runs. None set: any, the one
	// that fits this host best.
	want digest.Digest
	only []ocispec.Platform
	plf  *ocispec.Platform
	// part is an index that takes the place of the target in an archive, with
	// the manifests kids, where not all of the target is here or wanted.
	part ocispec.Descriptor
	kids []ocispec.Descriptor
}

// matches reports whether an image's platform is one that is wanted.
func (c candidate) matches(p ocispec.Platform) bool {
	p = platform.Of(p)
	if c.plf != nil {
		return platforms.Only(*c.plf).Match(p)
	}
	return len(c.only) == 0 || slices.ContainsFunc(c.only, func(o ocispec.Platform) bool { return platform.Exact(o).Match(p) })
}

// best gives the index of the platform that is taken of those that match.
func (c candidate) best(of []ocispec.Platform) int {
	if c.plf == nil {
		return platform.Best(of)
	}
	best := 0
	for i, p := range of {
		if platforms.Only(*c.plf).Less(platform.Of(p), platform.Of(of[best])) {
			best = i
		}
	}
	return best
}

// mismatch is the error about an image that is for other platforms.
func (c candidate) mismatch(have []string) error {
	e := &PlatformError{Want: platform.Name(platform.Host()), Have: have, Asked: c.plf != nil || len(c.only) > 0}
	switch {
	case c.plf != nil:
		e.Want = platform.Name(*c.plf)
	case len(c.only) > 0:
		e.Want = pick.List(platform.Names(c.only))
	}
	return e
}

// The documents that say what an archive holds.
const (
	dockerManifest = "manifest.json"
	dockerRepos    = "repositories"
)

// scan reads a whole archive, putting each of its blobs into the content
// store under the lease of ctx. ref begins the names of the blobs' writers.
func (s *Store) scan(ctx context.Context, r io.Reader, ref string) (*archive, error) {
	a := &archive{
		blobs: map[string]ocispec.Descriptor{},
		links: map[string]string{},
		docs:  map[string][]byte{},
	}
	layers := s.newEager()
	defer layers.wait()
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if errors.Is(err, tar.ErrHeader) {
			if n == 0 {
				return nil, fmt.Errorf("this is not an image archive (no tar header; a gzip, zstd or uncompressed tar is expected): %w", errdefs.ErrInvalidArgument)
			}
			return nil, fmt.Errorf("the archive is damaged after entry %d: %w: %w", n, err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, err
		}
		if n >= maxEntries {
			return nil, fmt.Errorf("the archive has more than %d entries, more than an image archive can need: %w", maxEntries, errdefs.ErrInvalidArgument)
		}
		// They are kept until the end of the archive (CWE-770).
		if len(hdr.Name) > maxName || len(hdr.Linkname) > maxName {
			return nil, fmt.Errorf("entry %d of the archive has a name of more than %d bytes: %w", n+1, maxName, errdefs.ErrInvalidArgument)
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		switch hdr.Typeflag {
		case tar.TypeSymlink:
			a.links[name] = strings.TrimPrefix(path.Clean("/"+path.Join(path.Dir(name), hdr.Linkname)), "/")
			continue
		case tar.TypeLink:
			a.links[name] = strings.TrimPrefix(path.Clean("/"+hdr.Linkname), "/")
			continue
		case tar.TypeReg:
		default:
			continue
		}
		switch {
		case name == ocispec.ImageLayoutFile, name == ocispec.ImageIndexFile, name == dockerManifest, name == dockerRepos:
			raw, err := io.ReadAll(io.LimitReader(tr, maxJSON+1))
			if err != nil {
				return nil, err
			}
			if len(raw) > maxJSON {
				return nil, fmt.Errorf("%q is larger than %d bytes: %w", name, maxJSON, errdefs.ErrInvalidArgument)
			}
			a.docs[name] = raw
		case path.Base(name) == "VERSION", path.Base(name) == "json":
			// Docker wrote these per layer for readers before 1.10.
		default:
			d, err := s.takeBlob(ctx, layers, fmt.Sprintf("%s/%d", ref, n), name, hdr.Size, tr)
			if err != nil {
				return nil, fmt.Errorf("entry %q: %w", name, err)
			}
			a.blobs[name] = d
		}
	}
	// What follows the end of the tar must be read, or a sender on a pipe
	// would get an error, and a damaged tail would go unseen.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	return a, nil
}

// takeBlob stores one entry of an archive. In an OCI layout its name says its
// digest: then it is checked, and skipped when the blob is here already.
func (s *Store) takeBlob(ctx context.Context, layers *eager, ref, name string, size int64, r io.Reader) (ocispec.Descriptor, error) {
	var want digest.Digest
	if rest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
		want = digest.NewDigestFromEncoded(digest.SHA256, rest)
		if err := checkDigest(want); err != nil {
			return ocispec.Descriptor{}, err
		}
		have, ok, err := s.holdBlob(ctx, want)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		if ok && have == size {
			return ocispec.Descriptor{Digest: want, Size: size}, nil
		}
	}
	return layers.store(ctx, ref, r, size, want)
}

// lookup finds a blob by its name within the archive, through links.
func (a *archive) lookup(name string) (ocispec.Descriptor, bool) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for range 8 {
		if d, ok := a.blobs[name]; ok {
			return d, true
		}
		next, ok := a.links[name]
		if !ok {
			break
		}
		name = next
	}
	return ocispec.Descriptor{}, false
}

// candidates tells which images the archive holds. An archive can be both of
// the known formats at once; the OCI one knows the true manifests.
func (s *Store) candidates(ctx context.Context, a *archive, ref string) ([]candidate, error) {
	_, layout := a.docs[ocispec.ImageLayoutFile]
	index, hasIndex := a.docs[ocispec.ImageIndexFile]
	switch {
	case layout && hasIndex:
		return a.ociImages(index)
	case a.docs[dockerManifest] != nil:
		return s.dockerImages(ctx, a, ref)
	case layout:
		return nil, fmt.Errorf("the OCI layout has no %s: %w", ocispec.ImageIndexFile, errdefs.ErrInvalidArgument)
	}
	return nil, fmt.Errorf("this is not an image archive: it has neither a %s (docker save) nor an %s (OCI layout); for the tar of a root file system use import: %w", dockerManifest, ocispec.ImageLayoutFile, errdefs.ErrInvalidArgument)
}

func (a *archive) ociImages(index []byte) ([]candidate, error) {
	var layout ocispec.ImageLayout
	if err := decodeJSON(a.docs[ocispec.ImageLayoutFile], ocispec.ImageLayoutFile, &layout); err != nil {
		return nil, err
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("OCI layout version %q is not supported, only %s: %w", layout.Version, ocispec.ImageLayoutVersion, errdefs.ErrInvalidArgument)
	}
	var idx ocispec.Index
	if err := decodeJSON(index, ocispec.ImageIndexFile, &idx); err != nil {
		return nil, err
	}
	var out []candidate
	for _, d := range idx.Manifests {
		// An unknown kind is not an error (image-spec, image-index.md).
		known := d.MediaType == "" || images.IsIndexType(d.MediaType) || images.IsManifestType(d.MediaType)
		if pick.IsAttestation(d) || !known || checkDigest(d.Digest) != nil {
			continue
		}
		if _, ok := a.lookup("blobs/sha256/" + d.Digest.Encoded()); !ok {
			return nil, fmt.Errorf("the archive has no blob %s, which its %s names (truncated?): %w", d.Digest, ocispec.ImageIndexFile, errdefs.ErrInvalidArgument)
		}
		name, err := ociName(d.Annotations)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(out, func(c candidate) bool { return c.target.Digest == d.Digest })
		if i < 0 {
			out = append(out, candidate{target: d})
			i = len(out) - 1
		}
		if name != "" && !slices.Contains(out[i].names, name) {
			out[i].names = append(out[i].names, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the archive holds no image: %w", errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// ociName is the full name that an entry of index.json gives. The specified
// annotation often holds a bare tag, which names nothing.
func ociName(ann map[string]string) (string, error) {
	if n := ann[images.AnnotationImageName]; n != "" {
		named, err := parseName(n)
		if err != nil {
			return "", err
		}
		return named.String(), nil
	}
	n := ann[ocispec.AnnotationRefName]
	if !strings.ContainsAny(n, "/:") || strings.Contains(n, "@") {
		return "", nil
	}
	named, err := parseName(n)
	if err != nil {
		return "", nil // the specification allows more than names there
	}
	return named.String(), nil
}

// dockerImages makes manifests for the images of a docker archive, which has
// none: the same ones for the same content, so that a second load changes
// nothing.
func (s *Store) dockerImages(ctx context.Context, a *archive, ref string) ([]candidate, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := decodeJSON(a.docs[dockerManifest], dockerManifest, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("the archive holds no image: %w", errdefs.ErrInvalidArgument)
	}
	var out []candidate
	for i, img := range list {
		config, ok := a.lookup(img.Config)
		if !ok {
			return nil, fmt.Errorf("the archive has no entry %q, the config of image %d: %w", img.Config, i, errdefs.ErrInvalidArgument)
		}
		config.MediaType = images.MediaTypeDockerSchema2Config
		if len(img.Layers) > maxLayers {
			return nil, fmt.Errorf("image %d has %d layers, more than the %d that are allowed: %w", i, len(img.Layers), maxLayers, errdefs.ErrInvalidArgument)
		}
		layers := make([]ocispec.Descriptor, 0, len(img.Layers))
		for _, l := range img.Layers {
			d, ok := a.lookup(l)
			if !ok {
				return nil, fmt.Errorf("the archive has no entry %q, a layer of image %d: %w", l, i, errdefs.ErrInvalidArgument)
			}
			kind, err := s.packing(ctx, d)
			if err != nil {
				return nil, err
			}
			switch kind {
			case gzipped:
				d.MediaType = images.MediaTypeDockerSchema2LayerGzip
			case zstded:
				d.MediaType = images.MediaTypeDockerSchema2LayerZstd
			default:
				d.MediaType = images.MediaTypeDockerSchema2Layer
			}
			layers = append(layers, d)
		}
		raw, err := json.Marshal(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: images.MediaTypeDockerSchema2Manifest,
			Config:    config,
			Layers:    layers,
		})
		if err != nil {
			return nil, fmt.Errorf("cannot encode image manifest: %w", err)
		}
		target, err := s.putJSON(ctx, fmt.Sprintf("%s/manifest-%d", ref, i), images.MediaTypeDockerSchema2Manifest, raw)
		if err != nil {
			return nil, err
		}
		c := candidate{target: target}
		for _, t := range img.RepoTags {
			named, err := parseName(t)
			if err != nil {
				return nil, err
			}
			c.names = append(c.names, named.String())
		}
		out = append(out, c)
	}
	return out, nil
}
