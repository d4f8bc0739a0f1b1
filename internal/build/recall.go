package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How much recalled remembers, and how long. BuildKit asks for the same few
// blobs many times within some milliseconds; each question is a round trip to
// the engine, and they were a third of a build that has nothing to do.
const (
	recallFor   = time.Second
	recallSmall = 64 << 10 // bytes of one blob: manifests and configs
	recallAll   = 4 << 20  // bytes of all
)

// recalled is the engine's content store with a short memory. What a blob is
// labelled with is believed for a second, unless the builder itself changed it:
// what a build uses is held by its leases, so it does not vanish meanwhile.
// That a blob is missing is never remembered. The bytes of small blobs are kept
// as long as there is room; they are those of their digest for ever.
type recalled struct {
	content.Store
	later *later

	mu    sync.Mutex
	infos map[digest.Digest]recalledInfo
	bytes map[digest.Digest][]byte
	size  int
}

type recalledInfo struct {
	content.Info
	at time.Time
}

// recall puts a memory before the parts' content store.
func recall(p *Parts, l *later) {
	r := &recalled{Store: p.Content, later: l}
	r.forget()
	collect := p.Collect
	p.Content = r
	p.Collect = func(ctx context.Context) (gc.Stats, error) {
		defer r.forget()
		return collect(ctx)
	}
}

// forget forgets some blobs' labels, or everything.
func (r *recalled) forget(some ...digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range some {
		delete(r.infos, d)
	}
	if len(some) == 0 {
		r.infos, r.bytes, r.size = map[digest.Digest]recalledInfo{}, map[digest.Digest][]byte{}, 0
	}
}

func (r *recalled) known(d digest.Digest) (content.Info, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.infos[d]
	return i.Info, ok && time.Since(i.at) < recallFor
}

func (r *recalled) learn(i content.Info, asked time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, old := range r.infos {
		if asked.Sub(old.at) > recallFor {
			delete(r.infos, d)
		}
	}
	r.infos[i.Digest] = recalledInfo{i, asked}
}

// Info describes a blob.
func (r *recalled) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	if i, ok := r.known(d); ok {
		return i, nil
	}
	asked := time.Now()
	i, err := r.Store.Info(ctx, d)
	if err == nil {
		r.learn(i, asked)
	}
	return i, err
}

// Update labels a blob. Labels that it has already are not written again.
func (r *recalled) Update(ctx context.Context, want content.Info, fields ...string) (content.Info, error) {
	if have, ok := r.known(want.Digest); ok && len(fields) > 0 {
		same := true
		for _, f := range fields {
			label, ok := strings.CutPrefix(f, "labels.")
			v, has := have.Labels[label]
			same = same && ok && has && v == want.Labels[label]
		}
		if same {
			return have, nil
		}
	}
	r.forget(want.Digest)
	return r.Store.Update(ctx, want, fields...)
}

// Writer writes a blob, unless it is there; that a small one belongs to a lease
// that is not made is remembered with it.
func (r *recalled) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var want content.WriterOpts
	for _, o := range opts {
		if err := o(&want); err != nil {
			return nil, err
		}
	}
	if want.Desc.Digest != "" && r.later.of(ctx) != nil {
		if have, ok := r.small(ctx, want.Desc.Digest); ok && r.later.hold(ctx, ocispec.Descriptor{MediaType: want.Desc.MediaType, Digest: want.Desc.Digest, Size: int64(len(have))}, have) {
			return nil, fmt.Errorf("content %v: %w", want.Desc.Digest, errdefs.ErrAlreadyExists)
		}
	}
	if err := r.later.need(ctx); err != nil {
		return nil, err
	}
	return r.Store.Writer(ctx, opts...)
}

// small gives the bytes of a small blob that the store has.
func (r *recalled) small(ctx context.Context, d digest.Digest) ([]byte, bool) {
	info, err := r.Info(ctx, d)
	if err != nil || info.Size > recallSmall {
		return nil, false
	}
	b, err := content.ReadBlob(ctx, r, ocispec.Descriptor{Digest: d, Size: info.Size})
	return b, err == nil
}

// Delete removes a blob.
func (r *recalled) Delete(ctx context.Context, d digest.Digest) error {
	defer r.forget(d)
	return r.Store.Delete(ctx, d)
}

// ReaderAt reads a blob.
func (r *recalled) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	r.mu.Lock()
	have, ok := r.bytes[desc.Digest]
	r.mu.Unlock()
	if ok {
		return inMemory{bytes.NewReader(have)}, nil
	}
	ra, err := r.Store.ReaderAt(ctx, desc)
	if err != nil || ra.Size() > recallSmall {
		return ra, err
	}
	defer ra.Close()
	all := make([]byte, ra.Size())
	if n, err := ra.ReadAt(all, 0); n < len(all) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.size+len(all) > recallAll {
		r.bytes, r.size = map[digest.Digest][]byte{}, 0
	}
	if _, ok := r.bytes[desc.Digest]; !ok {
		r.bytes[desc.Digest] = all
		r.size += len(all)
	}
	return inMemory{bytes.NewReader(all)}, nil
}
