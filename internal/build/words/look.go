package words

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/util/suggest"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil/types"
)

// files are what the client has: its context and, beside it, the Dockerfile.
type files struct {
	from                session.Caller
	context, dockerfile string // names of directories that the client sends
	filename            string // of the Dockerfile
}

// filesOf finds the client of a build; false where the builder fetched the
// context from somewhere else, or the client is gone.
func (t *Teller) filesOf(ctx context.Context, b build) (*files, bool) {
	f := &files{context: "context", dockerfile: "dockerfile", filename: "Dockerfile"}
	for key, to := range map[string]*string{"contextkey": &f.context, "dockerfilekey": &f.dockerfile, "filename": &f.filename} {
		if v := b.attrs[key]; v != "" {
			*to = v
		}
	}
	if where := b.attrs["context"]; where != "" {
		name, is := strings.CutPrefix(where, "local:")
		if !is {
			return nil, false
		}
		f.context = name
	}
	caller, err := t.Sessions.Get(ctx, b.session, true)
	if err != nil || caller == nil {
		return nil, false
	}
	f.from = caller
	return f, true
}

// missingHint looks for the first source that is not in the context, and for
// what lies near it.
func (t *Teller) missingHint(ctx context.Context, b build, sources []string) string {
	f, ok := t.filesOf(ctx, b)
	if !ok {
		return ""
	}
	for _, name := range sources {
		if strings.ContainsAny(name, "*?[$") || strings.Contains(name, "://") {
			continue
		}
		rel := strings.TrimPrefix(path.Clean("/"+name), "/")
		if rel == "" {
			continue
		}
		here, near, ok := f.look(ctx, rel)
		if !ok {
			return ""
		}
		pattern := ""
		if here || near == "" {
			pattern = f.ignoredBy(ctx, rel)
		}
		switch {
		case here && pattern != "":
			return fmt.Sprintf("%s is in the context, and the line %q of .dockerignore leaves it out", name, pattern)
		case here:
			continue
		case near != "":
			return fmt.Sprintf("the context has no %s; there is %s", name, near)
		case pattern != "":
			return fmt.Sprintf("the line %q of .dockerignore leaves %s out of the context", pattern, name)
		}
		return fmt.Sprintf("the context has no %s; paths begin at the context's directory, and nothing outside of it can be copied", name)
	}
	return ""
}

// maxLook is how many names are compared for a near one.
const maxLook = 20_000

// look asks the client for the names in the context. It tells whether rel
// exists, and the nearest path if not: the same name in another directory, or a
// name that differs by a letter or two. ok is false where the client did not say.
func (f *files) look(ctx context.Context, rel string) (here bool, near string, ok bool) {
	dir, base := path.Dir(rel), path.Base(rel)
	var siblings []string
	elsewhere, n, enough := "", 0, false
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	err := f.receive(ctx, filesync.FSSendRequestOpt{Name: f.context, MetadataOnly: true, MetadataOnlyFilter: func(p string, _ *types.Stat) bool {
		if enough {
			return false
		}
		if here = p == rel; here || n >= maxLook {
			enough = true
			stop()
			return false
		}
		n++
		if path.Dir(p) == dir {
			siblings = append(siblings, p)
		}
		if elsewhere == "" && strings.EqualFold(path.Base(p), base) {
			elsewhere = p
		}
		return false // its content is of no interest
	}}, nil)
	switch {
	case err != nil && !enough:
		return false, "", false
	case here:
		return true, "", true
	}
	if s, ok := suggest.Search(rel, siblings, true); ok {
		return false, s, true
	}
	return false, elsewhere, true
}

// maxIgnore is more than anybody has written into a .dockerignore.
const maxIgnore = 1 << 20

// ignoredBy finds the line of .dockerignore that leaves rel out.
func (f *files) ignoredBy(ctx context.Context, rel string) string {
	own := f.filename + ".dockerignore"
	text := f.read(ctx, f.dockerfile, own)
	if text == nil {
		text = f.read(ctx, f.context, ".dockerignore")
	}
	lines, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return ""
	}
	if out, err := patternmatcher.MatchesOrParentMatches(rel, lines); err != nil || !out {
		return ""
	}
	for i := len(lines) - 1; i >= 0; i-- {
		if out, err := patternmatcher.MatchesOrParentMatches(rel, lines[i:i+1]); err == nil && out {
			return lines[i]
		}
	}
	return ""
}

// read asks the client for one small file; nil where there is none.
func (f *files) read(ctx context.Context, dir, name string) (text []byte) {
	name = path.Clean(name)
	opt := filesync.FSSendRequestOpt{
		Name: dir, IncludePatterns: []string{name},
		Filter: func(_ string, st *types.Stat) bool {
			return os.FileMode(st.Mode).IsDir() || os.FileMode(st.Mode).IsRegular() && st.Size <= maxIgnore
		},
	}
	_ = f.receive(ctx, opt, func(to string) {
		r, err := os.OpenInRoot(to, name)
		if err != nil {
			return
		}
		defer r.Close()
		text, _ = io.ReadAll(io.LimitReader(r, maxIgnore))
	})
	return text
}

// receive lets the client send into a directory that is gone when it returns;
// use, which may be nil, is called before that.
func (f *files) receive(ctx context.Context, opt filesync.FSSendRequestOpt, use func(dir string)) error {
	dir, err := os.MkdirTemp("", "hint-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	opt.DestDir = dir
	if err := filesync.FSSync(ctx, f.from, opt); err != nil {
		return err
	}
	if use != nil {
		use(dir)
	}
	return nil
}
