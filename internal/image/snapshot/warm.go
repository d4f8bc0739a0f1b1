package snapshot

import (
	"archive/tar"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"

	"proa/internal/sys"
)

// How many files of a small layer are read before anybody asks, and how many
// at once.
const (
	warmFiles   = 4096
	warmReaders = 4
)

// warm reads the files of a layer that was just made, in the stack that is
// attached at. They were in memory when they were written, and a step that
// reads them next would wait for the disk once for every file: EROFS reads its
// data past the page cache of the file that it lies in. It happens beside the
// start of the step; what fails is left to that.
func (s *Store) warm(diffID digest.Digest, at string) {
	t, ok := s.recent.open(diffID)
	if !ok || t.size > smallLayer {
		if ok {
			t.Close()
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working++
	go func() {
		defer s.worked()
		defer t.Close()
		if root, err := sys.OpenPath(at); err == nil {
			defer root.Close()
			readFiles(root, t)
		}
	}()
}

// readFiles reads those files below root that a tar names.
func readFiles(root *os.File, t io.ReadSeeker) {
	names := make(chan string)
	var readers sync.WaitGroup
	for range warmReaders {
		readers.Go(func() {
			buf := make([]byte, 128<<10)
			for name := range names {
				f, err := sys.OpenInRoot(root, name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
				if err != nil {
					continue
				}
				_, _ = io.CopyBuffer(io.Discard, struct{ io.Reader }{f}, buf)
				f.Close()
			}
		})
	}
	r := tar.NewReader(t)
	for range warmFiles {
		h, err := r.Next()
		if err != nil {
			break
		}
		if h.Typeflag == tar.TypeReg && h.Size > 0 {
			names <- h.Name
		}
	}
	close(names)
	readers.Wait()
}
