package build

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// laterKit is a store of containerd's with leases that are made later.
type laterKit struct {
	*testing.T
	ctx   context.Context
	db    *metadata.DB
	inner Parts // what the store really has
	p     Parts
}

func newLaterKit(t *testing.T) *laterKit {
	t.Helper()
	dir := t.TempDir()
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	k := &laterKit{T: t, ctx: in(context.Background()), db: metadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{})}
	if err := k.db.Init(k.ctx); err != nil {
		t.Fatal(err)
	}
	k.inner = Parts{Content: k.db.ContentStore(), Images: metadata.NewImageStore(k.db), Leases: metadata.NewLeaseManager(k.db), Collect: k.db.GarbageCollect}
	k.p = k.inner
	recall(&k.p, postpone(&k.p))
	return k
}

func (k *laterKit) lease(opts ...leases.Opt) (context.Context, leases.Lease) {
	k.Helper()
	l, err := k.p.Leases.Create(k.ctx, append([]leases.Opt{leases.WithRandomID()}, opts...)...)
	if err != nil {
		k.Fatal(err)
	}
	return leases.WithLease(k.ctx, l.ID), l
}

func (k *laterKit) made() int {
	k.Helper()
	all, err := k.inner.Leases.List(k.ctx)
	if err != nil {
		k.Fatal(err)
	}
	return len(all)
}

func blobOf(text string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString(text), Size: int64(len(text))}
}

// write writes a blob and says whether the store had it.
func (k *laterKit) write(ctx context.Context, text string) (had bool) {
	k.Helper()
	desc := blobOf(text)
	w, err := k.p.Content.Writer(ctx, content.WithRef("r-"+text), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return true
	}
	if err == nil {
		err = content.Copy(ctx, w, bytes.NewReader([]byte(text)), desc.Size, desc.Digest)
	}
	if err != nil {
		k.Fatal(err)
	}
	return false
}

func (k *laterKit) has(text string) bool {
	k.Helper()
	_, err := k.inner.Content.Info(k.ctx, blobOf(text).Digest)
	if err != nil && !errdefs.IsNotFound(err) {
		k.Fatal(err)
	}
	return err == nil
}

func (k *laterKit) collect() {
	k.Helper()
	var collect func(context.Context) (gc.Stats, error) = k.inner.Collect // as another builder would
	if _, err := collect(k.ctx); err != nil {
		k.Fatal(err)
	}
}

func (k *laterKit) end(l leases.Lease) {
	k.Helper()
	if err := k.p.Leases.Delete(k.ctx, l); err != nil {
		k.Fatal(err)
	}
}

// A lease under which nothing is changed is never made.
func TestALeaseThatIsNotNeeded(t *testing.T) {
	k := newLaterKit(t)
	first, l := k.lease(leaseutil.MakeTemporary)
	if k.write(first, "config") || k.made() != 1 {
		t.Fatalf("a new blob was there, or its lease is not made: %d", k.made())
	}
	if _, err := k.p.Images.Create(first, images.Image{Name: "i", Target: blobOf("config")}); err != nil {
		t.Fatal(err)
	}
	k.end(l)
	if k.made() != 0 {
		t.Fatal("the lease outlives its end")
	}
	second, l := k.lease(leaseutil.MakeTemporary)
	if !k.write(second, "config") {
		t.Fatal("a blob that is there was written again")
	}
	if _, err := k.p.Images.Update(second, images.Image{Name: "i", Target: blobOf("config")}); err != nil {
		t.Fatal(err)
	}
	if n := k.made(); n != 0 {
		t.Fatalf("%d leases for an image that is what it shall be", n)
	}
	k.end(l)
	if _, l = k.lease(); k.made() != 1 {
		t.Fatal("a lease that is to stay was put off")
	}
	k.end(l)
}

