package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker/base"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"proa/internal/build/wire"
	"proa/internal/image/remote"
	"proa/internal/image/remote/hosts"
)

// Exporter names of Docker's clients.
const (
	mobyExporter = "moby" // what buildx asks of a Docker engine: an image in its store
	// danglingPrefix begins the name under which an image without a name is
	// handed to the engine; the rest is "@" and the manifest's digest.
	danglingPrefix = "dangling"
)

// parallelSteps is how many steps run at once, on however many cores.
const parallelSteps = 16

// imageWorker is BuildKit's worker whose images become images of the engine.
type imageWorker struct {
	*base.Worker
	images     namedImages
	registries *remote.Client
}

func newWorker(ctx context.Context, cfg wire.Config, p Parts, records *metadata.Store) (*imageWorker, error) {
	pools := filepath.Join(cfg.Run, wire.Scratch, "mounts")
	if err := os.MkdirAll(pools, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the builder's directory: %w", err)
	}
	// BuildKit would make the blobs of lowest layers itself, out of what it takes
	// for an upper directory. Those have to come from the engine as well, which
	// gives them the diffID of the layer that it has.
	if err := os.Setenv("BUILDKIT_DEBUG_FORCE_OVERLAY_DIFF", "false"); err != nil {
		return nil, err
	}
	labels := map[string]string{
		"proa.isolation": cfg.Kind,
		// Says to buildx that images are kept as manifests, so that it may ask
		// for indexes, cache exports and pushes.
		"org.mobyproject.buildkit.worker.snapshotter": wire.Snapshotter,
	}
	if cfg.Gateway != "" {
		labels[wire.GatewayLabel] = cfg.Gateway
	}
	w, err := base.NewWorker(ctx, base.WorkerOpt{
		ID:              "proa-" + cfg.Kind,
		Root:            cfg.Root,
		Labels:          labels,
		Platforms:       []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())},
		GCPolicy:        gcPolicy(cfg),
		BuildkitVersion: client.BuildkitVersion{Package: version.Package, Version: version.Version, Revision: version.Revision, DockerfileVersion: dockerfileversion.Version()},
		Executor:        p.Executor,
		Snapshotter:     volatileSnapshots{containerdsnapshot.NewSnapshotter(wire.Snapshotter, p.Snapshots, wire.Namespace, nil)},
		ContentStore:    contentStore(p),
		Applier:         p.Applier,
		Differ:          p.Differ,
		ImageStore:      namedImages{p.Images},
		RegistryHosts:   hosts.Registry(p.Registries),
		LeaseManager:    leaseManager(p),
		GarbageCollect:  p.Collect,
		ParallelismSem:  semaphore.NewWeighted(parallelSteps),
		MetadataStore:   records,
		MountPoolRoot:   pools,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open the builder's worker: %w", err)
	}
	dirs, err := newDirectories(w.CacheMgr)
	if err != nil {
		return nil, err
	}
	w.SourceManager.Register(dirs) // in the place of BuildKit's
	return &imageWorker{w, namedImages{p.Images}, p.Registries}, nil
}

// gcPolicy bounds the build cache: first what is made again most easily, then
// what was not used for two months, then the oldest.
func gcPolicy(cfg wire.Config) []client.PruneInfo {
	const day = 24 * time.Hour
	bound := client.PruneInfo{ReservedSpace: cfg.Reserved, MaxUsedSpace: cfg.MaxCache, MinFreeSpace: cfg.MinFree}
	easy, old, all := bound, bound, bound
	easy.Filter = []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"}
	easy.KeepDuration, easy.MaxUsedSpace, easy.ReservedSpace = 2*day, min(cfg.MaxCache, 512<<20), 0
	old.KeepDuration = 60 * day
	all.All = true
	return []client.PruneInfo{easy, old, bound, all}
}

// Exporter gives the exporter called name. An image is handed to the engine
// whole and under its full name.
func (w *imageWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	if name != mobyExporter && name != client.ExporterImage {
		return w.Worker.Exporter(name, sm)
	}
	e, err := w.Worker.Exporter(client.ExporterImage, sm)
	if err != nil {
		return nil, err
	}
	return &imageExporter{e}, nil
}

