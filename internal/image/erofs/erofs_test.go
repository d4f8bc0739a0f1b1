package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// fsck runs fsck.erofs over an index; it knows no holes of other tools' making
// and is the first judge, the kernel (package flat) the second.
func fsck(t *testing.T, image []byte, devices []Device) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("fsck.erofs is not installed: apt-get install erofs-utils")
	}
	dir := t.TempDir()
	args := []string{}
	for i, d := range devices {
		p := filepath.Join(dir, fmt.Sprint("dev", i))
		f, err := os.Create(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(int64(d.Blocks) * BlockSize); err != nil {
			t.Fatal(err)
		}
		f.Close()
		args = append(args, "--device="+p)
	}
	p := filepath.Join(dir, "index")
	if err := os.WriteFile(p, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(tool, append(args, "--extract", p)...).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v\n%s", err, out)
	}
}

func write(t *testing.T, root *Inode, devices []Device) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, root, devices); err != nil {
		t.Fatal(err)
	}
	if b.Len()%BlockSize != 0 {
		t.Fatalf("the index has %d bytes, no multiple of the block size", b.Len())
	}
	return b.Bytes()
}

// load reads a whole image back into a tree; hard links keep their identity.
func load(im *Image, in *Info, seen map[uint64]*Inode, depth int) (*Inode, error) {
	if ino := seen[in.NID]; ino != nil {
		return ino, nil
	}
	if depth > 2000 || len(seen) > 200000 {
		return nil, damaged("too deep or too large")
	}
	ino := in.Inode
	seen[in.NID] = &ino
	if !ino.IsDir() {
		return &ino, nil
	}
	ino.Children = map[string]*Inode{}
	err := im.ReadDir(in, func(d Dirent) error {
		ci, err := im.Inode(d.NID)
		if err != nil {
			return err
		}
		child, err := load(im, ci, seen, depth+1)
		ino.Children[d.Name] = child
		return err
	})
	return &ino, err
}

func sample() (*Inode, []Device) {
	devices := []Device{{Tag: strings.Repeat("a", 64), Blocks: 1 << 30}, {Tag: "second", Blocks: 100}}
	dir := func(kids map[string]*Inode) *Inode { return &Inode{Mode: TypeDir | 0o755, Children: kids} }
	linked := &Inode{Mode: TypeRegular | 0o4755, UID: 70000, GID: 4000000000, Sec: -5, Nsec: 999999999, Size: 5000,
		Extents: []Extent{{Start: 0, Blocks: 2, Block: 7, Device: 2}}}
	big := dir(map[string]*Inode{})
	for i := range 5000 {
		big.Children[fmt.Sprintf("entry-%d-%s", i, strings.Repeat("x", i%200))] = &Inode{Mode: TypeFifo | 0o600, Sec: int64(i)}
	}
	long := strings.Repeat("x", 255)
	sizes := dir(map[string]*Inode{})
	for n := 3800; n < 4200; n += 7 { // directories and targets around one block
		d := dir(map[string]*Inode{})
		for left := n - 27; left > 0; { // 27: "." and ".."
			name := fmt.Sprintf("%0*d", min(left, 200), left)
			d.Children[name] = &Inode{Mode: TypeSocket | 0o700}
			left -= direntSize + len(name)
		}
		sizes.Children[fmt.Sprint("d", n)] = d
		sizes.Children[fmt.Sprint("l", n)] = &Inode{Mode: TypeSymlink | 0o777, Target: strings.Repeat("t", min(n, maxTarget)),
			Xattrs: []Xattr{{"security.x", strings.Repeat("v", n%97)}}}
	}
	return dir(map[string]*Inode{
		"linked":       linked,
		"bin":          dir(map[string]*Inode{"linked too": linked, ".hidden": {Mode: TypeRegular, Size: 0}, "!": {Mode: TypeRegular}, ".\x01": {Mode: TypeRegular}}),
		"big":          big,
		"sizes":        sizes,
		"empty":        dir(map[string]*Inode{}),
		long:           dir(map[string]*Inode{long: dir(map[string]*Inode{})}),
		"\xff\xfe\xe4": {Mode: TypeSymlink | 0o777, Target: "\xe4"},
		"null":         {Mode: TypeChar | 0o666, Major: 1, Minor: 3},
		"disk":         {Mode: TypeBlock | 0o660, Major: 0xfff, Minor: 0xfffff},
		"huge":         {Mode: TypeRegular | 0o644, Size: 5<<30 + 1, Extents: []Extent{{Start: 0, Blocks: 5<<18 + 1, Block: 100, Device: 1}}},
		"hole":         {Mode: TypeRegular | 0o644, Size: 1 << 40},
		"holes": {Mode: TypeRegular | 0o644, Size: 1<<20 - 3, Extents: []Extent{
			{Start: 16, Blocks: 16, Block: 3, Device: 2}, {Start: 48, Blocks: 16, Block: 19, Device: 2}, {Start: 240, Blocks: 16, Block: 50, Device: 2},
		}},
		"xattrs": {Mode: TypeRegular | 0o644, Size: 4096, Extents: []Extent{{Blocks: 1, Block: 99, Device: 2}}, Xattrs: []Xattr{
			{"security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00"}, {"system.posix_acl_access", "\x02\x00\x00\x00"},
			{"trusted.big", strings.Repeat("b", 30000)}, {"user.e", ""}, {"user.one", "1"},
		}},
	}), devices
}

