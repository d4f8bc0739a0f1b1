package flat

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"proa/internal/image/erofs"
)

// A tree file holds one layer's entries. It is
//
//	header    96 bytes, little endian:
//	          magic "PROAFLT1", SHA-256 of the stream (the diffID), then as
//	          64-bit numbers: stream length, sum of file sizes, data blocks,
//	          entries, body length; as 32-bit numbers: CRC-32C of the body,
//	          CRC-32C of the 92 bytes before
//	body      the root's entry without its name; numbers are varints (times
//	          zigzag), strings have their length in front
//
//	entry     name, kind, then by kind
//	          0 implied directory   directory
//	          1 directory           inode, directory
//	          2 file                inode; counted from 0 in order of appearance
//	          3 hard link           number of an inode of kind 2 above
//	          4 lower hard link     path of a file of a lower layer
//	directory flags (1: opaque), whiteouts (count, names), entries (count, entries);
//	          names in ascending order
//	inode     mode, uid, gid, seconds, nanoseconds, xattrs (count, name and value each),
//	          regular file: size, extents (count; each: blocks of hole before it,
//	          blocks, first block in the data file); symlink: target; device: major, minor
//
// Equal layers have equal tree files.
const (
	treeMagic  = "PROAFLT1"
	headerSize = 96
)

const (
	kindImplied = iota
	kindDir
	kindFile
	kindHard
	kindLower
)

const flagOpaque = 1

// maxTreeDepth bounds the recursion of everything that walks trees. Write
// accepts no deeper paths, whatever its limits say.
const maxTreeDepth = 4096

// entry is one name in a layer. A directory that the tar stream did not name,
// but that a path went through, has no inode: it is implied. A hard link to a
// file that is not in the layer has link instead of an inode.
type entry struct {
	ino  *erofs.Inode
	link string
	dir  *dirent
}

// dirent is what a layer says about one directory.
type dirent struct {
	opaque    bool
	marked    bool // it or a directory below has whiteouts or is opaque; set by decodeTree
	entries   bool // it or a directory below has entries that are not implied; set by decodeTree
	whiteouts map[string]struct{}
	kids      map[string]*entry
}

func newDir() *entry { return &entry{dir: &dirent{kids: map[string]*entry{}}} }

// sortedKeys returns the names in a map in the order of their bytes.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// encoder appends the body of a tree file.
type encoder struct {
	b       []byte
	numbers map[*erofs.Inode]uint64
	entries int
	size    int64
}

func (e *encoder) num(n uint64) { e.b = binary.AppendUvarint(e.b, n) }
func (e *encoder) str(s string) { e.num(uint64(len(s))); e.b = append(e.b, s...) }

func (e *encoder) entry(n *entry) {
	e.entries++
	switch {
	case n.dir != nil && n.ino == nil:
		e.b = append(e.b, kindImplied)
		e.dir(n.dir)
	case n.dir != nil:
		e.b = append(e.b, kindDir)
		e.inode(n.ino)
		e.dir(n.dir)
	case n.ino == nil:
		e.b = append(e.b, kindLower)
		e.str(n.link)
	default:
		if i, ok := e.numbers[n.ino]; ok {
			e.b = append(e.b, kindHard)
			e.num(i)
			return
		}
		e.numbers[n.ino] = uint64(len(e.numbers))
		e.b = append(e.b, kindFile)
		e.inode(n.ino)
		e.size += int64(n.ino.Size)
	}
}

func (e *encoder) dir(d *dirent) {
	var flags byte
	if d.opaque {
		flags |= flagOpaque
	}
	e.b = append(e.b, flags)
	e.num(uint64(len(d.whiteouts)))
	for _, name := range sortedKeys(d.whiteouts) {
		e.str(name)
		e.entries++
	}
	e.num(uint64(len(d.kids)))
	for _, name := range sortedKeys(d.kids) {
		e.str(name)
		e.entry(d.kids[name])
	}
}

func (e *encoder) inode(i *erofs.Inode) {
	e.num(uint64(i.Mode))
	e.num(uint64(i.UID))
	e.num(uint64(i.GID))
	e.b = binary.AppendVarint(e.b, i.Sec)
	e.num(uint64(i.Nsec))
	e.num(uint64(len(i.Xattrs)))
	for _, x := range i.Xattrs {
		e.str(x.Name)
		e.str(x.Value)
	}
	switch i.Mode & erofs.TypeMask {
	case erofs.TypeRegular:
		e.num(i.Size)
		e.num(uint64(len(i.Extents)))
		end := uint64(0)
		for _, x := range i.Extents {
			e.num(x.Start - end)
			e.num(x.Blocks)
			e.num(uint64(x.Block))
			end = x.Start + x.Blocks
		}
	case erofs.TypeSymlink:
		e.str(i.Target)
	case erofs.TypeChar, erofs.TypeBlock:
		e.num(uint64(i.Major))
		e.num(uint64(i.Minor))
	}
}

