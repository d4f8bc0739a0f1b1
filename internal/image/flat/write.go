package flat

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/bits"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"proa/internal/image/erofs"
	"proa/internal/interrupt"
	"proa/internal/sys"
)

// Defaults of Limits.
const (
	defaultBytes   = 64 << 30
	defaultEntries = 2_000_000
	defaultDepth   = 1024
)

// maxMeta bounds the names, targets and attributes of one layer, which are held
// in memory while it is written: 512 MiB.
const maxMeta = 512 << 20

// TempPrefix begins the name of every unfinished layer and index. What has it
// and belongs to no running Write or Merge was left by a crash and may go.
const TempPrefix = ".new-"

// Zero chunks of a file are not stored. A chunk is at least minChunk, so that
// the zero pages of ordinary programs do not split their files, and grows with
// the file, so that a file has few chunks.
const (
	minChunk = 64 << 10
	maxChunk = 1 << 20
)

// Write turns an uncompressed layer tar stream into the flat layer
// <dir>/<hex of its diffID> and returns it. The whole stream is read, up to
// its end of file, because the diffID covers every byte. A layer that exists
// already is returned as it is. Streams that are malformed, escape, or exceed
// limits are ErrInvalidArgument; those, failed reads and full disks leave
// nothing behind.
//
// ustar, PAX and GNU streams are understood, with nanosecond times, sparse
// files of every GNU version, and extended attributes of the forms
// SCHILY.xattr and LIBARCHIVE.xattr. Entries have the meaning that
// containerd's archive package gives them, but: a missing parent directory
// gets mode 0755, owner 0:0 and the time 0 (containerd: the time of the
// extraction, which would give every host another image); a hard link takes
// nothing from its own header; extended attributes that Linux would not store
// are left out (foreign namespaces, user.* of anything but files and
// directories).
func Write(ctx context.Context, stream io.Reader, dir string, limits Limits) (*Layer, error) {
	l, err := writeLayer(ctx, stream, dir, limits)
	if err != nil {
		return nil, fmt.Errorf("cannot write a flat layer: %w", err)
	}
	return l, nil
}

func writeLayer(ctx context.Context, stream io.Reader, dir string, limits Limits) (_ *Layer, err error) {
	if limits.Bytes == 0 {
		limits.Bytes = defaultBytes
	}
	if limits.Entries == 0 {
		limits.Entries = defaultEntries
	}
	if limits.Depth == 0 {
		limits.Depth = defaultDepth
	}
	limits.Depth = min(limits.Depth, maxTreeDepth)
	tmp, err := os.MkdirTemp(dir, TempPrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) // after the rename it is not there any more

	src := newSource(ctx, stream, limits)
	f, err := os.OpenFile(filepath.Join(tmp, dataName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := &writer{limits: limits, root: newDir(), data: bufio.NewWriterSize(&writeback{f: f}, 1<<20), count: 1, chunk: make([]byte, maxChunk)}
	if err := w.stream(src); err != nil {
		return nil, src.explain(err)
	}
	if w.block == 0 { // a device of no length could not be mounted
		if err := w.store(make([]byte, BlockSize)); err != nil {
			return nil, err
		}
	}
	if err := w.data.Flush(); err != nil {
		return nil, err
	}
	l := &Layer{DiffID: src.digest(), Stream: src.n, Blocks: w.block}
	if limits.Want != "" && l.DiffID != limits.Want {
		return nil, fmt.Errorf("its diffID is %s, expected %s: %w", l.DiffID, limits.Want, errdefs.ErrInvalidArgument)
	}
	l.Dir = filepath.Join(dir, l.DiffID.Encoded())
	tree, err := encodeTree(l, w.root)
	if err != nil {
		return nil, err
	}
	if old, err := readLayer(l.Dir); err == nil {
		return old, nil
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	// Mounts read data files past the page cache: what writing has left there
	// is of use to nobody.
	if err := sys.DropCache(f); err != nil {
		return nil, err
	}
	if err := sys.WriteSynced(filepath.Join(tmp, treeName), tree, 0o600); err != nil {
		return nil, err
	}
	return publish(l, tmp)
}

// publish gives a finished layer its name.
func publish(l *Layer, tmp string) (*Layer, error) {
	if err := sys.SyncDir(tmp); err != nil {
		return nil, err
	}
	err := os.Rename(tmp, l.Dir)
	if err != nil {
		// Somebody else may have written the same layer meanwhile, or a
		// damaged one may be in the way, which is of use to nobody.
		if old, readErr := readLayer(l.Dir); readErr == nil {
			return old, nil
		} else if !errdefs.IsDataLoss(readErr) && !errdefs.IsNotFound(readErr) {
			return nil, err
		}
		if err := os.RemoveAll(l.Dir); err != nil {
			return nil, err
		}
		if err := os.Rename(tmp, l.Dir); err != nil {
			return nil, err
		}
	}
	return l, sys.SyncDir(filepath.Dir(l.Dir))
}

// writeback is a file whose pages are sent to the disk while more is written.
type writeback struct {
	f          *os.File
	sent, done int64
}

func (w *writeback) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	w.done += int64(n)
	if err == nil && w.done-w.sent >= 8<<20 {
		// Only a head start for the sync at the end, which sees every error.
		_ = sys.StartWriteback(w.f, w.sent, w.done-w.sent)
		w.sent = w.done
	}
	return n, err
}

// source is the stream as it is read: counted, hashed, bounded, and with the
// first error of the reader below kept apart from what the tar parser makes of it.
type source struct {
	r    io.Reader
	most int64
	n    int64
	sum  hash.Hash
	err  error
}

func newSource(ctx context.Context, r io.Reader, limits Limits) *source {
	// Headers and padding come on top of the contents.
	most := int64(math.MaxInt64)
	if limits.Bytes < math.MaxInt64/4 {
		most = 2*limits.Bytes + int64(limits.Entries)*4096 + 1<<30
	}
	return &source{r: interrupt.Reader(ctx, r), most: most, sum: sha256.New()}
}

func (s *source) Read(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(b)
	s.sum.Write(b[:n])
	s.n += int64(n)
	if err != nil && err != io.EOF {
		s.err = err
	} else if s.n > s.most {
		err = fmt.Errorf("the stream is longer than %d bytes: %w", s.most, errdefs.ErrInvalidArgument)
		s.err = err
	}
	return n, err
}

func (s *source) digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.sum) }

