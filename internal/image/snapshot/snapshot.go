// Package snapshot owns the snapshots that builds are made of, over flat
// layers: it is a containerd Snapshotter, Applier and Comparer. A committed
// snapshot is a stack of flat layers and never a directory tree. An active one
// is the upper directory of an overlay over the stack of its parent; a commit
// makes one more flat layer of that directory in one walk. Applying a layer's
// blob extracts nothing: the blob becomes a flat layer, and the snapshot the
// name of it.
//
// It never makes, mounts or removes a flat layer or an index itself: it asks
// the image store (Files), and tells it what is needed. It mounts nothing and
// runs nothing. Which snapshots exist is containerd's metadata's to say, which
// knows leases and references; the record kept here beside it says what a
// snapshot consists of, and both are written in one transaction.
//
// Mounts are a contract between this package and whoever runs a build's steps:
//
//	active, with a parent     overlay, lowerdir=<mounts>/<chain>, upperdir=<dir>/upper, workdir=<dir>/work
//	active, without a parent  bind of <dir>/upper, rbind, rw
//	view                      bind of <mounts>/<chain>, rbind, ro
//	view of nothing           bind of <root>/empty, rbind, ro
//
// where <chain> is the hex chain id of the layers below, attached there for as
// long as the snapshot exists, and <dir> is <root>/<number>. An active snapshot
// that a layer was applied to has that layer in <chain>. Files lie in upper
// with the owners that they have inside.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/image/flat"
	"proa/internal/state"
	"proa/internal/sys"
)

// Name is what containerd's metadata, leases and BuildKit call the
// snapshotter. BuildKit (snapshot/merge.go) starts a merge from its lowest
// layers, in place of copying them, only if the name is this; and what it then
// expects, overlay mounts with an upper directory to write to, is what it gets.
const Name = "overlayfs"

// Files is what the image store does for snapshots.
type Files interface {
	// Share keeps every file from being removed until the returned function
	// is called. Not to be called within a transaction.
	Share() func()
	// Unpack gives the flat layer of a blob. want is its diffID, or empty.
	Unpack(ctx context.Context, blob ocispec.Descriptor, want digest.Digest) (*flat.Layer, error)
	// Write makes a flat layer of an uncompressed tar stream.
	Write(ctx context.Context, tar io.Reader) (*flat.Layer, error)
	// Layer gives the flat layer with this diffID.
	Layer(diffID digest.Digest) (*flat.Layer, error)
	// IndexSize is how many bytes the index of a stack takes; 0 if there is none.
	IndexSize(layers []digest.Digest) (int64, error)
	// Decompress unpacks a stream, however it is packed.
	Decompress(ctx context.Context, r io.Reader) (io.ReadCloser, error)
	// Apart gives the files of one flat layer as a detached mount in the form
	// of an overlay's upper directory. root says whether the layer has an
	// entry of its own for the root. Close ends it.
	Apart(l *flat.Layer) (dir *os.File, root bool, close func(), err error)
	// Attach mounts a stack of layers, lowest first, and gives the place,
	// where it stays until Leave was called as often.
	Attach(ctx context.Context, layers []digest.Digest) (string, error)
	Leave(layers []digest.Digest)
}

// Config says where a Store lies and whom it asks.
type Config struct {
	Root      string        // directory of the upper directories
	DB        *state.DB     // where records are kept
	Namespace string        // the one namespace of containerd's metadata
	Files     Files         // the image store
	Content   content.Store // where Compare puts blobs; it leases by the caller's context
	Warn      func(error)   // gets what went wrong in the background
}

// Store keeps snapshots. All methods can be called from many goroutines, in
// any namespace: there is one.
//
// Lock order: Files.Share, a transaction, mu.
type Store struct {
	cfg   Config
	meta  *metadata.DB
	front snapshots.Snapshotter // of containerd's metadata; its backend is records
	next  atomic.Uint64         // number of the newest directory

	recent *recent

	mu sync.Mutex
	// working counts what is done in the background; a WaitGroup must not be
	// waited for while the first piece begins. idle is told when none is left.
	working int
	idle    *sync.Cond
	// later are the directories whose removal was put off.
	later      []uint64
	laterTimer *time.Timer
	held       map[string]holding // by the key of the record
	dirs       map[uint64]string  // directory number to the key of its record
	// stacks are the layers of every chain that mounts were given out of.
	stacks map[digest.Digest][]digest.Digest
}

var _ snapshots.Snapshotter = (*Store)(nil)

// holding is what one snapshot keeps attached.
type holding struct {
	layers []digest.Digest
	at     string
}

