// Package image owns images: their names, blobs, flat layers and merged
// indexes, the leases that keep them, and the garbage collection that removes
// what nobody needs. It loads, saves, imports, pulls, pushes and mounts them.
//
// Below its root lie
//
//	content/          containerd's content store: manifests, configs, layer blobs as they came
//	flat/<diffID>/    each layer once more, as the files that are mounted (package flat)
//	index/<chainID>   one EROFS index for each distinct stack of layers
//	extract/<chainID> the unpacked tree, where no EROFS can be mounted
//	snapshot/<number> what a build is writing (package snapshot)
//
// and names, labels and leases in containerd's metadata, in the engine's one
// database. An image exists exactly when it has a record there; everything
// below the root follows from the records and leases, so a crash needs no
// repair: what they do not need is removed at the next Open.
//
// It never runs anything, never speaks Docker's API shapes, and never
// believes an archive: digests are computed, sizes are capped, paths of
// archives are map keys and not paths.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"proa/internal/event"
	"proa/internal/image/flat"
	"proa/internal/image/remote"
	"proa/internal/image/snapshot"
	"proa/internal/state"
)

// namespace is the one namespace of containerd's metadata that is used.
const namespace = "proa"

// Limits for what comes from outside. A real manifest has some kilobytes; an
// image of 500 layers cannot be made with Docker (it stops at 127).
const (
	maxJSON     = 4 << 20 // bytes of a manifest, a config, an index
	maxDepth    = 64      // nesting of their JSON
	maxValues   = 200_000 // in one of them: an index of 10,000 manifests has fewer
	maxLayers   = 512     // of one image
	maxEntries  = 20_000  // of one archive
	maxName     = 4096    // bytes of a name in it
	defaultMax  = 64 << 30
	maxBlobSize = 64 << 30
)

var quiet sync.Once

// Config says where a Store lies and how it works.
type Config struct {
	Root     string    // <data-root>/image
	Mounts   string    // directory for mounts in the engine's private mount namespace
	Strategy string    // "", "file", "loop", "extract": forced mount strategy
	DB       *state.DB // the engine's bbolt file; containerd's metadata lives in it too

	// MaxLayerBytes is how much one layer may unpack to; 0 means 64 GiB.
	MaxLayerBytes int64
	// Registries is the way to registries; nil is one with default rules.
	Registries *remote.Client
	// Running tells whether the holder of a lease runs, so that Remove with
	// force knows what it must not take away. Nil: no holder runs.
	Running func(holder string) bool
	// Events gets what builds do to images; nil discards it.
	Events *event.Ring
	// Warn gets what went wrong in the background; nil discards it.
	Warn func(error)
	// Idle is how long a mounted image stays attached after its last user is
	// gone; 0 means 10 minutes.
	Idle time.Duration
}

// Store keeps images. All methods can be called from many goroutines.
//
// Lock order: cleaning, work, then mounts.mu; none is held by a caller of Lease, which
// runs inside a transaction of the database.
type Store struct {
	cfg     Config
	meta    *metadata.DB
	blobs   content.Store // what meta knows, with labels
	backend content.Store // files alone
	records images.Store
	leases  leases.Manager
	mounter *flat.Mounter
	// snapshots are what builds are made of; their records, leases and files
	// are collected with those of images.
	snapshots *snapshot.Store

	// work is held shared while blobs, layers or indexes are being made that
	// no record needs yet, and exclusively while unneeded ones are removed.
	work     sync.RWMutex
	cleaning sync.Mutex         // held by the one who removes; taken before work
	layers   singleflight.Group // by diffID
	indexes  singleflight.Group // by chainID
	fetches  fetches
	mounts   mounts

	cacheMu sync.Mutex
	cache   map[digest.Digest]*parsed // by config digest; immutable content
	sizes   map[digest.Digest]layerSize

	collect chan struct{} // wakes the collector; holds one request
	pending atomic.Bool   // a collection was put off because work was shared
	waking  atomic.Bool   // a collection was asked for and begins in a while
	strays  atomic.Bool   // a blob lost its record but for the collection
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// Image is one image: a config and the layers it names. It is a snapshot.
type Image struct {
	// ID is the digest of the config, which is Docker's image id.
	ID digest.Digest
	// Target is the manifest or index that the names point to.
	Target ocispec.Descriptor
	// Names are the image's names as people write them, "busybox:latest";
	// none for a dangling image.
	Names []string
	// Digests are the names with the digest of Target, "busybox@sha256:...".
	Digests []string
	// Platform is what the config says of it, in the spelling of package platform.
	Platform ocispec.Platform
	// Config is the image's configuration as the OCI specification has it.
	Config ocispec.Image
	// DockerConfig is its run configuration with Docker's extra fields
	// (Healthcheck, OnBuild, Shell, ArgsEscaped).
	DockerConfig dockerspec.DockerOCIImageConfig
	// Comment, Author, Container and DockerVersion are Docker's further fields
	// of the config that inspect shows.
	Comment, DockerVersion string
	// RawConfig is the config's JSON, byte for byte.
	RawConfig json.RawMessage
	// Created is when the image was built, zero if the config does not say.
	Created time.Time
	// Tagged is when the image last got a name here.
	Tagged time.Time
	// ChainID names the stack of layers.
	ChainID digest.Digest
	// Size is the sum of the sizes of all files of all layers in bytes,
	// Docker's notion of an image's size.
	Size int64
	// LayerSizes is that of each layer, lowest first.
	LayerSizes []int64
}

// Open opens the store below cfg.Root, making it if there is none. It removes
// what a killed engine left unfinished, so no other Store may use the root:
// the lock of cfg.DB sees to that. Errors: errdefs.ErrFailedPrecondition when
// the forced strategy does not work here.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.MaxLayerBytes == 0 {
		cfg.MaxLayerBytes = defaultMax
	}
	if cfg.Registries == nil {
		cfg.Registries = remote.New(remote.Config{})
	}
	if cfg.Idle == 0 {
		cfg.Idle = 10 * time.Minute
	}
	for _, d := range []string{cfg.Root, cfg.Mounts, filepath.Join(cfg.Root, "flat"), filepath.Join(cfg.Root, "index"), filepath.Join(cfg.Root, "owners"), filepath.Join(cfg.Root, "extract"), filepath.Join(cfg.Root, "snapshot")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make image store: %w", err)
		}
	}
	// containerd's packages log to stderr; what they warn of here (no fs-verity)
	// changes nothing for anybody.
	quiet.Do(func() { _ = log.SetLevel("error") })
	backend, err := local.NewStore(filepath.Join(cfg.Root, "content"))
	if err != nil {
		return nil, fmt.Errorf("cannot open content store below %q: %w", cfg.Root, err)
	}
	s := &Store{
		cfg:     cfg,
		backend: backend,
		cache:   make(map[digest.Digest]*parsed),
		sizes:   make(map[digest.Digest]layerSize),
		collect: make(chan struct{}, 1),
	}
	s.mounts.byChain = make(map[digest.Digest]*mounted)
	s.snapshots = snapshot.New(snapshot.Config{
		Root: filepath.Join(cfg.Root, "snapshot"), DB: cfg.DB, Namespace: namespace,
		Files: layerFiles{s}, Content: blobs{s}, Warn: s.warn,
	})
	s.meta = metadata.NewDB(cfg.DB.Bolt(), backend, map[string]snapshots.Snapshotter{snapshot.Name: s.snapshots.Records()})
	if err := s.meta.Init(ctx); err != nil {
		return nil, fmt.Errorf("cannot open image metadata: %w", err)
	}
	s.blobs, s.records, s.leases = s.meta.ContentStore(), metadata.NewImageStore(s.meta), metadata.NewLeaseManager(s.meta)
	if s.mounter, err = flat.Open(cfg.Root, cfg.Strategy); err != nil {
		return nil, err
	}
	if err := s.snapshots.Open(ctx, s.meta); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	s.stop = stop
	if err := s.recover(ctx); err != nil {
		stop()
		return nil, err
	}
	s.done.Go(func() { s.collector(life) })
	return s, nil
}

