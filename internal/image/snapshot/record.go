package snapshot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	bolt "go.etcd.io/bbolt"

	"proa/internal/image/flat"
	"proa/internal/state"
)

// record is what a snapshot consists of.
type record struct {
	Kind    snapshots.Kind
	Parent  string            `json:",omitempty"` // key of the parent's record
	Labels  map[string]string `json:",omitempty"` // those that containerd hands down
	Created time.Time
	Updated time.Time
	// Dir is the number of an active snapshot's directory.
	Dir uint64 `json:",omitempty"`
	// Layer is the snapshot's own layer. A committed one without has nothing
	// of its own; an active one without has only its upper directory.
	Layer digest.Digest `json:",omitempty"`
	// Applied says of an active snapshot that a layer was applied to it, maybe
	// an empty one.
	Applied bool `json:",omitempty"`
}

// bucket holds the records by the keys that containerd's metadata gives its
// backends: "<namespace>/<number>/<key>".
var bucket = state.NewBucket[record]("image.snapshot")

// backendKey reads the key of a snapshot's record from containerd's metadata,
// whose layout core/metadata/buckets.go describes; empty if there is none.
func backendKey(tx *bolt.Tx, namespace, key string) string {
	b := metaBucket(tx, namespace)
	if b == nil || key == "" {
		return ""
	}
	if b = b.Bucket([]byte(key)); b == nil {
		return ""
	}
	return string(b.Get([]byte("name")))
}

func metaBucket(tx *bolt.Tx, namespace string) *bolt.Bucket {
	b := tx.Bucket([]byte("v1"))
	for _, name := range []string{namespace, "snapshots", Name} {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(name))
	}
	return b
}

// find gives the record of the snapshot key.
func (s *Store) find(tx *bolt.Tx, key string) (bkey string, r record, err error) {
	if bkey = backendKey(tx, s.cfg.Namespace, key); bkey == "" {
		return "", r, fmt.Errorf("snapshot %q does not exist: %w", key, errdefs.ErrNotFound)
	}
	r, err = bucket.Get(tx, bkey)
	return bkey, r, err
}

// stack gives the layers of a snapshot, lowest first, its own included.
func stack(tx *bolt.Tx, bkey string) ([]digest.Digest, error) {
	var down []digest.Digest
	for bkey != "" {
		r, err := bucket.Get(tx, bkey)
		if err != nil {
			return nil, err
		}
		if r.Layer != "" {
			down = append(down, r.Layer)
		}
		bkey = r.Parent
	}
	for i, j := 0, len(down)-1; i < j; i, j = i+1, j-1 {
		down[i], down[j] = down[j], down[i]
	}
	return down, nil
}

// plan is what a caller and the records tell each other past containerd's
// metadata, which stands between them, in the context of a transaction.
type plan struct {
	dir   uint64        // to the records: the directory that was made
	layer digest.Digest // to the records: what the snapshot was sealed to
	key   string        // from the records: the key of the new one
}

type planKey struct{}

func planOf(ctx context.Context) (*plan, error) {
	if p, ok := ctx.Value(planKey{}).(*plan); ok && p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("the records of snapshots change only together with containerd's metadata: %w", errdefs.ErrInvalidArgument)
}

// Records is the part of a Store that containerd's metadata knows.
func (s *Store) Records() snapshots.Snapshotter { return records{s} }

// records keeps the records within the transaction of the context, and in
// nothing else: whatever is slow was done before.
type records struct{ s *Store }

func (b records) view(ctx context.Context, fn func(*bolt.Tx) error) error {
	if tx, ok := boltutil.Transaction(ctx); ok {
		return fn(tx)
	}
	return b.s.cfg.DB.View(fn)
}

func (b records) update(ctx context.Context, fn func(*bolt.Tx) error) error {
	tx, ok := boltutil.Transaction(ctx)
	if !ok {
		return fmt.Errorf("the records of snapshots change only together with containerd's metadata: %w", errdefs.ErrInvalidArgument)
	}
	return fn(tx)
}

func info(key string, r record) snapshots.Info {
	return snapshots.Info{Name: key, Kind: r.Kind, Parent: r.Parent, Labels: r.Labels, Created: r.Created, Updated: r.Updated}
}

func (b records) Stat(ctx context.Context, key string) (i snapshots.Info, err error) {
	err = b.view(ctx, func(tx *bolt.Tx) error {
		r, err := bucket.Get(tx, key)
		i = info(key, r)
		return err
	})
	return i, err
}

func (b records) Update(ctx context.Context, i snapshots.Info, fields ...string) (out snapshots.Info, err error) {
	err = b.update(ctx, func(tx *bolt.Tx) error {
		r, err := bucket.Get(tx, i.Name)
		if err != nil {
			return err
		}
		if len(fields) == 0 {
			fields = []string{"labels"}
		}
		for _, f := range fields {
			name, one := strings.CutPrefix(f, "labels.")
			switch {
			case f == "labels":
				r.Labels = i.Labels
			case !one:
				return fmt.Errorf("cannot update field %q of snapshot %q: %w", f, i.Name, errdefs.ErrInvalidArgument)
			case i.Labels[name] == "":
				delete(r.Labels, name)
			default:
				if r.Labels == nil {
					r.Labels = map[string]string{}
				}
				r.Labels[name] = i.Labels[name]
			}
		}
		r.Updated = time.Now().UTC()
		out = info(i.Name, r)
		return bucket.Put(tx, i.Name, r)
	})
	return out, err
}

