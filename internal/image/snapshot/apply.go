package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/image/flat"
	"proa/internal/rootfs"
)

// emptyLayer is the diffID of a tar with no entries: 1,024 zero bytes.
const emptyLayer = digest.Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")

// own is a layer as a record has it: an empty one is none.
func own(l *flat.Layer) digest.Digest {
	if l.DiffID == emptyLayer {
		return ""
	}
	return l.DiffID
}

// Apply makes the flat layer of a blob of the content store and gives it to
// the active snapshot with these mounts, to which nothing may have been
// written or applied before. The diffID is checked if the descriptor has the
// annotation containerd.io/uncompressed or the blob that label. It returns the
// descriptor of the uncompressed layer. Errors: errdefs.ErrInvalidArgument for
// a blob that is no layer or a wrong diffID, errdefs.ErrFailedPrecondition for
// a snapshot that is not active and empty.
func (s *Store) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	want := digest.Digest(desc.Annotations[labels.LabelUncompressed])
	if want == "" {
		info, err := s.cfg.Content.Info(ctx, desc.Digest)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("cannot apply layer %s: %w", desc.Digest, err)
		}
		want = digest.Digest(info.Labels[labels.LabelUncompressed])
	}
	d, err := s.apply(ctx, mounts, func() (*flat.Layer, error) { return s.cfg.Files.Unpack(ctx, desc, want) })
	if err != nil {
		return d, fmt.Errorf("cannot apply layer %s: %w", desc.Digest, err)
	}
	return d, nil
}

// ApplyTar is Apply of an uncompressed layer tar that is in no content store.
// All of r is read.
func (s *Store) ApplyTar(ctx context.Context, mounts []mount.Mount, r io.Reader) (ocispec.Descriptor, error) {
	d, err := s.apply(ctx, mounts, func() (*flat.Layer, error) { return s.cfg.Files.Write(ctx, r) })
	if err != nil {
		return d, fmt.Errorf("cannot apply a layer: %w", err)
	}
	return d, nil
}

func (s *Store) apply(ctx context.Context, mounts []mount.Mount, layer func() (*flat.Layer, error)) (d ocispec.Descriptor, err error) {
	defer s.cfg.Files.Share()()
	t, err := s.tree(mounts)
	if err != nil {
		return d, err
	}
	if t.dir == 0 {
		return d, fmt.Errorf("the mounts are not those of an active snapshot: %w", errdefs.ErrFailedPrecondition)
	}
	if blank, err := isBlank(s.upper(t.dir)); err != nil {
		return d, err
	} else if !blank {
		return d, fmt.Errorf("there are files in the snapshot already, and a layer can only be its first content: %w", errdefs.ErrFailedPrecondition)
	}
	l, err := layer()
	if err != nil {
		return d, err
	}
	err = s.meta.Update(func(tx *bolt.Tx) error {
		s.mu.Lock()
		key := s.dirs[t.dir]
		s.mu.Unlock()
		r, err := bucket.Get(tx, key)
		if err != nil {
			return err
		}
		if r.Kind != snapshots.KindActive || r.Applied {
			return fmt.Errorf("the snapshot has a layer already: %w", errdefs.ErrFailedPrecondition)
		}
		r.Applied, r.Layer = true, own(l)
		return bucket.Put(tx, key, r)
	})
	if err != nil {
		return d, err
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Stream}, nil
}

// Layers gives the stack that an active snapshot is to be written over, lowest
// layer first. errdefs.ErrFailedPrecondition: something was written to it
// already, so the stack is not all of it.
func (s *Store) Layers(mounts []mount.Mount) ([]digest.Digest, error) {
	t, err := s.tree(mounts)
	if err != nil {
		return nil, err
	}
	if t.dir == 0 {
		return nil, fmt.Errorf("the mounts are not those of an active snapshot: %w", errdefs.ErrFailedPrecondition)
	}
	blank, err := isBlank(s.upper(t.dir))
	if err == nil && !blank {
		err = fmt.Errorf("files were written to the snapshot already: %w", errdefs.ErrFailedPrecondition)
	}
	return t.layers, err
}

