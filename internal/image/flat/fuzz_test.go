package flat

import (
	"archive/tar"
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"proa/internal/image/erofs"
)

// FuzzTree gives the tree decoder damaged trees with right checksums. What it
// accepts must merge without a panic.
func FuzzTree(f *testing.F) {
	b := tarBytes(f, dirm("d").xattr("user.a", "1"), reg("d/x", "some text"), hard("y", "d/x"), reg("d/.wh.z", ""), reg("d/.wh..wh..opq", ""),
		hard("low", "er/file"), sym("s", "d/../t"), reg("s/below", "x"), node(tar.TypeChar, "c", 1, 3), node(tar.TypeFifo, "p", 0, 0), reg("holes", strings.Repeat("\x00", 1<<17)+"x"))
	l, err := Write(f.Context(), bytes.NewReader(b), f.TempDir(), Limits{})
	must(f, err)
	tree, err := os.ReadFile(l.Tree())
	must(f, err)
	for at := headerSize; at < len(tree); at += 7 {
		f.Add(tree, at, byte(at))
	}
	f.Fuzz(func(t *testing.T, b []byte, at int, with byte) {
		b = bytes.Clone(b)
		if at >= 0 && at < len(b) {
			b[at] = with
		}
		if len(b) >= headerSize {
			le.PutUint64(b[72:], uint64(len(b)-headerSize))
			le.PutUint32(b[80:], crc32.Checksum(b[headerSize:], castagnoli))
			le.PutUint32(b[headerSize-4:], crc32.Checksum(b[:headerSize-4], castagnoli))
		}
		l, root, err := decodeTree(b, 1)
		if err != nil {
			if !errdefs.IsDataLoss(err) {
				t.Fatalf("not called damaged: %v", err)
			}
			return
		}
		m := &merger{root: impliedDir()}
		for range 2 {
			if err := m.apply(root); err != nil && !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
		}
		if err := erofs.Write(io.Discard, m.root, []erofs.Device{{Blocks: uint32(l.Blocks)}}); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatal(err)
		}
	})
}

// FuzzWrite gives Write arbitrary streams. A refusal leaves nothing behind,
// and what is accepted reads back and stays inside its directory.
func FuzzWrite(f *testing.F) {
	f.Add(tarBytes(f, dirm("d").xattr("user.a", "1"), reg("d/x", "some text"), hard("y", "d/x"), sym("s", "d"), reg("s/below", "x"), reg(".wh.gone", "")))
	f.Add(tarBytes(f, reg("../x", "x"), sym("a", "/"), reg("a/etc/passwd", "x")))
	f.Add(tarBytes(f, node(tar.TypeChar, "c", 0, 0), hard("h", "../../x")))
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = mendChecksums(b)
		top, err := os.MkdirTemp(base, "flat-fuzz-")
		must(t, err)
		defer os.RemoveAll(top)
		dir := filepath.Join(top, "layers")
		must(t, os.Mkdir(dir, 0o700))
		l, err := Write(t.Context(), bytes.NewReader(b), dir, Limits{Bytes: 1 << 20, Entries: 1000, Depth: 100})
		if err != nil {
			nothingLeft(t, err.Error(), dir)
		} else {
			if _, err := ReadLayer(l.Dir); err != nil {
				t.Fatal(err)
			}
			if err := Merge([]*Layer{l}, filepath.Join(l.Dir, "index")); err != nil && !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
		}
		if all, _ := os.ReadDir(top); len(all) != 1 {
			t.Fatalf("written outside: %v", all)
		}
	})
}

// mendChecksums gives every block that looks like a tar header the right
// checksum, so that mutations get past it.
func mendChecksums(b []byte) []byte {
	b = bytes.Clone(b)
	for h := b; len(h) >= 512; h = h[512:] {
		if string(h[257:262]) != "ustar" {
			continue
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h[:512] {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	}
	return b
}
