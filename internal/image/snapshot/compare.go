package snapshot

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/flat"
	"proa/internal/rootfs"
)

// emptyGzip is the blob of an empty layer that every builder makes, 32 bytes:
// BuildKit knows it by its digest (exporter/containerimage/exptypes) and writes
// such a layer as "empty_layer".
const emptyGzip = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x62\x18\x05\xa3\x60\x14\x8c\x58\x00\x08\x00\x00\xff\xff\x2e\xaf\xb5\xef\x00\x04\x00\x00"

// Compare puts the layer that makes upper of lower into the content store, as
// gzip unless a media type asks for zstd or no packing, and returns it. The
// label and annotation containerd.io/uncompressed tell its diffID. Where upper
// is one layer more than lower, it is that very layer, with the diffID of its
// flat layer; any other two mounts are both walked.
//
// The blob is made here and not at the commit: most stages of a build are never
// exported, and the files of a flat layer can be read again at any time.
func (s *Store) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (_ ocispec.Descriptor, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot make the blob of a layer: %w", err)
		}
	}()
	defer s.cfg.Files.Share()()
	var c diff.Config
	for _, o := range opts {
		if err := o(&c); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	b := &blob{s: s, config: c, labels: map[string]string{}}
	if b.config.MediaType == "" {
		b.config.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	for k, v := range c.Labels {
		b.labels[k] = v
	}
	if b.config.Reference == "" {
		var r [12]byte
		_, _ = rand.Read(r[:])
		b.config.Reference = "compare/" + hex.EncodeToString(r[:])
	}
	below, err := s.tree(lower)
	above, err2 := s.tree(upper)
	if err := errors.Join(err, err2); errdefs.IsNotFound(err) {
		return b.walk(ctx, lower, upper)
	} else if err != nil {
		return ocispec.Descriptor{}, err
	}
	n := len(below.layers)
	if c.SourceDateEpoch != nil { // other times than those of the flat layer
		return b.walk(ctx, lower, upper)
	}
	if below.dir != 0 || len(above.layers) < n || !slices.Equal(above.layers[:n], below.layers) {
		return b.walk(ctx, lower, upper)
	}
	written := false
	if above.dir != 0 {
		blank, err := isBlank(s.upper(above.dir))
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		written = !blank
	}
	switch more := above.layers[n:]; {
	case len(more) == 0 && !written:
		return b.empty(ctx)
	case len(more) == 0:
		return b.write(ctx, func(w io.Writer) error { return writeUpper(ctx, w, s.upper(above.dir), above.at) })
	case len(more) == 1 && !written:
		return b.layer(ctx, more[0], below.at)
	}
	return b.walk(ctx, lower, upper)
}

// blob is one blob being made.
type blob struct {
	s      *Store
	config diff.Config
	labels map[string]string
}

// layer makes the blob of a flat layer that lies over what is attached at
// lower. A layer that came from elsewhere as a tar of another order gets
// another diffID so; then a blob of that layer that is here is taken instead.
func (b *blob) layer(ctx context.Context, diffID digest.Digest, lower string) (ocispec.Descriptor, error) {
	l, err := b.s.cfg.Files.Layer(diffID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if tar, ok := b.s.recent.open(diffID); ok {
		defer tar.Close()
		made, err := b.write(ctx, func(w io.Writer) error {
			_, err := io.CopyBuffer(struct{ io.Writer }{w}, tar, make([]byte, 256<<10))
			return err
		})
		if err != nil || made.Annotations[labels.LabelUncompressed] == diffID.String() {
			return made, err
		}
	}
	made, err := b.write(ctx, func(w io.Writer) error { return b.s.writeFlat(ctx, w, l, lower) })
	if err == nil && made.Annotations[labels.LabelUncompressed] == diffID.String() {
		return made, nil
	}
	if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
		return ocispec.Descriptor{}, err
	}
	whole, ferr := b.find(ctx, diffID)
	if ferr != nil {
		return ocispec.Descriptor{}, errors.Join(err, ferr)
	}
	if whole.Digest == "" {
		return made, err
	}
	return b.repack(ctx, whole, diffID)
}

// writeFlat writes a flat layer as a tar again: its files are mounted in the
// form of an upper directory, so that the same code as at the commit gives the
// same bytes.
func (s *Store) writeFlat(ctx context.Context, w io.Writer, l *flat.Layer, lower string) error {
	dir, root, done, err := s.cfg.Files.Apart(l)
	if err != nil {
		return err
	}
	defer done()
	var o rootfs.LayerOptions
	if root && lower != "" {
		f, err := os.Open(lower)
		if err != nil {
			return err
		}
		defer f.Close()
		o.Lower = f
	}
	out := bufio.NewWriterSize(w, 256<<10)
	if err := rootfs.WriteLayer(ctx, out, dir, o); err != nil {
		return err
	}
	return out.Flush()
}

// find looks for any blob of a layer.
func (b *blob) find(ctx context.Context, diffID digest.Digest) (d ocispec.Descriptor, err error) {
	err = b.s.cfg.Content.Walk(ctx, func(i content.Info) error {
		if d.Digest == "" || i.Digest < d.Digest {
			d = ocispec.Descriptor{Digest: i.Digest, Size: i.Size}
		}
		return nil
	}, fmt.Sprintf("labels.%q==%s", labels.LabelUncompressed, diffID))
	return d, err
}

// repack makes the blob of a layer of another blob of it.
func (b *blob) repack(ctx context.Context, from ocispec.Descriptor, diffID digest.Digest) (ocispec.Descriptor, error) {
	ra, err := b.s.cfg.Content.ReaderAt(ctx, from)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer ra.Close()
	r, err := b.s.cfg.Files.Decompress(ctx, content.NewReader(ra))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer r.Close()
	d, err := b.write(ctx, func(w io.Writer) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, 256<<10))
		return err
	})
	if err == nil && d.Annotations[labels.LabelUncompressed] != diffID.String() {
		err = fmt.Errorf("blob %s is labelled as layer %s and is another: %w", from.Digest, diffID, errdefs.ErrDataLoss)
	}
	return d, err
}