// New makes a Store. Its Records are given to containerd's metadata, and then
// that to Open.
func New(cfg Config) *Store {
	s := &Store{cfg: cfg, recent: newRecent(cfg.Root), held: map[string]holding{}, dirs: map[uint64]string{}, stacks: map[digest.Digest][]digest.Digest{}}
	s.idle = sync.NewCond(&s.mu)
	return s
}

// Open begins to use the metadata, and removes directories that no record
// names. Nothing of the Store may be used before.
func (s *Store) Open(ctx context.Context, meta *metadata.DB) error {
	s.meta, s.front = meta, meta.Snapshotter(Name)
	if err := os.MkdirAll(s.empty(), 0o755); err != nil {
		return fmt.Errorf("cannot open the snapshots: %w", err)
	}
	if err := sys.SpreadDirs(s.cfg.Root); err != nil {
		return fmt.Errorf("cannot open the snapshots: %w", err)
	}
	if err := s.cfg.DB.View(func(tx *bolt.Tx) error {
		return bucket.ForEach(tx, func(key string, r record) error {
			if r.Dir > 0 {
				s.dirs[r.Dir] = key
				s.next.Store(max(s.next.Load(), r.Dir))
			}
			return nil
		})
	}); err != nil {
		return fmt.Errorf("cannot open the snapshots: %w", err)
	}
	entries, err := os.ReadDir(s.cfg.Root)
	if err != nil {
		return fmt.Errorf("cannot open the snapshots: %w", err)
	}
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil || s.dirs[n] != "" {
			continue
		}
		s.next.Store(max(s.next.Load(), n))
		s.removeDir(n)
	}
	return nil
}

// Close ends the work in the background.
func (s *Store) Close() error {
	s.recent.close()
	s.Tidy()
	return nil
}

func (s *Store) warn(err error) {
	if err != nil && s.cfg.Warn != nil {
		s.cfg.Warn(err)
	}
}

func (s *Store) empty() string { return filepath.Join(s.cfg.Root, "empty") }

func (s *Store) dir(n uint64) string {
	return filepath.Join(s.cfg.Root, strconv.FormatUint(n, 10))
}

func (s *Store) upper(n uint64) string { return filepath.Join(s.dir(n), "upper") }

// in puts the one namespace into ctx.
func (s *Store) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.cfg.Namespace)
}

// update runs fn in one transaction for containerd's metadata and the records.
// That something exists already is not what ends it: a lease that was given to
// it is to last.
func (s *Store) update(ctx context.Context, p *plan, fn func(ctx context.Context) error) error {
	var exists error
	err := s.meta.Update(func(tx *bolt.Tx) error {
		exists = nil
		err := fn(context.WithValue(boltutil.WithTransaction(s.in(ctx), tx), planKey{}, p))
		if errdefs.IsAlreadyExists(err) {
			exists = err
			return nil
		}
		return err
	})
	if err == nil {
		err = exists
	}
	return err
}

// Prepare makes an active snapshot.
func (s *Store) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot.
func (s *Store) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Store) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	defer s.cfg.Files.Share()()
	// What is slow comes before the transaction, unless it would be in vain.
	p, hold := &plan{}, holding{}
	var taken bool
	if err := s.cfg.DB.View(func(tx *bolt.Tx) error {
		taken = backendKey(tx, s.cfg.Namespace, key) != ""
		pkey := backendKey(tx, s.cfg.Namespace, parent)
		if taken || pkey == "" {
			return nil
		}
		hold.layers, err = stack(tx, pkey)
		return err
	}); err != nil {
		return nil, fmt.Errorf("cannot make snapshot %q: %w", key, err)
	}
	defer func() {
		if err != nil {
			s.leave(hold)
		}
	}()
	if !taken {
		if hold, err = s.attach(ctx, hold.layers); err != nil {
			return nil, fmt.Errorf("cannot make snapshot %q: %w", key, err)
		}
		if kind == snapshots.KindActive {
			p.dir = s.next.Add(1)
		}
	}
	if err := s.update(ctx, p, func(ctx context.Context) (err error) {
		if kind == snapshots.KindView {
			_, err = s.front.View(ctx, key, parent, opts...)
		} else {
			_, err = s.front.Prepare(ctx, key, parent, opts...)
		}
		return err
	}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.held[p.key] = hold
	if p.dir != 0 {
		s.dirs[p.dir] = p.key
	}
	s.mu.Unlock()
	if err := s.makeDir(p.dir, hold.at); err != nil {
		hold = holding{} // it is the snapshot's now
		return nil, fmt.Errorf("cannot make snapshot %q: %w", key, errors.Join(err, s.Remove(ctx, key)))
	}
	if n := len(hold.layers); n > 0 && kind == snapshots.KindActive {
		s.warm(hold.layers[n-1], hold.at)
	}
	return s.mounts(kind, p.dir, hold), nil
}