// explain tells a stream that could not be read from one that makes no sense.
func (s *source) explain(err error) error {
	switch {
	case s.err != nil:
		return fmt.Errorf("cannot read the layer's stream: %w", s.err)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrFieldTooLong):
		return fmt.Errorf("malformed tar stream at byte %d: %w: %w", s.n, err, errdefs.ErrInvalidArgument)
	}
	return err
}

// writer builds one layer.
type writer struct {
	limits Limits
	root   *entry
	hidden map[string]*entry // files below linkDir, by base name
	count  int               // entries so far, implied ones too
	bytes  int64             // contents so far, holes too
	meta   int               // bytes of names, targets and attributes so far
	data   *bufio.Writer
	block  uint64 // blocks written to data
	chunk  []byte
}

// stream reads the whole source into the layer.
func (w *writer) stream(src *source) error {
	in := bufio.NewReaderSize(src, 256<<10)
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		// Names are checked here, by stricter rules than those of this error.
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		if err := w.add(h, tr); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	_, err := io.Copy(io.Discard, in)
	return err
}

// contents stores a regular file of the given size.
func (w *writer) contents(r io.Reader, size int64) ([]erofs.Extent, error) {
	if size < 0 {
		return nil, invalid("it has %d bytes", size)
	}
	if size > w.limits.Bytes-w.bytes {
		return nil, invalid("the layer holds more than %d bytes, the limit that --max-layer-size of the engine sets", w.limits.Bytes)
	}
	w.bytes += size
	step := int64(maxChunk)
	if size < maxChunk*4096 {
		step = max(minChunk, int64(1)<<bits.Len64(uint64(size/4096)))
	}
	var extents []erofs.Extent
	for off := int64(0); off < size; off += step {
		b := w.chunk[:min(step, size-off)]
		if _, err := io.ReadFull(r, b); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) {
			continue
		}
		e := erofs.Extent{Start: uint64(off / BlockSize), Blocks: uint64(len(b)+BlockSize-1) / BlockSize, Block: uint32(w.block)}
		if k := len(extents) - 1; k >= 0 && extents[k].Start+extents[k].Blocks == e.Start {
			extents[k].Blocks += e.Blocks
		} else {
			extents = append(extents, e)
		}
		if err := w.store(b); err != nil {
			return nil, err
		}
	}
	return extents, nil
}

// store appends b to the data file, filled up to a whole block.
func (w *writer) store(b []byte) error {
	n := uint64(len(b)+BlockSize-1) / BlockSize
	if w.block+n > math.MaxUint32-1 {
		return invalid("the layer's data file has more blocks than an image index can address")
	}
	if _, err := w.data.Write(b); err != nil {
		return err
	}
	var zero [BlockSize]byte
	if rest := len(b) % BlockSize; rest != 0 {
		if _, err := w.data.Write(zero[rest:]); err != nil {
			return err
		}
	}
	w.block += n
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
