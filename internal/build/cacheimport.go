package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/resolver"
	resolverconfig "github.com/moby/buildkit/util/resolver/config"
	"github.com/moby/buildkit/util/resolver/limited"
	"github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxCacheDocument is how large a manifest, a config or a list of records of
	// an imported cache may be, in bytes.
	maxCacheDocument = 4 << 20
	// maxCacheDocuments is how many of them one import reads.
	maxCacheDocuments = 1000
)

// importFromRegistry is BuildKit's import of a cache from a registry
// (cache/remotecache/registry), but that what a stranger says is looked at
// first. BuildKit allocates what a manifest says of a document's size, and a
// size that is too large for that, like an inline cache of an image of fewer
// steps than layers, is a panic of a goroutine, which ends the process and every
// build in it (CWE-789, CWE-129). The importer itself is BuildKit's.
func importFromRegistry(sm *session.Manager, store content.Store, hosts docker.RegistryHosts) remotecache.ResolveCacheImporterFunc {
	return func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Importer, ocispec.Descriptor, error) {
		fail := func(err error) (remotecache.Importer, ocispec.Descriptor, error) {
			return nil, ocispec.Descriptor{}, err
		}
		if attrs["ref"] == "" {
			return fail(errors.New("cannot import a cache: the name of its image is missing (ref=...)"))
		}
		named, err := reference.ParseNormalizedNamed(attrs["ref"])
		if err != nil {
			return fail(fmt.Errorf("cannot import a cache from %q: %w", attrs["ref"], err))
		}
		named = reference.TagNameOnly(named)
		scope, hosts := resolver.ScopeType{}, hosts
		if v, ok := attrs["registry.insecure"]; ok {
			insecure, err := strconv.ParseBool(v)
			if err != nil {
				return fail(fmt.Errorf("cannot import a cache: registry.insecure=%q: %w", v, err))
			}
			if scope.Insecure = insecure; insecure {
				hosts = resolver.NewRegistryConfig(map[string]resolverconfig.RegistryConfig{
					reference.Domain(named): {Insecure: &insecure, PlainHTTP: &insecure},
				})
			}
		}
		r := resolver.DefaultPool.GetResolver(hosts, named.String(), scope, sm, g)
		at, desc, err := r.Resolve(ctx, named.String())
		if err != nil {
			return fail(err)
		}
		p := &cacheProvider{resolver: r, ref: named.String(), at: at, store: store, docs: new(documents)}
		return &cacheImporter{remotecache.NewImporter(p), p.docs}, desc, nil
	}
}

// documents says whether an import reads documents, and counts them.
type documents struct {
	reading atomic.Bool
	count   atomic.Int32
}

// cacheImporter tells its provider while it reads documents.
type cacheImporter struct {
	remotecache.Importer
	docs *documents
}

// Resolve reads the documents of a cache; its layers are read later, if at all.
func (i *cacheImporter) Resolve(ctx context.Context, desc ocispec.Descriptor, id string, w worker.Worker) (solver.CacheManager, error) {
	i.docs.reading.Store(true)
	defer i.docs.reading.Store(false)
	return i.Importer.Resolve(ctx, desc, id, w)
}

// cacheProvider gives the contents of a cache from a registry.
type cacheProvider struct {
	resolver *resolver.Resolver
	ref, at  string
	store    content.Manager
	docs     *documents
}

var _ remotecache.DistributionSourceLabelSetter = &cacheProvider{}

// ProviderForSession gives a provider with the credentials of another build,
// which uses what this one has imported.
func (p *cacheProvider) ProviderForSession(g session.Group) content.Provider {
	other := *p
	other.resolver = p.resolver.WithSession(g)
	return &other
}

// ReaderAt opens a layer, or a document that was read whole and looked at.
func (p *cacheProvider) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	fail := func(err error) (content.ReaderAt, error) {
		return nil, fmt.Errorf("cannot read %q of the cache %s: %w", desc.Digest, p.ref, err)
	}
	if err := desc.Digest.Validate(); err != nil {
		return fail(err)
	}
	document := p.docs.reading.Load()
	if desc.Size < 0 || document && desc.Size > maxCacheDocument {
		return fail(fmt.Errorf("its size is %d bytes, and a document has at most %d", desc.Size, maxCacheDocument))
	}
	fetcher, err := p.resolver.Fetcher(ctx, p.at)
	if err != nil {
		return nil, err
	}
	ra, err := contentutil.FromFetcher(limited.Default.WrapFetcher(fetcher, p.ref)).ReaderAt(ctx, desc)
	if err != nil || !document {
		return ra, err
	}
	defer ra.Close()
	if p.docs.count.Add(1) > maxCacheDocuments {
		return fail(fmt.Errorf("it names more than %d documents", maxCacheDocuments))
	}
	raw := make([]byte, desc.Size)
	if n, err := ra.ReadAt(raw, 0); err != nil && (!errors.Is(err, io.EOF) || int64(n) != desc.Size) {
		return fail(err)
	}
	if got := desc.Digest.Algorithm().FromBytes(raw); got != desc.Digest {
		return fail(fmt.Errorf("the registry sends something with the digest %s", got))
	}
	if err := checkCacheDocument(raw); err != nil {
		return fail(err)
	}
	return inMemory{bytes.NewReader(raw)}, nil
}

// checkCacheDocument refuses what BuildKit would fall over: fewer steps in the
// history of an image than it has layers, and documents within descriptors,
// which would not be looked at.
func checkCacheDocument(raw []byte) error {
	type embedded struct {
		Data json.RawMessage `json:"data"`
	}
	var doc struct {
		Config    json.RawMessage `json:"config"`
		Manifests []embedded      `json:"manifests"`
		RootFS    struct {
			DiffIDs []json.RawMessage `json:"diff_ids"`
		} `json:"rootfs"`
		History []struct {
			EmptyLayer bool `json:"empty_layer"`
		} `json:"history"`
		Cache json.RawMessage `json:"moby.buildkit.cache.v0"` // the inline one
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	var config embedded
	_ = json.Unmarshal(doc.Config, &config) // of an image's config it is something else
	if config.Data != nil || slices.ContainsFunc(doc.Manifests, func(e embedded) bool { return e.Data != nil }) {
		return errors.New("it holds documents within descriptors")
	}
	steps := 0
	for _, h := range doc.History {
		if !h.EmptyLayer {
			steps++
		}
	}
	if doc.Cache != nil && steps < len(doc.RootFS.DiffIDs) {
		return fmt.Errorf("its history has %d steps for %d layers", steps, len(doc.RootFS.DiffIDs))
	}
	return nil
}

// inMemory is content that was read.
type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

// SetDistributionSourceLabel notes where content that is here comes from.
func (p *cacheProvider) SetDistributionSourceLabel(ctx context.Context, d digest.Digest) error {
	label, err := docker.AppendDistributionSourceLabel(p.store, p.ref)
	if err != nil {
		return err
	}
	_, err = label(ctx, ocispec.Descriptor{Digest: d})
	return err
}

// SetDistributionSourceAnnotation notes in a descriptor where it comes from.
func (p *cacheProvider) SetDistributionSourceAnnotation(desc ocispec.Descriptor) ocispec.Descriptor {
	if desc.Annotations == nil {
		desc.Annotations = map[string]string{}
	}
	desc.Annotations["containerd.io/distribution.source.ref"] = p.ref
	return desc
}
