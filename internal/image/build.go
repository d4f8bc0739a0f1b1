package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/event"
	"proa/internal/image/flat"
	"proa/internal/image/snapshot"
	"proa/internal/interrupt"
	"proa/internal/sys"
)

// This file is the side of the Store that a builder sees: containerd's
// services over the same blobs, layers, leases and images. Each works in the
// store's one namespace, whatever that of the context, and keeps the
// collection of garbage away for as long as a call lasts. From one call to the
// next a lease has to keep what the builder needs; a builder that has it in
// its context (leases.WithLease, or the header of a gRPC call) gives it to all
// that it makes.

// Snapshots are the snapshots of builds: a snapshots.Snapshotter, a
// diff.Applier and a diff.Comparer.
func (s *Store) Snapshots() *snapshot.Store { return s.snapshots }

var (
	_ diff.Applier  = (*snapshot.Store)(nil)
	_ diff.Comparer = (*snapshot.Store)(nil)
)

// SnapshotDisk gives what lies below an active snapshot as Disk gives an image,
// for a step in a VM; errors as of snapshot.Store.Layers. The snapshot keeps the
// files for as long as it exists.
func (s *Store) SnapshotDisk(ctx context.Context, mounts []mount.Mount) (*Disk, error) {
	defer s.share()()
	layers, err := s.snapshots.Layers(mounts)
	if err != nil {
		return nil, fmt.Errorf("cannot give a snapshot to a VM: %w", err)
	}
	if len(layers) == 0 {
		return nil, fmt.Errorf("cannot give a snapshot to a VM: it has no layers below it: %w", errdefs.ErrFailedPrecondition)
	}
	chain := chainOf(layers)
	files, err := s.stack(chain, layers)
	if err != nil {
		return nil, s.explain(err)
	}
	return &Disk{Index: files.Index, Data: files.Data, ChainID: chain}, nil
}

// Content are the blobs.
func (s *Store) Content() content.Store { return blobs{s} }

// LeaseManager manages the leases of builders. Those of the store itself and
// of its holders are not to be seen.
func (s *Store) LeaseManager() leases.Manager { return buildLeases{s} }

// Images are the images by their full names. What Create and Update name is
// adopted (Adopt): afterwards it can be run.
func (s *Store) Images() images.Store { return buildImages{s} }

// Collect removes what no record and no lease needs, unless something is being
// made: then it is removed soon after.
func (s *Store) Collect(ctx context.Context) error { return s.clean(ctx) }

// layerFiles is what the store does for its snapshots.
type layerFiles struct{ s *Store }

func (f layerFiles) Share() func() { return f.s.share() }

func (f layerFiles) Unpack(ctx context.Context, blob ocispec.Descriptor, want digest.Digest) (*flat.Layer, error) {
	s := f.s
	if want != "" {
		if err := checkDigest(want); err != nil {
			return nil, err
		}
		l, err := s.layer(ctx, blob, want)
		return l, s.explain(err)
	}
	l, err := s.write(ctx, blob, "")
	return l, s.explain(err)
}

func (f layerFiles) Write(ctx context.Context, tar io.Reader) (*flat.Layer, error) {
	a := readAhead(tar)
	defer a.Close()
	l, err := flat.Write(ctx, a, filepath.Join(f.s.cfg.Root, "flat"), flat.Limits{Bytes: f.s.cfg.MaxLayerBytes})
	return l, f.s.explain(err)
}

func (f layerFiles) Layer(diffID digest.Digest) (*flat.Layer, error) {
	return flat.ReadLayer(f.s.layerDir(diffID))
}

func (f layerFiles) IndexSize(layers []digest.Digest) (int64, error) {
	fi, err := os.Stat(f.s.indexPath(chainOf(layers)))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f layerFiles) Decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	d, _, err := decompress(interrupt.Reader(ctx, r))
	return d, err
}

func (f layerFiles) Apart(l *flat.Layer) (_ *os.File, root bool, _ func(), err error) {
	fail := func(err error) (*os.File, bool, func(), error) {
		return nil, false, nil, f.s.explain(fmt.Errorf("cannot show layer %s apart: %w", l.DiffID, err))
	}
	data, err := os.Open(l.Data())
	if err != nil {
		return fail(err)
	}
	tmp, err := os.MkdirTemp(filepath.Join(f.s.cfg.Root, "extract"), flat.TempPrefix)
	if err != nil {
		data.Close()
		return fail(err)
	}
	// Many small files are read in the order in which they lie there.
	aheadErr := sys.ReadAhead(data, 0, min(int64(l.Blocks)*flat.BlockSize, readAheadMost))
	end := func() {
		f.s.warn(errors.Join(aheadErr, sys.DropCache(data), data.Close(), os.RemoveAll(tmp)))
	}
	files := flat.Files{Index: filepath.Join(tmp, "index"), Data: []string{l.Data()}, Dir: filepath.Join(tmp, "tree")}
	var mount *os.File
	if root, err = flat.Apart(l, files.Index); err == nil {
		mount, err = f.s.mounter.Once(files)
	}
	if err != nil {
		end()
		return fail(err)
	}
	return mount, root, func() { f.s.warn(mount.Close()); end() }, nil
}