// seal makes the layer of an active snapshot; none if it has nothing of its
// own. It tells how many bytes it wrote for it.
func (s *Store) seal(ctx context.Context, bkey string, r record, layers []digest.Digest) (_ digest.Digest, size int64, err error) {
	blank, err := isBlank(s.upper(r.Dir))
	if err != nil {
		return "", 0, err
	}
	if r.Applied {
		if !blank {
			return "", 0, fmt.Errorf("a layer was applied to it, and files were written as well: %w", errdefs.ErrFailedPrecondition)
		}
		return r.Layer, 0, nil
	}
	if blank {
		return "", 0, nil
	}
	h, err := s.hold(ctx, bkey, layers)
	if err != nil {
		return "", 0, err
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	kept := s.recent.begin()
	go func() {
		err := writeUpper(ctx, io.MultiWriter(pw, kept), s.upper(r.Dir), h.at)
		pw.CloseWithError(err)
		done <- err
	}()
	l, err := s.cfg.Files.Write(ctx, pr)
	pr.CloseWithError(errReaderDone)
	// A walk that failed by itself is the reason of the other error.
	if werr := <-done; err != nil {
		if werr != nil && !errors.Is(werr, errReaderDone) {
			err = werr
		}
		kept.drop()
		return "", 0, err
	}
	s.recent.keep(l.DiffID, kept)
	return own(l), l.Stream, nil
}

// errReaderDone is what a walk gets that goes on after its layer was given up.
var errReaderDone = errors.New("the reader is done")

// writeUpper writes the layer tar of an upper directory over what is attached
// at lower, if anything is.
func writeUpper(ctx context.Context, w io.Writer, upper, lower string) error {
	var o rootfs.LayerOptions
	if lower != "" {
		f, err := os.Open(lower)
		if err != nil {
			return err
		}
		defer f.Close()
		o.Lower = f
	}
	dir, err := os.Open(upper)
	if err != nil {
		return err
	}
	defer dir.Close()
	b := bufio.NewWriterSize(w, 256<<10)
	if err := rootfs.WriteLayer(ctx, b, dir, o); err != nil {
		return err
	}
	return b.Flush()
}

// isBlank tells whether a directory holds nothing.
func isBlank(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// tree is what mounts of this package show.
type tree struct {
	layers []digest.Digest // of the chain
	at     string          // where that is attached
	dir    uint64          // number of the directory whose upper lies over it
}

// tree recognises mounts that this Store gave out. Others are
// errdefs.ErrNotFound.
func (s *Store) tree(mounts []mount.Mount) (t tree, err error) {
	foreign := fmt.Errorf("the mounts %v are none of a snapshot here: %w", mounts, errdefs.ErrNotFound)
	if len(mounts) == 0 {
		return t, nil
	}
	if len(mounts) > 1 {
		return t, foreign
	}
	lower, upper := "", ""
	switch m := mounts[0]; m.Type {
	case "bind", "rbind":
		lower = m.Source
		if filepath.Base(m.Source) == "upper" {
			lower, upper = "", m.Source
		}
	case "overlay":
		for _, o := range m.Options {
			if v, ok := strings.CutPrefix(o, "lowerdir="); ok {
				lower = v
			} else if v, ok := strings.CutPrefix(o, "upperdir="); ok {
				upper = v
			}
		}
	default:
		return t, foreign
	}
	if upper != "" {
		n, err := strconv.ParseUint(filepath.Base(filepath.Dir(upper)), 10, 64)
		if err != nil || upper != s.upper(n) {
			return t, foreign
		}
		s.mu.Lock()
		_, ok := s.dirs[n]
		s.mu.Unlock()
		if !ok {
			return t, foreign
		}
		t.dir = n
	}
	if lower == "" || lower == s.empty() {
		return t, nil
	}
	s.mu.Lock()
	layers, ok := s.stacks[digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(lower))]
	s.mu.Unlock()
	if !ok {
		return t, foreign
	}
	t.layers, t.at = layers, lower
	return t, nil
}
