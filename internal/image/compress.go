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
	"github.com/ulikunitz/xz"
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
	{xzed, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// maxWindow bounds the memory of a zstd stream: 128 MiB is what `zstd --ultra`
// without --long can ask for.
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
		if err := checkXZ(b); err != nil {
			return nil, kind, err
		}
		z, err := xz.NewReader(b)
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
	}
	return fmt.Errorf("the compressed stream is damaged: %w: %w", err, errdefs.ErrInvalidArgument)
}

func (d *decoder) Close() error {
	d.close()
	return nil
}

// checkXZ reads how large a dictionary the first block asks for: the decoder
// would allocate whatever the header says, up to 4 GiB.
func checkXZ(b *bufio.Reader) error {
	head, _ := b.Peek(64)
	const block = 12 // bytes of the stream header before it
	for i := block + 2; i+2 < len(head); i++ {
		if head[i] == 0x21 && head[i+1] == 1 { // LZMA2 with one byte of properties
			if bits := head[i+2]; bits > 30 {
				return fmt.Errorf("cannot read xz stream: it needs a dictionary of more than %d bytes: %w", maxWindow, errdefs.ErrInvalidArgument)
			}
			return nil
		}
	}
	return nil
}

// Unpacked finds out whether a stream is packed with gzip, zstd, bzip2 or xz
// and gives what is in it. Close ends the decoder, not r.
func Unpacked(r io.Reader) (io.ReadCloser, error) {
	d, _, err := decompress(r)
	return d, err
}
