package flat

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"proa/internal/image/erofs"
	"proa/internal/sys"
)

// nothingLeft fails unless dir is empty.
func nothingLeft(t *testing.T, what, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("%s: left %v behind", what, left)
	}
}

func TestWriteRefuses(t *testing.T) {
	many := func(n int) (out []member) {
		for i := range n {
			out = append(out, reg(fmt.Sprint(i), ""))
		}
		return out
	}
	for what, members := range map[string][]member{
		"dot-dot":                        {reg("../etc/passwd", "x")},
		"dot-dot inside":                 {reg("a/../../b", "x")},
		"absolute dot-dot":               {reg("/../x", "x")},
		"name of 256 bytes":              {reg(strings.Repeat("a", 256), "x")},
		"below a file":                   {reg("a", "x"), reg("a/b", "x")},
		"below a fifo":                   {node(tar.TypeFifo, "a", 0, 0), reg("a/b", "x")},
		"below a lower hard link":        {hard("a", "b"), reg("a/c", "x")},
		"below a symlink to a file":      {reg("f", "x"), sym("a", "f"), reg("a/b", "x")},
		"below a symlink loop":           {sym("a", "b"), sym("b", "a"), reg("a/c", "x")},
		"below a symlink to itself":      {sym("a", "a/b"), reg("a/c", "x")},
		"below a dangling symlink to ..": {sym("a", "missing/../../etc"), reg("a/c", "x")},
		"below a symlink to a long name": {sym("a", strings.Repeat("x", 300)), reg("a/c", "x")},
		"root is a file":                 {reg(".", "x")},
		"root is a symlink":              {sym(".", "/etc")},
		"hard link to outside":           {hard("a", "../../etc/shadow")},
		"hard link to a directory":       {dirm("d"), hard("a", "d")},
		"hard link to the root":          {hard("a", "/")},
		"hard link through a file":       {reg("f", "x"), hard("a", "f/x")},
		"hard link through ..":           {sym("s", "x/../.."), hard("a", "s/etc/shadow")},
		"malformed capability":           {reg("a", "").xattr("security.capability", "x")},
		"malformed access control list":  {reg("a", "").xattr("system.posix_acl_access", "xxxx")},
		"attribute of 64 KiB":            {reg("a", "").xattr("user.a", strings.Repeat("x", 65536))},
		"attributes of 130 KiB":          {reg("a", "").xattr("user.a", strings.Repeat("x", 65535)).xattr("user.b", strings.Repeat("x", 65535)).xattr("user.c", "xxxxxxx")},
		"device number":                  {node(tar.TypeBlock, "a", 4096, 0)},
		"negative device number":         {node(tar.TypeBlock, "a", 1, -5).format(tar.FormatGNU)},
		"owner -1":                       {reg("a", "").owner(4294967295, 0)},
		"negative owner":                 {reg("a", "").owner(-7, 0).format(tar.FormatGNU)},
		"owner over 32 bits":             {reg("a", "").owner(0, 1<<40)},
		"symlink to nothing":             {sym("a", "")},
		"symlink of 4096 bytes":          {sym("a", strings.Repeat("x", 4096))},
		"whiteout of nothing":            {reg(".wh.", "")},
		"whiteout of dot":                {reg("a/.wh..", "")},
		"whiteout of dot-dot":            {reg("a/.wh...", "")},
		"entry below a whiteout":         {reg(".wh.a/b", "")},
		"unknown type":                   {{tar.Header{Typeflag: 'M', Name: "a"}, ""}},
		"too large":                      {reg("a", strings.Repeat("x", 1001))},
		"too large together":             {reg("a", strings.Repeat("x", 600)), reg("b", strings.Repeat("x", 600))},
		"too many":                       many(101),
		"too many implied":               {reg(strings.Repeat("d/", 101)+"x", "")},
		"too deep":                       {reg(strings.Repeat("d/", 60)+"x", "")},
	} {
		dir := t.TempDir()
		_, err := Write(t.Context(), bytes.NewReader(tarBytes(t, members...)), dir, Limits{Bytes: 1000, Entries: 100, Depth: 50})
		wantKind(t, what, err, errdefs.IsInvalidArgument)
		nothingLeft(t, what, dir)
	}
}