// encodeTree returns the tree file of a layer and fills in what it counted.
func encodeTree(l *Layer, root *entry) ([]byte, error) {
	sum, err := hexBytes(l.DiffID)
	if err != nil {
		return nil, err
	}
	e := &encoder{b: make([]byte, headerSize, 64<<10), numbers: map[*erofs.Inode]uint64{}}
	e.entry(root)
	l.Entries, l.Size = e.entries, e.size
	h := e.b[:0]
	h = append(h, treeMagic...)
	h = append(h, sum...)
	h = le.AppendUint64(h, uint64(l.Stream))
	h = le.AppendUint64(h, uint64(l.Size))
	h = le.AppendUint64(h, l.Blocks)
	h = le.AppendUint64(h, uint64(l.Entries))
	h = le.AppendUint64(h, uint64(len(e.b)-headerSize))
	h = le.AppendUint32(h, crc32.Checksum(e.b[headerSize:], castagnoli))
	for len(h) < headerSize-4 {
		h = append(h, 0)
	}
	le.AppendUint32(h, crc32.Checksum(h, castagnoli))
	return e.b, nil
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("damaged layer: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrDataLoss)
}

// decodeHeader reads a tree file's header; body is the length and bodySum the
// checksum of what follows.
func decodeHeader(b []byte) (l *Layer, body uint64, bodySum uint32, err error) {
	if len(b) < headerSize || string(b[:8]) != treeMagic {
		return nil, 0, 0, damaged("no tree file")
	}
	if le.Uint32(b[headerSize-4:]) != crc32.Checksum(b[:headerSize-4], castagnoli) {
		return nil, 0, 0, damaged("the checksum of its header does not match")
	}
	l = &Layer{
		DiffID: digest.NewDigestFromBytes(digest.SHA256, b[8:40]),
		Stream: int64(le.Uint64(b[40:])),
		Size:   int64(le.Uint64(b[48:])),
		Blocks: le.Uint64(b[56:]),
	}
	entries := le.Uint64(b[64:])
	if l.Blocks == 0 || l.Blocks > math.MaxUint32 || entries > math.MaxInt32 || l.Size < 0 || l.Stream < 0 {
		return nil, 0, 0, damaged("its header makes no sense")
	}
	l.Entries = int(entries)
	return l, le.Uint64(b[72:]), le.Uint32(b[80:]), nil
}

// ReadLayer opens the flat layer in the directory dir, as Write left it. It is
// ErrNotFound when there is none and ErrDataLoss when its files are damaged.
// The tree itself is checked by Merge, which reads it.
func ReadLayer(dir string) (*Layer, error) {
	l, err := readLayer(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open flat layer %q: %w", dir, err)
	}
	return l, nil
}

func readLayer(dir string) (*Layer, error) {
	f, err := os.Open(filepath.Join(dir, treeName))
	if os.IsNotExist(err) {
		return nil, errdefs.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var h [headerSize]byte
	if _, err := io.ReadFull(f, h[:]); err != nil {
		return nil, damaged("%v", err)
	}
	l, body, _, err := decodeHeader(h[:])
	if err != nil {
		return nil, err
	}
	l.Dir = dir
	if st, err := f.Stat(); err != nil || uint64(st.Size()) != headerSize+body {
		return nil, damaged("its tree file has been cut off")
	}
	if st, err := os.Stat(l.Data()); err != nil || uint64(st.Size()) != l.Blocks*BlockSize {
		return nil, damaged("its data file is not %d blocks long", l.Blocks)
	}
	return l, nil
}

func hexBytes(d digest.Digest) ([]byte, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("not a SHA-256 digest: %q: %w", d, errdefs.ErrInvalidArgument)
	}
	b := make([]byte, 0, 32)
	for h := d.Encoded(); len(h) > 0; h = h[2:] {
		b = append(b, unhex(h[0])<<4|unhex(h[1]))
	}
	return b, nil
}

func unhex(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}
