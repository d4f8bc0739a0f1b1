package image

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/flat"
)

// eager makes flat layers of an archive's blobs while they are stored, before
// it is known that they are layers: what looks like one nearly always is one,
// and reading it once is half the work. A blob that is none, or that no image
// needs, costs nothing but the attempt: what nobody needs is removed when the
// job ends. What goes wrong here is not reported: it will go wrong again, with
// words, when the layer is needed.
type eager struct {
	s    *Store
	slot chan struct{} // as many at a time as there are processors
	done sync.WaitGroup
}

func (s *Store) newEager() *eager {
	return &eager{s: s, slot: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// smallestLayer is the size in bytes from which it pays to begin early.
const smallestLayer = 64 << 10

// store is writeBlob for an entry of an archive that may be a layer.
func (e *eager) store(ctx context.Context, ref string, r io.Reader, size int64, want digest.Digest) (ocispec.Descriptor, error) {
	if size < smallestLayer {
		return e.s.writeBlob(ctx, ref, r, want, nil)
	}
	b := bufio.NewReaderSize(r, 4096)
	if head, _ := b.Peek(512); sniff(b) == plain && (len(head) < 512 || !bytes.Equal(head[257:262], []byte("ustar"))) {
		return e.s.writeBlob(ctx, ref, b, want, nil)
	}
	select {
	case e.slot <- struct{}{}:
	case <-ctx.Done():
		return ocispec.Descriptor{}, context.Cause(ctx)
	}
	pr, pw := io.Pipe()
	e.done.Go(func() {
		defer func() { <-e.slot }()
		defer pr.Close()
		z, _, err := decompress(pr)
		if err != nil {
			return
		}
		defer z.Close()
		a := readAhead(z)
		defer a.Close()
		// To the end of the blob, and not of what was packed: or else the one
		// who stores it would be told that nobody reads.
		if _, err := flat.Write(ctx, a, filepath.Join(e.s.cfg.Root, "flat"), flat.Limits{Bytes: e.s.cfg.MaxLayerBytes}); err == nil {
			_, _ = io.Copy(io.Discard, pr)
		}
	})
	d, err := e.s.writeBlob(ctx, ref, &sharing{r: b, w: pw}, want, nil)
	if err != nil {
		_ = pw.CloseWithError(err)
	} else {
		_ = pw.Close()
	}
	return d, err
}

// wait ends when all that was begun has ended.
func (e *eager) wait() { e.done.Wait() }

// sharing is a reader that somebody else reads as well, as long as that one
// wants to.
type sharing struct {
	r io.Reader
	w io.Writer // nil when nobody listens any more
}

func (s *sharing) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 && s.w != nil {
		if _, werr := s.w.Write(p[:n]); werr != nil {
			s.w = nil
		}
	}
	return n, err
}
