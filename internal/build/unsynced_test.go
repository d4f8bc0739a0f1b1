package build

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
)

// someLeases are leases that can be given up.
type someLeases struct {
	leases.Manager
	left []leases.Lease
}

func (s *someLeases) List(context.Context, ...string) ([]leases.Lease, error) { return s.left, nil }

func (s *someLeases) Delete(_ context.Context, l leases.Lease, _ ...leases.DeleteOpt) error {
	for i, have := range s.left {
		if have.ID == l.ID {
			s.left = append(append([]leases.Lease{}, s.left[:i]...), s.left[i+1:]...)
		}
	}
	return nil
}

func TestUnsynced(t *testing.T) {
	root, lm := t.TempDir(), &someLeases{left: []leases.Lease{{ID: "a"}, {ID: "b"}}}
	mark, cache := filepath.Join(root, unsyncedMark), filepath.Join(root, "cache-records.db")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func(lost bool, kept int) {
		t.Helper()
		got, err := openUnsynced(t.Context(), root, "this boot", lm)
		if err != nil || got != lost {
			t.Fatalf("lost %v, %v; want %v", got, err, lost)
		}
		if _, err := os.Stat(cache); (err == nil) == lost || len(lm.left) != kept {
			t.Fatalf("the cache: %v, %d leases are left, want %d", err, len(lm.left), kept)
		}
		if got, err := os.ReadFile(mark); err != nil || string(got) != "this boot\n" {
			t.Fatalf("marked with %q, %v", got, err)
		}
	}
	write(cache, "records")
	open(false, 2) // closed in order, or never used
	open(false, 2) // the process was killed
	if err := settle(root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); !os.IsNotExist(err) {
		t.Fatalf("it is still marked: %v", err)
	}
	open(false, 2)
	write(mark, "another boot\n")
	open(true, 0)
	write(cache, "records")
	write(mark, "") // damaged
	open(true, 0)
	if _, err := openUnsynced(t.Context(), root, "", lm); err == nil {
		t.Error("a boot without a name is taken for one")
	}
}
