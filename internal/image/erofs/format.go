// Package erofs owns the EROFS on-disk format, as far as image indexes need
// it: it writes a tree of inodes as a read-only file system whose file
// contents lie in other files (devices), and reads such a file system back.
// It never reads or writes contents, never mounts, and knows no layers.
//
// An index is one file of 4 KiB blocks:
//
//	block 0..     superblock at byte 1024, device table behind it
//	then          inodes, each with its extended attributes and what belongs
//	              to it: chunk addresses, a short symlink target, the last
//	              part of a directory
//	then          whole blocks of large directories and of symlink targets
//	              that do not fit behind their inode
//
// Every inode has the extended (64 byte) form: 32-bit owners and link counts
// and nanosecond times. A regular file is chunk-based: equal chunks of a power
// of two of blocks, each with a device number and a block address there, or a
// hole. Everything used here is understood by Linux 5.16 and later; the layout
// is described in the kernel's fs/erofs/erofs_fs.h and
// Documentation/filesystems/erofs.rst.
package erofs

import (
	"strings"
)

// BlockSize is the block size of every index, in bytes.
const BlockSize = 1 << blockBits

const (
	blockBits   = 12
	superOffset = 1024
	superSize   = 128
	magic       = 0xe0f5e1e2
	inodeSize   = 64 // extended form
	slotSize    = 32 // a nid counts these
	devSlotSize = 128
	direntSize  = 12
	chunkSize   = 8 // struct erofs_inode_chunk_index
	nullBlock   = 0xffffffff

	maxName       = 255
	maxTarget     = 4095 // PATH_MAX without its NUL
	maxXattrValue = 65535
	maxXattrArea  = 12 + 4*(65535-1)
	maxChunkBits  = 31
	maxDevices    = 65534
)

// Feature bits of the superblock.
const (
	compatChecksum     = 0x1
	compatMtime        = 0x2
	incompatChunked    = 0x4
	incompatDevices    = 0x8
	incompatUnderstood = incompatChunked | incompatDevices
)

// Data layouts of an inode, and the flag in a chunk format that says that
// addresses come with device numbers.
const (
	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4

	chunkBitsMask = 0x1f
	chunkIndexes  = 0x20
)

// Types of Inode.Mode, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeRegular = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFifo    = 0o010000
)

// direntTypes are the file types of directory entries.
var direntTypes = map[uint32]byte{
	TypeRegular: 1, TypeDir: 2, TypeChar: 3, TypeBlock: 4, TypeFifo: 5, TypeSocket: 6, TypeSymlink: 7,
}

// Inode is one file. Pointers are its identity: an inode that is found under
// several names is one file with as many hard links. Only the fields of its
// type count.
type Inode struct {
	Mode     uint32 // type and permissions, as in stat(2)
	UID, GID uint32
	Sec      int64 // modification time
	Nsec     uint32
	Xattrs   []Xattr

	Size         uint64            // regular file
	Extents      []Extent          // regular file
	Target       string            // symlink
	Major, Minor uint32            // character and block device
	Children     map[string]*Inode // directory
}

// IsDir says whether the inode is a directory.
func (i *Inode) IsDir() bool { return i.Mode&TypeMask == TypeDir }

// Xattr is one extended attribute with its full name.
type Xattr struct {
	Name, Value string
}

// Extent maps Blocks blocks of a file, from block Start of the file on, to
// those from Block on of a device. What no extent maps is a hole. Extents are
// in ascending order and do not overlap; the last one may reach over the end
// of the file by a part of a block.
type Extent struct {
	Start  uint64
	Blocks uint64
	Block  uint32
	Device uint16 // 1 is the first device
}

// Device is one file that holds contents.
type Device struct {
	// Tag is an identity of up to 64 bytes, for whoever inspects the index.
	Tag string
	// Blocks is the device's length in blocks.
	Blocks uint32
}

// xattrPrefixes are the attribute name prefixes that the format knows, longest
// match first. The two access control lists are whole names.
var xattrPrefixes = []struct {
	prefix string
	index  byte
	whole  bool
}{
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"user.", 1, false},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// KnownXattr says whether the format can hold an attribute of that name: one
// of user., trusted., security., or an access control list.
func KnownXattr(name string) bool {
	_, _, ok := splitXattr(name)
	return ok
}

func splitXattr(name string) (index byte, suffix string, ok bool) {
	for _, p := range xattrPrefixes {
		if p.whole {
			if name == p.prefix {
				return p.index, "", true
			}
			continue
		}
		if rest, found := strings.CutPrefix(name, p.prefix); found {
			return p.index, rest, rest != "" && len(rest) <= maxName && !strings.Contains(rest, "\x00")
		}
	}
	return 0, "", false
}

func joinXattr(index byte, suffix string) (string, bool) {
	for _, p := range xattrPrefixes {
		if p.index == index {
			return p.prefix + suffix, !p.whole || suffix == ""
		}
	}
	return "", false
}

// ValidName says whether a directory entry may have this name.
func ValidName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}

// encodeDev is the kernel's new_encode_dev.
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func decodeDev(d uint32) (major, minor uint32) {
	return d >> 8 & 0xfff, d&0xff | d>>12&0xfff00
}

func align(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }

func ceilDiv(n, unit uint64) uint64 {
	if n == 0 {
		return 0
	}
	return (n-1)/unit + 1
}
