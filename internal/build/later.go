package build

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// temporary is BuildKit's label of a lease that ends with what it was made for.
const temporary = "buildkit/lease.temporary"

// expiry is containerd's label of the time after which a lease holds nothing (RFC 3339).
const expiry = "containerd.io/gc.expire"

// later makes temporary leases when they are first needed. BuildKit takes one
// for each look at an image and each export, and writes again into it what the
// store has. All of these are transactions of the engine's that wait for the
// disk, and a build that has nothing to do needs none of them.
//
// While a lease is not made, small blobs that would come into it are held here
// with their bytes: they are written for certain before anything else happens
// under that lease, so that it does not matter if they were collected meanwhile.
type later struct {
	leases.Manager
	content content.Store

	mu      sync.Mutex
	waiting map[string]*waitingLease
}

type waitingLease struct {
	leases.Lease
	namespace string
	mu        sync.Mutex // guards what follows; held while the lease is made
	tried     bool       // the engine may know of it
	made      bool
	held      []heldBlob
}

type heldBlob struct {
	desc  ocispec.Descriptor
	bytes []byte
}

// mostHeldBlobs is more than an image has that is no layer, for some platforms.
const mostHeldBlobs = 64

// postpone puts a later before the parts' leases, and has all that changes the
// store under a lease wait for it.
func postpone(p *Parts) *later {
	l := &later{Manager: p.Leases, content: p.Content, waiting: map[string]*waitingLease{}}
	p.Leases = l
	p.Snapshots = leasedSnapshots{p.Snapshots, l}
	p.Applier, p.Differ = leasedApplier{p.Applier, l}, leasedDiffer{p.Differ, l}
	p.Images = leasedImages{p.Images, l}
	return l
}

func (l *later) find(id string) *waitingLease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting[id]
}

// of is the lease of a context, if it is not made yet.
func (l *later) of(ctx context.Context) *waitingLease {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return l.find(id)
}

// Create makes a lease, or remembers that a temporary one was asked for.
func (l *later) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	var want leases.Lease
	for _, o := range opts {
		if err := o(&want); err != nil {
			return leases.Lease{}, err
		}
	}
	if _, ok := want.Labels[temporary]; !ok || want.ID == "" {
		return l.Manager.Create(ctx, opts...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[want.ID] != nil {
		return leases.Lease{}, fmt.Errorf("lease %q: %w", want.ID, errdefs.ErrAlreadyExists)
	}
	for id, old := range l.waiting {
		// BuildKit leaves some of them to their expiry.
		if end, err := time.Parse(time.RFC3339, old.Labels[expiry]); err == nil && time.Now().After(end) && old.mu.TryLock() {
			if !old.tried {
				old.drop()
				delete(l.waiting, id)
			}
			old.mu.Unlock()
		}
	}
	ns, _ := namespaces.Namespace(ctx)
	l.waiting[want.ID] = &waitingLease{Lease: want, namespace: ns}
	return want, nil
}

// Delete ends a lease. Of one that was never made nobody hears.
func (l *later) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	if w := l.find(lease.ID); w != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		l.forget(w)
		if !w.tried {
			w.drop()
			return nil
		}
		if err := l.Manager.Delete(ctx, lease, opts...); w.made || !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	}
	return l.Manager.Delete(ctx, lease, opts...)
}

// drop ends a lease that was never made: nothing can be done under it any more.
// The caller holds w.mu.
func (w *waitingLease) drop() { w.made, w.held = true, nil }

func (l *later) forget(w *waitingLease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, w.ID)
}

// AddResource puts something under a lease.
func (l *later) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	if err := l.need(ctx); err != nil { // r may be held
		return err
	}
	if err := l.make(ctx, l.find(lease.ID)); err != nil {
		return err
	}
	return l.Manager.AddResource(ctx, lease, r)
}

// DeleteResource takes something from a lease.
func (l *later) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	if err := l.make(ctx, l.find(lease.ID)); err != nil {
		return err
	}
	return l.Manager.DeleteResource(ctx, lease, r)
}

// ListResources lists what is under a lease.
func (l *later) ListResources(ctx context.Context, lease leases.Lease) ([]leases.Resource, error) {
	if w := l.find(lease.ID); w != nil {
		w.mu.Lock()
		nothing := !w.made && len(w.held) == 0
		w.mu.Unlock()
		if nothing {
			return nil, nil
		}
		if err := l.make(ctx, w); err != nil {
			return nil, err
		}
	}
	return l.Manager.ListResources(ctx, lease)
}

// need makes the lease of a context.
func (l *later) need(ctx context.Context) error { return l.make(ctx, l.of(ctx)) }

func (l *later) make(ctx context.Context, w *waitingLease) error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.made {
		return nil
	}
	ctx = namespaces.WithNamespace(ctx, w.namespace)
	w.tried = true
	if _, err := l.Manager.Create(ctx, leases.WithID(w.ID), leases.WithLabels(w.Labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	for _, b := range w.held {
		if err := content.WriteBlob(leases.WithLease(ctx, w.ID), l.content, "held-"+b.desc.Digest.String(), bytes.NewReader(b.bytes), b.desc); err != nil {
			return err
		}
	}
	w.made, w.held = true, nil
	l.forget(w)
	return nil
}

// hold keeps a blob that the store has, or lately had, for the time when the
// lease of a context is made. It reports false if that is made already, or
// there is none.
func (l *later) hold(ctx context.Context, desc ocispec.Descriptor, b []byte) bool {
	w := l.of(ctx)
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.made || len(w.held) == mostHeldBlobs {
		return false
	}
	w.held = append(w.held, heldBlob{desc, b})
	return true
}

type leasedSnapshots struct {
	snapshots.Snapshotter
	l *later
}

func (s leasedSnapshots) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := s.l.need(ctx); err != nil {
		return nil, err
	}
	return s.Snapshotter.Prepare(ctx, key, parent, opts...)
}

func (s leasedSnapshots) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := s.l.need(ctx); err != nil {
		return nil, err
	}
	return s.Snapshotter.View(ctx, key, parent, opts...)
}

func (s leasedSnapshots) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.l.need(ctx); err != nil {
		return err
	}
	return s.Snapshotter.Commit(ctx, name, key, opts...)
}

type leasedApplier struct {
	diff.Applier
	l *later
}

func (a leasedApplier) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if err := a.l.need(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.Applier.Apply(ctx, desc, mounts, opts...)
}

type leasedDiffer struct {
	diff.Comparer
	l *later
}

func (d leasedDiffer) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	if err := d.l.need(ctx); err != nil {
		return ocispec.Descriptor{}, err
	}
	return d.Comparer.Compare(ctx, lower, upper, opts...)
}

type leasedImages struct {
	images.Store
	l *later
}

func (s leasedImages) Create(ctx context.Context, i images.Image) (images.Image, error) {
	if err := s.l.need(ctx); err != nil {
		return images.Image{}, err
	}
	return s.Store.Create(ctx, i)
}

// Update changes an image. One that is what it shall be holds what it is made
// of by itself. (The engine keeps no labels of images.)
func (s leasedImages) Update(ctx context.Context, i images.Image, fields ...string) (images.Image, error) {
	if s.l.of(ctx) != nil {
		have, err := s.Get(ctx, i.Name)
		if err != nil || have.Target.Digest == i.Target.Digest {
			return have, err
		}
		if err := s.l.need(ctx); err != nil {
			return images.Image{}, err
		}
	}
	return s.Store.Update(ctx, i, fields...)
}
