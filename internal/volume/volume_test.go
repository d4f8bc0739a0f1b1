package volume

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"proa/internal/filters"
	"proa/internal/state"
)

var ctx = context.Background()

func openTest(t *testing.T) (*Store, *state.DB) {
	t.Helper()
	dir := t.TempDir()
	db, err := state.Open(filepath.Join(dir, "proa.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	s, err := Open(filepath.Join(dir, "volumes"), db)
	if err != nil {
		t.Fatal(err)
	}
	return s, db
}

func create(t *testing.T, s *Store, name string, labels map[string]string) *Volume {
	t.Helper()
	v, err := s.Create(ctx, name, "", labels, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func write(t *testing.T, v *Volume, size int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "file"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, s *Store) string {
	t.Helper()
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	return strings.Join(out, " ")
}

func TestCreateGetRemove(t *testing.T) {
	s, _ := openTest(t)
	v := create(t, s, "data", map[string]string{"a": "b"})
	if fi, err := os.Stat(v.Mountpoint); err != nil || fi.Mode().Perm() != 0o755 {
		t.Fatalf("mountpoint: %v, %v", fi, err)
	}
	if fi, err := os.Stat(filepath.Dir(v.Mountpoint)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("directory above it: %v, %v; want 0700", fi.Mode(), err)
	}
	again := create(t, s, "data", map[string]string{"c": "d"})
	if again.Labels["a"] != "b" || again.Labels["c"] != "" || !again.Created.Equal(v.Created) {
		t.Errorf("second Create changed the volume: %+v", again)
	}
	write(t, v, 10)
	if err := s.Remove(ctx, "data", false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "data"); !errdefs.IsNotFound(err) {
		t.Errorf("Get after Remove: %v", err)
	}
	if err := s.Remove(ctx, "data", false); !errdefs.IsNotFound(err) {
		t.Errorf("second Remove: %v", err)
	}
	if err := s.Remove(ctx, "data", true); err != nil {
		t.Errorf("second Remove with force: %v", err)
	}
	if left, err := os.ReadDir(s.root); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestNamesAndOptions(t *testing.T) {
	s, _ := openTest(t)
	for name, ok := range map[string]bool{
		"ab": true, "A.b_c-9": true, strings.Repeat("a", 200): true,
		"a": false, ".ab": false, "-ab": false, "a/b": false, "..": false, "a b": false, "ä1": false, "a\n": false, ".gone-x": false, strings.Repeat("a", 256): false,
	} {
		if _, err := s.Create(ctx, name, "local", nil, nil); (err == nil) != ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("name %q: %v, want ok %v", name, err, ok)
		}
	}
	if _, err := s.Create(ctx, "other", "nfs", nil, nil); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `"nfs"`) {
		t.Errorf("driver nfs: %v", err)
	}
	for _, o := range []map[string]string{{"type": "tmpfs"}, {"device": "/x"}, {"o": "bind"}, {"size": "1"}} {
		_, err := s.Create(ctx, "other", "", nil, o)
		for k := range o {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), k) {
				t.Errorf("option %v: %v, want a refusal that names it", o, err)
			}
		}
	}
	if _, err := s.Get(ctx, "other"); !errdefs.IsNotFound(err) {
		t.Errorf("a refused volume exists: %v", err)
	}
	v := create(t, s, "", nil)
	if !v.Anonymous || len(v.Name) != 64 || strings.Trim(v.Name, "0123456789abcdef") != "" {
		t.Errorf("anonymous volume: %+v", v)
	}
}

func TestHeldVolumesStay(t *testing.T) {
	s, db := openTest(t)
	create(t, s, "data", nil)
	create(t, s, "data2", nil)
	for range 2 {
		if err := db.Update(func(tx *bolt.Tx) error { return s.Hold(ctx, tx, "data", "container/1") }); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Hold(ctx, nil, "data", "container/2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Hold(ctx, nil, "none", "container/2"); !errdefs.IsNotFound(err) {
		t.Errorf("Hold of nothing: %v", err)
	}
	if err := s.Remove(ctx, "data", true); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "container/1") {
		t.Errorf("Remove of a held volume: %v", err)
	}
	if gone, _, err := s.Prune(ctx, filters.Of(map[string][]string{"all": {"1"}})); err != nil || strings.Join(gone, " ") != "data2" {
		t.Errorf("Prune took %v, %v; want data2", gone, err)
	}
	if err := s.Release(ctx, nil, "container/1"); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Holders(ctx); err != nil || !slices.Equal(h["data"], []string{"container/2"}) {
		t.Errorf("Holders: %v, %v", h, err)
	}
	if err := s.Release(ctx, nil, "container/2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "data", false); err != nil {
		t.Errorf("Remove after Release: %v", err)
	}
}

func TestPrune(t *testing.T) {
	s, _ := openTest(t)
	write(t, create(t, s, "keep", nil), 1)
	write(t, create(t, s, "", map[string]string{"stage": "test"}), 1<<20)
	create(t, s, "", map[string]string{"stage": "prod"})
	if _, _, err := s.Prune(ctx, filters.Of(map[string][]string{"colour": {"red"}})); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown filter: %v", err)
	}
	gone, freed, err := s.Prune(ctx, filters.Of(map[string][]string{"label": {"stage=test"}}))
	if err != nil || len(gone) != 1 || freed < 1<<20 {
		t.Fatalf("Prune label: %v, %d, %v", gone, freed, err)
	}
	if gone, _, err := s.Prune(ctx, nil); err != nil || len(gone) != 1 {
		t.Fatalf("Prune: %v, %v", gone, err)
	}
	if got := names(t, s); got != "keep" {
		t.Fatalf("left: %q", got)
	}
	if gone, _, err := s.Prune(ctx, filters.Of(map[string][]string{"all": {"true"}})); err != nil || strings.Join(gone, " ") != "keep" {
		t.Fatalf("Prune all: %v, %v", gone, err)
	}
}

