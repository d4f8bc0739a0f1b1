package build

import (
	"bytes"
	"context"

	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/moby/buildkit/client"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	bolt "go.etcd.io/bbolt"

	"proa/internal/build/wire"
	"proa/internal/image/remote"
)

// kit is a builder over containerd's own stores in this process: what is
// tested with it is the builder, not the engine's store.
type kit struct {
	t    *testing.T
	dir  string
	meta *metadata.DB
	b    *Builder
	web  *httptest.Server
}

func newKit(t *testing.T) *kit {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: BuildKit mounts snapshots")
	}
	dir, err := os.MkdirTemp("", "proa-build-")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	k := &kit{t: t, dir: dir}
	ctx, cancel := context.WithCancel(context.Background())
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	snaps, err := native.NewSnapshotter(filepath.Join(dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	k.meta = metadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{wire.Snapshotter: snaps})
	if err := k.meta.Init(ctx); err != nil {
		t.Fatal(err)
	}
	store := containerdsnapshot.NewContentStore(k.meta.ContentStore(), wire.Namespace)
	k.b, err = New(ctx, wire.Config{Kind: "container", Root: filepath.Join(dir, "build"), Run: dir, BootID: "this boot", MaxCache: 1 << 30}, Parts{
		Content: k.meta.ContentStore(), Snapshots: k.meta.Snapshotter(wire.Snapshotter), Applier: apply.NewFileSystemApplier(store),
		Differ: walking.NewWalkingDiff(store), Images: metadata.NewImageStore(k.meta), Leases: metadata.NewLeaseManager(k.meta),
		Collect: k.meta.GarbageCollect, Registries: remote.New(remote.Config{}),
	})
	if err != nil {
		t.Fatal(err)
	}
	k.web = httptest.NewServer(k.b.mux)
	t.Cleanup(func() {
		k.web.Close()
		cancel()
		if err := k.b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		db.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cannot remove %s: %v", dir, err)
		}
	})
	return k
}

// client is BuildKit's client of this builder over gRPC's own transport.
func (k *kit) client() *client.Client {
	k.t.Helper()
	c, err := k.b.classic.connect(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	return c
}

// post sends a request and gives status and body.
func (k *kit) post(path string, body []byte) (int, string) {
	k.t.Helper()
	resp, err := http.Post(k.web.URL+path, "application/x-tar", bytes.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		k.t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}
