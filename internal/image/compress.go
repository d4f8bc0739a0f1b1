package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"proa/internal/xz"
)

// compression is how a stream is packed.
type compression string

const (
	plain   compression = ""
	gzipped compression = "gzip"
	zstded  compression = "zstd"
	bzipped compression = "bzip2"
	xzed    compression = "xz"
)

// magics are the first bytes of each kind; tar itself has none there.
var magics = []struct {
	kind  compression
	bytes []byte
}{
	{gzipped, []byte{0x1f, 0x8b, 0x08}},
	{zstded, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{bzipped, []byte("BZh")},
	{xzed, []byte(xz.Magic)},
}

// maxWindow bounds the memory of a zstd or xz stream: 128 MiB is what `zstd
// --ultra` without --long can ask for, and twice what `xz -9` does.
const maxWindow = 128 << 20

func sniff(b *bufio.Reader) compression {
	head, _ := b.Peek(8)
	for _, m := range magics {
		if bytes.HasPrefix(head, m.bytes) {
			return m.kind
		}
	}
	// zstd streams may begin with a skippable frame (pzstd, estargz's zstd).
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}) {
		return zstded
	}
	return plain
}

// decompress finds out how r is packed and unpacks it. Close ends the
// decoder, not r.
func decompress(r io.Reader) (io.ReadCloser, compression, error) {
	src := &source{r: r}
	b := bufio.NewReaderSize(src, 256<<10)
	kind := sniff(b)
	d := &decoder{src: src, r: b, close: func() {}}
	switch kind {
	case gzipped:
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, kind, d.judge(err)
		}
		d.r, d.close = z, func() { _ = z.Close() }
	case zstded:
		// One goroutine: layers are decoded beside each other already.
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, kind, d.judge(err)
		}
		d.r, d.close = z, z.Close
	case bzipped:
		d.r = bzip2.NewReader(b)
	case xzed:
		z, err := xz.NewReader(b, maxWindow)
		if err != nil {
			return nil, kind, d.judge(err)
		}
		d.r = z
	}
	return d, kind, nil
}

// source remembers how reading the packed stream failed, so that a broken
// connection is not taken for a damaged archive.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

type decoder struct {
	src   *source
	r     io.Reader
	close func()
}

func (d *decoder) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if err != nil && err != io.EOF {
		err = d.judge(err)
	}
	return n, err
}

// judge tells whose fault an error is.
func (d *decoder) judge(err error) error {
	switch {
	case d.src.err != nil:
		return d.src.err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case errors.Is(err, xz.ErrDictionary):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("the compressed stream is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
}

func (d *decoder) Close() error {
	d.close()
	return nil
}

// Unpacked finds out whether a stream is packed with gzip, zstd, bzip2 or xz
// and gives what is in it. Close ends the decoder, not r.
func Unpacked(r io.Reader) (io.ReadCloser, error) {
	d, _, err := decompress(r)
	return d, err
}
