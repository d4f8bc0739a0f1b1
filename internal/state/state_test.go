package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

type pet struct {
	Name string `json:"name"`
	Legs int    `json:"legs"`
}

var pets = NewBucket[pet]("test.pets")

func openTest(t testing.TB) *DB {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "root", "proa.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestBucket(t *testing.T) {
	d := openTest(t)
	if err := d.View(func(tx *bolt.Tx) error {
		if pets.Has(tx, "a") {
			t.Error("an empty bucket has a key")
		}
		_, err := pets.Get(tx, "a")
		return err
	}); !errdefs.IsNotFound(err) {
		t.Fatalf("Get from nothing: %v, want not found", err)
	}
	if err := d.Update(func(tx *bolt.Tx) error {
		for i, n := range []string{"b/2", "a/1", "b/1"} {
			if err := pets.Put(tx, n, pet{n, i}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := d.View(func(tx *bolt.Tx) error {
		v, err := pets.Get(tx, "b/1")
		if err != nil || v != (pet{"b/1", 2}) {
			t.Errorf("Get = %v, %v", v, err)
		}
		return pets.ForEachPrefix(tx, "b/", func(k string, _ pet) error {
			got = append(got, k)
			return nil
		})
	}); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, " "); s != "b/1 b/2" {
		t.Fatalf("ForEachPrefix gave %q", s)
	}
	if err := d.Update(func(tx *bolt.Tx) error {
		return errors.Join(pets.Delete(tx, "b/1"), pets.Delete(tx, "never"))
	}); err != nil {
		t.Fatal(err)
	}
	got = nil
	if err := d.View(func(tx *bolt.Tx) error {
		return pets.ForEach(tx, func(k string, _ pet) error { got = append(got, k); return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(got, " "); s != "a/1 b/2" {
		t.Fatalf("after Delete: %q", s)
	}
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	d := openTest(t)
	boom := errors.New("boom")
	if err := d.Update(func(tx *bolt.Tx) error {
		if err := pets.Put(tx, "x", pet{}); err != nil {
			return err
		}
		return boom
	}); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := d.View(func(tx *bolt.Tx) error {
		if pets.Has(tx, "x") {
			t.Error("a failed transaction left its write")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestCorruptValueIsNamed(t *testing.T) {
	d := openTest(t)
	if err := d.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("test.pets"))
		if err != nil {
			return err
		}
		return b.Put([]byte("rex"), []byte(`{"name":`))
	}); err != nil {
		t.Fatal(err)
	}
	for what, fn := range map[string]func(*bolt.Tx) error{
		"Get":     func(tx *bolt.Tx) error { _, err := pets.Get(tx, "rex"); return err },
		"ForEach": func(tx *bolt.Tx) error { return pets.ForEach(tx, func(string, pet) error { return nil }) },
	} {
		err := d.View(fn)
		if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "test.pets") || !strings.Contains(err.Error(), `"rex"`) {
			t.Errorf("%s: %v, want data loss that names bucket and key", what, err)
		}
	}
}

func TestSecondEngineIsRefused(t *testing.T) {
	d := openTest(t)
	_, err := open(d.Path(), 50*time.Millisecond)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "another engine uses this data root") {
		t.Fatalf("second Open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(d.Path())
	if err != nil {
		t.Fatalf("Open after Close: %v", err)
	}
	if fi, err := os.Stat(d.Path()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	_ = again.Close()
}

func TestNewerSchemaIsRefused(t *testing.T) {
	d := openTest(t)
	if err := d.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(metaBucket).Put(schemaKey, []byte("99"))
	}); err != nil {
		t.Fatal(err)
	}
	_ = d.Close()
	_, err := Open(d.Path())
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "99") {
		t.Fatalf("Open of schema 99: %v", err)
	}
	// Refusing must not have changed it, nor kept the lock.
	if _, err := open(d.Path(), 50*time.Millisecond); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("second Open of schema 99: %v", err)
	}
}

func TestForeignFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"short": "hello",
		"long":  strings.Repeat("not a database ", 4000),
	} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(p); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v, want data loss", name, err)
		}
		if b, err := os.ReadFile(p); err != nil || string(b) != content {
			t.Errorf("%s: Open changed a file that is not its own", name)
		}
	}
}

func TestBatch(t *testing.T) {
	d := openTest(t)
	var wg sync.WaitGroup
	errs := make([]error, 50)
	for i := range errs {
		wg.Go(func() {
			errs[i] = d.Batch(func(tx *bolt.Tx) error { return pets.Put(tx, fmt.Sprint(i), pet{Legs: i}) })
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := d.View(func(tx *bolt.Tx) error {
		return pets.ForEach(tx, func(k string, v pet) error {
			if k != fmt.Sprint(v.Legs) {
				t.Errorf("key %s holds %d", k, v.Legs)
			}
			n++
			return nil
		})
	}); err != nil || n != len(errs) {
		t.Fatalf("%d values, %v; want %d", n, err, len(errs))
	}
}

// The cost of one durable transaction is on the path of every run.
func BenchmarkUpdate(b *testing.B) {
	d, err := Open(filepath.Join(benchDir(b), "proa.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for i := 0; b.Loop(); i++ {
		if err := d.Update(func(tx *bolt.Tx) error { return pets.Put(tx, fmt.Sprint(i%1000), pet{Legs: i}) }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBatch16(b *testing.B) {
	d, err := Open(filepath.Join(benchDir(b), "proa.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if err := d.Batch(func(tx *bolt.Tx) error { return pets.Put(tx, fmt.Sprint(i%1000), pet{Legs: i}) }); err != nil {
				b.Error(err)
			}
		}
	})
}

// benchDir lets PROA_BENCH_DIR choose the disk; a temp directory may be a
// tmpfs, where fsync costs nothing.
func benchDir(b *testing.B) string {
	if d := os.Getenv("PROA_BENCH_DIR"); d != "" {
		dir, err := os.MkdirTemp(d, "state")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	return b.TempDir()
}
