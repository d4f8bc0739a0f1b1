package flat

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"strings"

	"proa/internal/image/erofs"
)

// decodeTree reads a whole tree file. The extents of the inodes get the device
// number device. What it returns satisfies everything that Write promises of a
// tree, whatever the bytes were; its memory is bounded by a multiple of theirs.
func decodeTree(b []byte, device uint16) (l *Layer, root *entry, err error) {
	l, body, sum, err := decodeHeader(b)
	if err != nil {
		return nil, nil, err
	}
	b = b[headerSize:]
	if uint64(len(b)) != body || crc32.Checksum(b, castagnoli) != sum {
		return nil, nil, damaged("the checksum of its tree does not match")
	}
	d := &decoder{s: string(b), blocks: l.Blocks, device: device}
	root = d.entry(0)
	if d.err == nil && len(d.s) > 0 {
		d.fail("there is something behind the tree")
	}
	if d.err == nil && root.dir == nil {
		d.fail("its root is no directory")
	}
	if d.err != nil {
		return nil, nil, d.err
	}
	return l, root, nil
}

// decoder takes a tree apart from the front. After an error it returns zeros.
type decoder struct {
	s      string // what is left; every string of the tree is a part of it
	blocks uint64
	device uint16
	files  []*erofs.Inode
	err    error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = damaged(format, args...)
	}
	d.s = ""
}

func (d *decoder) num(most uint64) uint64 {
	n, size := binary.Uvarint([]byte(d.s[:min(len(d.s), binary.MaxVarintLen64)]))
	if size <= 0 || n > most {
		d.fail("a number is out of range")
		return 0
	}
	d.s = d.s[size:]
	return n
}

func (d *decoder) signed() int64 {
	n, size := binary.Varint([]byte(d.s[:min(len(d.s), binary.MaxVarintLen64)]))
	if size <= 0 {
		d.fail("a number is out of range")
		return 0
	}
	d.s = d.s[size:]
	return n
}

func (d *decoder) str() string {
	n := d.num(uint64(len(d.s)))
	if n > uint64(len(d.s)) {
		d.fail("a string is cut off")
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

func (d *decoder) byte() byte {
	if d.s == "" {
		d.fail("it ends early")
		return 0
	}
	c := d.s[0]
	d.s = d.s[1:]
	return c
}

// name reads a file name that sorts behind last.
func (d *decoder) name(last string) string {
	s := d.str()
	if d.err == nil && (!erofs.ValidName(s) || s <= last) {
		d.fail("%q is no name behind %q", s, last)
	}
	return s
}

// entry reads one entry behind its name.
func (d *decoder) entry(depth int) *entry {
	if depth > maxTreeDepth {
		d.fail("it is too deep")
	}
	n := &entry{}
	switch kind := d.byte(); kind {
	case kindImplied:
		n.dir = d.dir(depth)
	case kindDir:
		n.ino = d.inode()
		if !n.ino.IsDir() {
			d.fail("a directory has mode %#o", n.ino.Mode)
		}
		n.dir = d.dir(depth)
	case kindFile:
		n.ino = d.inode()
		if n.ino.IsDir() {
			d.fail("a file has mode %#o", n.ino.Mode)
		}
		d.files = append(d.files, n.ino)
	case kindHard:
		i := d.num(math.MaxInt32)
		if i >= uint64(len(d.files)) {
			d.fail("a hard link names file %d of %d", i, len(d.files))
			break
		}
		n.ino = d.files[i]
	case kindLower:
		n.link = d.str()
		if _, err := splitPath(n.link); err != nil || n.link == "" {
			d.fail("a hard link names %q", n.link)
		}
	default:
		d.fail("kind %d", kind)
	}
	return n
}

func (d *decoder) dir(depth int) *dirent {
	out := &dirent{}
	flags := d.byte()
	if flags&^flagOpaque != 0 {
		d.fail("flags %#x", flags)
	}
	out.opaque = flags&flagOpaque != 0
	// Each whiteout takes at least two bytes, each entry three: counts cannot
	// make the maps larger than a multiple of what is there.
	if n := d.num(uint64(len(d.s) / 2)); n > 0 {
		out.whiteouts = make(map[string]struct{}, n)
		for last := ""; n > 0 && d.err == nil; n-- {
			last = d.name(last)
			out.whiteouts[last] = struct{}{}
		}
	}
	out.marked = out.opaque || len(out.whiteouts) > 0
	n := d.num(uint64(len(d.s) / 3))
	out.kids = make(map[string]*entry, n)
	for last := ""; n > 0 && d.err == nil; n-- {
		last = d.name(last)
		kid := d.entry(depth + 1)
		out.kids[last] = kid
		out.marked = out.marked || kid.dir != nil && kid.dir.marked
		out.entries = out.entries || kid.ino != nil || kid.dir == nil || kid.dir.entries
	}
	return out
}

func (d *decoder) inode() *erofs.Inode {
	i := &erofs.Inode{
		Mode: uint32(d.num(0o177777)),
		UID:  uint32(d.num(math.MaxUint32)),
		GID:  uint32(d.num(math.MaxUint32)),
		Sec:  d.signed(),
		Nsec: uint32(d.num(999999999)),
	}
	for n := d.num(uint64(len(d.s) / 2)); n > 0 && d.err == nil; n-- {
		x := erofs.Xattr{Name: d.str(), Value: d.str()}
		if len(i.Xattrs) > 0 && x.Name <= i.Xattrs[len(i.Xattrs)-1].Name || !erofs.KnownXattr(x.Name) {
			d.fail("extended attribute %q", x.Name)
		}
		i.Xattrs = append(i.Xattrs, x)
	}
	i.Xattrs = slices.Clip(i.Xattrs)
	switch i.Mode & erofs.TypeMask {
	case erofs.TypeRegular:
		i.Size = d.num(math.MaxInt64)
		d.extents(i)
	case erofs.TypeSymlink:
		if i.Target = d.str(); i.Target == "" || len(i.Target) > maxTarget || strings.Contains(i.Target, "\x00") {
			d.fail("a symlink to %q", i.Target)
		}
	case erofs.TypeChar, erofs.TypeBlock:
		i.Major = uint32(d.num(0xfff))
		i.Minor = uint32(d.num(0xfffff))
	case erofs.TypeDir, erofs.TypeFifo:
	default:
		d.fail("mode %#o", i.Mode)
	}
	return i
}

func (d *decoder) extents(i *erofs.Inode) {
	total := (i.Size + BlockSize - 1) / BlockSize
	end := uint64(0)
	for n := d.num(uint64(len(d.s) / 3)); n > 0 && d.err == nil; n-- {
		gap, blocks, block := d.num(math.MaxUint32), d.num(math.MaxUint32), d.num(math.MaxUint32)
		x := erofs.Extent{Start: end + gap, Blocks: blocks, Block: uint32(block), Device: d.device}
		end = x.Start + x.Blocks
		if blocks == 0 || end > total || block+blocks > d.blocks {
			d.fail("a file of %d blocks has %+v", total, x)
			return
		}
		i.Extents = append(i.Extents, x)
	}
	i.Extents = slices.Clip(i.Extents)
}
