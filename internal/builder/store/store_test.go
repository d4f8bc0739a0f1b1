package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"proa/internal/build/store"
	"proa/internal/build/wire"
	"proa/internal/image"
	"proa/internal/image/snapshot"
	"proa/internal/state"
	"proa/internal/sys"
)

// pair is a store and a builder's view of it, over a socket.
type pair struct {
	engine *image.Store
	*store.Client
	conn *grpc.ClientConn
	dir  string
}

func open(t *testing.T) *pair {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: snapshots are mounted")
	}
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		t.Fatal(err)
	}
	db, err := state.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(t.Context(), image.Config{
		Root: filepath.Join(dir, "image"), Mounts: filepath.Join(dir, "mounts"), DB: db,
		Warn: func(err error) { t.Errorf("warning: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(Options(nil)...)
	Register(srv, s)
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Bad", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Panic", Handler: func(_ any, ctx context.Context, _ func(any) error, wrap grpc.UnaryServerInterceptor) (any, error) {
			return wrap(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/test.Bad/Panic"}, func(context.Context, any) (any, error) { panic("on purpose") })
		},
	}}}, nil)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	conn, err := store.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &pair{s, store.New(conn), conn, dir}
}

func lease(t *testing.T, p *pair, id string) context.Context {
	t.Helper()
	l, err := p.Leases.Create(t.Context(), leases.WithID(id))
	if err != nil {
		t.Fatal(err)
	}
	return leases.WithLease(t.Context(), l.ID)
}

func put(t *testing.T, ctx context.Context, p *pair, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(ctx, p.Content, d.Digest.String(), bytes.NewReader(b), d); err != nil {
		t.Fatal(err)
	}
	return d
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// within mounts and calls fn with the place.
func within(t *testing.T, p *pair, m []mount.Mount, fn func(root string)) {
	t.Helper()
	at, err := os.MkdirTemp(p.dir, "at")
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.All(m, at); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sys.Detach(at); err != nil {
			t.Error(err)
		}
		os.Remove(at)
	}()
	fn(at)
}

