package test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// A builder knows a context that is as it was by one sum. Whatever is changed
// in it, and however little, the next build has it; and a state that was there
// before is built again as it was.
func TestChangedContexts(t *testing.T) {
	e := proatest.New(t)
	src := filepath.Join(t.TempDir(), "src")
	at := func(name string) string { return filepath.Join(src, filepath.FromSlash(name)) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		must(os.MkdirAll(at(fmt.Sprintf("d%d", i%7)), 0o755))
		must(os.WriteFile(at(fmt.Sprintf("d%d/f%d", i%7, i)), fmt.Appendf(nil, "file %d\n", i), 0o644))
	}
	must(os.Symlink("d1/f1", at("link")))
	must(os.WriteFile(at("Dockerfile"), []byte("FROM scratch\nCOPY . /\n"), 0o644))
	must(os.WriteFile(at("ä, ö & ü"), []byte("not ASCII\n"), 0o644))
	past := time.Unix(1_600_000_000, 123_456_789)
	must(os.Chtimes(at("d2/f2"), past, past))
	n := 0
	build := func(what string) {
		t.Helper()
		n++
		out := filepath.Join(t.TempDir(), "out")
		for range 2 { // the second time nothing has changed
			must(os.RemoveAll(out))
			e.MustProa("build", "-q", "-o", "type=local,dest="+out, src)
			if want, got := treeOf(t, src), treeOf(t, out); want != got {
				t.Fatalf("after %q the build has\n%s\nand the context\n%s", what, differing(got, want), differing(want, got))
			}
		}
	}
	build("nothing")
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"a change of the same size", func() error { return os.WriteFile(at("d1/f1"), []byte("fIle 1\n"), 0o644) }},
		{"a change of the same size and age, of another inode", func() error {
			if err := os.WriteFile(at("new"), []byte("FILE 2\n"), 0o644); err != nil {
				return err
			}
			if err := os.Rename(at("new"), at("d2/f2")); err != nil {
				return err
			}
			return os.Chtimes(at("d2/f2"), past.Add(1), past.Add(1))
		}},
		{"a mode", func() error { return os.Chmod(at("d3/f3"), 0o755) }},
		{"the mode of a directory", func() error { return os.Chmod(at("d3"), 0o700) }},
		{"a new file", func() error { return os.WriteFile(at("d4/zz"), nil, 0o644) }},
		{"a removed file", func() error { return os.Remove(at("d4/f4")) }},
		{"a file that became a directory", func() error {
			if err := os.Remove(at("d5/f5")); err != nil {
				return err
			}
			return os.Mkdir(at("d5/f5"), 0o755)
		}},
		{"another target of a link", func() error {
			if err := os.Remove(at("link")); err != nil {
				return err
			}
			return os.Symlink("d1/f8", at("link"))
		}},
		{"a renamed directory", func() error { return os.Rename(at("d6"), at("e6")) }},
		{"its old name again", func() error { return os.Rename(at("e6"), at("d6")) }},
		{"a removed directory", func() error { return os.RemoveAll(at("d0")) }},
	} {
		must(c.do())
		build(c.what)
	}
	// There and back again: the sum is one that the builder has heard before.
	st, err := os.Stat(at("d1/f1"))
	must(err)
	before, err := os.ReadFile(at("d1/f1"))
	must(err)
	must(os.WriteFile(at("d1/f1"), []byte("there\n"), 0o644))
	build("there")
	must(os.WriteFile(at("d1/f1"), before, 0o644))
	must(os.Chtimes(at("d1/f1"), st.ModTime(), st.ModTime()))
	build("and back again")
	// What is known of files under one filter says nothing under another.
	must(os.WriteFile(at("Dockerfile"), []byte("FROM scratch\nCOPY d1 /d1\n"), 0o644))
	out := filepath.Join(t.TempDir(), "out")
	for range 2 {
		e.MustProa("build", "-q", "-o", "type=local,dest="+out, src)
		if want, got := treeOf(t, at("d1")), treeOf(t, filepath.Join(out, "d1")); want != got {
			t.Fatalf("of one directory: %s", differing(got, want))
		}
	}
	must(os.WriteFile(at("Dockerfile"), []byte("FROM scratch\nCOPY . /\n"), 0o644))
	build("everything again")
	// Pruned between two builds.
	e.MustProa("builder", "prune", "-a", "-f")
	build("a prune")
}

// treeOf is every file below dir, a line each: name, type and mode, target or text.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if p == dir {
			return nil
		}
		text := ""
		switch {
		case d.Type() == fs.ModeSymlink:
			text, err = os.Readlink(p)
		case d.Type().IsRegular():
			var b []byte
			b, err = os.ReadFile(p)
			text = string(b)
		}
		lines = append(lines, fmt.Sprintf("%s %v %q", strings.TrimPrefix(p, dir), st.Mode(), text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// differing is the lines of a that b has not.
func differing(a, b string) string {
	has := map[string]bool{}
	for l := range strings.Lines(b) {
		has[strings.TrimSpace(l)] = true
	}
	var out []string
	for l := range strings.Lines(a) {
		if l = strings.TrimSpace(l); !has[l] {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}
