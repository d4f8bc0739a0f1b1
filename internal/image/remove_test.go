package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"proa/internal/filters"
)

func lines(gone []Removed, names map[string]string) string {
	var out []string
	for _, r := range gone {
		l := "deleted " + r.Deleted
		if r.Untagged != "" {
			l = "untagged " + r.Untagged
		}
		for from, to := range names {
			l = strings.ReplaceAll(l, from, to)
		}
		out = append(out, l)
	}
	return strings.Join(out, ", ")
}

// What docker rmi does, case by case. ID stands for the image's id, DIGEST for
// that of its manifest.
func TestRemove(t *testing.T) {
	for _, c := range []struct {
		name    string
		names   []string
		held    string // "", "stopped", "running"
		ref     string
		force   bool
		want    string // lines, or the beginning of an error
		left    string // names of the image afterwards, "-" when it is gone
		missing bool
	}{
		{name: "only name", names: []string{"a:1"}, ref: "a:1", want: "untagged a:1, untagged a@DIGEST, deleted ID", left: "-"},
		{name: "default tag", names: []string{"a"}, ref: "a", want: "untagged a:latest, untagged a@DIGEST, deleted ID", left: "-"},
		{name: "one of two names", names: []string{"a:1", "a:2"}, ref: "a:1", want: "untagged a:1", left: "a:2"},
		{name: "one of two repositories", names: []string{"a:1", "b:1"}, ref: "a:1", want: "untagged a:1, untagged a@DIGEST", left: "b:1"},
		{name: "one of two names, held", names: []string{"a:1", "b:1"}, held: "running", ref: "a:1", want: "untagged a:1, untagged a@DIGEST", left: "b:1"},
		{name: "id", names: []string{"a:1"}, ref: "ID", want: "untagged a:1, untagged a@DIGEST, deleted ID", left: "-"},
		{name: "short id", names: []string{"a:1"}, ref: "SHORT", want: "untagged a:1, untagged a@DIGEST, deleted ID", left: "-"},
		{name: "digest", names: []string{"a:1"}, ref: "a@DIGEST", want: "untagged a:1, untagged a@DIGEST, deleted ID", left: "-"},
		{name: "id of two names", names: []string{"a:1", "b:1"}, ref: "ID", want: "error conflict: unable to delete SHORT (must be forced) - image is referenced in multiple repositories", left: "a:1 b:1"},
		{name: "id of two names, forced", names: []string{"a:1", "b:1"}, ref: "ID", force: true, want: "untagged a:1, untagged b:1, untagged a@DIGEST, untagged b@DIGEST, deleted ID", left: "-"},
		{name: "dangling", ref: "ID", want: "deleted ID", left: "-"},
		{name: "held by a stopped one", names: []string{"a:1"}, held: "stopped", ref: "a:1", want: "error conflict: unable to remove repository reference \"a:1\" (must force) - container 0123456789ab is using its referenced image SHORT", left: "a:1"},
		{name: "id held by a stopped one", names: []string{"a:1"}, held: "stopped", ref: "ID", want: "error conflict: unable to delete SHORT (must be forced) - image is being used by stopped container 0123456789ab", left: "a:1"},
		{name: "held by a stopped one, forced", names: []string{"a:1"}, held: "stopped", ref: "a:1", force: true, want: "untagged a:1, untagged a@DIGEST, deleted ID", left: "-"},
		{name: "held by a running one, forced", names: []string{"a:1"}, held: "running", ref: "a:1", force: true, want: "untagged a:1, untagged a@DIGEST", left: ""},
		{name: "id held by a running one, forced", names: []string{"a:1"}, held: "running", ref: "ID", force: true, want: "error conflict: unable to delete SHORT (cannot be forced) - image is being used by running container 0123456789ab", left: "a:1"},
		{name: "unknown", names: []string{"a:1"}, ref: "b", want: "error No such image: b", left: "a:1", missing: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openAt(t, t.TempDir(), func(cfg *Config) {
				cfg.Running = func(string) bool { return c.held == "running" }
			})
			empty := tree(t, s)
			load(t, s, ociArchive(t, gzipped, hello(t, c.names...)))
			list, err := s.List(context.Background())
			if err != nil || len(list) != 1 {
				t.Fatal(list, err)
			}
			img := list[0]
			settle(t, s)
			whole := tree(t, s)
			if c.held != "" {
				if err := s.Lease(context.Background(), nil, "container/0123456789abcdef", img.ID.String()); err != nil {
					t.Fatal(err)
				}
			}
			words := map[string]string{"ID": img.ID.String(), "SHORT": short(img.ID), "DIGEST": img.Target.Digest.String()}
			ref := c.ref
			for k, v := range words {
				ref = strings.ReplaceAll(ref, k, v)
			}
			gone, err := s.Remove(context.Background(), ref, c.force, true)
			back := map[string]string{img.ID.String(): "ID", img.Target.Digest.String(): "DIGEST"}
			got := lines(gone, back)
			if err != nil {
				got = "error " + strings.ReplaceAll(strings.ReplaceAll(err.Error(), img.ID.String(), "ID"), short(img.ID), "SHORT")
				if !c.missing && !errdefs.IsConflict(err) || c.missing && !errdefs.IsNotFound(err) {
					t.Errorf("kind of %v", err)
				}
			}
			if got != c.want && !(strings.HasPrefix(c.want, "error") && strings.HasPrefix(got, c.want)) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			after, err := s.Get(context.Background(), img.ID.String())
			switch {
			case c.left == "-":
				if !errdefs.IsNotFound(err) {
					t.Errorf("the image is still there: %v", err)
				}
			case err != nil || strings.Join(after.Names, " ") != c.left:
				t.Errorf("names afterwards: %v, %v; want %q", after, err, c.left)
			}
			// Files stay exactly as long as an image or a lease needs them.
			if c.left == "-" && c.held == "" {
				if got := tree(t, s); !slices.Equal(got, empty) {
					t.Errorf("orphans: %v", got)
				}
				return
			}
			if got := tree(t, s); !slices.Equal(got, whole) {
				t.Errorf("files %v, want %v", got, whole)
			}
			if c.left == "-" { // forced away under a holder
				m, err := s.Mount(context.Background(), img.ID.String())
				if err != nil {
					t.Fatalf("the holder cannot mount it: %v", err)
				}
				_ = m.Close()
				if err := s.Unlease(context.Background(), nil, "container/0123456789abcdef"); err != nil {
					t.Fatal(err)
				}
				for end := time.Now().Add(5 * time.Second); !slices.Equal(tree(t, s), empty); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("orphans: %v", tree(t, s))
					}
				}
			}
		})
	}
}

