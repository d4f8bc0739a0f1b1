package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/bits"
	"slices"

	"github.com/containerd/errdefs"
)

var le = binary.LittleEndian

// Write writes the tree below root as an EROFS image without contents to w.
// Extents name devices by their place in devices, beginning with 1. Equal
// trees give equal bytes. A tree that the format cannot hold is
// ErrInvalidArgument; then what w has got is of no use.
func Write(w io.Writer, root *Inode, devices []Device) error {
	if !root.IsDir() {
		return fmt.Errorf("cannot write an image index: its root is no directory: %w", errdefs.ErrInvalidArgument)
	}
	if len(devices) > maxDevices {
		return fmt.Errorf("cannot write an image index over %d layers, at most %d: %w", len(devices), maxDevices, errdefs.ErrInvalidArgument)
	}
	p := &plan{placed: map[*Inode]*place{}, devices: devices}
	p.end = align(superOffset+superSize+uint64(len(devices))*devSlotSize, BlockSize)
	if err := p.add(root, nil); err != nil {
		return err
	}
	p.inodesEnd = align(p.end, BlockSize)
	blocks := p.inodesEnd / BlockSize
	for _, pl := range p.order {
		pl.block = blocks
		blocks += pl.outside
	}
	if blocks >= math.MaxUint32 {
		return fmt.Errorf("cannot write an image index of %d blocks: %w", blocks, errdefs.ErrInvalidArgument)
	}

	out := &sink{w: bufio.NewWriterSize(w, 256<<10)}
	out.write(p.super(uint32(blocks)))
	var buf []byte
	for _, pl := range p.order {
		out.pad(pl.pos)
		buf = p.inode(buf[:0], pl)
		out.write(buf)
	}
	out.pad(p.inodesEnd)
	for _, pl := range p.order {
		if pl.outside == 0 {
			continue
		}
		out.write(p.outside(pl))
		out.pad((pl.block + pl.outside) * BlockSize)
	}
	if out.err != nil {
		return fmt.Errorf("cannot write an image index: %w", out.err)
	}
	if err := out.w.Flush(); err != nil {
		return fmt.Errorf("cannot write an image index: %w", err)
	}
	return nil
}

// plan decides where everything goes before anything is written, because
// directories hold the addresses of inodes that follow them.
type plan struct {
	devices   []Device
	placed    map[*Inode]*place
	order     []*place
	end       uint64 // byte behind the last inode
	inodesEnd uint64
}

// place is where one inode goes.
type place struct {
	ino    *Inode
	parent *place // of a directory
	names  []string
	nlink  uint32
	xattrs []byte // encoded, with its header; empty if there are none
	layout uint16
	chunk  int    // chunk size of a regular file: 1<<chunk blocks
	size   uint64 // i_size
	inline uint64 // bytes of directory or target behind the inode
	pos    uint64 // byte offset of the inode

	outside uint64 // blocks of directory or target elsewhere
	block   uint64 // the first of them
}

func (pl *place) nid() uint64 { return pl.pos / slotSize }

// add places ino, and everything below it, behind what is placed already.
func (p *plan) add(ino *Inode, parent *place) error {
	if pl := p.placed[ino]; pl != nil {
		if ino.IsDir() {
			return fmt.Errorf("cannot write an image index: a directory has two names: %w", errdefs.ErrInvalidArgument)
		}
		pl.nlink++
		return nil
	}
	pl := &place{ino: ino, nlink: 1, parent: parent}
	if err := p.measure(pl); err != nil {
		return err
	}
	p.settle(pl)
	p.placed[ino] = pl
	p.order = append(p.order, pl)
	if !ino.IsDir() {
		return nil
	}
	if parent == nil {
		pl.parent = pl
	}
	pl.nlink = 2
	for _, name := range pl.names {
		child := ino.Children[name]
		if child == nil {
			return fmt.Errorf("cannot write an image index: %q has no inode: %w", name, errdefs.ErrInvalidArgument)
		}
		if err := p.add(child, pl); err != nil {
			return err
		}
		if child.IsDir() {
			pl.nlink++
		}
	}
	return nil
}

