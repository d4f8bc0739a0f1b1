// Package tarfs shows a tar archive as a file system that BuildKit can take as
// a build context. It owns the archive's index and a spool file with its
// contents. Paths of the archive are keys of a map and never paths of the host:
// nothing is extracted, so nothing can be written outside.
package tarfs

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"proa/internal/interrupt"
	"proa/internal/xz"
)

// Limits for what an archive may hold. An entry of 4 KiB can name 2,000
// directories with paths of 2 KiB on average, so that entries alone bound no
// memory (CWE-770).
const (
	maxEntries = 4_000_000 // directories that are only on the way among them
	maxWords   = 512 << 20 // bytes of paths, targets of links and attributes
	maxPath    = 4096
	maxWindow  = 128 << 20 // bytes of memory that a packed stream may ask for
)

// FS is the file system of one archive. It is safe for concurrent use.
type FS struct {
	spool *os.File
	root  *node
	sum   string // of the archive's bytes, unpacked
	count int
	words int // bytes
}

// take counts one node and its words.
func (f *FS) take(words int) error {
	f.count++
	f.words += words
	if f.count > maxEntries || f.words > maxWords {
		return fmt.Errorf("cannot read the build context: it has more than %d entries, or more than %d bytes of names and attributes", maxEntries, maxWords)
	}
	return nil
}

// node is one file of the archive.
type node struct {
	stat     *types.Stat
	children map[string]*node // of a directory
	offset   int64            // of a file's content in the spool
	size     int64
}

var _ fsutil.FS = (*FS)(nil)

// IsArchive tells whether head, the first 512 bytes or so of something, begins
// a tar archive, packed or not.
func IsArchive(head []byte) bool {
	return packing(head) != none || isTar(head)
}

// isTar knows a tar header by its mark, or, where it is so old that it has
// none, by its checksum.
func isTar(head []byte) bool {
	if len(head) < 512 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(head[:512])).Next()
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

type packed int

const (
	none packed = iota
	gz
	bz
	xzip
	zst
)

func packing(head []byte) packed {
	for p, magic := range map[packed]string{gz: "\x1f\x8b\x08", bz: "BZh", xzip: xz.Magic, zst: "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return p
		}
	}
	return none
}

func unpack(r *bufio.Reader) (io.Reader, error) {
	head, _ := r.Peek(6)
	switch packing(head) {
	case gz:
		return gzip.NewReader(r)
	case bz:
		return bzip2.NewReader(r), nil
	case xzip:
		return xz.NewReader(r, maxWindow)
	case zst:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return r, nil
}

// Read takes a whole archive in, packed with gzip, bzip2, xz, zstd or not at
// all. Contents are spooled to a file below dir that has no name. An archive
// that cannot be read is an error; entries that a build has no use for
// (devices) are left out.
func Read(ctx context.Context, r io.Reader, dir string) (_ *FS, err error) {
	spool, err := os.CreateTemp(dir, "context-")
	if err != nil {
		return nil, fmt.Errorf("cannot keep the build context: %w", err)
	}
	_ = os.Remove(spool.Name())
	f := &FS{spool: spool, root: &node{children: map[string]*node{}, stat: &types.Stat{Mode: uint32(fs.ModeDir | 0o755)}}}
	defer func() {
		if err != nil {
			spool.Close()
		}
	}()
	src, err := unpack(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("cannot read the build context: %w", err)
	}
	out := bufio.NewWriterSize(spool, 256<<10)
	sum := sha256.New()
	src = io.TeeReader(src, sum)
	var at int64
	for t := tar.NewReader(src); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the build context: %w", err)
		}
		n, err := f.put(h)
		if err != nil {
			return nil, err
		}
		if n == nil || h.Typeflag == tar.TypeLink || !fs.FileMode(n.stat.Mode).IsRegular() {
			continue
		}
		if n.size, err = io.Copy(out, interrupt.Reader(ctx, t)); err != nil {
			return nil, fmt.Errorf("cannot read the build context: %q: %w", h.Name, err)
		}
		n.offset, n.stat.Size = at, n.size
		at += n.size
	}
	// What follows the archive's end is read, so that the sender can finish.
	if _, err := io.Copy(io.Discard, src); err != nil {
		return nil, fmt.Errorf("cannot read the build context: %w", err)
	}
	if err := out.Flush(); err != nil {
		return nil, fmt.Errorf("cannot keep the build context: %w", err)
	}
	f.sum = hex.EncodeToString(sum.Sum(nil))
	return f, nil
}

// KeyPrefix begins the SharedKey of every archive: what is kept under such a key
// has the same content whenever its metadata agrees.
const KeyPrefix = "tar:"

// SharedKey is the key under which a builder keeps the archive's files between
// builds: two archives share it only if all their bytes are the same. Without
// one, an archive would be compared by size and time with the files of another.
func (f *FS) SharedKey() string { return KeyPrefix + f.sum }

