package image

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// A large file that loses its last name while it is open keeps its blocks and
// its part of the page cache until it is closed. Giving those back takes the
// kernel 25 ms for 100 MB, so the files that a removal takes away are closed
// behind its back: what has a name is gone when the removal returns, and a
// crash in between costs nothing, because the kernel frees nameless files when
// it mounts the file system again.
const (
	buryFrom = 1 << 20   // bytes of a file from which on it is worth a descriptor
	buryRoom = 256 << 20 // bytes that must be free; else room is what the removal is for, and it waits
	buryMost = 64        // files of one removal
)

// grave holds the files of one removal.
type grave []*os.File

// dig opens the large files at path, or right below it, that are about to be removed.
func (g *grave) dig(path string) {
	open := func(path string, d fs.DirEntry) {
		st, err := d.Info()
		if err != nil || !st.Mode().IsRegular() || st.Size() < buryFrom || len(*g) == buryMost {
			return
		}
		// Nothing but a later close depends on it.
		if f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0); err == nil {
			*g = append(*g, f)
		}
	}
	st, err := os.Lstat(path)
	if err != nil {
		return
	}
	if !st.IsDir() {
		open(path, fs.FileInfoToDirEntry(st))
		return
	}
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		open(filepath.Join(path, e.Name()), e)
	}
}

// bury closes the files of a removal that is done.
func (s *Store) bury(g grave) {
	if len(g) == 0 {
		return
	}
	fill := func() {
		for _, f := range g {
			f.Close()
		}
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cfg.Root, &st); err != nil || int64(st.Bavail)*st.Bsize < buryRoom {
		fill()
		return
	}
	s.done.Go(fill)
}

// buryingBlobs is a content store whose deleted blobs land in a grave.
type buryingBlobs struct {
	content.Store
	root  string
	grave *grave
}

func (b buryingBlobs) Delete(ctx context.Context, d digest.Digest) error {
	// containerd's content store keeps a blob so; if it did not, nothing would be found here.
	b.grave.dig(filepath.Join(b.root, "blobs", d.Algorithm().String(), d.Encoded()))
	return b.Store.Delete(ctx, d)
}