// measure finds out how the inode is stored and how much room it takes.
func (p *plan) measure(pl *place) (err error) {
	ino := pl.ino
	if pl.xattrs, err = encodeXattrs(ino.Xattrs); err != nil {
		return err
	}
	switch ino.Mode & TypeMask {
	case TypeRegular:
		pl.size = ino.Size
		return p.measureFile(pl)
	case TypeSymlink:
		if ino.Target == "" || len(ino.Target) > maxTarget {
			return fmt.Errorf("cannot store a symlink target of %d bytes: %w", len(ino.Target), errdefs.ErrInvalidArgument)
		}
		pl.size = uint64(len(ino.Target))
	case TypeDir:
		pl.names = make([]string, 0, len(ino.Children))
		for name := range ino.Children {
			if !ValidName(name) {
				return fmt.Errorf("cannot store a file named %q: %w", name, errdefs.ErrInvalidArgument)
			}
			pl.names = append(pl.names, name)
		}
		slices.Sort(pl.names)
		pl.size = dirSize(pl.names)
	case TypeChar, TypeBlock:
		if ino.Major > 0xfff || ino.Minor > 0xfffff {
			return fmt.Errorf("cannot store device number %d:%d: %w", ino.Major, ino.Minor, errdefs.ErrInvalidArgument)
		}
	case TypeFifo, TypeSocket:
	default:
		return fmt.Errorf("cannot store a file of mode %#o: %w", ino.Mode, errdefs.ErrInvalidArgument)
	}
	// Directories and targets: the last part goes behind the inode if both fit
	// into one block, because neither may cross a block boundary there.
	tail := pl.size % BlockSize
	if tail > 0 && inodeSize+uint64(len(pl.xattrs))+tail <= BlockSize {
		pl.layout, pl.inline, pl.outside = layoutInline, tail, pl.size/BlockSize
	} else {
		pl.layout, pl.outside = layoutPlain, ceilDiv(pl.size, BlockSize)
	}
	return nil
}

// measureFile checks the extents of a regular file and picks the largest chunk
// size that expresses them: a file without holes is one chunk.
func (p *plan) measureFile(pl *place) error {
	ino := pl.ino
	if ino.Size == 0 {
		pl.layout = layoutPlain
		return nil
	}
	total := ceilDiv(ino.Size, BlockSize)
	if total > 1<<maxChunkBits {
		return fmt.Errorf("cannot store a file of %d bytes: %w", ino.Size, errdefs.ErrInvalidArgument)
	}
	pl.layout = layoutChunked
	var bounds, next uint64 // every file block where something else begins, or'ed
	for i, e := range ino.Extents {
		if e.Device == 0 || int(e.Device) > len(p.devices) || e.Blocks == 0 || e.Start < next || e.Blocks > total || e.Start > total-e.Blocks ||
			uint64(e.Block)+e.Blocks > uint64(p.devices[e.Device-1].Blocks) {
			return fmt.Errorf("cannot store a file whose extent %d is %+v: %w", i, e, errdefs.ErrInvalidArgument)
		}
		next = e.Start + e.Blocks
		bounds |= e.Start
		if next != total {
			bounds |= next
		}
	}
	if bounds == 0 {
		pl.chunk = bits.Len64(total - 1)
	} else {
		pl.chunk = bits.TrailingZeros64(bounds)
	}
	pl.inline = 0
	return nil
}

// settle gives the inode its place.
func (p *plan) settle(pl *place) {
	pos := align(p.end, slotSize)
	head := inodeSize + uint64(len(pl.xattrs))
	whole := uint64(inodeSize) // what must not cross a block boundary
	if pl.inline > 0 {
		whole = head + pl.inline
	}
	if pos/BlockSize != (pos+whole-1)/BlockSize {
		pos = align(pos, BlockSize)
	}
	pl.pos = pos
	p.end = pos + head + pl.inline
	if pl.layout == layoutChunked {
		p.end = align(p.end, chunkSize) + chunkSize*pl.chunks()
	}
}

func (pl *place) chunks() uint64 {
	return ceilDiv(ceilDiv(pl.size, BlockSize), 1<<pl.chunk)
}

// super returns everything in front of the first inode.
func (p *plan) super(blocks uint32) []byte {
	b := make([]byte, align(superOffset+superSize+uint64(len(p.devices))*devSlotSize, BlockSize))
	s := b[superOffset:]
	le.PutUint32(s[0:], magic)
	le.PutUint32(s[8:], compatChecksum|compatMtime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(p.order[0].nid()))
	le.PutUint64(s[16:], uint64(len(p.order)))
	le.PutUint32(s[36:], blocks)
	incompat := uint32(incompatChunked)
	if len(p.devices) > 0 {
		incompat |= incompatDevices
		le.PutUint16(s[86:], uint16(len(p.devices)))
		le.PutUint16(s[88:], (superOffset+superSize)/devSlotSize)
	}
	le.PutUint32(s[80:], incompat)
	for i, d := range p.devices {
		slot := s[superSize+i*devSlotSize:][:devSlotSize]
		copy(slot[:64], d.Tag)
		le.PutUint32(slot[64:], d.Blocks)
	}
	le.PutUint32(s[4:], checksum(b))
	return b
}

