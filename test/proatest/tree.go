package proatest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Saved is one image out of an archive of `docker save`, read without any code
// of the engine: its configuration and the files that its layers make together.
type Saved struct {
	Config  []byte // as it is in the archive
	DiffIDs []string
	Files   Tree
}

// Tree is the files of a root by clean absolute name. Two names of one file
// have the same node.
type Tree map[string]*Node

// Node is one file.
type Node struct {
	Type     byte // of the tar
	Mode     int64
	UID, GID int
	Size     int64
	Time     time.Time
	Target   string // of a symbolic link
	Sum      string // of the contents of a regular file, in hex
	Xattrs   map[string]string
	Major    int64
	Minor    int64
}

// ReadSaved reads the only image of the archive at file.
func ReadSaved(t testing.TB, file string) *Saved {
	t.Helper()
	s, err := readSaved(file)
	if err != nil {
		t.Fatalf("cannot read the image in %s: %v", file, err)
	}
	return s
}

func readSaved(file string) (*Saved, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	members := map[string][]byte{}
	links := map[string]string{}
	for r := tar.NewReader(bufio.NewReader(f)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if members[path.Clean(h.Name)], err = io.ReadAll(r); err != nil {
				return nil, err
			}
		case tar.TypeSymlink:
			links[path.Clean(h.Name)] = path.Join(path.Dir(h.Name), h.Linkname)
		}
	}
	member := func(name string) ([]byte, error) {
		name = path.Clean(name)
		if to, ok := links[name]; ok {
			name = to
		}
		b, ok := members[name]
		if !ok {
			return nil, fmt.Errorf("no %s in the archive", name)
		}
		return b, nil
	}
	var manifest []struct {
		Config string
		Layers []string
	}
	text, err := member("manifest.json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return nil, err
	}
	if len(manifest) != 1 {
		return nil, fmt.Errorf("%d images in the archive", len(manifest))
	}
	s := &Saved{Files: Tree{}}
	if s.Config, err = member(manifest[0].Config); err != nil {
		return nil, err
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(s.Config, &config); err != nil {
		return nil, err
	}
	s.DiffIDs = config.RootFS.DiffIDs
	if len(s.DiffIDs) != len(manifest[0].Layers) {
		return nil, fmt.Errorf("%d layers, %d diffIDs", len(manifest[0].Layers), len(s.DiffIDs))
	}
	for i, name := range manifest[0].Layers {
		b, err := member(name)
		if err != nil {
			return nil, err
		}
		if b, err = plain(b); err != nil {
			return nil, err
		}
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(b)); got != s.DiffIDs[i] {
			return nil, fmt.Errorf("layer %d is %s, the configuration says %s", i, got, s.DiffIDs[i])
		}
		if err := s.Files.Apply(bytes.NewReader(b)); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return s, nil
}

// plain is a blob without its compression.
func plain(b []byte) ([]byte, error) {
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	return b, nil
}

// Apply puts one layer's tar over the tree, as the OCI image specification says
// it: whiteouts hide what lower layers have, never what their own layer brings.
func (tree Tree) Apply(r io.Reader) error {
	add := Tree{}
	var order, gone, opaque []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := path.Join("/", h.Name)
		base := path.Base(name)
		switch {
		case base == ".wh..wh..opq":
			opaque = append(opaque, path.Dir(name))
			continue
		case strings.HasPrefix(base, ".wh."):
			gone = append(gone, path.Join(path.Dir(name), base[len(".wh."):]))
			continue
		}
		if h.Typeflag == tar.TypeLink {
			target := path.Join("/", h.Linkname)
			n := add[target]
			if n == nil {
				// Of a lower layer: the specification forbids it, engines accept it.
				if n = tree[target]; n == nil {
					return fmt.Errorf("%s is a hard link to %s, which is not there", name, target)
				}
			}
			add[name] = n
			order = append(order, name)
			continue
		}
		n := &Node{Type: h.Typeflag, Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid, Size: h.Size, Time: h.ModTime, Target: h.Linkname, Major: h.Devmajor, Minor: h.Devminor}
		for k, v := range h.PAXRecords {
			if k, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				if n.Xattrs == nil {
					n.Xattrs = map[string]string{}
				}
				n.Xattrs[k] = v
			}
		}
		switch n.Type {
		case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse: //nolint:staticcheck // old archives
			sum := sha256.New()
			if n.Size, err = io.Copy(sum, tr); err != nil {
				return err
			}
			n.Type, n.Sum = tar.TypeReg, hex.EncodeToString(sum.Sum(nil))
		}
		add[name] = n
		order = append(order, name)
	}
	for _, d := range opaque {
		tree.remove(d, false)
	}
	for _, name := range gone {
		tree.remove(name, true)
	}
	for _, name := range order {
		n := add[name]
		if n.Type != tar.TypeDir {
			tree.remove(name, true)
		}
		for p := path.Dir(name); p != "/"; p = path.Dir(p) {
			if old := tree[p]; old == nil || old.Type != tar.TypeDir {
				tree[p] = &Node{Type: tar.TypeDir, Mode: 0o755}
			}
		}
		tree[name] = n
	}
	return nil
}

