package command

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// mostAhead is how many files of a context are looked at before anybody asks
// for them: where there are more, most are often not wanted (.dockerignore).
const mostAhead = 3000

// aheadAge is how long a walk is believed: a builder that had to be started, or
// had to fetch an image first, asks later.
const aheadAge = 2 * time.Second

// ahead is a directory that is walked before it is asked for: while the builder
// still reads the Dockerfile, there is nothing else to do.
type ahead struct {
	fsutil.FS
	begun time.Time
	done  chan struct{} // closed when files is what it will be
	files []*types.Stat // in the order of the walk; nil: not known
}

// walkAhead begins the walk. It ends with ctx.
func walkAhead(ctx context.Context, dir fsutil.FS) *ahead {
	a := &ahead{FS: dir, begun: time.Now(), done: make(chan struct{})}
	go func() {
		defer close(a.done)
		files := make([]*types.Stat, 0, mostAhead)
		err := dir.Walk(ctx, "", func(_ string, d fs.DirEntry, err error) error {
			if err == nil && len(files) == mostAhead {
				err = errors.New("there are too many")
			}
			var info fs.FileInfo
			if err == nil {
				info, err = d.Info()
			}
			if err != nil {
				// A file that has vanished ends fsutil's walk of its directory
				// without an error, unless the error hides what it is.
				return fmt.Errorf("not walked: %v", err)
			}
			files = append(files, info.Sys().(*types.Stat)) // what fsutil's entries give
			return nil
		})
		if err == nil { // else whoever asks walks himself
			a.files = files
		}
	}()
	return a
}

// Walk walks target; the whole directory from memory, if it is there.
func (a *ahead) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	select {
	case <-a.done:
	default:
		return a.FS.Walk(ctx, target, fn)
	}
	if a.files == nil || time.Since(a.begun) > aheadAge || strings.Trim(target, "/") != "" {
		return a.FS.Walk(ctx, target, fn)
	}
	skip := "" // files that begin so are below a directory that is not wanted
	for _, st := range a.files {
		if skip != "" && strings.HasPrefix(st.Path, skip) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch err := fn(filepath.FromSlash(st.Path), &fsutil.DirEntryInfo{Stat: st.Clone()}, nil); {
		case err == nil:
		case errors.Is(err, fs.SkipAll):
			return nil
		case !errors.Is(err, fs.SkipDir):
			return err
		case st.IsDir():
			skip = st.Path + "/"
		default: // the rest of the directory that the file is in
			dir, _ := filepath.Split(st.Path)
			if skip = dir; skip == "" {
				return nil
			}
		}
	}
	return nil
}
