package build

import (
	"context"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"proa/internal/build/store"
	"proa/internal/build/wire"
	enginestore "proa/internal/builder/store"
	"proa/internal/image"
	"proa/internal/image/remote"
	"proa/internal/state"
)

// newEngineKit is a builder over the engine's store, which another end of a
// socket serves, as it is in life but for the process between.
func newEngineKit(t *testing.T) (*kit, *image.Store) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: snapshots are mounted")
	}
	dir, err := os.MkdirTemp("", "proa-build-")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(context.Background())
	db, err := state.Open(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.Open(ctx, image.Config{
		Root: filepath.Join(dir, "image"), Mounts: filepath.Join(dir, "mounts"), DB: db,
		Warn: func(err error) { t.Errorf("warning: %v", err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, wire.EngineSocket))
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(enginestore.Options(func(err error) { t.Error(err) })...)
	enginestore.Register(srv, s)
	go func() { _ = srv.Serve(l) }()
	conn, err := store.Dial(filepath.Join(dir, wire.EngineSocket))
	if err != nil {
		t.Fatal(err)
	}
	c := store.New(conn)
	k := &kit{t: t, dir: dir}
	k.b, err = New(ctx, wire.Config{Kind: "container", Root: filepath.Join(dir, "build"), Run: dir, BootID: "this boot", MaxCache: 1 << 30}, Parts{
		Content: c.Content, Snapshots: c.Snapshots, Applier: c.Applier, Differ: c.Differ, Images: c.Images,
		Leases: c.Leases, Collect: c.Collect, Registries: remote.New(remote.Config{}),
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
		conn.Close()
		srv.Stop()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		db.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("cannot remove %s: %v", dir, err)
		}
	})
	return k, s
}

// Stages, links, archives and whiteouts over the engine's store: the image has
// the files, and its layers are the flat layers of the snapshots, so that
// nothing was unpacked a second time.
func TestOverTheEnginesStore(t *testing.T) {
	k, s := newEngineKit(t)
	dockerfile := `FROM scratch AS one
COPY a /one/a
COPY b /one/b
WORKDIR /work
FROM scratch AS two
COPY --link a /two/a
COPY --from=one /one /from
FROM one AS three
COPY --link --from=two / /linked
COPY --link b /linked/two/b
COPY b /last
FROM three
LABEL x=y
`
	tar := archive(t, "Dockerfile", dockerfile, "a", "hello", "b", "world")
	for range 2 {
		status, body := k.post("/build?"+url.Values{"t": {"x"}}.Encode(), tar)
		if status != 200 || !strings.Contains(body, "Successfully tagged x:latest") {
			t.Fatalf("%d: %s", status, body)
		}
	}
	img, err := s.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Mount(t.Context(), img.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, n := range []string{"one/a", "one/b", "linked/two/a", "linked/from/a", "linked/from/b", "linked/two/b", "last"} {
		if b, err := os.ReadFile(filepath.Join("/proc/self/fd", strconv.Itoa(int(m.Tree.Fd())), n)); err != nil || string(b) != map[byte]string{'a': "hello", 'b': "world", 't': "world"}[n[len(n)-1]] {
			t.Errorf("%s: %q %v", n, b, err)
		}
	}
	// Nothing was unpacked a second time: there are the layers of the image, and
	// those of the two merges, whose snapshots are made for the stages over them.
	layers := func() int {
		t.Helper()
		all, err := os.ReadDir(filepath.Join(k.dir, "image/flat"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	of := len(img.Config.RootFS.DiffIDs)
	if n := layers(); n != of+2 {
		t.Errorf("%d flat layers, and the image has %d", n, of)
	}
	if status, body := k.post("/build/prune?all=1", nil); status != 200 {
		t.Fatalf("%d: %s", status, body)
	}
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := layers(); n != of {
		t.Errorf("without the cache %d flat layers, and the image has %d", n, of)
	}
}

// A Dockerfile that makes no files makes an image all the same.
func TestImageOfNoLayers(t *testing.T) {
	k, s := newEngineKit(t)
	status, body := k.post("/build?"+url.Values{"t": {"bare"}}.Encode(), archive(t, "Dockerfile", "FROM scratch\nLABEL a=b\n"))
	if status != 200 {
		t.Fatalf("%d: %s", status, body)
	}
	if img, err := s.Get(t.Context(), "bare"); err != nil || img.Config.Config.Labels["a"] != "b" {
		t.Errorf("%v %v", img, err)
	}
}
