package snapshot

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"proa/internal/sys"
)

// What is kept of the layers that were made last, in bytes and for how long. One
// that is many times a smallLayer takes the longest to be read again, and is
// kept all the same.
const (
	recentOne = 64 << 20
	recentAll = 256 << 20
	recentFor = time.Minute
)

// recent keeps the tars of layers that were just made, in files without a name:
// a build that ends with an image wants their blobs a moment later, and to walk
// and read the files of a flat layer again takes several times as long. The
// files hardly reach the disk, and nothing is lost with them.
type recent struct {
	dir string

	mu   sync.Mutex
	tars map[digest.Digest]*recentTar
	size int64
}

type recentTar struct {
	file *os.File
	size int64
	made time.Time
}

func newRecent(dir string) *recent { return &recent{dir: dir, tars: map[digest.Digest]*recentTar{}} }

// tarCopy is a tar being written beside the making of its layer. That it cannot be
// written, or gets too large, only means that it is not kept.
type tarCopy struct {
	file *os.File
	size int64
}

func (r *recent) begin() *tarCopy {
	f, err := sys.UnnamedFile(r.dir)
	if err != nil {
		return &tarCopy{}
	}
	return &tarCopy{file: f}
}

// Write never fails.
func (t *tarCopy) Write(p []byte) (int, error) {
	if t.file == nil {
		return len(p), nil
	}
	n, err := t.file.Write(p)
	if t.size += int64(n); err != nil || t.size > recentOne {
		t.drop()
	}
	return len(p), nil
}

func (t *tarCopy) drop() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
}

// keep takes over a whole tar.
func (r *recent) keep(diffID digest.Digest, t *tarCopy) {
	if t.file == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(diffID)
	for r.size+t.size > recentAll {
		var oldest digest.Digest
		for d, one := range r.tars {
			if oldest == "" || one.made.Before(r.tars[oldest].made) {
				oldest = d
			}
		}
		r.remove(oldest)
	}
	kept := &recentTar{file: t.file, size: t.size, made: time.Now()}
	r.tars[diffID] = kept
	r.size += kept.size
	time.AfterFunc(recentFor, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.tars[diffID] == kept {
			r.remove(diffID)
		}
	})
}

// remove is called with mu held. Who reads the tar has a descriptor of its own.
func (r *recent) remove(diffID digest.Digest) {
	if one := r.tars[diffID]; one != nil {
		one.file.Close()
		r.size -= one.size
		delete(r.tars, diffID)
	}
}

// openTar is a tar that is read.
type openTar struct {
	*io.SectionReader
	io.Closer
	size int64
}

// open gives the tar of a layer, if it is still here. The caller closes it.
func (r *recent) open(diffID digest.Digest) (*openTar, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.tars[diffID]
	if one == nil {
		return nil, false
	}
	f, err := sys.Dup(int(one.file.Fd()), one.file.Name())
	if err != nil {
		return nil, false
	}
	return &openTar{io.NewSectionReader(f, 0, one.size), f, one.size}, true
}

// close forgets everything.
func (r *recent) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d := range r.tars {
		r.remove(d)
	}
}
