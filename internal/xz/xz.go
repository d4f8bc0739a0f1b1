// Package xz unpacks streams of the .xz format that strangers send. It owns
// the container: headers, checks, index, and above all how much memory a block
// may ask for, which its header says and which github.com/ulikunitz/xz
// allocates without asking, up to 4 GiB for each block (CWE-789). What is
// inside a block is decoded by that module's package lzma. It never packs.
//
// https://tukaani.org/xz/xz-file-format-1.2.0.txt; the one filter is LZMA2.
package xz

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"

	"github.com/ulikunitz/xz/lzma"
)

// Magic begins every stream.
const Magic = "\xfd7zXZ\x00"

const (
	headerLen  = 12 // of a stream; its footer is as long
	filterXZ   = 0x21
	maxHeader  = 1024 // bytes of a block's header, by its length byte
	maxVarint  = 9
	checkNone  = 0
	checkCRC32 = 1
	checkCRC64 = 4
	checkSHA   = 10
)

// ErrDictionary is the kind of a stream that wants a larger dictionary than it
// is allowed.
var ErrDictionary = errors.New("the xz stream needs too large a dictionary")

// Reader unpacks one stream, or several one after the other with padding in
// between, as the format allows.
type Reader struct {
	in      *counter
	most    int64
	flags   [2]byte // of the stream that is being read
	block   *lzma.Reader2
	start   int64 // where the block or the index begins
	data    int64 // where the block's data begins
	size    int64 // bytes of the block that were unpacked
	want    sizes // what the block's header says of it
	check   hash.Hash
	blocks  uint64    // of this stream
	records hash.Hash // over the sizes of this stream's blocks, in place of a list
	ended   bool      // a stream was read to its end
	err     error
}

// sizes are those of a block, packed without header and check; -1 is not said.
type sizes struct{ packed, unpacked int64 }

// counter counts the bytes that are read. It gives single ones cheaply, which
// is how lzma reads.
type counter struct {
	r *bufio.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// NewReader reads the first header of r. most is how many bytes of dictionary
// a block may ask for; one that wants more is ErrDictionary. A stream that ends
// too early is io.ErrUnexpectedEOF.
func NewReader(r io.Reader, most int64) (*Reader, error) {
	b, ok := r.(*bufio.Reader)
	if !ok {
		b = bufio.NewReaderSize(r, 64<<10)
	}
	z := &Reader{in: &counter{r: b}, most: most}
	if err := z.stream(); err != nil {
		return nil, early(err)
	}
	return z, nil
}

// early makes an end that is none an error.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("damaged xz stream: "+format, args...)
}

// Read unpacks. An error other than io.EOF is final.
func (z *Reader) Read(p []byte) (int, error) {
	for len(p) > 0 && z.err == nil {
		if z.block == nil {
			z.err = z.next()
			continue
		}
		n, err := z.block.Read(p)
		z.size += int64(n)
		_, _ = z.check.Write(p[:n])
		switch {
		case err == io.EOF:
			z.err = early(z.endBlock())
		case err != nil:
			z.err = early(err)
		case z.want.unpacked >= 0 && z.size > z.want.unpacked:
			z.err = damaged("a block is larger than it says")
		}
		if n > 0 {
			return n, nil
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, z.err
}

// stream reads the header of a stream, or io.EOF.
func (z *Reader) stream() error {
	var h [headerLen]byte
	for {
		if _, err := io.ReadFull(z.in, h[:4]); err != nil {
			return err
		}
		if !z.ended || [4]byte(h[:4]) != [4]byte{} {
			break
		}
		// Padding after a stream: zeros, four at a time.
	}
	if _, err := io.ReadFull(z.in, h[4:]); err != nil {
		return early(err)
	}
	if string(h[:6]) != Magic || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return damaged("its header")
	}
	if z.flags = [2]byte(h[6:8]); z.flags[0] != 0 {
		return damaged("its flags")
	}
	switch z.flags[1] {
	case checkNone, checkCRC32, checkCRC64, checkSHA:
	default:
		return fmt.Errorf("xz stream with an unknown check (%d)", z.flags[1])
	}
	z.blocks, z.records = 0, sha256.New()
	return nil
}

var ecma = crc64.MakeTable(crc64.ECMA)

// none is the hash of streams without checks.
type none struct{}

func (none) Write(p []byte) (int, error) { return len(p), nil }
func (none) Sum(b []byte) []byte         { return b }
func (none) Reset()                      {}
func (none) Size() int                   { return 0 }
func (none) BlockSize() int              { return 1 }

func (z *Reader) newCheck() hash.Hash {
	switch z.flags[1] {
	case checkCRC32:
		return crc32.NewIEEE()
	case checkCRC64:
		return crc64.New(ecma)
	case checkSHA:
		return sha256.New()
	}
	return none{}
}

// next begins the next block or stream, or gives io.EOF.
func (z *Reader) next() error {
	z.start = z.in.n
	size, err := z.in.ReadByte()
	if err != nil {
		return early(err)
	}
	if size == 0 {
		if err := z.index(); err != nil {
			return early(err)
		}
		return z.stream()
	}
	var room [maxHeader]byte
	h := room[:(int(size)+1)*4]
	h[0] = size
	if _, err := io.ReadFull(z.in, h[1:]); err != nil {
		return early(err)
	}
	end := len(h) - 4
	if crc32.ChecksumIEEE(h[:end]) != binary.LittleEndian.Uint32(h[end:]) {
		return damaged("a block's header")
	}
	dict, want, err := readBlockHeader(h[1:end])
	if err != nil {
		return err
	}
	if dict > z.most {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrDictionary, dict, z.most)
	}
	z.want, z.size, z.check, z.data = want, 0, z.newCheck(), z.in.n
	// lzma reads its first chunk here already, and keeps what went wrong.
	z.block, err = lzma.Reader2Config{DictCap: int(max(dict, lzma.MinDictCap))}.NewReader2(z.in)
	return early(err)
}