// readAheadMost is how much of a layer is read before it is asked for.
const readAheadMost = 256 << 20

func (f layerFiles) Attach(ctx context.Context, layers []digest.Digest) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	chain := chainOf(layers)
	files, err := f.s.stack(chain, layers)
	if err != nil {
		return "", f.s.explain(err)
	}
	at, done, err := f.s.attach(chain, files)
	if err != nil {
		return "", err
	}
	done()
	return at, nil
}

func (f layerFiles) Leave(layers []digest.Digest) { f.s.leave(chainOf(layers)) }

// blobs is the content store that builders get.
type blobs struct{ s *Store }

func (b blobs) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	return b.s.blobs.Info(in(ctx), d)
}

func (b blobs) Update(ctx context.Context, i content.Info, fields ...string) (content.Info, error) {
	defer b.s.share()()
	return b.s.blobs.Update(in(ctx), i, fields...)
}

func (b blobs) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	return b.s.blobs.Walk(in(ctx), fn, filters...)
}

func (b blobs) Delete(ctx context.Context, d digest.Digest) error {
	defer b.s.share()()
	if err := b.s.blobs.Delete(in(ctx), d); err != nil {
		return err
	}
	b.s.strays.Store(true)
	b.s.wakeLater()
	return nil
}

func (b blobs) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	return b.s.blobs.ReaderAt(in(ctx), d)
}

func (b blobs) Status(ctx context.Context, ref string) (content.Status, error) {
	return b.s.blobs.Status(in(ctx), ref)
}

func (b blobs) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	return b.s.blobs.ListStatuses(in(ctx), filters...)
}

func (b blobs) Abort(ctx context.Context, ref string) error {
	defer b.s.share()()
	return b.s.blobs.Abort(in(ctx), ref)
}

func (b blobs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	defer b.s.share()()
	w, err := b.s.blobs.Writer(in(ctx), opts...)
	if err != nil {
		return nil, err
	}
	return blobWriter{w, b.s}, nil
}

// blobWriter is a writer whose blob does not become visible in the midst of a
// collection.
type blobWriter struct {
	content.Writer
	s *Store
}

func (w blobWriter) Commit(ctx context.Context, size int64, want digest.Digest, opts ...content.Opt) error {
	defer w.s.share()()
	return w.Writer.Commit(in(ctx), size, want, opts...)
}

// buildLeases is the lease manager that builders get.
type buildLeases struct{ s *Store }

// private tells whether a lease is the store's own.
func private(id string) bool {
	return strings.HasPrefix(id, workPrefix) || strings.HasPrefix(id, holderPrefix)
}

func own(l leases.Lease) error {
	if private(l.ID) {
		return fmt.Errorf("the lease %q is the image store's own: %w", l.ID, errdefs.ErrPermissionDenied)
	}
	return nil
}

func (b buildLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var l leases.Lease
	for _, o := range opts {
		if err := o(&l); err != nil {
			return l, err
		}
	}
	if err := own(l); err != nil {
		return l, err
	}
	return b.s.leases.Create(in(ctx), func(n *leases.Lease) error { *n = l; return nil })
}

// Delete ends a lease. With leases.SynchronousDelete what it kept is gone
// when Delete returns, unless something is being made.
func (b buildLeases) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	if err := own(l); err != nil {
		return err
	}
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if err := b.s.leases.Delete(in(ctx), l); err != nil {
		return err
	}
	if o.Synchronous {
		return b.s.clean(context.WithoutCancel(ctx))
	}
	b.s.wakeLater()
	return nil
}

func (b buildLeases) List(ctx context.Context, filters ...string) ([]leases.Lease, error) {
	all, err := b.s.leases.List(in(ctx), filters...)
	var out []leases.Lease
	for _, l := range all {
		if !private(l.ID) {
			out = append(out, l)
		}
	}
	return out, err
}