// Close unmounts every image and waits for background work. Clones handed out
// by Mount go on working. The database stays open; it is the caller's.
func (s *Store) Close() error {
	s.stop()
	s.done.Wait()
	return errors.Join(s.snapshots.Close(), s.dropMounts(nil))
}

// Strategy is how images are mounted on this host, and why so.
func (s *Store) Strategy() (name, why string) { return s.mounter.Strategy() }

func (s *Store) warn(err error) {
	if err != nil && s.cfg.Warn != nil {
		s.cfg.Warn(err)
	}
}

// in puts the store's namespace into ctx.
func in(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, namespace) }

// parsed is a config that was read, checked and decoded once.
type parsed struct {
	raw     []byte
	oci     ocispec.Image
	docker  dockerspec.DockerOCIImageConfig
	comment string
	version string
	chain   digest.Digest
	owners  *[]Owner // of its files; nil: not known yet; guarded by cacheMu
}

// config reads the config with the digest id.
func (s *Store) config(ctx context.Context, id digest.Digest) (*parsed, error) {
	s.cacheMu.Lock()
	p := s.cache[id]
	s.cacheMu.Unlock()
	if p != nil {
		return p, nil
	}
	raw, err := s.readJSON(ctx, ocispec.Descriptor{Digest: id}, "image config")
	if err != nil {
		return nil, err
	}
	if p, err = parseConfig(raw); err != nil {
		return nil, fmt.Errorf("cannot use image config %s: %w", id, err)
	}
	s.cacheMu.Lock()
	s.cache[id] = p
	s.cacheMu.Unlock()
	return p, nil
}

// parseConfig decodes a config and checks what everything else relies on.
func parseConfig(raw []byte) (*parsed, error) {
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	p := &parsed{raw: raw}
	var docker struct {
		Config        dockerspec.DockerOCIImageConfig `json:"config"`
		Comment       string                          `json:"comment"`
		DockerVersion string                          `json:"docker_version"`
	}
	if err := json.Unmarshal(raw, &p.oci); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(raw, &docker); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	p.docker, p.comment, p.version = docker.Config, docker.Comment, docker.DockerVersion
	if p.oci.RootFS.Type != "" && p.oci.RootFS.Type != "layers" {
		return nil, fmt.Errorf("rootfs type %q is not \"layers\": %w", p.oci.RootFS.Type, errdefs.ErrInvalidArgument)
	}
	// None at all is what "FROM scratch" with only a LABEL makes; but any JSON
	// names none, so then it must say that it means it.
	n := len(p.oci.RootFS.DiffIDs)
	if n > maxLayers || n == 0 && p.oci.RootFS.Type == "" {
		return nil, fmt.Errorf("it names %d layers, and only 1 to %d can be: %w", n, maxLayers, errdefs.ErrInvalidArgument)
	}
	for _, d := range p.oci.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, err
		}
	}
	p.chain = chainOf(p.oci.RootFS.DiffIDs)
	return p, nil
}