// What a lease that is not made would hold is there when it is made, even if
// it was collected meanwhile.
func TestALeaseThatIsNeededLater(t *testing.T) {
	for name, use := range map[string]func(k *laterKit, ctx context.Context, l leases.Lease) error{
		"an image": func(k *laterKit, ctx context.Context, _ leases.Lease) error {
			_, err := k.p.Images.Create(ctx, images.Image{Name: "i", Target: blobOf("config")})
			return err
		},
		"another blob": func(k *laterKit, ctx context.Context, _ leases.Lease) error {
			k.write(ctx, "another")
			return nil
		},
		"a resource": func(k *laterKit, ctx context.Context, l leases.Lease) error {
			return k.p.Leases.AddResource(k.ctx, l, leases.Resource{ID: blobOf("config").Digest.String(), Type: "content"})
		},
		"a resource of another lease": func(k *laterKit, ctx context.Context, _ leases.Lease) error {
			_, other := k.lease()
			return k.p.Leases.AddResource(ctx, other, leases.Resource{ID: blobOf("config").Digest.String(), Type: "content"})
		},
		"a list of it": func(k *laterKit, ctx context.Context, l leases.Lease) error {
			rs, err := k.p.Leases.ListResources(k.ctx, l)
			if len(rs) != 1 || rs[0].ID != blobOf("config").Digest.String() {
				k.Errorf("the lease holds %v", rs)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newLaterKit(t)
			old, o := k.lease(leaseutil.MakeTemporary)
			k.write(old, "config")
			ctx, l := k.lease(leaseutil.MakeTemporary)
			if !k.write(ctx, "config") {
				t.Fatal("not there")
			}
			k.end(o)
			k.collect()
			if k.has("config") {
				t.Fatal("nothing held the blob and it is still there: this tests nothing")
			}
			if err := use(k, ctx, l); err != nil {
				t.Fatal(err)
			}
			k.collect()
			if !k.has("config") {
				t.Fatal("a blob of the lease was collected")
			}
		})
	}
}

// broken is a content store that cannot be written to.
type broken struct{ content.Store }

func (broken) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, errdefs.ErrInternal
}

// A lease that was made, but not filled, is ended like any other, or made again.
func TestALeaseThatCannotBeFilled(t *testing.T) {
	k := newLaterKit(t)
	old, o := k.lease(leaseutil.MakeTemporary)
	k.write(old, "config")
	l := k.p.Leases.(*later)
	ctx, lease := k.lease(leaseutil.MakeTemporary)
	if !k.write(ctx, "config") {
		t.Fatal("not there")
	}
	whole := l.content
	l.content = broken{whole}
	if err := l.need(ctx); !errdefs.IsInternal(err) {
		t.Fatalf("a blob was not written: %v", err)
	}
	l.content = whole
	if err := l.need(ctx); err != nil {
		t.Fatal(err)
	}
	k.end(o)
	k.end(lease)
	if n := k.made(); n != 0 {
		t.Fatalf("%d leases are left", n)
	}
	ctx, lease = k.lease(leaseutil.MakeTemporary)
	l.hold(ctx, blobOf("gone"), []byte("gone"))
	l.content = broken{whole}
	if err := l.need(ctx); !errdefs.IsInternal(err) || k.made() != 1 {
		t.Fatalf("%d leases, %v", k.made(), err)
	}
	k.end(lease)
	if n := k.made(); n != 0 {
		t.Fatalf("%d leases are left", n)
	}
}

// BuildKit leaves some leases to their expiry.
func TestALeaseThatExpires(t *testing.T) {
	k := newLaterKit(t)
	l := k.p.Leases.(*later)
	ctx, _ := k.lease(leaseutil.MakeTemporary, leases.WithExpiration(-time.Second))
	if !l.hold(ctx, blobOf("a"), []byte("a")) {
		t.Fatal("nothing is held")
	}
	stays, _ := k.lease(leaseutil.MakeTemporary, leases.WithExpiration(time.Hour))
	if l.of(ctx) != nil || l.of(stays) == nil || len(l.waiting) != 1 {
		t.Fatalf("%d leases wait", len(l.waiting))
	}
}
