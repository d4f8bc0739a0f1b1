package image

import (
	"context"
	"path/filepath"

	"proa/internal/sys"

	"github.com/opencontainers/go-digest"
)

// Usage is what images take on disk, in bytes as the file system counts them.
type Usage struct {
	Blobs   int64 // manifests, configs, and layers as they came
	Flat    int64 // layers as they are mounted
	Indexes int64 // merged indexes
	Extract int64 // unpacked trees, where no EROFS can be mounted
	Images  []ImageUsage
}

// Total is all of it.
func (u *Usage) Total() int64 { return u.Blobs + u.Flat + u.Indexes + u.Extract }

// ImageUsage is one image's part.
type ImageUsage struct {
	Image *Image
	// Size is Image.Size: the sum of the sizes of its files.
	Size int64
	// Shared is the part of Size in layers that other images have as well.
	Shared int64
	// Holders is how many leases hold it.
	Holders int
}

// Usage measures what images take.
func (s *Store) Usage(ctx context.Context) (*Usage, error) {
	u, err := s.onDisk()
	if err != nil {
		return nil, err
	}
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	held, err := s.Leases(ctx)
	if err != nil {
		return nil, err
	}
	users := map[digest.Digest]int{}
	for _, id := range held {
		users[id]++
	}
	images := map[digest.Digest]int{}
	for _, img := range list {
		for _, d := range unique(img.Config.RootFS.DiffIDs) {
			images[d]++
		}
	}
	for _, img := range list {
		iu := ImageUsage{Image: img, Size: img.Size, Holders: users[img.ID]}
		for _, d := range img.Config.RootFS.DiffIDs {
			if images[d] < 2 {
				continue
			}
			if l, err := s.layerSize(d); err == nil { // List has warned of it
				iu.Shared += l.files
			}
		}
		u.Images = append(u.Images, iu)
	}
	return u, nil
}

func unique(in []digest.Digest) []digest.Digest {
	seen := map[digest.Digest]bool{}
	var out []digest.Digest
	for _, d := range in {
		if !seen[d] {
			seen[d] = true
			out = append(out, d)
		}
	}
	return out
}

func (s *Store) onDisk() (*Usage, error) {
	u := &Usage{}
	for sub, n := range map[string]*int64{"content": &u.Blobs, "flat": &u.Flat, "index": &u.Indexes, "extract": &u.Extract} {
		var err error
		if *n, err = sys.DiskUsage(context.Background(), filepath.Join(s.cfg.Root, sub)); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (s *Store) disk() (int64, error) {
	u, err := s.onDisk()
	if err != nil {
		return 0, err
	}
	return u.Total(), nil
}