// A shared layer stays until the last image that has it is gone.
func TestSharedLayers(t *testing.T) {
	s := openTest(t)
	empty := tree(t, s)
	load(t, s, ociArchive(t, gzipped, hello(t, "hello"), other(t, "other")))
	u, err := s.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range u.Images {
		if i.Shared != 6 || i.Size <= i.Shared {
			t.Errorf("%v: size %d, shared %d; want 6 bytes shared", i.Image.Names, i.Size, i.Shared)
		}
	}
	if _, err := s.Remove(context.Background(), "hello", false, true); err != nil {
		t.Fatal(err)
	}
	img := get(t, s, "other")
	m, err := s.Mount(context.Background(), img.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, m, "/etc/gone"); err != nil || got != "x" {
		t.Errorf("/etc/gone of the other image: %q, %v", got, err)
	}
	// Gone although it is mounted: the clone keeps its files readable.
	if _, err := s.Remove(context.Background(), "other", false, true); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, m, "/other"); err != nil || got != "other" {
		t.Errorf("/other of a clone after removal: %q, %v", got, err)
	}
	_ = m.Close()
	expectTree(t, s, empty)
	if left, err := os.ReadDir(s.cfg.Mounts); err != nil || len(left) != 0 {
		t.Errorf("mounts left: %v, %v", left, err)
	}
}

