package machine

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"
)

// tinyModule is an ELF file with a .modinfo section.
func tinyModule(depends string) []byte {
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	h.Shoff = uint64(64 + len(info) + len(names))
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(info)), Size: uint64(len(names))},
	}
	var b bytes.Buffer
	for _, part := range []any{h, []byte(info), []byte(names), sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func modulesDir(t *testing.T, builtin string, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(builtin), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		path := filepath.Join(dir, "kernel", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestModulesInOrder(t *testing.T) {
	var gz, xzb bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(tinyModule("virtio,virtio_ring"))
	g.Close()
	x, err := xz.NewWriter(&xzb)
	if err != nil {
		t.Fatal(err)
	}
	x.Write(tinyModule("virtio_ring"))
	x.Close()
	files := map[string][]byte{
		"drivers/char/virtio-rng.ko":   tinyModule("virtio,rng-core"),
		"drivers/virtio/virtio.ko.xz":  xzb.Bytes(),
		"drivers/virtio/ring.ko":       tinyModule(""),
		"drivers/virtio_ring.ko":       tinyModule(""),
		"drivers/net/virtio_net.ko.gz": gz.Bytes(),
		"unwanted.ko":                  tinyModule("nothing"),
	}
	dir := modulesDir(t, "kernel/drivers/char/hw_random/rng-core.ko\nkernel/fs/ext4/ext4.ko\n", files)
	modules, err := loadModules(dir, []string{"virtio_net", "ext4", "virtio-rng", "virtio_net"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range modules {
		names = append(names, m.Name)
		if !bytes.HasPrefix(m.Data, []byte(elf.ELFMAG)) {
			t.Errorf("%s is still packed", m.Name)
		}
	}
	if want := []string{"virtio_ring", "virtio", "virtio_net", "virtio_rng"}; !slices.Equal(names, want) {
		t.Errorf("order %v, not %v", names, want)
	}

	if _, err := loadModules(dir, []string{"erofs"}); !errdefs.IsNotFound(err) {
		t.Errorf("a module that is nowhere: %v", err)
	}
	if _, err := loadModules(dir, []string{"unwanted"}); err == nil || !strings.Contains(err.Error(), "nothing, which unwanted needs") {
		t.Errorf("a dependency that is nowhere: %v", err)
	}
	loop := modulesDir(t, "", map[string][]byte{"a.ko": tinyModule("b"), "b.ko": tinyModule("a")})
	if _, err := loadModules(loop, []string{"a"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("modules that need each other: %v", err)
	}
}

func TestInitramfs(t *testing.T) {
	modules := []Module{{"virtio_ring", []byte("ring")}, {"virtio", []byte("bus")}}
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := writeInitramfs(b, []byte("the agent"), modules); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("two archives of the same input differ")
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(first.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range records {
		if r.MTime != 0 || r.UID != 0 || r.GID != 0 {
			t.Errorf("%s carries time or owner: %+v", r.Name, r.Info)
		}
		line := fmt.Sprintf("%06o %d,%d %s", r.Mode, r.Rmajor, r.Rminor, r.Name)
		if r.FileSize > 0 {
			data := make([]byte, r.FileSize)
			if _, err := r.ReadAt(data, 0); err != nil {
				t.Fatal(err)
			}
			line += " " + string(data)
		}
		got = append(got, line)
	}
	golden(t, "initramfs.golden", strings.Join(got, "\n")+"\n")
}