func TestWriteIgnores(t *testing.T) {
	b := tarBytes(t, reg(".wh..wh.plnk/123", "x"), reg("d/.wh..wh.aufs", "x"), member{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"comment": "c"}}, ""}, reg("f", "x"))
	l, err := Write(t.Context(), bytes.NewReader(b), t.TempDir(), Limits{})
	must(t, err)
	if l.Entries != 2 { // the root and f
		t.Errorf("%d entries", l.Entries)
	}
}

func TestWriteMalformed(t *testing.T) {
	good := tarBytes(t, reg("a", strings.Repeat("x", 3000)), reg("b", "y"))
	for what, b := range map[string][]byte{
		"cut in a header":   good[:300],
		"cut in contents":   good[:2000],
		"text":              []byte(strings.Repeat("this is not a tar file\n", 100)),
		"a broken checksum": bytes.Replace(good, []byte("b\x00\x00\x00"), []byte("c\x00\x00\x00"), 1),
		"gzip":              append([]byte{0x1f, 0x8b, 8, 0}, bytes.Repeat([]byte{7}, 2000)...),
	} {
		dir := t.TempDir()
		_, err := Write(t.Context(), bytes.NewReader(b), dir, Limits{})
		wantKind(t, what, err, errdefs.IsInvalidArgument)
		nothingLeft(t, what, dir)
	}
}

func TestWriteFailures(t *testing.T) {
	good := tarBytes(t, reg("a", strings.Repeat("x", 300000)))
	want := digest.FromBytes(good)
	dir := t.TempDir()

	other := digest.FromString("other")
	_, err := Write(t.Context(), bytes.NewReader(good), dir, Limits{Want: other})
	wantKind(t, "another diffID", err, errdefs.IsInvalidArgument)
	if err != nil && (!strings.Contains(err.Error(), other.String()) || !strings.Contains(err.Error(), want.String())) {
		t.Errorf("the error does not name both digests: %v", err)
	}
	nothingLeft(t, "another diffID", dir)

	broken := errors.New("the network is gone")
	_, err = Write(t.Context(), io.MultiReader(bytes.NewReader(good[:1000]), iotest.ErrReader(broken)), dir, Limits{})
	if !errors.Is(err, broken) || errdefs.IsInvalidArgument(err) {
		t.Errorf("failed reader: %v", err)
	}
	nothingLeft(t, "failed reader", dir)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = Write(ctx, bytes.NewReader(good), dir, Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	nothingLeft(t, "cancelled", dir)

	l, err := Write(t.Context(), bytes.NewReader(good), dir, Limits{Want: want})
	must(t, err)
	if l.DiffID != want || l.Stream != int64(len(good)) || l.Size != 300000 || l.Blocks != 74 || l.Dir != filepath.Join(dir, want.Encoded()) {
		t.Errorf("%+v", l)
	}
	again, err := Write(t.Context(), bytes.NewReader(good), dir, Limits{})
	must(t, err)
	if *again != *l {
		t.Errorf("written again: %+v, was %+v", again, l)
	}

	// Damage is seen and mended by writing the layer once more.
	must(t, os.Truncate(l.Data(), 4096))
	_, err = ReadLayer(l.Dir)
	wantKind(t, "data cut off", err, errdefs.IsDataLoss)
	_, err = Write(t.Context(), bytes.NewReader(good), dir, Limits{})
	must(t, err)
	_, err = ReadLayer(l.Dir)
	must(t, err)
	tree, err := os.ReadFile(l.Tree())
	must(t, err)
	tree[len(tree)-1] ^= 1
	must(t, os.WriteFile(l.Tree(), tree, 0o600))
	wantKind(t, "a flipped bit", Merge([]*Layer{l}, filepath.Join(dir, "index")), errdefs.IsDataLoss)
	_, err = ReadLayer(filepath.Join(dir, "none"))
	wantKind(t, "no layer", err, errdefs.IsNotFound)
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
}

func TestWriteDiskFull(t *testing.T) {
	needRoot(t)
	mount, err := sys.NewFS("tmpfs", 0, sys.FSConfig{Key: "size", Value: "1m"})
	must(t, err)
	defer mount.Close()
	dir := viaFD(mount) + "/."
	_, err = Write(t.Context(), bytes.NewReader(tarBytes(t, reg("a", strings.Repeat("x", 3<<20)))), dir, Limits{})
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("full disk: %v", err)
	}
	nothingLeft(t, "full disk", dir)
}