// empty makes the blob of nothing.
func (b *blob) empty(ctx context.Context) (ocispec.Descriptor, error) {
	if c, err := images.DiffCompression(ctx, b.config.MediaType); err == nil && c == "gzip" {
		b.labels[labels.LabelUncompressed] = emptyLayer.String()
		return b.put(ctx, func(w io.Writer) error {
			_, err := io.WriteString(w, emptyGzip)
			return err
		})
	}
	return b.write(ctx, func(w io.Writer) error {
		_, err := w.Write(make([]byte, 1024))
		return err
	})
}

// walk compares two trees file by file.
func (b *blob) walk(ctx context.Context, lower, upper []mount.Mount) (ocispec.Descriptor, error) {
	return b.write(ctx, func(w io.Writer) error {
		return mount.WithReadonlyTempMount(ctx, lower, func(below string) error {
			return mount.WithReadonlyTempMount(ctx, upper, func(above string) error {
				var o []archive.WriteDiffOpt
				if t := b.config.SourceDateEpoch; t != nil {
					o = append(o, archive.WithSourceDateEpoch(t))
				}
				return archive.WriteDiff(ctx, w, below, above, o...)
			})
		})
	})
}

// write makes the blob of the tar that fill writes.
func (b *blob) write(ctx context.Context, fill func(io.Writer) error) (ocispec.Descriptor, error) {
	packing, err := images.DiffCompression(ctx, b.config.MediaType)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("media type %q: %w: %w", b.config.MediaType, err, errdefs.ErrInvalidArgument)
	}
	sum := digest.SHA256.Digester()
	return b.put(ctx, func(w io.Writer) error {
		var z io.WriteCloser
		switch packing {
		case "":
			z = nopCloser{w}
		case "gzip":
			// At its fastest: more costs more time at each build than it
			// saves at each push.
			z, err = gzip.NewWriterLevel(w, gzip.BestSpeed)
		case "zstd":
			z, err = zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
		default:
			err = fmt.Errorf("media type %q: packing %q is not supported: %w", b.config.MediaType, packing, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return err
		}
		packed := writeBehind(z)
		err := fill(io.MultiWriter(sum.Hash(), packed))
		if end := errors.Join(packed.Close(), z.Close()); err == nil {
			err = end
		}
		if err != nil {
			return err
		}
		b.labels[labels.LabelUncompressed] = sum.Digest().String()
		return nil
	})
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// put stores what fill writes, with the labels that there are once it is done.
func (b *blob) put(ctx context.Context, fill func(io.Writer) error) (_ ocispec.Descriptor, err error) {
	store, ref := b.s.cfg.Content, b.config.Reference
	w, err := content.OpenWriter(ctx, store, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: b.config.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer func() {
		_ = w.Close()
		if err != nil {
			_ = store.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	// Another's unfinished work under the same name is of no use.
	if err := w.Truncate(0); err != nil {
		return ocispec.Descriptor{}, err
	}
	out := bufio.NewWriterSize(w, 256<<10)
	if err := fill(out); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := out.Flush(); err != nil {
		return ocispec.Descriptor{}, err
	}
	d := w.Digest()
	if err := w.Commit(ctx, 0, d, content.WithLabels(b.labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, err
	}
	info, err := store.Info(ctx, d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	// One that was here already may know less of itself.
	var fields []string
	for k, v := range b.labels {
		if info.Labels[k] != v {
			fields = append(fields, "labels."+k)
		}
	}
	if len(fields) > 0 {
		if _, err := store.Update(ctx, content.Info{Digest: d, Labels: b.labels}, fields...); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return ocispec.Descriptor{
		MediaType: b.config.MediaType, Digest: d, Size: info.Size,
		Annotations: map[string]string{labels.LabelUncompressed: b.labels[labels.LabelUncompressed]},
	}, nil
}