func (b buildLeases) AddResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	if err := own(l); err != nil {
		return err
	}
	// It would keep nothing, and what it should have kept would be collected.
	if kind, ok := strings.CutPrefix(r.Type, "snapshots/"); ok && kind != snapshot.Name {
		return fmt.Errorf("cannot lease a snapshot of %q: the snapshotter's name is %q: %w", kind, snapshot.Name, errdefs.ErrInvalidArgument)
	}
	return b.s.leases.AddResource(in(ctx), l, r)
}

func (b buildLeases) DeleteResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	if err := own(l); err != nil {
		return err
	}
	if err := b.s.leases.DeleteResource(in(ctx), l, r); err != nil {
		return err
	}
	b.s.wakeLater()
	return nil
}

func (b buildLeases) ListResources(ctx context.Context, l leases.Lease) ([]leases.Resource, error) {
	return b.s.leases.ListResources(in(ctx), l)
}

// wakeLater asks the collector to run in a while: builders give leases up by
// the dozen.
func (s *Store) wakeLater() {
	if s.waking.CompareAndSwap(false, true) {
		time.AfterFunc(collectDelay, func() {
			s.waking.Store(false)
			s.wake()
		})
	}
}

// collectDelay is how long what a builder gave up may stay.
const collectDelay = 2 * time.Second

// buildImages is the image store that builders get.
type buildImages struct{ s *Store }

func (b buildImages) Get(ctx context.Context, name string) (images.Image, error) {
	return b.s.records.Get(in(ctx), name)
}

func (b buildImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	all, err := b.s.records.List(in(ctx), filters...)
	var out []images.Image
	for _, i := range all {
		if !isDangling(i) {
			out = append(out, i)
		}
	}
	return out, err
}

// Create names an image. One that has the name already is
// errdefs.ErrAlreadyExists.
func (b buildImages) Create(ctx context.Context, i images.Image) (images.Image, error) {
	if _, err := b.Get(ctx, i.Name); err == nil {
		return images.Image{}, fmt.Errorf("image %q: %w", i.Name, errdefs.ErrAlreadyExists)
	} else if !errdefs.IsNotFound(err) {
		return images.Image{}, err
	}
	return b.adopt(ctx, i)
}

// Update gives a name to another image. No such name is errdefs.ErrNotFound.
// Only the target can be changed.
func (b buildImages) Update(ctx context.Context, i images.Image, fields ...string) (images.Image, error) {
	for _, f := range fields {
		if f != "target" && !strings.HasPrefix(f, "labels") && !strings.HasPrefix(f, "annotations") {
			return images.Image{}, fmt.Errorf("cannot update field %q of image %q: %w", f, i.Name, errdefs.ErrInvalidArgument)
		}
	}
	have, err := b.Get(ctx, i.Name)
	if err != nil {
		return images.Image{}, err
	}
	if i.Target.Digest == "" || i.Target.Digest == have.Target.Digest {
		if img, err := b.s.Get(ctx, recordID(have).String()); err == nil {
			b.tell(img, have.Name)
		}
		return have, nil
	}
	return b.adopt(ctx, i)
}

// tell publishes that a build made an image and named it.
func (b buildImages) tell(img *Image, name string) {
	id := img.ID.String()
	b.s.cfg.Events.Publish(event.ImageCreate.Of(id, img.Config.Config.Labels, id))
	if name != "" {
		b.s.cfg.Events.Publish(event.ImageTag.Of(id, img.Config.Config.Labels, familiar(name)))
	}
}

// adopt makes the image. A name with a digest is what BuildKit gives to an
// image that is to have none: it is dangling here.
func (b buildImages) adopt(ctx context.Context, i images.Image) (images.Image, error) {
	names := []string{i.Name}
	n, err := reference.ParseNormalizedNamed(i.Name)
	if err != nil {
		return images.Image{}, fmt.Errorf("invalid image name %q: %w", i.Name, errors.Join(err, errdefs.ErrInvalidArgument))
	}
	if _, ok := n.(reference.Digested); ok {
		names = nil
	}
	img, err := b.s.Adopt(ctx, i.Target, names)
	if err != nil {
		return images.Image{}, err
	}
	if names == nil {
		b.tell(img, "")
		i.Target, i.CreatedAt, i.UpdatedAt = img.Target, img.Tagged, img.Tagged
		return i, nil
	}
	b.tell(img, reference.TagNameOnly(n).String())
	return b.Get(ctx, reference.TagNameOnly(n).String())
}

// Delete takes a name away, and the image with its last one.
func (b buildImages) Delete(ctx context.Context, name string, _ ...images.DeleteOpt) error {
	if _, err := b.Get(ctx, name); err != nil {
		return err
	}
	_, err := b.s.Remove(ctx, name, false, true)
	return err
}
