// Package build is the builder: BuildKit's solver, frontend, cache and
// exporters over the engine's store, and RUN steps carried out by the engine.
// It owns the build cache's records, the sessions of clients, the history of
// builds, and Docker's classic build stream; its data lies in one directory
// that can be thrown away at any time.
//
// It never owns a layer, an image or a process: blobs, snapshots, leases and
// names are the engine's (package build/store), steps are the engine's (package
// build/step), and both are reached through one socket. It imports nothing of
// the engine.
//
// The process that it lives in may end at any moment, by a panic of a goroutine
// that nobody here started: what it has in memory is worth nothing, and what it
// has on disk is written by transactions.
package build

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cache/remotecache"
	inlinecache "github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/worker"
	bolt "go.etcd.io/bbolt"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"proa/internal/build/wire"
	"proa/internal/build/words"
	"proa/internal/image/remote"
	"proa/internal/image/remote/hosts"
)

// Parts are what the builder needs of the engine. All calls carry their
// namespace in the context.
type Parts struct {
	Content   content.Store
	Snapshots snapshots.Snapshotter
	Applier   diff.Applier
	Differ    diff.Comparer
	Images    images.Store
	Leases    leases.Manager
	// Collect removes from the store what no lease and no image needs.
	Collect func(context.Context) (gc.Stats, error)
	// Executor carries out RUN steps.
	Executor executor.Executor
	// Busy, which may be nil, is told while requests are served, until the
	// function that it returns is called.
	Busy func() (end func())
	// Registries is how a registry is reached.
	Registries *remote.Client
}

// Builder is one builder with one worker. Its methods may be called from many
// goroutines.
type Builder struct {
	cfg        wire.Config
	controller *control.Controller
	sessions   *session.Manager
	worker     *worker.Controller
	grpc       *grpc.Server
	classic    *classic
	links      solver.CacheManager
	mux        *http.ServeMux
	busy       func() func()
}

// New makes a builder over p with its own data below cfg.Root. When ctx ends
// the builder finishes what it has recorded of past builds.
func New(ctx context.Context, cfg wire.Config, p Parts) (_ *Builder, err error) {
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the builder's directory: %w", err)
	}
	recall(&p, postpone(&p))
	if p.Busy == nil {
		p.Busy = func() func() { return func() {} }
	}
	b := &Builder{cfg: cfg, busy: p.Busy}
	lost, err := openUnsynced(ctx, cfg.Root, cfg.BootID, p.Leases)
	if err != nil {
		return nil, err
	}
	if lost {
		bklog.L.Error("the machine went down while the build cache was in use: it begins empty")
	}
	if b.sessions, err = session.NewManager(); err != nil {
		return nil, fmt.Errorf("cannot open the builder's sessions: %w", err)
	}
	records, err := metadata.NewStore(filepath.Join(cfg.Root, "cache-records.db"))
	if err != nil {
		return nil, fmt.Errorf("cannot open the build cache's records: %w", err)
	}
	if err := noSync(records); err != nil {
		return nil, fmt.Errorf("cannot open the build cache's records: %w", err)
	}
	w, err := newWorker(ctx, cfg, p, records)
	if err != nil {
		return nil, err
	}
	b.worker = &worker.Controller{}
	if err := b.worker.Add(w); err != nil {
		return nil, err
	}
	links, err := bboltcachestorage.NewStore(filepath.Join(cfg.Root, "cache.db"))
	if err != nil {
		return nil, fmt.Errorf("cannot open the build cache: %w", err)
	}
	history, err := boltutil.SafeOpen(filepath.Join(cfg.Root, "history.db"), 0o600, &bolt.Options{NoSync: true, FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("cannot open the history of builds: %w", err)
	}
	gw, err := gateway.NewGatewayFrontend(b.worker.Infos(), nil)
	if err != nil {
		return nil, err
	}
	dockerfiles := forwarder.NewGatewayForwarder(b.worker.Infos(), dockerfile.Build)
	store, registries := w.ContentStore(), hosts.Registry(p.Registries)
	b.links = solver.NewCacheManager(ctx, "local", links, worker.NewCacheResultStorage(b.worker))
	b.controller, err = control.NewController(control.Opt{
		SessionManager:   b.sessions,
		WorkerController: b.worker,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": dockerfiles,
			"gateway.v0":    &syntaxes{gw, dockerfiles},
		},
		CacheManager: b.links,
		CacheStore:   links,
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"inline":   inlinecache.ResolveCacheExporterFunc(),
			"local":    localcache.ResolveCacheExporterFunc(b.sessions),
			"registry": registrycache.ResolveCacheExporterFunc(b.sessions, registries),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"local":    localcache.ResolveCacheImporterFunc(b.sessions),
			"registry": importFromRegistry(b.sessions, store, registries),
		},
		// What a client has to ask for by name (--allow) before it gets it.
		Entitlements:   []string{string(entitlements.EntitlementNetworkHost), string(entitlements.EntitlementSecurityInsecure)},
		MeterProvider:  metricnoop.NewMeterProvider(),
		HistoryDB:      history,
		LeaseManager:   w.LeaseManager(),
		ContentStore:   store,
		GarbageCollect: w.GarbageCollect,
		GracefulStop:   ctx.Done(),
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open the builder: %w", err)
	}
	say := &words.Teller{Sessions: b.sessions, Images: namedImages{p.Images}, Hidden: danglingPrefix, TooLarge: b.fileBound}
	b.grpc = grpc.NewServer(
		grpc.ChainUnaryInterceptor(plainErrors, grpcerrors.UnaryServerInterceptor, say.Unary, b.adjust),
		grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, say.Stream),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
	b.controller.Register(b.grpc)
	grpc_health_v1.RegisterHealthServer(b.grpc, health.NewServer())
	b.classic = newClassic(b)
	b.routes()
	return b, nil
}

// contentStore puts the builder's namespace into every call.
func contentStore(p Parts) *containerdsnapshot.Store {
	return containerdsnapshot.NewContentStore(p.Content, wire.Namespace)
}

// leaseManager puts the builder's namespace into every call.
func leaseManager(p Parts) *leaseutil.Manager {
	return leaseutil.WithNamespace(p.Leases, wire.Namespace)
}

// Serve answers on l until ctx ends.
func (b *Builder) Serve(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	all := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer b.busy()()
		b.mux.ServeHTTP(w, r)
	})
	srv := &http.Server{Handler: all, Protocols: &protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 10_000}}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("cannot serve builds: %w", err)
	case <-ctx.Done():
	}
	_ = srv.Close()
	return nil
}

// Close closes the builder's files and brings them to the disk. No build may
// be running.
func (b *Builder) Close() error { return errors.Join(b.controller.Close(), b.Settle()) }