// remove takes away what is below name, and name itself if so wished.
func (tree Tree) remove(name string, itself bool) {
	below := strings.TrimSuffix(name, "/") + "/"
	maps.DeleteFunc(tree, func(p string, _ *Node) bool { return p == name && itself || p != "/" && strings.HasPrefix(p, below) })
}

// List says each file that differs from what base has at its name, a line each,
// sorted, and each file of base that is gone. Times are whole seconds, as
// Docker's layers keep them; what was made since is "now".
func (tree Tree) List(base Tree, since time.Time) string {
	first := map[*Node]string{}
	names := slices.Sorted(maps.Keys(tree))
	lines := make([]string, 0, len(names))
	for _, name := range names {
		n := tree[name]
		one, ok := first[n]
		if !ok {
			first[n], one = name, name
		}
		line := n.line(name, one, since)
		if b := base[name]; b != nil && one == name && b.line(name, name, since) == line {
			continue
		}
		lines = append(lines, line)
	}
	for name := range base {
		if tree[name] == nil && (name == "/" || tree[path.Dir(name)] != nil) {
			lines = append(lines, "gone "+quote(name))
		}
	}
	sort.SliceStable(lines, func(i, j int) bool { return nameOf(lines[i]) < nameOf(lines[j]) })
	return strings.Join(lines, "\n")
}

func nameOf(line string) string { return line[strings.IndexByte(line, '/'):] }

// quote is a name with whatever would break a line written out.
func quote(name string) string {
	q := strconv.QuoteToASCII(name)
	if q == `"`+name+`"` && !strings.Contains(name, " ") {
		return name
	}
	return strings.ReplaceAll(q[1:len(q)-1], " ", `\x20`)
}

// line is: kind, mode, owner, size, time, name, and what its kind has besides.
func (n *Node) line(name, first string, since time.Time) string {
	kind := map[byte]string{tar.TypeReg: "file", tar.TypeDir: "dir", tar.TypeSymlink: "link", tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo"}[n.Type]
	if kind == "" {
		kind = "type-" + string(n.Type)
	}
	when := "now"
	if n.Time.Before(since) || n.Time.After(time.Now().Add(time.Hour)) {
		when = n.Time.UTC().Truncate(time.Second).Format(time.RFC3339)
	}
	mode := fmt.Sprintf("%04o", n.Mode)
	switch {
	case n.Type == tar.TypeSymlink:
		mode = "-" // Linux has none
	case name == "/":
		when = "-" // no two builders agree whether a layer names the root
	}
	line := fmt.Sprintf("%-4s %s %d:%d %d %s %s", kind, mode, n.UID, n.GID, n.Size, when, quote(name))
	if first != name {
		line += " = " + quote(first)
	}
	switch n.Type {
	case tar.TypeReg:
		line += " " + n.Sum[:12]
	case tar.TypeSymlink:
		line += " -> " + quote(n.Target)
	case tar.TypeChar, tar.TypeBlock:
		line += fmt.Sprintf(" %d,%d", n.Major, n.Minor)
	}
	for _, k := range slices.Sorted(maps.Keys(n.Xattrs)) {
		line += fmt.Sprintf(" %s=%x", k, n.Xattrs[k])
	}
	return line
}

// Archive is an archive as `docker save` makes it, with as little in it as
// loads: the image name of layers with a configuration that says config.
func Archive(t testing.TB, name string, config map[string]any, layers ...[]byte) []byte {
	t.Helper()
	var diffs, files []string
	var history []map[string]any
	entries := []Entry{}
	for i, l := range layers {
		diffs = append(diffs, fmt.Sprintf("sha256:%x", sha256.Sum256(l)))
		files = append(files, fmt.Sprintf("%d/layer.tar", i))
		entries = append(entries, Entry{Name: files[i], Body: string(l)})
		history = append(history, map[string]any{"created": "2023-11-14T22:13:20Z", "created_by": fmt.Sprintf("layer %d of a test", i)})
	}
	image := map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2023-11-14T22:13:20Z", "config": config, "history": history,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}
	text, err := json.Marshal(image)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": files}})
	if err != nil {
		t.Fatal(err)
	}
	return Tar(t, append(entries, Entry{Name: "config.json", Body: string(text)}, Entry{Name: "manifest.json", Body: string(manifest)})...)
}