type imageExporter struct{ exporter.Exporter }

// Resolve gives the image its full names, or marks it as one without a name.
func (e *imageExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	mine := make(map[string]string, len(attrs)+2)
	for k, v := range attrs {
		mine[k] = v
	}
	full, err := fullNames(mine[string(exptypes.OptKeyName)])
	if err != nil {
		return nil, err
	}
	mine[string(exptypes.OptKeyName)] = full
	mine[string(exptypes.OptKeyDanglingPrefix)] = danglingPrefix
	mine[string(exptypes.OptKeyDanglingEmptyOnly)] = "true"
	// The engine makes its layers of the blobs when it takes the image.
	delete(mine, string(exptypes.OptKeyUnpack))
	inst, err := e.Exporter.Resolve(ctx, id, mine)
	if err != nil {
		return nil, err
	}
	return &wholeImage{inst}, nil
}

// fullNames makes each name of a comma separated list full; "*" takes the name
// that the frontend gives.
func fullNames(list string) (string, error) {
	var out []string
	seen := map[string]bool{}
	for _, n := range strings.Split(list, ",") {
		if n = strings.TrimSpace(n); n == "" {
			continue
		}
		if n != "*" {
			ref, err := reference.ParseNormalizedNamed(n)
			if err != nil {
				return "", fmt.Errorf("invalid tag %q: %w", n, err)
			}
			if _, ok := ref.(reference.Digested); ok {
				return "", fmt.Errorf("invalid tag %q: a digest cannot be given to an image as a name", n)
			}
			n = reference.TagNameOnly(ref).String()
		}
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return strings.Join(out, ","), nil
}

// wholeImage fetches the layers that a build never looked at before the image
// is handed over: the engine takes an image whole or not at all.
type wholeImage struct{ exporter.ExporterInstance }

func (w *wholeImage) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	refs := make([]cache.ImmutableRef, 0, 1+len(src.Refs))
	if src.Ref != nil {
		refs = append(refs, src.Ref)
	}
	for _, r := range src.Refs {
		if r != nil {
			refs = append(refs, r)
		}
	}
	group := session.NewGroup(info.SessionID)
	for _, r := range refs {
		remotes, err := r.GetRemotes(ctx, true, cacheconfig.RefConfig{Compression: w.Config().Compression()}, false, group)
		if err != nil {
			return nil, nil, nil, err
		}
		if u, ok := remotes[0].Provider.(cache.Unlazier); ok {
			if err := u.Unlazy(ctx); err != nil {
				return nil, nil, nil, err
			}
		}
	}
	resp, finalize, ref, err := w.ExporterInstance.Export(ctx, src, info)
	if err == nil {
		// A name that only the builder knows is not the image's.
		if name := resp[exptypes.ExporterImageNameKey]; strings.HasPrefix(name, danglingPrefix+"@") {
			delete(resp, exptypes.ExporterImageNameKey)
		}
	}
	return resp, finalize, ref, err
}

// namedImages puts the builder's namespace into calls that come without one.
type namedImages struct{ images.Store }

func in(ctx context.Context) context.Context { return namespaces.WithNamespace(ctx, wire.Namespace) }

func (s namedImages) Get(ctx context.Context, name string) (images.Image, error) {
	return s.Store.Get(in(ctx), name)
}

func (s namedImages) List(ctx context.Context, filters ...string) ([]images.Image, error) {
	return s.Store.List(in(ctx), filters...)
}

func (s namedImages) Create(ctx context.Context, i images.Image) (images.Image, error) {
	return s.Store.Create(in(ctx), i)
}

func (s namedImages) Update(ctx context.Context, i images.Image, fields ...string) (images.Image, error) {
	return s.Store.Update(in(ctx), i, fields...)
}

func (s namedImages) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	return errors.New("the builder deletes no images")
}
