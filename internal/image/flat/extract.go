package flat

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"proa/internal/image/erofs"
	"proa/internal/sys"
)

// extract makes the directory image.Dir with the whole tree of an image. It
// appears by one rename, after everything in it has reached the disk.
func extract(image Files) (err error) {
	f, err := os.Open(image.Index)
	if err != nil {
		return err
	}
	defer f.Close()
	im, err := erofs.Open(f)
	if err != nil {
		return err
	}
	x := &extractor{im: im}
	for _, path := range image.Data {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		defer d.Close()
		defer sys.DropCache(d) // containers read the copy
		x.data = append(x.data, d)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(image.Dir), TempPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	top, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer top.Close()
	if x.links, err = sys.MakeDirAt(top, "links"); err != nil {
		return err
	}
	defer x.links.Close()
	root, err := im.Root()
	if err != nil {
		return err
	}
	if err := x.file(top, "root", root, 0); err != nil {
		return err
	}
	if err := sys.SyncFS(top); err != nil {
		return err
	}
	// Renaming a directory writes to its "..", which needs no right of its own for root.
	if err := os.Rename(filepath.Join(tmp, "root"), image.Dir); err != nil {
		return err
	}
	return sys.SyncDir(filepath.Dir(image.Dir))
}

// extractor unpacks one image. Files with several names wait in the directory
// links, by the number of their inode, for their other names.
type extractor struct {
	im    *erofs.Image
	data  []*os.File
	links *os.File
	seen  map[uint64]bool
}

// file makes the file of inode in by name in dir.
func (x *extractor) file(dir *os.File, name string, in *erofs.Info, depth int) error {
	if depth > 2*maxTreeDepth {
		return damaged("the tree is too deep")
	}
	nid := strconv.FormatUint(in.NID, 10)
	if x.seen[in.NID] {
		if in.IsDir() {
			return damaged("the directory %q has two names", name)
		}
		return sys.LinkAt(x.links, nid, dir, name)
	}
	var err error
	switch in.Mode & erofs.TypeMask {
	case erofs.TypeDir:
		err = x.dir(dir, name, in, depth)
	case erofs.TypeRegular:
		err = x.contents(dir, name, in)
	case erofs.TypeSymlink:
		err = sys.MakeSymlinkAt(dir, name, in.Target)
	default:
		err = sys.MakeNodeAt(dir, name, in.Mode, in.Major, in.Minor)
	}
	if err != nil {
		return err
	}
	m := sys.Metadata{Mode: in.Mode, UID: in.UID, GID: in.GID, Sec: in.Sec, Nsec: in.Nsec}
	for _, a := range in.Xattrs {
		m.Xattrs = append(m.Xattrs, sys.Xattr(a))
	}
	if err := sys.SetMetadataAt(dir, name, m); err != nil {
		return err
	}
	if in.Nlink > 1 || in.IsDir() {
		if x.seen == nil {
			x.seen = map[uint64]bool{}
		}
		x.seen[in.NID] = true
		if !in.IsDir() {
			return sys.LinkAt(dir, name, x.links, nid)
		}
	}
	return nil
}

func (x *extractor) dir(parent *os.File, name string, in *erofs.Info, depth int) error {
	dir, err := sys.MakeDirAt(parent, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return x.im.ReadDir(in, func(e erofs.Dirent) error {
		kid, err := x.im.Inode(e.NID)
		if err != nil {
			return err
		}
		if err := x.file(dir, e.Name, kid, depth+1); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		return nil
	})
}

// contents makes a regular file. Its extents are copied inside the kernel, or
// shared where the file system can do that; its holes stay holes.
func (x *extractor) contents(dir *os.File, name string, in *erofs.Info) error {
	f, err := sys.MakeFileAt(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, e := range in.Extents {
		off := int64(e.Start) * BlockSize
		n := min(int64(e.Blocks)*BlockSize, int64(in.Size)-off)
		data := x.data[e.Device-1]
		if _, err := data.Seek(int64(e.Block)*BlockSize, io.SeekStart); err != nil {
			return err
		}
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			return err
		}
		copied, err := io.Copy(f, io.LimitReader(data, n))
		if err != nil {
			return err
		}
		if copied != n {
			return damaged("the data file %q is cut off", data.Name())
		}
	}
	if err := f.Truncate(int64(in.Size)); err != nil {
		return err
	}
	return f.Close()
}