// attach is Files.Attach for a stack that may be empty.
func (s *Store) attach(ctx context.Context, layers []digest.Digest) (holding, error) {
	if len(layers) == 0 {
		return holding{}, nil
	}
	at, err := s.cfg.Files.Attach(ctx, layers)
	if err != nil {
		return holding{}, err
	}
	s.mu.Lock()
	s.stacks[digest.NewDigestFromEncoded(digest.SHA256, filepath.Base(at))] = layers
	s.mu.Unlock()
	return holding{layers: layers, at: at}, nil
}

func (s *Store) leave(h holding) {
	if h.at != "" {
		s.cfg.Files.Leave(h.layers)
	}
}

// makeDir makes the directory of an active snapshot over what is attached at
// lower, unless it is there; there is none of number 0. It is made after the
// record, whose transaction would have to wait until it has reached the disk
// as well, and once more by whoever wants mounts after a crash in between. The
// root of the overlay is that of upper, so it looks like lower's.
func (s *Store) makeDir(n uint64, lower string) error {
	if n == 0 {
		return nil
	}
	if lower == "" {
		if err := os.Mkdir(s.dir(n), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err := os.Mkdir(s.upper(n), 0o755)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return errors.Join(err, os.Chmod(s.upper(n), 0o755)) // whatever the umask
	}
	root, err := sys.OpenPath(lower)
	if err != nil {
		return err
	}
	defer root.Close()
	layer, err := sys.WritableLayer(s.dir(n), root)
	if err != nil {
		return err
	}
	return layer.Close()
}

// removeDir removes a directory in the background. A crash leaves the rest of
// it to the next Open.
func (s *Store) removeDir(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeDirs(n)
}

// removeDirs is removeDir of several, with mu held.
func (s *Store) removeDirs(some ...uint64) {
	if len(some) == 0 {
		return
	}
	s.working++
	go func() {
		for _, n := range some {
			if err := sys.RemoveTree(s.dir(n)); err != nil {
				s.warn(fmt.Errorf("cannot remove the directory of a snapshot: %w", err))
			}
		}
		s.worked()
	}()
}

// worked ends a piece of work in the background.
func (s *Store) worked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.working--; s.working == 0 {
		s.idle.Broadcast()
	}
}

// smallLayer is what most steps of a build write at the most, in bytes of the
// layer: what can be kept a while longer, or read once more, before anybody
// knows whether it was worth it.
const smallLayer = 8 << 20

// How many directories of committed snapshots wait for their removal, how long
// they wait when nothing else is committed, and how much the disk has free all
// the while. They are directories of small layers.
const (
	laterMost  = 64
	laterAfter = 5 * time.Minute
	laterFree  = 4 << 30 // bytes
)

// removeDirLater removes the directory of a snapshot of which a layer of size
// bytes was made: a build has better things to do than to remove what it has
// just written, and where ext4 has no journal, new files are slow to make for
// minutes after others were removed (sys.SpreadDirs says why).
func (s *Store) removeDirLater(n uint64, size int64) {
	var disk syscall.Statfs_t
	if size > smallLayer || syscall.Statfs(s.cfg.Root, &disk) != nil || disk.Bavail*uint64(disk.Bsize) < laterFree {
		s.removeDir(n)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.later = append(s.later, n); len(s.later) > laterMost {
		s.removeDirs(s.later[:laterMost/2]...)
		s.later = slices.Clone(s.later[laterMost/2:])
	}
	if s.laterTimer == nil {
		s.laterTimer = time.AfterFunc(laterAfter, s.Tidy)
	} else {
		s.laterTimer.Reset(laterAfter)
	}
}

// Tidy removes what was put off until nothing is built.
func (s *Store) Tidy() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeDirs(s.later...)
	s.later = nil
	for s.working > 0 {
		s.idle.Wait()
	}
}

// mounts are the mounts of a snapshot that holds h.
func (s *Store) mounts(kind snapshots.Kind, n uint64, h holding) []mount.Mount {
	switch {
	case kind == snapshots.KindView && h.at == "":
		return []mount.Mount{{Type: "bind", Source: s.empty(), Options: []string{"rbind", "ro"}}}
	case kind == snapshots.KindView:
		return []mount.Mount{{Type: "bind", Source: h.at, Options: []string{"rbind", "ro"}}}
	case h.at == "":
		return []mount.Mount{{Type: "bind", Source: s.upper(n), Options: []string{"rbind", "rw"}}}
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + h.at, "upperdir=" + s.upper(n), "workdir=" + filepath.Join(s.dir(n), "work"),
	}}}
}