func TestUsage(t *testing.T) {
	s, _ := openTest(t)
	v := create(t, s, "data", nil)
	write(t, v, 1<<20)
	if err := os.Link(filepath.Join(v.Mountpoint, "file"), filepath.Join(v.Mountpoint, "link")); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(ctx)
	if err != nil || len(u) != 1 || u[0].Size < 1<<20 || u[0].Size > 1<<20+64<<10 {
		t.Fatalf("Usage: %+v, %v", u, err)
	}
}

// Every state in which a kill can leave the directory and the record.
func TestOpenAfterKill(t *testing.T) {
	s, db := openTest(t)
	kept := create(t, s, "kept", nil)
	write(t, kept, 1)
	moved := create(t, s, "moved", nil)
	write(t, moved, 1)
	// Killed between the rename and the commit.
	if err := os.Rename(s.dir("moved"), filepath.Join(s.root, asideName("moved"))); err != nil {
		t.Fatal(err)
	}
	// Killed after the commit.
	gone := create(t, s, "gone", nil)
	write(t, gone, 1)
	if _, err := s.putAside("gone", nil); err != nil {
		t.Fatal(err)
	}
	// Killed between the directory and the record.
	if err := s.makeDir("half"); err != nil {
		t.Fatal(err)
	}
	// Not ours: never removed.
	foreign := filepath.Join(s.root, "foreign", "_data", "file")
	if err := os.MkdirAll(filepath.Dir(foreign), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	s, err := Open(s.root, db)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); got != "kept moved" {
		t.Errorf("volumes: %q", got)
	}
	var dirs []string
	entries, err := os.ReadDir(s.root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		dirs = append(dirs, e.Name())
	}
	if got := strings.Join(dirs, " "); got != "foreign kept moved" {
		t.Errorf("directories: %q", got)
	}
	for _, v := range []*Volume{kept, moved} {
		if _, err := os.Stat(filepath.Join(v.Mountpoint, "file")); err != nil {
			t.Errorf("content of %s: %v", v.Name, err)
		}
	}
}