func TestTag(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "a:1"), other(t, "b:1")))
	ctx := context.Background()
	a, b := get(t, s, "a:1"), get(t, s, "b:1")
	if err := s.Tag(ctx, "a:1", "b:1"); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, "b:1"); got.ID != a.ID || strings.Join(got.Names, " ") != "a:1 b:1" {
		t.Errorf("b:1 is %v", got.Names)
	}
	if got := get(t, s, b.ID.String()); len(got.Names) != 0 {
		t.Errorf("the image that lost its name has %v", got.Names)
	}
	// Back again: the dangling record goes.
	if err := s.Tag(ctx, b.ID.Encoded()[:12], "b:1"); err != nil {
		t.Fatal(err)
	}
	recs, err := s.records.List(in(ctx))
	if err != nil || len(recs) != 2 {
		t.Errorf("%d records, %v; want 2", len(recs), err)
	}
	for _, bad := range []string{"", "UPPER", "a:", "a@" + a.Target.Digest.String(), strings.Repeat("a", 64), "a b", "-x"} {
		if err := s.Tag(ctx, "a:1", bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Tag %q: %v", bad, err)
		}
	}
	if err := s.Tag(ctx, "none", "c"); !errdefs.IsNotFound(err) {
		t.Errorf("Tag of nothing: %v", err)
	}
	// Loading another image under a name that is taken.
	load(t, s, ociArchive(t, gzipped, sample{names: []string{"a:1"}, layers: hello(t).layers[:1]}))
	if got := get(t, s, a.ID.String()); len(got.Names) != 0 {
		t.Errorf("the image that lost its name to a load has %v", got.Names)
	}
}

func TestGetAmbiguous(t *testing.T) {
	s := openTest(t)
	seen := map[byte]bool{}
	var want byte
	for i := 0; want == 0; i++ { // 17 images have two ids with one first digit
		img := sample{layers: hello(t).layers[:1], env: []string{fmt.Sprintf("N=%d", i)}}
		id := strings.TrimPrefix(load(t, s, ociArchive(t, gzipped, img))[0], "sha256:")
		if seen[id[0]] {
			want = id[0]
		}
		seen[id[0]] = true
	}
	if _, err := s.Get(context.Background(), string(want)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "ambiguous") {
		t.Errorf("Get %c: %v", want, err)
	}
	for _, ref := range []string{"", "UPPER", "a b"} {
		if _, err := s.Get(context.Background(), ref); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Get %q: %v", ref, err)
		}
	}
	for _, ref := range []string{"none", "none:1", strings.Repeat("0", 64), "fffffffffffff", "a@sha256:" + strings.Repeat("0", 64)} {
		if _, err := s.Get(context.Background(), ref); !errdefs.IsNotFound(err) || !strings.HasPrefix(err.Error(), "No such image: "+ref) {
			t.Errorf("Get %q: %v", ref, err)
		}
	}
}

func TestPrune(t *testing.T) {
	old, young := time.Now().Add(-48*time.Hour).UTC(), time.Now().Add(-time.Minute).UTC()
	make := func(t *testing.T) *Store {
		s := openTest(t)
		a, b, c, d := hello(t, "named-old"), hello(t, "named-young"), hello(t), hello(t)
		a.built, b.built, c.built, d.built = old, young, old, young
		d.env = []string{"NOT=b"}
		c.labels = map[string]string{"stage": "test"}
		load(t, s, ociArchive(t, gzipped, a, b, c, d))
		return s
	}
	for _, c := range []struct {
		all     bool
		filters map[string][]string
		gone    int
		named   string
	}{
		{false, nil, 2, "named-young:latest named-old:latest"},
		{true, nil, 4, ""},
		{false, map[string][]string{"dangling": {"false"}}, 4, ""},
		{true, map[string][]string{"until": {"24h"}}, 2, "named-young:latest"},
		{false, map[string][]string{"label": {"stage=test"}}, 1, "named-young:latest named-old:latest"},
		{false, map[string][]string{"label!": {"stage"}}, 1, "named-young:latest named-old:latest"},
		{true, map[string][]string{"until": {young.Add(-time.Hour).Format(time.RFC3339)}, "label": {"stage"}}, 1, "named-young:latest named-old:latest"},
	} {
		t.Run(fmt.Sprint(c.all, c.filters), func(t *testing.T) {
			s := make(t)
			f := filters.Of(c.filters)
			if c.all {
				f.Add("dangling", "false")
			}
			gone, freed, err := s.Prune(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, r := range gone {
				if r.Deleted != "" {
					n++
				}
			}
			list, err := s.List(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			var named []string
			for _, i := range list {
				named = append(named, i.Names...)
			}
			if n != c.gone || strings.Join(named, " ") != c.named || freed <= 0 {
				t.Errorf("%d gone, %q left, %d bytes freed; want %d gone, %q left", n, named, freed, c.gone, c.named)
			}
		})
	}
	s := make(t)
	for k, v := range map[string]string{"dangling": "maybe", "until": "soon", "colour": "red"} {
		if _, _, err := s.Prune(context.Background(), filters.Of(map[string][]string{k: {v}})); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), k) {
			t.Errorf("filter %s=%s: %v", k, v, err)
		}
	}
	// What is held stays.
	id := get(t, s, "named-old").ID
	if err := s.Lease(context.Background(), nil, "container/1", id.String()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Prune(context.Background(), filters.Of(map[string][]string{"dangling": {"false"}})); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(context.Background()); err != nil || len(list) != 1 || list[0].ID != id {
		t.Errorf("left: %v, %v", list, err)
	}
}

// A container's record and its lease are one transaction, or none.
func TestLeaseInTransaction(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "a"), other(t, "b")))
	a, b := get(t, s, "a").ID.String(), get(t, s, "b").ID.String()
	ctx := context.Background()
	boom := fmt.Errorf("boom")
	if err := s.cfg.DB.Update(func(tx *bolt.Tx) error {
		if err := s.Lease(ctx, tx, "container/1", a); err != nil {
			t.Error(err)
		}
		return boom
	}); err != boom {
		t.Fatal(err)
	}
	if held, err := s.Leases(ctx); err != nil || len(held) != 0 {
		t.Fatalf("a failed transaction left %v, %v", held, err)
	}
	for range 2 {
		if err := s.cfg.DB.Update(func(tx *bolt.Tx) error { return s.Lease(ctx, tx, "container/1", a) }); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Lease(ctx, nil, "container/1", b); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second image: %v", err)
	}
	if err := s.Lease(ctx, nil, "container/2", "sha256:"+strings.Repeat("0", 64)); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown image: %v", err)
	}
	if held, err := s.Leases(ctx); err != nil || len(held) != 1 || held["container/1"].String() != a {
		t.Errorf("Leases: %v, %v", held, err)
	}
	for range 2 {
		if err := s.Unlease(ctx, nil, "container/1"); err != nil {
			t.Fatal(err)
		}
	}
}