func TestWriteReadsBack(t *testing.T) {
	root, devices := sample()
	image := write(t, root, devices)
	if again := write(t, root, devices); !bytes.Equal(image, again) {
		t.Error("two writes of one tree differ")
	}
	im, err := Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(im.Devices(), devices) {
		t.Errorf("devices %v", im.Devices())
	}
	in, err := im.Root()
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(im, in, map[uint64]*Inode{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "", got, root)
	if got.Children["linked"] != got.Children["bin"].Children["linked too"] {
		t.Error("a hard link became two files")
	}
}

func same(t *testing.T, path string, a, b *Inode) {
	t.Helper()
	x, y := *a, *b
	x.Children, y.Children = nil, nil
	if !reflect.DeepEqual(x, y) {
		t.Errorf("%q: got %+v, want %+v", path, x, y)
	}
	if len(a.Children) != len(b.Children) {
		t.Errorf("%q: %d children, want %d", path, len(a.Children), len(b.Children))
	}
	for name, kid := range b.Children {
		if a.Children[name] == nil {
			t.Errorf("%q: no %q", path, name)
			continue
		}
		same(t, path+"/"+name, a.Children[name], kid)
	}
}

func TestFsckAccepts(t *testing.T) {
	root, devices := sample()
	// fsck reads every file that it checks; a terabyte of hole takes its time.
	delete(root.Children, "hole")
	delete(root.Children, "huge")
	devices[0].Blocks = 10
	fsck(t, write(t, root, devices), devices)
	fsck(t, write(t, &Inode{Mode: TypeDir | 0o755}, nil), nil)
	many := make([]Device, 100)
	for i := range many {
		many[i].Blocks = 1
	}
	fsck(t, write(t, &Inode{Mode: TypeDir | 0o755}, many), many)
}

func TestWriteRefuses(t *testing.T) {
	devices := []Device{{Blocks: 10}}
	for what, ino := range map[string]*Inode{
		"name with a slash":    {Mode: TypeDir, Children: map[string]*Inode{"a/b": {Mode: TypeFifo}}},
		"dot-dot":              {Mode: TypeDir, Children: map[string]*Inode{"..": {Mode: TypeFifo}}},
		"long name":            {Mode: TypeDir, Children: map[string]*Inode{strings.Repeat("a", 256): {Mode: TypeFifo}}},
		"no type":              {Mode: 0o644},
		"long target":          {Mode: TypeSymlink, Target: strings.Repeat("a", 4096)},
		"no target":            {Mode: TypeSymlink},
		"unknown attribute":    {Mode: TypeFifo, Xattrs: []Xattr{{"com.apple.x", "1"}}},
		"large attribute":      {Mode: TypeFifo, Xattrs: []Xattr{{"user.x", strings.Repeat("a", 65536)}}},
		"many attributes":      {Mode: TypeFifo, Xattrs: []Xattr{{"user.1", strings.Repeat("a", 65535)}, {"user.2", strings.Repeat("a", 65535)}, {"user.3", strings.Repeat("a", 65535)}, {"user.4", strings.Repeat("a", 65535)}, {"user.5", "a"}}},
		"device number":        {Mode: TypeChar, Major: 0x1000},
		"no such device":       {Mode: TypeRegular, Size: 1, Extents: []Extent{{Blocks: 1, Device: 2}}},
		"behind the device":    {Mode: TypeRegular, Size: 4097, Extents: []Extent{{Blocks: 2, Block: 9, Device: 1}}},
		"behind the file":      {Mode: TypeRegular, Size: 1, Extents: []Extent{{Blocks: 2, Device: 1}}},
		"extents that overlap": {Mode: TypeRegular, Size: 1 << 20, Extents: []Extent{{Blocks: 2, Device: 1}, {Start: 1, Blocks: 1, Device: 1}}},
		"16 TiB":               {Mode: TypeRegular, Size: 16 << 40},
	} {
		root := ino
		if !ino.IsDir() {
			root = &Inode{Mode: TypeDir, Children: map[string]*Inode{"x": ino}}
		}
		if err := Write(&bytes.Buffer{}, root, devices); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzImage(f *testing.F) {
	root, devices := sample()
	for _, name := range []string{"big", "sizes", "xattrs"} { // small inputs are mutated faster
		delete(root.Children, name)
	}
	root.Children["x"] = &Inode{Mode: TypeFifo, Xattrs: []Xattr{{"user.a", "value"}}}
	var b bytes.Buffer
	if err := Write(&b, root, devices); err != nil {
		f.Fatal(err)
	}
	for at := BlockSize; at < b.Len(); at += 61 {
		f.Add(b.Bytes(), at, byte(at))
	}
	f.Fuzz(func(t *testing.T, image []byte, at int, with byte) {
		image = bytes.Clone(image)
		if at >= 0 && at < len(image) {
			image[at] = with
		}
		if len(image) >= BlockSize { // let damage get past the checksum
			le.PutUint32(image[superOffset+4:], 0)
			le.PutUint32(image[superOffset+4:], checksum(image))
		}
		im, err := Open(bytes.NewReader(image))
		if err != nil {
			return
		}
		in, err := im.Root()
		if err != nil {
			return
		}
		_, _ = load(im, in, map[uint64]*Inode{}, 0)
	})
}
