package erofs

import (
	"bytes"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Image reads an index that Write made. It is safe for concurrent use if its
// reader is. Damage is ErrDataLoss; it never makes Image read without bounds.
type Image struct {
	r       io.ReaderAt
	root    uint64
	blocks  uint64
	devices []Device
}

// Info is one inode as it was read.
type Info struct {
	Inode
	NID   uint64 // its address, the inode number that stat(2) shows
	Nlink uint32

	layout uint16
	union  uint32
	size   uint64
	body   int64 // byte offset of what lies behind the attributes
}

// Dirent is one entry of a directory.
type Dirent struct {
	Name string
	NID  uint64
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("damaged image index: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrDataLoss)
}

// Open reads the superblock and the device table.
func Open(r io.ReaderAt) (*Image, error) {
	b := make([]byte, BlockSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, damaged("cannot read block 0: %v", err)
	}
	s := b[superOffset:]
	if le.Uint32(s) != magic {
		return nil, damaged("no EROFS superblock")
	}
	sum := le.Uint32(s[4:])
	le.PutUint32(s[4:], 0)
	if sum != checksum(b) {
		return nil, damaged("the superblock's checksum does not match")
	}
	if s[12] != blockBits || le.Uint32(s[80:])&^incompatUnderstood != 0 || le.Uint32(s[40:]) != 0 {
		return nil, damaged("not made by this program")
	}
	im := &Image{r: r, root: uint64(le.Uint16(s[14:])), blocks: uint64(le.Uint32(s[36:]))}
	count, slot := int(le.Uint16(s[86:])), int64(le.Uint16(s[88:]))*devSlotSize
	table := make([]byte, count*devSlotSize)
	if _, err := r.ReadAt(table, slot); err != nil && count > 0 {
		return nil, damaged("cannot read the device table: %v", err)
	}
	for ; len(table) > 0; table = table[devSlotSize:] {
		tag, _, _ := bytes.Cut(table[:64], []byte{0})
		im.devices = append(im.devices, Device{Tag: string(tag), Blocks: le.Uint32(table[64:])})
	}
	return im, nil
}

// Devices are the files that hold the contents, in the order of their numbers.
func (im *Image) Devices() []Device { return im.devices }

// Root reads the root directory's inode.
func (im *Image) Root() (*Info, error) { return im.Inode(im.root) }

// Inode reads one inode, without a directory's children.
func (im *Image) Inode(nid uint64) (*Info, error) {
	if nid >= im.blocks*(BlockSize/slotSize) {
		return nil, damaged("no inode at %d", nid)
	}
	var b [inodeSize]byte
	pos := int64(nid) * slotSize
	if _, err := im.r.ReadAt(b[:], pos); err != nil {
		return nil, damaged("cannot read inode %d: %v", nid, err)
	}
	format := le.Uint16(b[0:])
	if format&1 == 0 {
		return nil, damaged("inode %d is not of the extended form", nid)
	}
	in := &Info{NID: nid, layout: format >> 1 & 7, size: le.Uint64(b[8:]), union: le.Uint32(b[16:]), Nlink: le.Uint32(b[44:])}
	in.Mode = uint32(le.Uint16(b[4:]))
	in.UID, in.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
	in.Sec, in.Nsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
	in.body = pos + inodeSize
	if n := int64(le.Uint16(b[2:])); n > 0 {
		area := 12 + (n-1)*4
		if err := im.xattrs(in, area); err != nil {
			return nil, err
		}
		in.body += area
	}
	var err error
	switch in.Mode & TypeMask {
	case TypeRegular:
		in.Size = in.size
		err = im.extents(in)
	case TypeSymlink:
		if in.size == 0 || in.size > maxTarget {
			return nil, damaged("inode %d is a symlink of %d bytes", nid, in.size)
		}
		var target []byte
		target, err = im.content(in, 0, int(in.size))
		in.Target = string(target)
	case TypeChar, TypeBlock:
		in.Major, in.Minor = decodeDev(in.union)
	case TypeDir, TypeFifo, TypeSocket:
	default:
		err = damaged("inode %d has mode %#o", nid, in.Mode)
	}
	if err != nil {
		return nil, err
	}
	return in, nil
}

// xattrs reads the extended attributes of an inode.
func (im *Image) xattrs(in *Info, area int64) error {
	b := make([]byte, area)
	if _, err := im.r.ReadAt(b, in.body); err != nil {
		return damaged("cannot read the attributes of inode %d: %v", in.NID, err)
	}
	for b = b[12:]; len(b) > 0; {
		if len(b) < 4 {
			return damaged("attributes of inode %d are cut off", in.NID)
		}
		nameLen, valueLen := int(b[0]), int(le.Uint16(b[2:]))
		size := int(align(uint64(4+nameLen+valueLen), 4))
		if size > len(b) {
			return damaged("attributes of inode %d are cut off", in.NID)
		}
		name, ok := joinXattr(b[1], string(b[4:4+nameLen]))
		if !ok {
			return damaged("inode %d has an unknown attribute", in.NID)
		}
		in.Xattrs = append(in.Xattrs, Xattr{Name: name, Value: string(b[4+nameLen : 4+nameLen+valueLen])})
		b = b[size:]
	}
	return nil
}

// extents reads the chunk addresses of a regular file.
func (im *Image) extents(in *Info) error {
	if in.Size == 0 {
		return nil
	}
	if in.layout != layoutChunked || in.union&^(chunkBitsMask|chunkIndexes) != 0 || in.union&chunkIndexes == 0 {
		return damaged("file %d is not stored in chunks", in.NID)
	}
	per := uint64(1) << (in.union & chunkBitsMask)
	total := ceilDiv(in.Size, BlockSize)
	chunks := ceilDiv(total, per)
	at := int64(align(uint64(in.body), chunkSize))
	if chunks > im.blocks*(BlockSize/chunkSize) {
		return damaged("file %d has %d chunks", in.NID, chunks)
	}
	buf := make([]byte, BlockSize)
	for i := uint64(0); i < chunks; {
		n := min(chunks-i, BlockSize/chunkSize)
		if _, err := im.r.ReadAt(buf[:n*chunkSize], at); err != nil {
			return damaged("cannot read the chunks of file %d: %v", in.NID, err)
		}
		at += int64(n * chunkSize)
		for b := buf[:n*chunkSize]; len(b) > 0; b = b[chunkSize:] {
			e := Extent{Start: i * per, Blocks: min(per, total-i*per), Device: le.Uint16(b[2:]), Block: le.Uint32(b[4:])}
			i++
			if e.Block == nullBlock {
				continue
			}
			if e.Device == 0 || int(e.Device) > len(im.devices) || uint64(e.Block)+e.Blocks > uint64(im.devices[e.Device-1].Blocks) {
				return damaged("file %d has a chunk at block %d of device %d", in.NID, e.Block, e.Device)
			}
			if k := len(in.Extents) - 1; k >= 0 {
				if l := &in.Extents[k]; l.Device == e.Device && l.Start+l.Blocks == e.Start && uint64(l.Block)+l.Blocks == uint64(e.Block) {
					l.Blocks += e.Blocks
					continue
				}
			}
			in.Extents = append(in.Extents, e)
		}
	}
	return nil
}

// content reads n bytes at off of a directory or symlink target; the range
// must not cross a block boundary.
func (im *Image) content(in *Info, off uint64, n int) ([]byte, error) {
	var at int64
	switch {
	case in.layout == layoutInline && off/BlockSize == (in.size-1)/BlockSize:
		at = in.body + int64(off%BlockSize)
	case in.layout == layoutInline || in.layout == layoutPlain:
		at = int64(in.union)*BlockSize + int64(off)
	default:
		return nil, damaged("inode %d has layout %d", in.NID, in.layout)
	}
	b := make([]byte, n)
	if _, err := im.r.ReadAt(b, at); err != nil {
		return nil, damaged("cannot read inode %d: %v", in.NID, err)
	}
	return b, nil
}

// ReadDir calls f with every entry of a directory but "." and "..", in the
// order of their names, and stops at the first error.
func (im *Image) ReadDir(in *Info, f func(Dirent) error) error {
	if !in.IsDir() {
		return damaged("inode %d is no directory", in.NID)
	}
	if in.size == 0 || in.size > im.blocks*BlockSize {
		return damaged("directory %d has %d bytes", in.NID, in.size)
	}
	last := ""
	for off := uint64(0); off < in.size; off += BlockSize {
		b, err := im.content(in, off, int(min(in.size-off, BlockSize)))
		if err != nil {
			return err
		}
		if len(b) < direntSize {
			return damaged("directory %d is cut off", in.NID)
		}
		names := int(le.Uint16(b[8:]))
		if names < direntSize || names%direntSize != 0 || names >= len(b) {
			return damaged("directory %d has names at %d", in.NID, names)
		}
		for i := 0; i < names; i += direntSize {
			from, to := int(le.Uint16(b[i+8:])), len(b)
			if i+direntSize < names {
				to = int(le.Uint16(b[i+direntSize+8:]))
			}
			if from < names || to > len(b) || from >= to {
				return damaged("directory %d has a name at %d", in.NID, from)
			}
			raw, _, _ := bytes.Cut(b[from:to], []byte{0})
			name := string(raw)
			if name <= last {
				return damaged("directory %d is not sorted", in.NID)
			}
			last = name
			if name == "." || name == ".." {
				continue
			}
			if !ValidName(name) {
				return damaged("directory %d has an entry %q", in.NID, name)
			}
			if err := f(Dirent{Name: name, NID: le.Uint64(b[i:])}); err != nil {
				return err
			}
		}
	}
	return nil
}
