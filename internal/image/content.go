package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/remote/pick"
	"proa/internal/interrupt"
)

// checkDigest accepts sha256 alone: digests become file names, and the flat
// layers, Docker's ids and every known image use nothing else.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported: %w", d, errdefs.ErrInvalidArgument)
	}
	return nil
}

// chainOf is identity.ChainID without its habit of writing to its argument,
// and with a name for no layers at all.
func chainOf(diffIDs []digest.Digest) digest.Digest {
	if len(diffIDs) == 0 {
		return digest.FromBytes(nil)
	}
	return identity.ChainID(slices.Clone(diffIDs))
}

// checkJSON refuses documents before a decoder sees them that are nested beyond
// reason, because it recurses, or hold too many values: "{}," has three bytes,
// and the descriptor that it becomes has more than a hundred (CWE-789).
func checkJSON(raw []byte) error {
	if len(raw) > maxJSON {
		return fmt.Errorf("the document is larger than %d bytes: %w", maxJSON, errdefs.ErrInvalidArgument)
	}
	depth, values, inString, escaped := 0, 0, false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = c == '\\'
			inString = c != '"'
		case c == '"':
			inString = true
		case c == ',':
			if values++; values > maxValues {
				return fmt.Errorf("the document holds more than %d values: %w", maxValues, errdefs.ErrInvalidArgument)
			}
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("the document is nested more than %d deep: %w", maxDepth, errdefs.ErrInvalidArgument)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// decodeJSON decodes a document of the kind named what.
func decodeJSON(raw []byte, what string, v any) error {
	if err := checkJSON(raw); err != nil {
		return fmt.Errorf("cannot read %s: %w", what, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("cannot read %s: %w: %w", what, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// readJSON reads a small blob. Only the digest of desc must be set.
func (s *Store) readJSON(ctx context.Context, desc ocispec.Descriptor, what string) ([]byte, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	ra, err := s.blobs.ReaderAt(in(ctx), desc)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	defer ra.Close()
	if ra.Size() > maxJSON {
		return nil, fmt.Errorf("cannot read %s %s: it has %d bytes, more than the %d that are allowed: %w", what, desc.Digest, ra.Size(), maxJSON, errdefs.ErrInvalidArgument)
	}
	raw := make([]byte, ra.Size())
	if _, err := ra.ReadAt(raw, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("cannot read %s %s: %w", what, desc.Digest, err)
	}
	if digest.FromBytes(raw) != desc.Digest {
		return nil, fmt.Errorf("cannot read %s %s: its content has changed on disk: %w", what, desc.Digest, errdefs.ErrDataLoss)
	}
	return raw, nil
}

// writeBlob puts r into the content store under a lease of ctx. want, if set,
// is the digest it must have. ref is unique to the caller, so nothing is ever
// resumed or shared half-made.
func (s *Store) writeBlob(ctx context.Context, ref string, r io.Reader, want digest.Digest, labels map[string]string) (_ ocispec.Descriptor, err error) {
	ctx = in(ctx)
	w, err := s.blobs.Writer(ctx, content.WithRef(ref))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("cannot write blob: %w", err)
	}
	defer func() {
		_ = w.Close()
		if err != nil {
			_ = s.blobs.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	buf := make([]byte, 256<<10)
	n, err := io.CopyBuffer(onlyWriter{w}, interrupt.Reader(ctx, io.LimitReader(r, maxBlobSize+1)), buf)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if n > maxBlobSize {
		return ocispec.Descriptor{}, fmt.Errorf("a blob is larger than %d bytes: %w", int64(maxBlobSize), errdefs.ErrInvalidArgument)
	}
	got := w.Digest()
	if want != "" && got != want {
		return ocispec.Descriptor{}, &DigestError{Want: want, Got: got}
	}
	if err := w.Commit(ctx, n, got, content.WithLabels(labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, fmt.Errorf("cannot write blob %s: %w", got, err)
	}
	return ocispec.Descriptor{Digest: got, Size: n}, nil
}

// putJSON stores a document that this package made or was given whole.
func (s *Store) putJSON(ctx context.Context, ref, mediaType string, raw []byte) (ocispec.Descriptor, error) {
	d, err := s.writeBlob(ctx, ref, bytes.NewReader(raw), "", nil)
	d.MediaType = mediaType
	return d, err
}

// holdBlob makes the lease of ctx keep a blob that exists; ok is false when
// it does not.
func (s *Store) holdBlob(ctx context.Context, d digest.Digest) (size int64, ok bool, err error) {
	ctx = in(ctx)
	lease, _ := leases.FromContext(ctx)
	if err := s.leases.AddResource(ctx, leases.Lease{ID: lease}, leases.Resource{ID: d.String(), Type: "content"}); err != nil {
		return 0, false, fmt.Errorf("cannot lease blob %s: %w", d, err)
	}
	// In this order: once leased, the blob cannot go away any more.
	info, err := s.blobs.Info(ctx, d)
	if errdefs.IsNotFound(err) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot look for blob %s: %w", d, err)
	}
	return info.Size, true, nil
}

// manifest reads the manifest desc and checks its shape.
func (s *Store) manifest(ctx context.Context, desc ocispec.Descriptor) (*ocispec.Manifest, error) {
	raw, err := s.readJSON(ctx, desc, "image manifest")
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := decodeJSON(raw, "image manifest "+desc.Digest.String(), &m); err != nil {
		return nil, err
	}
	if m.MediaType != "" && !images.IsManifestType(m.MediaType) {
		return nil, fmt.Errorf("cannot read image manifest %s: media type %q: %w", desc.Digest, m.MediaType, errdefs.ErrInvalidArgument)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("cannot read image manifest %s: %d layers, more than the %d that are allowed: %w", desc.Digest, len(m.Layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(d.Digest); err != nil {
			return nil, fmt.Errorf("cannot read image manifest %s: %w", desc.Digest, err)
		}
	}
	return &m, nil
}

// refs gives what desc refers to, whether it is here or not.
func (s *Store) refs(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	switch {
	case images.IsIndexType(desc.MediaType):
		raw, err := s.readJSON(ctx, desc, "image index")
		if err != nil {
			return nil, err
		}
		var idx ocispec.Index
		if err := decodeJSON(raw, "image index "+desc.Digest.String(), &idx); err != nil {
			return nil, err
		}
		return idx.Manifests, nil
	case images.IsManifestType(desc.MediaType):
		m, err := s.manifest(ctx, desc)
		if err != nil {
			return nil, err
		}
		return append([]ocispec.Descriptor{m.Config}, m.Layers...), nil
	}
	return nil, nil
}

// children gives what desc refers to and is here: an index of many platforms
// may have come with the manifest of one. Each child is told apart by kind.
func (s *Store) children(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	all, err := s.refs(ctx, desc)
	if err != nil {
		return nil, err
	}
	var here []ocispec.Descriptor
	for _, d := range all {
		if checkDigest(d.Digest) != nil {
			continue
		}
		if _, err := s.blobs.Info(in(ctx), d.Digest); err == nil {
			here = append(here, d)
		} else if !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("cannot look for blob %s: %w", d.Digest, err)
		}
	}
	return here, nil
}

// walk visits desc and everything that it leads to and that is here, each
// once, parents first.
func (s *Store) walk(ctx context.Context, desc ocispec.Descriptor, fn func(ocispec.Descriptor, []ocispec.Descriptor) error) error {
	seen := map[digest.Digest]bool{}
	var visit func(d ocispec.Descriptor, depth int) error
	visit = func(d ocispec.Descriptor, depth int) error {
		if seen[d.Digest] {
			return nil
		}
		seen[d.Digest] = true
		if depth > 4 {
			return fmt.Errorf("cannot follow image index %s: indexes within indexes: %w", desc.Digest, errdefs.ErrInvalidArgument)
		}
		if !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType) {
			return fn(d, nil)
		}
		kids, err := s.children(ctx, d)
		if err != nil {
			return err
		}
		if err := fn(d, kids); err != nil {
			return err
		}
		for _, k := range kids {
			if err := visit(k, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return visit(desc, 0)
}

// gcLabel begins the labels of references for containerd's garbage collector.
const gcLabel = "containerd.io/gc.ref.content."

// label tells containerd's garbage collector what target leads to.
//
// of, when it is not empty, are the platforms whose manifests an index keeps.
func (s *Store) label(ctx context.Context, target ocispec.Descriptor, of []ocispec.Platform) error {
	wanted := candidate{only: of}
	return s.walk(ctx, target, func(d ocispec.Descriptor, kids []ocispec.Descriptor) error {
		if len(of) > 0 && images.IsIndexType(d.MediaType) {
			var keep []ocispec.Descriptor
			for _, k := range kids {
				if _, err := s.describe(ctx, &k, false); err != nil {
					return err
				}
				if images.IsIndexType(k.MediaType) || k.Platform != nil && !pick.IsAttestation(k) && wanted.matches(*k.Platform) {
					keep = append(keep, k)
				}
			}
			kids = keep
		}
		if len(kids) == 0 {
			return nil
		}
		info := content.Info{Digest: d.Digest, Labels: map[string]string{}}
		var fields []string
		for _, k := range kids {
			// By digest: what is here of an index differs from one load to the next.
			key := gcLabel + k.Digest.Encoded()[:16]
			info.Labels[key] = k.Digest.String()
			fields = append(fields, "labels."+key)
		}
		if _, err := s.blobs.Update(in(ctx), info, fields...); err != nil {
			return fmt.Errorf("cannot label %s: %w", d.Digest, err)
		}
		return nil
	})
}

// onlyWriter hides every other method of a writer, so that io.CopyBuffer uses
// its buffer.
type onlyWriter struct{ io.Writer }
