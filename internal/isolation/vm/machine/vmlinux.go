package machine

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// maxKernel bounds what a compressed kernel may unpack to. Distribution
// kernels unpack to 30-70 MiB.
const maxKernel = 512 << 20

// extractVmlinux returns the uncompressed ELF kernel inside a Linux/x86 boot
// image (Documentation/arch/x86/boot.rst, protocol 2.08 and later), or the
// image itself where it is ELF already. QEMU boots it at its PVH entry, which
// saves the guest from unpacking itself: 3 s under emulation.
func extractVmlinux(image []byte) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return image, checkPVH(image)
	}
	payload, err := bzPayload(image)
	if err != nil {
		return nil, err
	}
	kernel, err := decompress(payload)
	if err != nil {
		return nil, fmt.Errorf("cannot decompress the kernel: %w", err)
	}
	return kernel, checkPVH(kernel)
}

// bzPayload finds the compressed kernel by the setup header.
func bzPayload(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1
		magic         = 0x202
		version       = 0x206
		payloadOffset = 0x248
		payloadLength = 0x24c
		headerEnd     = 0x250
	)
	if len(image) < headerEnd || string(image[magic:magic+4]) != "HdrS" {
		return nil, fmt.Errorf("cannot read the kernel image: %w: neither ELF nor a Linux/x86 boot image", errdefs.ErrInvalidArgument)
	}
	if v := binary.LittleEndian.Uint16(image[version:]); v < 0x208 {
		return nil, fmt.Errorf("cannot read the kernel image: %w: boot protocol %d.%02d has no payload, 2.08 is needed", errdefs.ErrInvalidArgument, v>>8, v&0xff)
	}
	sectors := int64(image[setupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if start >= end || end > int64(len(image)) {
		return nil, fmt.Errorf("cannot read the kernel image: %w: its payload lies outside the file", errdefs.ErrInvalidArgument)
	}
	return image[start:end], nil
}

// Magic numbers of the compressions that kernel images and modules use.
var (
	magicGzip = []byte{0x1f, 0x8b}
	magicXz   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicLz4  = []byte{0x02, 0x21, 0x4c, 0x18} // the "legacy" frame
)

// decompress unpacks a kernel image's payload or a module. The kernel's build
// appends the unpacked size as four little-endian bytes to every payload but
// gzip's, so whatever follows the compressed stream is not looked at.
func decompress(b []byte) ([]byte, error) {
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, magicGzip):
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		z.Multistream(false)
		r = z
	case bytes.HasPrefix(b, magicZstd):
		z, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderMaxMemory(maxKernel))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = &frameReader{z: z}
	case bytes.HasPrefix(b, magicXz):
		// The reader wants nothing behind the stream, which ends with "YZ".
		if end := len(b) - 4; end > 2 && string(b[len(b)-2:]) != "YZ" && string(b[end-2:end]) == "YZ" {
			b = b[:end]
		}
		z, err := xz.ReaderConfig{SingleStream: true}.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%w (an xz stream with a branch filter is not supported: unpack it with `xz -dc`)", err)
		}
		r = z
	case bytes.HasPrefix(b, magicLz4):
		return unpackLz4(b[len(magicLz4):])
	default:
		return nil, fmt.Errorf("%w: unknown compression (starts with %x)", errdefs.ErrNotImplemented, b[:min(len(b), 6)])
	}
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, maxKernel+1))
	if err != nil {
		return nil, err
	}
	if n > maxKernel {
		return nil, fmt.Errorf("%w: it unpacks to more than %d MiB", errdefs.ErrInvalidArgument, maxKernel>>20)
	}
	return out.Bytes(), nil
}

// frameReader ends where the first zstd frame did: the four bytes behind it
// are no frame, and the decoder says so after all data was given out.
type frameReader struct {
	z    *zstd.Decoder
	some bool
}

func (f *frameReader) Read(p []byte) (int, error) {
	n, err := f.z.Read(p)
	f.some = f.some || n > 0
	if err != nil && f.some && (errors.Is(err, zstd.ErrMagicMismatch) || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = io.EOF
	}
	return n, err
}

// unpackLz4 reads the blocks of a legacy LZ4 frame, each with its size before
// it and at most 8 MiB unpacked. The last four bytes of a kernel payload are
// no block but the unpacked size of all.
func unpackLz4(b []byte) ([]byte, error) {
	const maxBlock = 8 << 20
	var out []byte
	block := make([]byte, maxBlock)
	for len(b) > 4 {
		size := int64(binary.LittleEndian.Uint32(b))
		b = b[4:]
		if size == int64(binary.LittleEndian.Uint32(magicLz4)) { // a further frame
			continue
		}
		if size > int64(len(b)) {
			return nil, io.ErrUnexpectedEOF
		}
		n, err := lz4.UncompressBlock(b[:size], block)
		if err != nil {
			return nil, err
		}
		if len(out)+n > maxKernel {
			return nil, fmt.Errorf("%w: it unpacks to more than %d MiB", errdefs.ErrInvalidArgument, maxKernel>>20)
		}
		out = append(out, block[:n]...)
		b = b[size:]
	}
	if len(b) == 4 && int64(binary.LittleEndian.Uint32(b)) != int64(len(out)) {
		return nil, io.ErrUnexpectedEOF
	}
	return out, nil
}

// checkPVH makes sure that QEMU can boot the ELF kernel: an x86-64 executable
// with the note "Xen", XEN_ELFNOTE_PHYS32_ENTRY (18), which CONFIG_PVH adds.
func checkPVH(kernel []byte) error {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return fmt.Errorf("cannot read the kernel: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("cannot boot the kernel: %w: it is for %v, not for x86-64", errdefs.ErrInvalidArgument, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := io.ReadFull(p.Open(), notes); err != nil {
			return fmt.Errorf("cannot read the kernel's notes: %w", err)
		}
		if hasNote(notes, "Xen", 18) {
			return nil
		}
	}
	return fmt.Errorf("cannot boot the kernel: %w: it has no PVH entry (CONFIG_PVH)", errdefs.ErrInvalidArgument)
}

func hasNote(b []byte, name string, kind uint32) bool {
	align := func(n uint64) uint64 { return (n + 3) &^ 3 }
	for len(b) >= 12 {
		nameSize := uint64(binary.LittleEndian.Uint32(b))
		descSize := uint64(binary.LittleEndian.Uint32(b[4:]))
		k := binary.LittleEndian.Uint32(b[8:])
		b = b[12:]
		if align(nameSize)+align(descSize) > uint64(len(b)) || nameSize == 0 {
			return false
		}
		if k == kind && string(b[:nameSize-1]) == name {
			return true
		}
		b = b[align(nameSize)+align(descSize):]
	}
	return false
}