// A lease that is made while a collection runs, in a transaction of the
// caller's, is there afterwards.
func TestLeaseDuringCollection(t *testing.T) {
	s := openTest(t)
	load(t, s, ociArchive(t, gzipped, hello(t, "a")))
	id := get(t, s, "a").ID.String()
	ctx := context.Background()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.clean(ctx); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	const n = 300
	for i := range n {
		if err := s.cfg.DB.Update(func(tx *bolt.Tx) error { return s.Lease(ctx, tx, fmt.Sprintf("container/%d", i), id) }); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	if held, err := s.Leases(ctx); err != nil || len(held) != n {
		t.Errorf("%d of %d leases are there, %v", len(held), n, err)
	}
}

// Containers start while images come and go: nothing that is leased may
// vanish, nothing that nobody needs may stay.
func TestRaces(t *testing.T) {
	s := openTest(t)
	empty := tree(t, s)
	archives := [][]byte{ociArchive(t, gzipped, hello(t, "x")), dockerArchive(t, plain, other(t, "x")), ociArchive(t, zstded, other(t, "y"))}
	ctx := context.Background()
	done := make(chan struct{})
	for w := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for i := range 15 {
				switch w {
				case 0, 1:
					if _, err := s.Load(ctx, bytes.NewReader(archives[(i+w)%len(archives)]), nil); err != nil {
						t.Errorf("load: %v", err)
					}
				case 2:
					if _, err := s.Remove(ctx, []string{"x", "y"}[i%2], true, true); err != nil && !errdefs.IsNotFound(err) {
						t.Errorf("remove: %v", err)
					}
				case 3:
					img, err := s.Get(ctx, "x")
					if errdefs.IsNotFound(err) {
						continue
					}
					if err != nil {
						t.Errorf("get: %v", err)
						continue
					}
					holder := fmt.Sprintf("container/%d", i)
					if err := s.Lease(ctx, nil, holder, img.ID.String()); errdefs.IsNotFound(err) {
						continue
					} else if err != nil {
						t.Errorf("lease: %v", err)
						continue
					}
					m, err := s.Mount(ctx, img.ID.String())
					if err != nil {
						t.Errorf("mount of a leased image: %v", err)
					} else {
						if _, err := read(t, m, "/etc/motd"); err != nil {
							t.Errorf("read: %v", err)
						}
						_ = m.Close()
					}
					if err := s.Unlease(ctx, nil, holder); err != nil {
						t.Errorf("unlease: %v", err)
					}
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
	if _, _, err := s.Prune(ctx, filters.Of(map[string][]string{"dangling": {"false"}})); err != nil {
		t.Fatal(err)
	}
	expectTree(t, s, empty)
}