// checksum is the superblock's: CRC-32C of the rest of block 0 without the
// final inversion that Go does.
func checksum(block []byte) uint32 {
	return ^crc32.Checksum(block[superOffset:BlockSize], crc32.MakeTable(crc32.Castagnoli))
}

// inode appends the inode, its attributes and what lies directly behind it.
func (p *plan) inode(b []byte, pl *place) []byte {
	ino := pl.ino
	union := uint32(0)
	switch {
	case pl.layout == layoutChunked:
		union = chunkIndexes | uint32(pl.chunk)
	case ino.Mode&TypeMask == TypeChar, ino.Mode&TypeMask == TypeBlock:
		union = encodeDev(ino.Major, ino.Minor)
	case pl.outside > 0:
		union = uint32(pl.block)
	}
	xattrCount := 0
	if len(pl.xattrs) > 0 {
		xattrCount = (len(pl.xattrs)-12)/4 + 1
	}
	b = le.AppendUint16(b, 1|pl.layout<<1)
	b = le.AppendUint16(b, uint16(xattrCount))
	b = le.AppendUint16(b, uint16(ino.Mode))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, pl.size)
	b = le.AppendUint32(b, union)
	b = le.AppendUint32(b, uint32(pl.nid()))
	b = le.AppendUint32(b, ino.UID)
	b = le.AppendUint32(b, ino.GID)
	b = le.AppendUint64(b, uint64(ino.Sec))
	b = le.AppendUint32(b, ino.Nsec)
	b = le.AppendUint32(b, pl.nlink)
	b = append(b, make([]byte, 16)...)
	b = append(b, pl.xattrs...)

	switch {
	case pl.layout == layoutChunked:
		for (pl.pos+uint64(len(b)))%chunkSize != 0 {
			b = append(b, 0)
		}
		b = pl.appendChunks(b)
	case pl.inline > 0 && ino.IsDir():
		blocks := p.dirBlocks(pl)
		b = append(b, blocks[pl.outside*BlockSize:]...)
	case pl.inline > 0:
		b = append(b, ino.Target...)
	}
	return b
}

// appendChunks appends the addresses of all chunks of a regular file.
func (pl *place) appendChunks(b []byte) []byte {
	ext := pl.ino.Extents
	for i := range pl.chunks() {
		at := i << pl.chunk
		for len(ext) > 0 && at >= ext[0].Start+ext[0].Blocks {
			ext = ext[1:]
		}
		if len(ext) == 0 || at < ext[0].Start {
			b = le.AppendUint32(b, 0)
			b = le.AppendUint32(b, nullBlock)
			continue
		}
		b = le.AppendUint16(b, 0)
		b = le.AppendUint16(b, ext[0].Device)
		b = le.AppendUint32(b, ext[0].Block+uint32(at-ext[0].Start))
	}
	return b
}

// outside returns the part of a directory or target that has blocks of its own.
func (p *plan) outside(pl *place) []byte {
	if !pl.ino.IsDir() {
		return []byte(pl.ino.Target)
	}
	blocks := p.dirBlocks(pl)
	return blocks[:min(uint64(len(blocks)), pl.outside*BlockSize)]
}

// encodeXattrs returns the inline attribute area of an inode.
func encodeXattrs(xattrs []Xattr) ([]byte, error) {
	if len(xattrs) == 0 {
		return nil, nil
	}
	xattrs = slices.Clone(xattrs)
	slices.SortFunc(xattrs, func(a, b Xattr) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	b := make([]byte, 12)
	for _, x := range xattrs {
		index, suffix, ok := splitXattr(x.Name)
		if !ok {
			return nil, fmt.Errorf("cannot store the extended attribute %q: %w", x.Name, errdefs.ErrInvalidArgument)
		}
		if len(x.Value) > maxXattrValue {
			return nil, fmt.Errorf("cannot store the extended attribute %q of %d bytes, at most %d: %w", x.Name, len(x.Value), maxXattrValue, errdefs.ErrInvalidArgument)
		}
		b = append(b, byte(len(suffix)), index)
		b = le.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, suffix...)
		b = append(b, x.Value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		if len(b) > maxXattrArea {
			return nil, fmt.Errorf("cannot store more than %d bytes of extended attributes for one file: %w", maxXattrArea, errdefs.ErrInvalidArgument)
		}
	}
	return b, nil
}

// sink counts what was written and remembers the first error.
type sink struct {
	w   *bufio.Writer
	n   uint64
	err error
}

func (s *sink) write(b []byte) {
	if s.err != nil {
		return
	}
	n, err := s.w.Write(b)
	s.n += uint64(n)
	s.err = err
}

// pad writes zeros up to offset to.
func (s *sink) pad(to uint64) {
	var zero [BlockSize]byte
	for s.err == nil && s.n < to {
		s.write(zero[:min(to-s.n, BlockSize)])
	}
}
