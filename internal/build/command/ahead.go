package command

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// mostAhead is how many files of a context are looked at before anybody asks
// for them: where there are more, most are often not wanted (.dockerignore).
const mostAhead = 3000

// ahead is a directory that is walked before it is asked for: while the builder
// still reads the Dockerfile, there is nothing else to do.
type ahead struct {
	fsutil.FS
	done  chan struct{} // closed when files is what it will be
	files []*types.Stat // in the order of the walk; nil: not known
}

// walkAhead begins the walk. It ends with ctx.
func walkAhead(ctx context.Context, dir fsutil.FS) *ahead {
	a := &ahead{FS: dir, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		files := make([]*types.Stat, 0, mostAhead)
		err := dir.Walk(ctx, "", func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if len(files) == mostAhead {
				return errors.New("too many")
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			files = append(files, info.Sys().(*types.Stat)) // what fsutil's entries give
			return nil
		})
		if err == nil { // else whoever asks meets the same error
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
	if a.files == nil || strings.Trim(target, "/") != "" {
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