// clean makes a name of an archive relative and plain; "" is the root.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// put makes the node of one header; nil for what is left out.
func (f *FS) put(h *tar.Header) (*node, error) {
	name := clean(h.Name)
	if len(name) > maxPath || len(h.Linkname) > maxPath {
		return nil, fmt.Errorf("cannot read the build context: a path has more than %d characters", maxPath)
	}
	words := len(name) + len(h.Linkname)
	st := &types.Stat{Path: name, Mode: uint32(h.FileInfo().Mode()), ModTime: h.ModTime.UnixNano()}
	for k, v := range h.PAXRecords {
		if key, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if st.Xattrs == nil {
				st.Xattrs = map[string][]byte{}
			}
			st.Xattrs[key] = []byte(v)
			words += len(k) + len(v)
		}
	}
	if err := f.take(words); err != nil {
		return nil, err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if name == "" {
			return f.root, nil
		}
		if old := f.find(name); old != nil && old.children != nil {
			st.Path = name
			old.stat = st
			return old, nil
		}
		return f.add(name, &node{stat: st, children: map[string]*node{}})
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		return f.add(name, &node{stat: st})
	case tar.TypeSymlink:
		st.Linkname = h.Linkname
		st.Mode = uint32(fs.ModeSymlink | 0o777)
		return f.add(name, &node{stat: st})
	case tar.TypeLink:
		to := f.find(clean(h.Linkname))
		if to == nil || to.children != nil {
			return nil, fmt.Errorf("cannot read the build context: %q is a link to %q, which is not before it", h.Name, h.Linkname)
		}
		same := &node{stat: to.stat.CloneVT(), offset: to.offset, size: to.size}
		same.stat.Path = name
		return f.add(name, same)
	}
	return nil, nil
}

// add puts n at name, with directories above it that the archive did not name.
func (f *FS) add(name string, n *node) (*node, error) {
	if name == "" {
		return nil, errors.New("cannot read the build context: its root is not a directory")
	}
	dir, base := path.Split(name)
	at, full := f.root, ""
	for _, part := range strings.Split(strings.TrimSuffix(dir, "/"), "/") {
		if part == "" {
			continue
		}
		full = path.Join(full, part)
		next := at.children[part]
		if next == nil || next.children == nil {
			if err := f.take(len(full)); err != nil {
				return nil, err
			}
			next = &node{stat: &types.Stat{Path: full, Mode: uint32(fs.ModeDir | 0o755)}, children: map[string]*node{}}
			at.children[part] = next
		}
		at = next
	}
	n.stat.Path = name
	at.children[base] = n
	return n, nil
}

// find gives the node at name; nil if there is none.
func (f *FS) find(name string) *node {
	at := f.root
	for _, part := range strings.Split(name, "/") {
		if part == "" {
			continue
		}
		if at = at.children[part]; at == nil {
			return nil
		}
	}
	return at
}

// Walk calls fn for everything below target in the order of a directory walk.
func (f *FS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	at := f.find(clean(target))
	if at == nil {
		return nil
	}
	if at != f.root {
		if err := fn(at.stat.Path, entry(at), nil); err != nil {
			if errors.Is(err, fs.SkipDir) || errors.Is(err, fs.SkipAll) {
				return nil
			}
			return err
		}
	}
	err := walk(ctx, at, fn)
	if errors.Is(err, fs.SkipAll) {
		return nil
	}
	return err
}

func entry(n *node) fs.DirEntry { return &fsutil.DirEntryInfo{Stat: n.stat.CloneVT()} }

func walk(ctx context.Context, dir *node, fn fs.WalkDirFunc) error {
	names := make([]string, 0, len(dir.children))
	for name := range dir.children {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := dir.children[name]
		err := fn(n.stat.Path, entry(n), nil)
		if errors.Is(err, fs.SkipDir) {
			if n.children == nil {
				return nil // of a file: skips what is left of its directory
			}
			continue
		}
		if err != nil {
			return err
		}
		if n.children != nil {
			if err := walk(ctx, n, fn); err != nil {
				return err
			}
		}
	}
	return nil
}

// Open opens the file at name.
func (f *FS) Open(name string) (io.ReadCloser, error) {
	n := f.find(clean(name))
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if !fs.FileMode(n.stat.Mode).IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return io.NopCloser(io.NewSectionReader(f.spool, n.offset, n.size)), nil
}

// Close gives the spool's space back.
func (f *FS) Close() error { return f.spool.Close() }

// File makes a file system of one file, such as a Dockerfile that came alone.
func File(name string, content []byte, dir string) (*FS, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return Read(context.Background(), &b, dir)
}

// Empty makes a file system with nothing in it.
func Empty(dir string) (*FS, error) {
	return Read(context.Background(), bytes.NewReader(make([]byte, 1024)), dir)
}