// readBlockHeader reads what stands between a block's length and its checksum.
func readBlockHeader(h []byte) (dict int64, want sizes, err error) {
	r := bytes.NewReader(h)
	flags, _ := r.ReadByte()
	if flags&0x3f != 0 { // reserved, or more than one filter
		return 0, want, errors.New("xz stream with filters other than LZMA2")
	}
	want = sizes{-1, -1}
	if flags&0x40 != 0 {
		if want.packed, err = readSize(r); err != nil {
			return 0, want, err
		}
	}
	if flags&0x80 != 0 {
		if want.unpacked, err = readSize(r); err != nil {
			return 0, want, err
		}
	}
	var filter [3]byte
	if _, err := io.ReadFull(r, filter[:]); err != nil {
		return 0, want, damaged("a block's header is too short")
	}
	if filter[0] != filterXZ || filter[1] != 1 {
		return 0, want, errors.New("xz stream with filters other than LZMA2")
	}
	if dict, err = lzma.DecodeDictCap(filter[2]); err != nil {
		return 0, want, damaged("a block's dictionary")
	}
	for r.Len() > 0 {
		if b, _ := r.ReadByte(); b != 0 {
			return 0, want, damaged("a block's padding")
		}
	}
	return dict, want, nil
}

// readSize reads a number of the format's: seven bits a byte, lowest first.
func readSize(r io.ByteReader) (int64, error) {
	var v uint64
	for i := range maxVarint {
		b, err := r.ReadByte()
		if err != nil {
			return 0, early(err)
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			if b == 0 && i > 0 {
				break
			}
			return int64(v), nil // 63 bits at most
		}
	}
	return 0, damaged("a number")
}

// endBlock checks what follows a block's data and notes its sizes for the index.
func (z *Reader) endBlock() error {
	z.block = nil
	packed := z.in.n - z.data
	if z.want.packed >= 0 && packed != z.want.packed || z.want.unpacked >= 0 && z.size != z.want.unpacked {
		return damaged("a block has not the size that it says")
	}
	if err := z.padding(packed); err != nil {
		return err
	}
	got := make([]byte, z.check.Size())
	if _, err := io.ReadFull(z.in, got); err != nil {
		return early(err)
	}
	sum := z.check.Sum(nil)
	if z.flags[1] != checkSHA {
		slices.Reverse(sum) // the checksums lie with their lowest byte first
	}
	if !bytes.Equal(got, sum) {
		return damaged("a block's check")
	}
	z.blocks++
	z.note(z.data-z.start+packed+int64(len(got)), z.size)
	return nil
}

// padding reads the zeros that fill n bytes up to a multiple of four.
func (z *Reader) padding(n int64) error {
	for ; n%4 != 0; n++ {
		b, err := z.in.ReadByte()
		if err != nil {
			return early(err)
		}
		if b != 0 {
			return damaged("its padding")
		}
	}
	return nil
}

// note adds the sizes of a block, padding left out, to those of the stream.
func (z *Reader) note(unpadded, unpacked int64) { writePair(z.records, unpadded, unpacked) }

func writePair(h hash.Hash, a, b int64) {
	var pair [16]byte
	binary.LittleEndian.PutUint64(pair[:8], uint64(a))
	binary.LittleEndian.PutUint64(pair[8:], uint64(b))
	_, _ = h.Write(pair[:])
}

// summed is a reader of single bytes that computes their checksum.
type summed struct {
	in  *counter
	sum hash.Hash32
}

func (s *summed) ReadByte() (byte, error) {
	b, err := s.in.ReadByte()
	if err == nil {
		_, _ = s.sum.Write([]byte{b})
	}
	return b, err
}

// index reads the end of a stream: a list of its blocks, and the footer. The
// list is compared by its hash, so that many blocks take no memory.
func (z *Reader) index() error {
	in := &summed{z.in, crc32.NewIEEE()}
	_, _ = in.sum.Write([]byte{0}) // which told that it is the index
	count, err := readSize(in)
	if err != nil {
		return err
	}
	if uint64(count) != z.blocks {
		return damaged("it has %d blocks and says %d", z.blocks, count)
	}
	listed := sha256.New()
	for range count {
		unpadded, err := readSize(in)
		if err != nil {
			return err
		}
		unpacked, err := readSize(in)
		if err != nil {
			return err
		}
		writePair(listed, unpadded, unpacked)
	}
	if !bytes.Equal(listed.Sum(nil), z.records.Sum(nil)) {
		return damaged("its index")
	}
	for (z.in.n-z.start)%4 != 0 {
		if b, err := in.ReadByte(); err != nil {
			return err
		} else if b != 0 {
			return damaged("its padding")
		}
	}
	length := z.in.n - z.start + 4
	var f [4 + headerLen]byte // the index's checksum, then the footer
	if _, err := io.ReadFull(z.in, f[:]); err != nil {
		return err
	}
	le := binary.LittleEndian
	switch {
	case le.Uint32(f[:]) != in.sum.Sum32():
		return damaged("its index")
	case string(f[14:]) != "YZ", le.Uint32(f[4:]) != crc32.ChecksumIEEE(f[8:14]), (int64(le.Uint32(f[8:]))+1)*4 != length, [2]byte(f[12:14]) != z.flags:
		return damaged("its footer")
	}
	z.ended = true
	return nil
}
