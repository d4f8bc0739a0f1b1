package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa/internal/interrupt"
)

func tarOf(t testing.TB, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "from the guest"
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.ModTime = time.Unix(1_000_000_000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name}
}
func link(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
}
func hard(name, to string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}
}

// home makes a directory with something worth stealing, and what holds it.
func home(t *testing.T) (outer, dir string) {
	t.Helper()
	outer = t.TempDir()
	dir = filepath.Join(outer, "home")
	for _, err := range []error{os.MkdirAll(filepath.Join(dir, ".ssh"), 0o700), os.WriteFile(filepath.Join(dir, ".ssh/id"), []byte("mine"), 0o600), os.Symlink(".ssh", filepath.Join(dir, "there"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return outer, dir
}

// What a container or a guest answers to cp is written below the name that was
// asked for and nowhere else (CVE-2019-6111, CVE-2018-15664, CVE-2019-14271).
func TestCopiedFilesStayWhereTheyWereAskedFor(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"another name":               {file("data"), file(".bashrc")},
		"another name below":         {file(".ssh/authorized_keys")},
		"up":                         {folder("data/"), file("data/../../up")},
		"absolute":                   {file("/.ssh/authorized_keys")},
		"through a link of its own":  {folder("data/"), link("data/l", "../.ssh"), file("data/l/authorized_keys")},
		"a link in place of the dir": {folder("data/"), link("data", ".ssh"), file("data/authorized_keys")},
		"link first":                 {link("data", ".ssh"), file("data/authorized_keys")},
		"a dir over a link":          {link("data", ".ssh"), folder("data/"), file("data/authorized_keys")},
		"hard link elsewhere":        {folder("data/"), hard("data/h", ".ssh/id")},
		"hard link through a link":   {folder("data/"), link("data/l", "../.ssh"), hard("data/h", "data/l/id")},
		"no parent":                  {file("data/.ssh/authorized_keys")},
	} {
		t.Run(name, func(t *testing.T) {
			outer, dir := home(t)
			o := copying{a: &app{err: io.Discard}}
			err := o.unpack(context.Background(), tarOf(t, entries...), "data", place{dir: dir})
			if err == nil {
				t.Error("it was unpacked without a word")
			}
			filepath.WalkDir(outer, func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() || d.Type()&fs.ModeSymlink != 0 || strings.HasPrefix(p, filepath.Join(dir, "data")) && !strings.HasSuffix(p, "/h") {
					return err
				}
				if b, _ := os.ReadFile(p); string(b) != "mine" || !strings.HasSuffix(p, ".ssh/id") {
					t.Errorf("%s holds %q", p, b)
				}
				return nil
			})
		})
	}
	// A link that the user has in the way is not gone through either.
	_, dir := home(t)
	o := copying{a: &app{err: io.Discard}}
	if err := o.unpack(context.Background(), tarOf(t, folder("there/"), file("there/x")), "there", place{dir: dir}); err == nil {
		t.Error("a directory was written through a symbolic link")
	}
}

func TestCopiedTree(t *testing.T) {
	dir := t.TempDir()
	o := copying{a: &app{err: io.Discard}}
	suid := file("data/suid")
	suid.Mode = 0o6755
	in := tarOf(t, folder("data/"), folder("data/a/"), file("data/a/f"), hard("data/a/h", "data/a/f"), link("data/a/l", "/etc/passwd"), suid,
		tar.Header{Typeflag: tar.TypeFifo, Name: "data/fifo"})
	if err := o.unpack(context.Background(), in, "data", place{dir: dir, name: "new"}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "new/a/h")); err != nil || string(b) != "from the guest" {
		t.Errorf("%q %v", b, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "new/a/l")); err != nil || to != "/etc/passwd" {
		t.Errorf("%q %v", to, err)
	}
	fi, err := os.Stat(filepath.Join(dir, "new/suid"))
	if err != nil || fi.Mode() != 0o755 {
		t.Errorf("a set-user-ID file of somebody else's: %v %v, want it without", fi.Mode(), err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "new/a")); err != nil || fi.ModTime().Unix() != 1_000_000_000 {
		t.Errorf("the directory's time: %v %v", fi.ModTime(), err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "new/fifo")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a fifo: %v", err)
	}
	// The contents of a directory, of the root, and a second copy over the first.
	for _, base := range []string{".", "/"} {
		if err := o.unpack(context.Background(), tarOf(t, folder("./"), folder("./a/"), file("./a/f"), hard("./a/h", "./a/f")), base, place{dir: filepath.Join(dir, "new")}); err != nil {
			t.Errorf("base %q: %v", base, err)
		}
	}
}

// A hole costs the sender nothing: whoever waits must be able to stop it.
func TestCopyOfAHoleCanBeStopped(t *testing.T) {
	var b bytes.Buffer
	// A GNU sparse file of 8 EiB in one header.
	h := make([]byte, 1024+1024)
	copy(h, "data")
	copy(h[100:], "0000644\x00")
	copy(h[124:], "00000000000\x00")
	copy(h[136:], "00000000000\x00")
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	copy(h[483:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") // its size
	sum := 0
	copy(h[148:], "        ")
	for _, c := range h[:512] {
		sum += int(c)
	}
	copy(h[148:], []byte(octal(sum)))
	b.Write(h)
	tr := tar.NewReader(bytes.NewReader(b.Bytes()))
	if _, err := tr.Next(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := io.Copy(io.Discard, interrupt.Reader(ctx, tr)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want it stopped", err)
	}
}

func octal(n int) string {
	out := []byte("000000\x00 ")
	for i := 5; i >= 0; i-- {
		out[i] = '0' + byte(n&7)
		n >>= 3
	}
	return string(out)
}

func TestTerminalObeysNoImage(t *testing.T) {
	var out bytes.Buffer
	if err := printRows(&out, "", []column{{"A", "A"}}, []row{{"A": "x\x1b[2J"}}); err != nil || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q %v", out.String(), err)
	}
}