func (b records) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var r record
	var layers []digest.Digest
	if err := b.view(ctx, func(tx *bolt.Tx) (err error) {
		if r, err = bucket.Get(tx, key); err != nil {
			return err
		}
		layers, err = stack(tx, key)
		return err
	}); err != nil {
		return snapshots.Usage{}, err
	}
	var u snapshots.Usage
	if r.Dir != 0 {
		du, err := fs.DiskUsage(ctx, b.s.upper(r.Dir))
		if err != nil {
			return u, fmt.Errorf("cannot measure snapshot %q: %w", key, err)
		}
		u.Add(snapshots.Usage(du))
	}
	if r.Layer != "" {
		l, err := b.s.cfg.Files.Layer(r.Layer)
		if err != nil {
			return u, fmt.Errorf("cannot measure snapshot %q: %w", key, err)
		}
		u.Add(snapshots.Usage{Inodes: int64(l.Entries), Size: int64(l.Blocks) * flat.BlockSize})
		// Not of one without a layer: the index is its parent's.
		n, err := b.s.cfg.Files.IndexSize(layers)
		if err != nil {
			return u, fmt.Errorf("cannot measure snapshot %q: %w", key, err)
		}
		u.Size += n
	}
	return u, nil
}

// Mounts has nothing to say: Store.Mounts knows what is attached.
func (b records) Mounts(context.Context, string) ([]mount.Mount, error) { return nil, nil }

func (b records) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, b.create(ctx, snapshots.KindActive, key, parent, opts)
}

func (b records) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, b.create(ctx, snapshots.KindView, key, parent, opts)
}

func (b records) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) error {
	p, err := planOf(ctx)
	if err != nil {
		return err
	}
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	return b.update(ctx, func(tx *bolt.Tx) error {
		if parent != "" {
			r, err := bucket.Get(tx, parent)
			if err != nil {
				return err
			}
			if r.Kind != snapshots.KindCommitted {
				return fmt.Errorf("the parent %q is not committed: %w", parent, errdefs.ErrInvalidArgument)
			}
		}
		now := time.Now().UTC()
		p.key = key
		return bucket.Put(tx, key, record{Kind: kind, Parent: parent, Labels: base.Labels, Created: now, Updated: now, Dir: p.dir})
	})
}

func (b records) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	p, err := planOf(ctx)
	if err != nil {
		return err
	}
	var base snapshots.Info
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	return b.update(ctx, func(tx *bolt.Tx) error {
		r, err := bucket.Get(tx, key)
		if err != nil {
			return err
		}
		if r.Kind != snapshots.KindActive {
			return fmt.Errorf("snapshot %q is not active: %w", key, errdefs.ErrFailedPrecondition)
		}
		parent := r.Parent
		if parent == "" {
			parent = base.Parent
		}
		now := time.Now().UTC()
		if err := bucket.Put(tx, name, record{
			Kind: snapshots.KindCommitted, Parent: parent, Labels: base.Labels, Created: now, Updated: now, Layer: p.layer,
		}); err != nil {
			return err
		}
		return bucket.Delete(tx, key)
	})
}

func (b records) Remove(ctx context.Context, key string) error {
	return b.update(ctx, func(tx *bolt.Tx) error { return bucket.Delete(tx, key) })
}

func (b records) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	var all []snapshots.Info
	if err := b.view(ctx, func(tx *bolt.Tx) error {
		return bucket.ForEach(tx, func(key string, r record) error {
			all = append(all, info(key, r))
			return nil
		})
	}); err != nil {
		return err
	}
	for _, i := range all {
		if err := fn(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (b records) Close() error { return nil }

// Needed gives the layers that some snapshot needs, and the chains that one is
// mounted from or might be.
func (s *Store) Needed(tx *bolt.Tx) (layers, chains map[digest.Digest]bool, err error) {
	layers, chains = map[digest.Digest]bool{}, map[digest.Digest]bool{}
	all := map[string]record{}
	if err := bucket.ForEach(tx, func(key string, r record) error {
		all[key] = r
		return nil
	}); err != nil {
		return nil, nil, fmt.Errorf("cannot list snapshots: %w", err)
	}
	known := map[string]digest.Digest{}
	var chain func(key string) digest.Digest
	chain = func(key string) digest.Digest {
		if c, ok := known[key]; ok || key == "" {
			return c
		}
		r := all[key]
		c := chain(r.Parent)
		switch {
		case r.Layer == "":
		case c == "":
			c = r.Layer
		default:
			c = identity.ChainID([]digest.Digest{c, r.Layer})
		}
		known[key] = c
		return c
	}
	for key, r := range all {
		if r.Layer != "" {
			layers[r.Layer] = true
		}
		chains[chain(key)] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.stacks {
		if !chains[c] {
			delete(s.stacks, c)
		}
	}
	return layers, chains, nil
}

// Prune deletes, within the transaction that swept containerd's metadata, the
// records of the snapshots that this took away. Once it is committed, the
// returned function does the rest; it is nil if none was.
func (s *Store) Prune(tx *bolt.Tx) (func(), error) {
	seen := map[string]bool{}
	if b := metaBucket(tx, s.cfg.Namespace); b != nil {
		if err := b.ForEachBucket(func(k []byte) error {
			seen[string(b.Bucket(k).Get([]byte("name")))] = true
			return nil
		}); err != nil {
			return nil, fmt.Errorf("cannot list snapshots: %w", err)
		}
	}
	gone := map[string]record{}
	if err := bucket.ForEach(tx, func(key string, r record) error {
		if !seen[key] {
			gone[key] = r
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("cannot list snapshots: %w", err)
	}
	if len(gone) == 0 {
		return nil, nil
	}
	for key := range gone {
		if err := bucket.Delete(tx, key); err != nil {
			return nil, err
		}
	}
	return func() {
		for key, r := range gone {
			s.release(key, r, 0)
		}
	}, nil
}