// TestWriteSame proves that a layer's tree depends on nothing but its stream.
func TestWriteSame(t *testing.T) {
	var trees [2][]byte
	b := tarBytes(t, dirm("d"), reg("d/x", "1").xattr("user.a", "1").xattr("user.b", "2"), hard("y", "d/x"), reg("d/.wh.z", ""), reg("d/.wh.w", ""), hard("low", "er"), sym("s", "t"))
	for i := range trees {
		l, err := Write(t.Context(), bytes.NewReader(b), t.TempDir(), Limits{})
		must(t, err)
		trees[i], err = os.ReadFile(l.Tree())
		must(t, err)
	}
	if !bytes.Equal(trees[0], trees[1]) {
		t.Error("two trees of one stream differ")
	}
	l, root, err := decodeTree(trees[0], 0)
	must(t, err)
	again, err := encodeTree(l, root)
	must(t, err)
	if !bytes.Equal(again, trees[0]) {
		t.Error("a tree that was read is written otherwise")
	}
}

func TestMergeRefuses(t *testing.T) {
	dir := t.TempDir()
	layer := func(members ...member) *Layer {
		l, err := Write(t.Context(), bytes.NewReader(tarBytes(t, members...)), dir, Limits{})
		must(t, err)
		return l
	}
	base := layer(reg("a", "1"), dirm("d"), reg("d/x", "1"), sym("out", "../../../etc"), sym("loop", "loop"))
	for what, top := range map[string]*Layer{
		"missing target":              layer(hard("b", "nothing")),
		"target in a missing place":   layer(hard("b", "no/thing")),
		"target is a directory":       layer(hard("b", "d")),
		"target below a file":         layer(hard("b", "a/x")),
		"target that it deletes":      layer(hard("b", "a"), reg(".wh.a", "")),
		"target that comes later":     layer(hard("b", "later"), reg("later", "x")),
		"target outside by a symlink": layer(hard("b", "out/passwd")),
		"target through a loop":       layer(hard("b", "loop/x")),
	} {
		out := filepath.Join(t.TempDir(), "index")
		wantKind(t, what, Merge([]*Layer{base, top}, out), errdefs.IsInvalidArgument)
		nothingLeft(t, what, filepath.Dir(out))
	}
	other := *base
	other.DiffID = digest.FromString("other")
	wantKind(t, "another layer's files", Merge([]*Layer{&other}, filepath.Join(dir, "index")), errdefs.IsDataLoss)
}

// TestMergeStaysInside lays a layer over symlinks that lead outside.
func TestMergeStaysInside(t *testing.T) {
	layers := stack(t, []member{sym("abs", "/target"), sym("up", "../../../up-target"), sym("loop", "loop"), dirm("d"), sym("d/rel", "../../x")},
		[]member{reg("abs/f", "1"), reg("up/f", "1"), reg("loop/f", "1"), reg("d/rel/f", "1")})
	files := image(t, t.TempDir(), layers)
	f := open(t, files.Index)
	im, err := erofs.Open(f)
	must(t, err)
	root, err := im.Root()
	must(t, err)
	var paths []string
	var list func(prefix string, in *erofs.Info)
	list = func(prefix string, in *erofs.Info) {
		must(t, im.ReadDir(in, func(d erofs.Dirent) error {
			kid, err := im.Inode(d.NID)
			if err != nil {
				return err
			}
			paths = append(paths, prefix+d.Name)
			if kid.IsDir() {
				list(prefix+d.Name+"/", kid)
			}
			return nil
		}))
	}
	list("", root)
	want := "abs d d/rel loop loop/f target target/f up up-target up-target/f x x/f"
	if got := strings.Join(paths, " "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}