// A whole build, as BuildKit does it, over the socket: a base layer is
// unpacked, a step writes over it, the step's layer becomes a blob, all of it
// an image that runs; only leases keep anything before that.
func TestBuildOverSocket(t *testing.T) {
	p := open(t)
	ctx := lease(t, p, "build")
	raw := tarOf(t, map[string]string{"base": "base"})
	base := put(t, ctx, p, ocispec.MediaTypeImageLayer, raw)
	diffID := digest.FromBytes(raw)
	m, err := p.Snapshots.Prepare(ctx, "extract", "")
	if err != nil {
		t.Fatal(err)
	}
	applied, err := p.Applier.Apply(ctx, base, m)
	if err != nil || applied.Digest != diffID {
		t.Fatalf("applied %v: %v", applied, err)
	}
	if err := p.Snapshots.Commit(ctx, "base", "extract"); err != nil {
		t.Fatal(err)
	}
	if m, err = p.Snapshots.Prepare(ctx, "step", "base"); err != nil {
		t.Fatal(err)
	}
	within(t, p, m, func(root string) {
		if b, err := os.ReadFile(filepath.Join(root, "base")); err != nil || string(b) != "base" {
			t.Errorf("base: %q %v", b, err)
		}
		if err := os.WriteFile(filepath.Join(root, "step"), []byte("step"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if err := p.Snapshots.Commit(ctx, "stepped", "step"); err != nil {
		t.Fatal(err)
	}
	lower, err := p.Snapshots.View(ctx, "lower", "base")
	if err != nil {
		t.Fatal(err)
	}
	upper, err := p.Snapshots.View(ctx, "upper", "stepped")
	if err != nil {
		t.Fatal(err)
	}
	blob, err := p.Differ.Compare(ctx, lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	cfg.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID, digest.Digest(blob.Annotations[labels.LabelUncompressed])}}
	cdesc := put(t, ctx, p, ocispec.MediaTypeImageConfig, encode(t, cfg))
	target := put(t, ctx, p, ocispec.MediaTypeImageManifest, encode(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: cdesc, Layers: []ocispec.Descriptor{base, blob},
	}))
	// As BuildKit's exporter: first as if there were one of that name.
	img := images.Image{Name: "docker.io/library/built:latest", Target: target}
	if _, err := p.Images.Update(ctx, img); !errdefs.IsNotFound(err) {
		t.Fatalf("update of none: %v", err)
	}
	if got, err := p.Images.Create(ctx, img); err != nil || got.Target.Digest != target.Digest {
		t.Fatalf("created %v: %v", got, err)
	}
	if _, err := p.Images.Create(ctx, img); !errdefs.IsAlreadyExists(err) {
		t.Errorf("created again: %v", err)
	}
	if _, err := p.Images.Create(ctx, images.Image{Name: "dangling@" + target.Digest.String(), Target: target}); err != nil {
		t.Errorf("without a name: %v", err)
	}
	// The lease ends: what the image needs stays, the snapshots go.
	if err := p.Leases.Delete(t.Context(), leases.Lease{ID: "build"}, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Snapshots.Stat(t.Context(), "stepped"); !errdefs.IsNotFound(err) {
		t.Errorf("a snapshot outlived its lease: %v", err)
	}
	got, err := p.engine.Get(t.Context(), "built")
	if err != nil {
		t.Fatal(err)
	}
	root, err := p.engine.Mount(t.Context(), got.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, n := range []string{"base", "step"} {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", root.Tree.Fd(), n)); err != nil || string(b) != n {
			t.Errorf("%s in the image: %q %v", n, b, err)
		}
	}
	if all, err := p.Images.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("images: %v %v", all, err)
	}
}

// What is under no lease is gone with the next collection; the call's header
// is what puts it under one.
func TestLeaseInHeader(t *testing.T) {
	p := open(t)
	kept := put(t, lease(t, p, "keeps"), p, "", []byte("kept"))
	lost := put(t, t.Context(), p, "", []byte("lost"))
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Content.Info(t.Context(), kept.Digest); err != nil {
		t.Errorf("what the lease keeps: %v", err)
	}
	if _, err := p.Content.Info(t.Context(), lost.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("what nothing keeps: %v", err)
	}
	// Deleted by the builder itself, a blob's file goes too.
	if err := p.Content.Delete(t.Context(), kept.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "image/content/blobs/sha256", kept.Digest.Encoded())); !os.IsNotExist(err) {
		t.Errorf("the file of a deleted blob: %v", err)
	}
}

// A lease of snapshots of another name would keep nothing.
func TestSnapshotterHasOneName(t *testing.T) {
	p := open(t)
	if wire.Snapshotter != snapshot.Name {
		t.Fatalf("the builder calls it %q and the engine %q", wire.Snapshotter, snapshot.Name)
	}
	lease(t, p, "l")
	if err := p.Leases.AddResource(t.Context(), leases.Lease{ID: "l"}, leases.Resource{ID: "x", Type: "snapshots/other"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("other: %v", err)
	}
	if err := p.Leases.AddResource(t.Context(), leases.Lease{ID: "l"}, leases.Resource{ID: "x", Type: "snapshots/" + wire.Snapshotter}); err != nil {
		t.Error(err)
	}
	if err := p.Leases.Delete(t.Context(), leases.Lease{ID: "hold/container/1"}); !errdefs.IsPermissionDenied(err) {
		t.Errorf("the lease of a container: %v", err)
	}
}

// A panic in a handler is that call's error, and the server goes on.
func TestPanicIsAnError(t *testing.T) {
	p := open(t)
	err := p.conn.Invoke(t.Context(), "/test.Bad/Panic", &emptypb.Empty{}, &emptypb.Empty{})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("panic: %v", err)
	}
	if _, err := p.Leases.List(t.Context()); err != nil {
		t.Error(err)
	}
}
