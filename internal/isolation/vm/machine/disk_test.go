package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func TestOneDiskLayout(t *testing.T) {
	for _, count := range []int{1, 3, 128, 129, 255} {
		var sizes []int64
		for i := range count {
			sizes = append(sizes, int64(i%7+1)*4096)
		}
		d, err := layoutDisk(sizes)
		if err != nil {
			t.Fatal(err)
		}
		disk := bytes.Clone(d.head)
		for i, size := range sizes {
			disk = append(disk, bytes.Repeat([]byte{byte(i + 1)}, int(size))...)
		}
		disk = append(disk, d.tail...)
		last := len(disk)/sector - 1
		for _, at := range []int{1, last} {
			h := bytes.Clone(disk[at*sector : at*sector+gptHeaderBytes])
			sum := binary.LittleEndian.Uint32(h[16:])
			copy(h[16:], make([]byte, 4))
			if string(h[:8]) != "EFI PART" || crc32.ChecksumIEEE(h) != sum {
				t.Fatalf("%d files: the header at sector %d is damaged", count, at)
			}
			if mine, other := binary.LittleEndian.Uint64(h[24:]), binary.LittleEndian.Uint64(h[32:]); int(mine) != at || int(other) != last+1-at {
				t.Errorf("%d files: the header at %d says %d and %d", count, at, mine, other)
			}
			entries := disk[binary.LittleEndian.Uint64(h[72:])*sector:]
			n := int(binary.LittleEndian.Uint32(h[80:]))
			if crc32.ChecksumIEEE(entries[:n*gptEntry]) != binary.LittleEndian.Uint32(h[88:]) {
				t.Errorf("%d files: the entries of the header at %d are damaged", count, at)
			}
			for i, size := range sizes {
				first := binary.LittleEndian.Uint64(entries[i*gptEntry+32:])
				end := binary.LittleEndian.Uint64(entries[i*gptEntry+40:])
				part := disk[first*sector : (end+1)*sector]
				if int64(len(part)) != size || part[0] != byte(i+1) || part[len(part)-1] != byte(i+1) || first%8 != 0 {
					t.Fatalf("%d files: partition %d is not its file", count, i)
				}
			}
		}
		// Another implementation's opinion.
		file := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(file, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		if sfdisk, err := lookSbin("sfdisk"); err == nil {
			out, err := exec.Command(sfdisk, "--verify", file).CombinedOutput()
			if err != nil || strings.Contains(string(out), "corrupt") {
				t.Errorf("%d files: sfdisk: %v\n%s", count, err, out)
			}
		}
	}
	for _, sizes := range [][]int64{nil, {0}, {100}, make([]int64, 256)} {
		if _, err := layoutDisk(sizes); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d files of %v bytes: %v", len(sizes), sizes, err)
		}
	}
}

func TestDescriptorText(t *testing.T) {
	d, err := layoutDisk([]int64{8192, 4096})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "vmdk.golden", string(d.descriptor([]string{"/dev/fdset/5", "/dev/fdset/3", "/dev/fdset/4", "/dev/fdset/6"})))
}

func TestWritableDisk(t *testing.T) {
	if _, err := lookSbin("mkfs.ext4"); err != nil {
		t.Fatal(err)
	}
	cache, home := t.TempDir(), t.TempDir()
	path := filepath.Join(home, WritableDisk)
	ctx := context.Background()
	for _, size := range []int64{minDisk, DefaultDisk} {
		f, err := openWritable(ctx, cache, path, size)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != size || used > 1<<20 {
			t.Errorf("a disk of %d MiB has %d bytes and takes %d KiB", size>>20, info.Size(), used>>10)
		}
		fsck, err := lookSbin("e2fsck")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(fsck, "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
		if _, err := f.WriteAt([]byte("kept"), 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if f, err = openWritable(ctx, cache, path, minDisk); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 4)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "kept" {
			t.Errorf("opened again it holds %q (%v)", b, err)
		}
		f.Close()
		os.Remove(path)
	}
	if _, err := openWritable(ctx, cache, path, 1<<20); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a disk of 1 MiB: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, ".new*"))
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	// A symbolic link in the container's directory leads nowhere.
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	if f, err := openWritable(ctx, cache, path, minDisk); err == nil {
		f.Close()
		t.Error("a symbolic link was followed")
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	source, target := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	f, err := os.Create(source)
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range []int64{0, 3 << 20, 100<<20 + 17} {
		if _, err := f.WriteAt(fmt.Appendf(nil, "part %d", i), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(200 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := copySparse(target, source); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cmp", source, target).CombinedOutput(); err != nil {
		t.Errorf("the copy differs: %s", out)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(target, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("the copy takes %d KiB (%v)", st.Blocks/2, err)
	}
}
