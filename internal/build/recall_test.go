package build

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// countedStore is a store of one blob that counts what it is asked.
type countedStore struct {
	content.Store
	blob                 []byte
	labels               map[string]string
	infos, updates, read int
}

func (s *countedStore) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	if s.infos++; s.blob == nil || digest.FromBytes(s.blob) != d {
		return content.Info{}, errdefs.ErrNotFound
	}
	return content.Info{Digest: d, Size: int64(len(s.blob)), Labels: s.labels}, nil
}

func (s *countedStore) Update(_ context.Context, i content.Info, _ ...string) (content.Info, error) {
	s.updates++
	s.labels = i.Labels
	return i, nil
}

func (s *countedStore) Delete(context.Context, digest.Digest) error {
	s.blob = nil
	return nil
}

func (s *countedStore) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	s.read++
	return inMemory{bytes.NewReader(s.blob)}, nil
}

func TestRecall(t *testing.T) {
	ctx := t.Context()
	s := &countedStore{}
	p := Parts{Content: s, Collect: func(context.Context) (gc.Stats, error) { return nil, nil }}
	recall(&p, postpone(&p))
	small := []byte("a manifest")
	d := digest.FromBytes(small)
	for range 2 { // that it is missing is asked again
		if _, err := p.Content.Info(ctx, d); !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
	}
	s.blob, s.infos = small, 0
	info := func(asked int, label string) {
		t.Helper()
		i, err := p.Content.Info(ctx, d)
		if err != nil || i.Size != int64(len(small)) || i.Labels["l"] != label || s.infos != asked {
			t.Fatalf("%+v, %v after %d questions, want %d", i, err, s.infos, asked)
		}
	}
	info(1, "")
	info(1, "")
	label := func(v string, updates int) {
		t.Helper()
		if _, err := p.Content.Update(ctx, content.Info{Digest: d, Labels: map[string]string{"l": v}}, "labels.l"); err != nil || s.updates != updates {
			t.Fatalf("%v after %d updates, want %d", err, s.updates, updates)
		}
	}
	label("x", 1)
	info(2, "x") // it changed
	label("x", 1)
	label("y", 2)
	info(3, "y")
	if _, err := p.Content.Update(ctx, content.Info{Digest: d, Labels: s.labels}); err != nil || s.updates != 3 {
		t.Fatalf("an update of everything was left out: %v", err)
	}
	info(4, "y")
	if _, err := p.Collect(ctx); err != nil {
		t.Fatal(err)
	}
	info(5, "y")
	r := p.Content.(*recalled)
	r.mu.Lock()
	i := r.infos[d]
	i.at = time.Now().Add(-2 * recallFor)
	r.infos[d] = i
	r.mu.Unlock()
	info(6, "y")
	for range 2 {
		all, err := content.ReadBlob(ctx, p.Content, ocispec.Descriptor{Digest: d, Size: int64(len(small))})
		if err != nil || !bytes.Equal(all, small) || s.read != 1 {
			t.Fatalf("read %q, %v in %d reads", all, err, s.read)
		}
	}
	if err := p.Content.Delete(ctx, d); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Content.Info(ctx, d); !errdefs.IsNotFound(err) {
		t.Fatalf("a deleted blob is still known: %v", err)
	}
	s.blob, s.read = make([]byte, recallSmall+1), 0
	big := ocispec.Descriptor{Digest: digest.FromBytes(s.blob), Size: recallSmall + 1}
	for range 2 {
		if _, err := content.ReadBlob(ctx, p.Content, big); err != nil {
			t.Fatal(err)
		}
	}
	if s.read != 2 {
		t.Fatalf("a large blob was read %d times, want 2", s.read)
	}
}
