package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"

	"github.com/containerd/errdefs"
)

// One disk for an image: its files, unchanged and where they lie, are the
// partitions of one virtual disk. A VMDK descriptor joins a partition table
// made here with the files as flat extents; nothing is copied. So the number
// of layers is not bounded by a machine's device slots (24 on a microvm), and
// a guest probes one device instead of sixty.
//
//	sector 0        1       2            2048         ...            end-33     end-1
//	| protective MBR | header | entries | file 1 | file 2 | ... | entries | header |
//	|<-------------- head ------------->|                       |<----- tail ----->|
//
// Layout: UEFI 2.10, chapter 5. Linux gives a disk at most 255 partitions
// (DISK_MAX_PARTS); more files make more disks.
const (
	sector         = 512
	gptEntry       = 128
	headBytes      = 1 << 20 // so that partitions start as aligned as the files are
	maxPartitions  = 255
	gptHeaderBytes = 92
)

// oneDisk is a virtual disk of whole files.
type oneDisk struct {
	head, tail []byte
	sizes      []int64 // of the files, in bytes
}

// layoutDisk makes the partition table for files of these sizes.
func layoutDisk(sizes []int64) (*oneDisk, error) {
	if len(sizes) == 0 || len(sizes) > maxPartitions {
		return nil, fmt.Errorf("cannot lay out a disk: %w: %d files, 1 to %d are possible", errdefs.ErrInvalidArgument, len(sizes), maxPartitions)
	}
	// The table has room for 128 entries, as everywhere, or for all.
	count := max(128, len(sizes))
	entries := make([]byte, (count*gptEntry+sector-1)/sector*sector)
	at := int64(headBytes / sector)
	for i, size := range sizes {
		if size <= 0 || size%sector != 0 {
			return nil, fmt.Errorf("cannot lay out a disk: %w: file %d has %d bytes, no multiple of %d", errdefs.ErrInvalidArgument, i, size, sector)
		}
		e := entries[i*gptEntry:]
		copy(e, linuxData[:])
		unique := guid("partition", i)
		copy(e[16:], unique[:])
		binary.LittleEndian.PutUint64(e[32:], uint64(at))
		at += size / sector
		binary.LittleEndian.PutUint64(e[40:], uint64(at-1))
		for j, u := range utf16.Encode([]rune(fmt.Sprintf("proa-%d", i))) {
			binary.LittleEndian.PutUint16(e[56+2*j:], u)
		}
	}
	table := int64(len(entries) / sector)
	tail := make([]byte, (len(entries)+sector+4095)/4096*4096)
	last := at + int64(len(tail)/sector) - 1 // the backup header's sector
	usable := last - table - 1

	header := func(mine, other, where int64) []byte {
		h := make([]byte, sector)
		copy(h, "EFI PART")
		binary.LittleEndian.PutUint32(h[8:], 0x10000)
		binary.LittleEndian.PutUint32(h[12:], gptHeaderBytes)
		binary.LittleEndian.PutUint64(h[24:], uint64(mine))
		binary.LittleEndian.PutUint64(h[32:], uint64(other))
		binary.LittleEndian.PutUint64(h[40:], uint64(2+table))
		binary.LittleEndian.PutUint64(h[48:], uint64(usable))
		disk := guid("disk", len(sizes))
		copy(h[56:], disk[:])
		binary.LittleEndian.PutUint64(h[72:], uint64(where))
		binary.LittleEndian.PutUint32(h[80:], uint32(count))
		binary.LittleEndian.PutUint32(h[84:], gptEntry)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries[:count*gptEntry]))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeaderBytes]))
		return h
	}

	head := make([]byte, headBytes)
	mbr := head[446:]
	copy(mbr, []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(mbr[8:], 1)
	binary.LittleEndian.PutUint32(mbr[12:], uint32(min(last, 0xffffffff)))
	copy(head[510:], []byte{0x55, 0xaa})
	copy(head[sector:], header(1, last, 2))
	copy(head[2*sector:], entries)

	copy(tail[len(tail)-sector:], header(last, 1, last-table))
	copy(tail[len(tail)-sector-len(entries):], entries)
	return &oneDisk{head: head, tail: tail, sizes: sizes}, nil
}

// descriptor is the VMDK text that joins the parts, each named by paths in order:
// head, files, tail.
func (d *oneDisk) descriptor(paths []string) []byte {
	var b bytes.Buffer
	b.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n" +
		"createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n")
	sizes := append(append([]int64{int64(len(d.head))}, d.sizes...), int64(len(d.tail)))
	for i, size := range sizes {
		fmt.Fprintf(&b, "RW %d FLAT \"%s\" 0\n", size/sector, strings.ReplaceAll(paths[i], `"`, ""))
	}
	b.WriteString("\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"1\"\n" +
		"ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n")
	return b.Bytes()
}

// linuxData is the partition type 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
var linuxData = [16]byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}

// guid is a version 8 UUID that is the same for the same words.
func guid(kind string, n int) (g [16]byte) {
	sum := sha256.Sum256(fmt.Appendf(nil, "proa %s %d", kind, n))
	copy(g[:], sum[:])
	g[7] = g[7]&0x0f | 0x80 // version, in the third field, little endian
	g[8] = g[8]&0x3f | 0x80
	return g
}
