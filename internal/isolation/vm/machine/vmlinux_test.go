package machine

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// tinyKernel is an ELF file with a PVH note and nothing to run.
func tinyKernel(machine elf.Machine, noteType uint32) []byte {
	var b bytes.Buffer
	note := make([]byte, 12)
	binary.LittleEndian.PutUint32(note, 4)
	binary.LittleEndian.PutUint32(note[4:], 8)
	binary.LittleEndian.PutUint32(note[8:], noteType)
	note = append(note, "Xen\x00\x00\x00\x00\x01\x00\x00\x00\x00"...)
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	p := elf.Prog64{Type: uint32(elf.PT_NOTE), Off: 120, Filesz: uint64(len(note)), Memsz: uint64(len(note)), Align: 4}
	for _, part := range []any{h, p, note, bytes.Repeat([]byte("kernel text "), 1<<10)} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

// bzImage wraps a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	const sectors, offset = 3, 100
	image := make([]byte, (sectors+1)*512+offset)
	image[0x1f1] = sectors
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(image[0x248:], offset)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(append(image, payload...), "what follows"...)
}

func packed(t *testing.T, kernel []byte) map[string][]byte {
	t.Helper()
	size := binary.LittleEndian.AppendUint32(nil, uint32(len(kernel)))
	var gz, xzb bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(kernel)
	g.Close()
	x, err := xz.NewWriter(&xzb)
	if err != nil {
		t.Fatal(err)
	}
	x.Write(kernel)
	x.Close()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, lz4.CompressBlockBound(len(kernel)))
	n, err := lz4.CompressBlock(kernel, block, nil)
	if err != nil {
		t.Fatal(err)
	}
	legacy := append(bytes.Clone(magicLz4), binary.LittleEndian.AppendUint32(nil, uint32(n))...)
	return map[string][]byte{
		"gzip": gz.Bytes(),
		"xz":   append(xzb.Bytes(), size...),
		"zstd": append(z.EncodeAll(kernel, nil), size...),
		"lz4":  append(append(legacy, block[:n]...), size...),
	}
}

func TestExtractVmlinux(t *testing.T) {
	kernel := tinyKernel(elf.EM_X86_64, 18)
	for name, payload := range packed(t, kernel) {
		got, err := extractVmlinux(bzImage(payload))
		if err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(kernel), err)
		}
		if _, err := extractVmlinux(bzImage(payload[:len(payload)/2])); err == nil {
			t.Errorf("%s: half a payload was accepted", name)
		}
	}
	if got, err := extractVmlinux(kernel); err != nil || !bytes.Equal(got, kernel) {
		t.Errorf("an uncompressed kernel: %v", err)
	}
	for what, image := range map[string][]byte{
		"no PVH entry":        tinyKernel(elf.EM_X86_64, 1),
		"not for x86-64":      tinyKernel(elf.EM_AARCH64, 18),
		"neither ELF nor":     []byte("MZ"),
		"lies outside":        bzImage(nil)[:2100],
		"unknown compression": bzImage([]byte("BZh91AY&SY")),
		"boot protocol 2.01":  func() []byte { b := bzImage([]byte("x")); b[0x206] = 1; b[0x207] = 2; return b }(),
	} {
		if _, err := extractVmlinux(image); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("wanted %q, got %v", what, err)
		}
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	f.Add(tinyKernel(elf.EM_X86_64, 18))
	f.Add(bzImage([]byte{0x02, 0x21, 0x4c, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}))
	f.Fuzz(func(t *testing.T, image []byte) {
		kernel, err := extractVmlinux(image)
		if err == nil && checkPVH(kernel) != nil {
			t.Error("accepted a kernel without an entry")
		}
	})
}

func TestFindKernel(t *testing.T) {
	var none *NoKernelError
	empty := t.TempDir()
	if _, err := FindKernel("", empty); !errors.As(err, &none) || !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "scripts/guest-kernel "+empty) {
		t.Errorf("no kernel: %v", err)
	}
	dir := t.TempDir()
	for _, release := range []string{"6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "5.10.0-99-amd64"} {
		if err := os.MkdirAll(filepath.Join(dir, "usr/lib/modules", release), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "boot/vmlinuz-"+release), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k, err := FindKernel(empty, dir)
	if err != nil || k.Release != "6.1.0-56-cloud-amd64" || k.Modules != filepath.Join(dir, "usr/lib/modules/6.1.0-56-cloud-amd64") {
		t.Errorf("%+v %v", k, err)
	}
}
