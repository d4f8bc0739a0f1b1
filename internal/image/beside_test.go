package image

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/filters"
)

// Pulls, some of them cancelled, loads, names, mounts, removals and prunes of the
// same images beside each other: each ends well or says that there is no such
// image, what has a name is whole, and in the end nothing is left.
func TestAllBesideEachOther(t *testing.T) {
	r := newRegistry(t)
	r.put("one", "latest", gzipped, hello(t))
	r.put("two", "latest", gzipped, other(t))
	r.put("big", "latest", zstded, big(t))
	s := openPuller(t, t.TempDir())
	arch := ociArchive(t, gzipped, hello(t, ref(r, "one")+":latest"))
	end := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for time.Now().Before(end) {
				name := ref(r, "%s", []string{"one", "two", "big"}[rand.IntN(3)])
				ctx, cancel := context.WithCancel(context.Background())
				if rand.IntN(3) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, cancel)
				}
				switch rand.IntN(8) {
				case 0, 1, 2:
					if _, err := s.Pull(ctx, name, PullOptions{}); err != nil && !errors.Is(err, context.Canceled) {
						t.Errorf("pull: %v", err)
					}
				case 3:
					if _, err := s.Remove(context.Background(), name, true, false); err != nil && !errdefs.IsNotFound(err) {
						t.Errorf("rm: %v", err)
					}
				case 4:
					if _, _, err := s.Prune(context.Background(), filters.Of(map[string][]string{"dangling": {"false"}})); err != nil {
						t.Errorf("prune: %v", err)
					}
				case 5:
					if _, err := s.Load(ctx, bytes.NewReader(arch), nil); err != nil && !errors.Is(err, context.Canceled) {
						t.Errorf("load: %v", err)
					}
				case 6:
					img, err := s.Get(context.Background(), name)
					if err != nil {
						break
					}
					m, err := s.Mount(context.Background(), img.ID.String())
					if err == nil {
						m.Close()
					} else if !errdefs.IsNotFound(err) {
						t.Errorf("mount: %v", err)
					}
				case 7:
					if err := s.Tag(context.Background(), name, ref(r, "tag:x")); err != nil && !errdefs.IsNotFound(err) {
						t.Errorf("tag: %v", err)
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	verify(t, s)
	if _, _, err := s.Prune(context.Background(), filters.Of(map[string][]string{"dangling": {"false"}})); err != nil {
		t.Error(err)
	}
	if left := tree(t, s); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