// Mounts gives the mounts of an active snapshot or a view.
func (s *Store) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	defer s.cfg.Files.Share()()
	var bkey string
	var r record
	var layers []digest.Digest
	if err := s.cfg.DB.View(func(tx *bolt.Tx) (err error) {
		if bkey, r, err = s.find(tx, key); err != nil {
			return err
		}
		if r.Kind == snapshots.KindCommitted {
			return fmt.Errorf("snapshot %q is committed; mounts belong to an active one or a view: %w", key, errdefs.ErrFailedPrecondition)
		}
		layers, err = stack(tx, bkey)
		return err
	}); err != nil {
		return nil, err
	}
	h, err := s.hold(ctx, bkey, layers)
	if err != nil {
		return nil, fmt.Errorf("cannot mount snapshot %q: %w", key, err)
	}
	// This also makes the workdir of one that got its first layer meanwhile.
	if err := s.makeDir(r.Dir, h.at); err != nil {
		return nil, fmt.Errorf("cannot mount snapshot %q: %w", key, err)
	}
	return s.mounts(r.Kind, r.Dir, h), nil
}

// hold attaches layers for the snapshot of a record, once.
func (s *Store) hold(ctx context.Context, bkey string, layers []digest.Digest) (holding, error) {
	s.mu.Lock()
	h, ok := s.held[bkey]
	s.mu.Unlock()
	if ok && len(h.layers) == len(layers) {
		return h, nil
	}
	h, err := s.attach(ctx, layers)
	if err != nil {
		return holding{}, err
	}
	s.mu.Lock()
	old := s.held[bkey]
	s.held[bkey] = h
	s.mu.Unlock()
	s.leave(old)
	return h, nil
}

// release gives up what the snapshot of a record holds and removes its
// directory. size is that of the layer that was made of it, if one was.
func (s *Store) release(bkey string, r record, size int64) {
	s.mu.Lock()
	h := s.held[bkey]
	delete(s.held, bkey)
	delete(s.dirs, r.Dir)
	s.mu.Unlock()
	s.leave(h)
	switch {
	case r.Dir != 0 && size > 0:
		s.removeDirLater(r.Dir, size)
	case r.Dir != 0:
		s.removeDir(r.Dir)
	}
}

// Commit makes a layer of what was written to an active snapshot, or takes the
// one that was applied to it, and names the stack of it and what lies below.
// An upper directory in which nothing is becomes no layer at all.
func (s *Store) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	defer s.cfg.Files.Share()()
	var bkey string
	var r record
	var layers []digest.Digest
	if err := s.cfg.DB.View(func(tx *bolt.Tx) (err error) {
		if bkey, r, err = s.find(tx, key); err != nil {
			return err
		}
		layers, err = stack(tx, bkey)
		return err
	}); err != nil {
		return err
	}
	p := &plan{}
	var size int64
	if r.Kind == snapshots.KindActive {
		var err error
		if p.layer, size, err = s.seal(ctx, bkey, r, layers); err != nil {
			return fmt.Errorf("cannot commit snapshot %q: %w", key, err)
		}
	}
	if err := s.update(ctx, p, func(ctx context.Context) error {
		return s.front.Commit(ctx, name, key, opts...)
	}); err != nil {
		return err
	}
	s.release(bkey, r, size)
	return nil
}

// Remove takes a snapshot away that has no children.
func (s *Store) Remove(ctx context.Context, key string) error {
	var bkey string
	var r record
	if err := s.update(ctx, nil, func(ctx context.Context) (err error) {
		tx, _ := boltutil.Transaction(ctx)
		if bkey, r, err = s.find(tx, key); err != nil {
			return err
		}
		if err := s.front.Remove(ctx, key); err != nil {
			return err
		}
		return bucket.Delete(tx, bkey)
	}); err != nil {
		return err
	}
	s.release(bkey, r, 0)
	return nil
}

// Stat describes a snapshot.
func (s *Store) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return s.front.Stat(s.in(ctx), key)
}

// Update changes a snapshot's labels.
func (s *Store) Update(ctx context.Context, info snapshots.Info, fields ...string) (out snapshots.Info, err error) {
	err = s.update(ctx, nil, func(ctx context.Context) (err error) {
		out, err = s.front.Update(ctx, info, fields...)
		return err
	})
	return out, err
}

// Usage is what a snapshot takes by itself: an active one its upper directory,
// a committed one its own flat layer, which other snapshots and images may
// have as well, and the index of its stack, once it was mounted.
func (s *Store) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.front.Usage(s.in(ctx), key)
}

// Walk visits every snapshot that the filters fit.
func (s *Store) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.front.Walk(s.in(ctx), fn, filters...)
}
