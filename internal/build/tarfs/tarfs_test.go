package tarfs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/tonistiigi/fsutil"
	"github.com/ulikunitz/xz"
)

func pack(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// file is a header whose link name stands for the content.
func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: content, Mode: 0o640, ModTime: time.Unix(1000, 5), Format: tar.FormatPAX}
}

func walkAll(t testing.TB, f fsutil.FS, target string) (names []string) {
	t.Helper()
	err := f.Walk(context.Background(), target, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if _, err := d.Info(); err != nil {
			return err
		}
		names = append(names, d.Type().String()[:1]+p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestRead(t *testing.T) {
	raw := pack(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		file("b/two", "22"), file("./a", "1"), file("../../outside", "in"), file("/abs", "abs"),
		tar.Header{Typeflag: tar.TypeDir, Name: "b", Mode: 0o711},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "b/sym", Linkname: "/etc/passwd"},
		tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "b/two"},
		tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 3},
		file("a", "again"),
	)
	f, err := Read(context.Background(), bytes.NewReader(raw), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := "-a -abs db Lb/sym -b/two -hard -outside"
	if got := strings.Join(walkAll(t, f, ""), " "); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := strings.Join(walkAll(t, f, "b"), " "); got != "db Lb/sym -b/two" {
		t.Error(got)
	}
	for name, want := range map[string]string{"a": "again", "hard": "22", "b/two": "22", "/abs": "abs", "outside": "in"} {
		r, err := f.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil || string(b) != want {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	for _, name := range []string{"b", "b/sym", "nothing", "a/b"} {
		if _, err := f.Open(name); err == nil {
			t.Errorf("%s was opened", name)
		}
	}
	err = f.Walk(context.Background(), "", func(p string, d fs.DirEntry, _ error) error {
		if st := d.(*fsutil.DirEntryInfo); p == "b" && fs.FileMode(st.Mode).Perm() != 0o711 {
			t.Errorf("mode of b: %o", st.Mode)
		} else if p == "a" && st.ModTime != 1000*1e9+5 {
			t.Errorf("time of a: %d", st.ModTime)
		}
		if p == "b" {
			return fs.SkipDir
		}
		if strings.HasPrefix(p, "b/") {
			t.Error("a directory that was skipped is walked")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadPacked(t *testing.T) {
	raw := pack(t, file("f", strings.Repeat("x", 1000)))
	for name, w := range map[string]func(io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	} {
		var b bytes.Buffer
		c, err := w(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(raw); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if !IsArchive(b.Bytes()) {
			t.Errorf("%s is not taken for an archive", name)
		}
		f, err := Read(context.Background(), bytes.NewReader(b.Bytes()), t.TempDir())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.Join(walkAll(t, f, ""), " "); got != "-f" {
			t.Errorf("%s: %s", name, got)
		}
		f.Close()
		cut := b.Bytes()[:b.Len()-9]
		if _, err := Read(context.Background(), bytes.NewReader(cut), t.TempDir()); err == nil {
			t.Errorf("%s that is cut was read", name)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for name, raw := range map[string][]byte{
		"text":              []byte("FROM scratch\n"),
		"link to nothing":   pack(t, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "nothing"}),
		"link to directory": pack(t, tar.Header{Typeflag: tar.TypeDir, Name: "d"}, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "d"}),
		"long path":         pack(t, file(strings.Repeat("d/", 3000)+"f", "")),
		"cut":               pack(t, file("f", strings.Repeat("x", 5000)))[:2000],
	} {
		if f, err := Read(context.Background(), bytes.NewReader(raw), t.TempDir()); err == nil {
			f.Close()
			t.Errorf("%s was read", name)
		}
	}
}

func TestIsArchive(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "FROM scratch\n": false, strings.Repeat("FROM scratch\n", 100): false, string(make([]byte, 1024)): true,
		string(pack(t, file("f", ""))): true,
	} {
		if got := IsArchive([]byte(text)); got != want {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}

// Whatever comes, what is walked are plain relative paths, parents first, and
// each file can be read to its size.
func FuzzRead(f *testing.F) {
	f.Add(pack(f, file("a/../b", "x"), tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: ".."}, tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "b"}))
	f.Add(pack(f, tar.Header{Typeflag: tar.TypeDir, Name: "d"}, file("d", "file over a directory"), file("d/e", "")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		x, err := Read(context.Background(), bytes.NewReader(raw), t.TempDir())
		if err != nil {
			return
		}
		defer x.Close()
		seen := map[string]bool{".": true}
		err = x.Walk(context.Background(), "", func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if p != path.Clean(p) || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") || !seen[path.Dir(p)] || seen[p] {
				t.Errorf("path %q", p)
			}
			if d.IsDir() {
				seen[p] = true
			}
			info, err := d.Info()
			if err != nil || !info.Mode().IsRegular() {
				return err
			}
			r, err := x.Open(p)
			if err != nil {
				return err
			}
			defer r.Close()
			if n, err := io.Copy(io.Discard, r); err != nil || n != info.Size() {
				t.Errorf("%q has %d bytes, and says %d: %v", p, n, info.Size(), err)
			}
			return nil
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// Directories on the way to a name are counted as well: a few kilobytes of an
// archive used to become as many megabytes (CWE-770).
func TestMemoryIsBounded(t *testing.T) {
	f := &FS{root: &node{children: map[string]*node{}}, words: maxWords - 10_000}
	var err error
	for i := range 10 {
		if _, err = f.put(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i) + strings.Repeat("/d", 500)}); err != nil {
			break
		}
	}
	if err == nil || f.count > 500 {
		t.Errorf("%d nodes, %v", f.count, err)
	}
	f = &FS{root: &node{children: map[string]*node{}}, count: maxEntries - 10}
	if _, err := f.put(&tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("d/", 20) + "f"}); err == nil {
		t.Error("more directories than entries are allowed")
	}
	f = &FS{root: &node{children: map[string]*node{}}, words: maxWords - 1000}
	if _, err := f.put(&tar.Header{Typeflag: tar.TypeDir, Name: "d", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 2000)}}); err == nil {
		t.Error("more bytes of attributes than are allowed")
	}
	if _, err := Read(context.Background(), bytes.NewReader(pack(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: strings.Repeat("x", maxPath+1)})), t.TempDir()); err == nil {
		t.Error("a link of more than a path's length")
	}
}

// A hole costs the sender nothing and us a disk: who goes away must end it.
func TestHoleEndsWithTheRequest(t *testing.T) {
	h := make([]byte, 512)
	for at, text := range map[int]string{0: "hole", 100: "0000644\x00", 124: "00000000000\x00", 136: "00000000000\x00", 148: "        ", 156: "S", 257: "ustar  \x00", 483: "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"} {
		copy(h[at:], text)
	}
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	dir := t.TempDir()
	done := make(chan error, 1)
	go func() {
		_, err := Read(ctx, bytes.NewReader(append(h, make([]byte, 1024)...)), dir)
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it goes on")
	}
}

// C1: a builder keeps the files of two archives apart unless all their bytes
// are the same.
func TestFaultC1SharedKey(t *testing.T) {
	key := func(text string) string {
		f, err := File("f", []byte(text), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return f.SharedKey()
	}
	if key("1.0.1") == key("1.0.2") {
		t.Error("two archives that differ in a file of equal size and time share their files")
	}
	if key("1.0.1") != key("1.0.1") {
		t.Error("one archive has two keys")
	}
}
