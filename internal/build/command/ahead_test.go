package command

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// What a directory that was walked ahead tells under any filter is what the
// directory itself tells.
func TestWalkAhead(t *testing.T) {
	dir := t.TempDir()
	for i := range 60 {
		at := filepath.Join(dir, fmt.Sprintf("d%d", i%5), fmt.Sprintf("e%d", i%3))
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, fmt.Sprint(i)), make([]byte, i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"l1": "d1/e1/1", "l2": "nowhere", "d0.x": "d2"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "d2", "e2", "2"), filepath.Join(dir, "d4", "hard")); err != nil {
		t.Fatal(err)
	}
	plain, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := func(f fsutil.FS, opt fsutil.FilterOpt) (out []string) {
		t.Helper()
		f, err := fsutil.NewFilterFS(f, &opt)
		if err != nil {
			t.Fatal(err)
		}
		err = fsutil.WithHardlinkReset(f).Walk(t.Context(), "/", func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprint(p, d.Name(), d.IsDir(), info.Sys().(*types.Stat)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	a := walkAhead(t.Context(), plain)
	<-a.done
	if a.files == nil {
		t.Fatal("nothing was walked")
	}
	for name, opt := range map[string]fsutil.FilterOpt{
		"all":       {},
		"one file":  {IncludePatterns: []string{"d1/e1/1"}},
		"excluded":  {ExcludePatterns: []string{"d0", "d3/e*", "!d3/e1"}},
		"followed":  {FollowPaths: []string{"l1", "d0.x", "l2"}},
		"both":      {IncludePatterns: []string{"d*"}, ExcludePatterns: []string{"**/2*"}},
		"hard link": {ExcludePatterns: []string{"d2"}},
		"nothing":   {IncludePatterns: []string{"zzz"}},
		"a map": {Map: func(p string, st *types.Stat) fsutil.MapResult {
			switch st.Uid = 7; p {
			case "d1":
				return fsutil.MapResultSkipDir
			case "d2/e2/2":
				return fsutil.MapResultExclude
			}
			return fsutil.MapResultKeep
		}},
	} {
		for range 2 { // a filter changes what it is given
			if want, got := list(plain, opt), list(a, opt); !slices.Equal(want, got) {
				t.Errorf("%s: told\n%q\nof\n%q", name, got, want)
			}
		}
	}
	for name, ask := range map[string]func(fsutil.FS) []string{
		"a part": func(f fsutil.FS) (out []string) {
			_ = f.Walk(t.Context(), "d1", func(p string, _ fs.DirEntry, err error) error {
				out = append(out, fmt.Sprint(p, err))
				return nil
			})
			return out
		},
		"the end at a file": func(f fsutil.FS) (out []string) {
			_ = f.Walk(t.Context(), "/", func(p string, d fs.DirEntry, _ error) error {
				out = append(out, p)
				if !d.IsDir() {
					return fs.SkipDir
				}
				return nil
			})
			return out
		},
		"the end of all": func(f fsutil.FS) (out []string) {
			_ = f.Walk(t.Context(), "/", func(p string, _ fs.DirEntry, _ error) error {
				out = append(out, p)
				return fs.SkipAll
			})
			return out
		},
	} {
		if want, got := ask(plain), ask(a); !slices.Equal(want, got) {
			t.Errorf("%s: told %q of %q", name, got, want)
		}
	}
	// After a while it is not believed.
	if err := os.Remove(filepath.Join(dir, "l1")); err != nil {
		t.Fatal(err)
	}
	a.begun = a.begun.Add(-2 * aheadAge)
	if want, got := list(plain, fsutil.FilterOpt{}), list(a, fsutil.FilterOpt{}); !slices.Equal(want, got) {
		t.Errorf("long after it was walked: told %q of %q", got, want)
	}
	// A file that vanishes while it is walked does not hide those behind it.
	c := walkAhead(t.Context(), vanishing{plain})
	<-c.done
	if c.files != nil {
		t.Errorf("%d files of a directory that could not be walked", len(c.files))
	}
	// What is too much, or cannot be walked, is walked when it is asked for.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b := walkAhead(gone, plain)
	<-b.done
	if want, got := list(plain, fsutil.FilterOpt{}), list(b, fsutil.FilterOpt{}); b.files != nil || !slices.Equal(want, got) {
		t.Errorf("after a walk that ended early: told %q of %q", got, want)
	}
}

// vanishing is a directory whose second file is gone when it is looked at.
type vanishing struct{ fsutil.FS }

func (v vanishing) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	n := 0
	return v.FS.Walk(ctx, target, func(p string, d fs.DirEntry, err error) error {
		if n++; n == 2 {
			d = gone{d}
		}
		return fn(p, d, err)
	})
}

type gone struct{ fs.DirEntry }

func (gone) Info() (fs.FileInfo, error) {
	return nil, &fs.PathError{Op: "lstat", Path: "x", Err: fs.ErrNotExist}
}
