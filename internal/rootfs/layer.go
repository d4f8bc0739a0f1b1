package rootfs

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

// Names of the OCI image layer specification.
const (
	whiteoutPrefix = ".wh."
	opaqueMark     = ".wh..wh..opq"
)

// LayerOptions say what of an upper directory is the instance's own work.
type LayerOptions struct {
	// Exclude are paths inside at which the engine made empty files and
	// directories to mount on. They are left out while they are empty, and so
	// are directories that hold nothing else.
	Exclude []string
	// Lower is the merged tree below the upper directory, if it is at hand. With
	// it, a directory that holds nothing of the layer's own is left out, unless
	// it is new or its mode, owner, attributes or, where it leads to no excluded
	// name, time were changed; and the root gets an entry if that of Lower is
	// different.
	Lower *os.File
}

// WriteLayer writes the layer that the upper directory of an overlay is: an OCI
// layer tar, uncompressed. Equal directories give equal bytes: names are sorted
// by their bytes, times are exact, nothing of the host is in it. Deleted names
// and opaque directories become whiteouts; sockets are left out; hard links are
// kept; file capabilities are those of the host's user namespace (revision 2);
// what overlayfs noted for itself is dropped. The overlay must have been mounted
// with trusted.overlay attributes, without redirect_dir and metacopy: marks of
// those are errdefs.ErrFailedPrecondition, since the data lies elsewhere.
//
// The directory should be at rest. What vanishes meanwhile is left out, and
// what is cut off is filled up with zeros.
func WriteLayer(ctx context.Context, w io.Writer, upper *os.File, opt LayerOptions) error {
	l := &layer{tarOut: newTarOut(ctx, w, layerXattr), opt: opt}
	if err := l.write(upper); err != nil {
		return fmt.Errorf("cannot write a layer: %w", err)
	}
	return nil
}

type layer struct {
	*tarOut
	opt     LayerOptions
	exclude map[string]bool
	above   map[string]bool // directories on the way to an excluded name
	pending []pendingDir    // directories whose entries are not written yet
}

// pendingDir is a directory that may turn out to hold nothing of the layer's.
type pendingDir struct {
	name string
	*pinned
}

func (l *layer) setExcluded() {
	l.exclude, l.above = map[string]bool{}, map[string]bool{}
	for _, p := range l.opt.Exclude {
		p = trimRoot(p)
		l.exclude[p] = true
		for p = path.Dir(p); p != "."; p = path.Dir(p) {
			l.above[p] = true
		}
	}
}

func (l *layer) write(upper *os.File) error {
	l.setExcluded()
	root, err := pin(upper)
	if err != nil {
		return err
	}
	if root.st.Type() != sys.TypeDir {
		return fmt.Errorf("%q is no directory: %w", upper.Name(), errdefs.ErrInvalidArgument)
	}
	if l.opt.Lower != nil {
		old, err := pin(l.opt.Lower)
		if err != nil {
			return err
		}
		if !sameDir(root, old) {
			if err := l.put("./", root); err != nil {
				return err
			}
		}
	}
	if err := l.dir(root, "", 0, false); err != nil {
		return err
	}
	return l.close()
}

// dir writes what is in a directory; at is its path with a slash at the end.
// hidden says that nothing of the layers below is to be seen there.
func (l *layer) dir(dir *pinned, at string, depth int, hidden bool) error {
	names, err := l.list(dir.f, at, depth)
	if err != nil {
		return err
	}
	opaque, err := overlayMarks(dir)
	if err != nil {
		return fmt.Errorf("%q: %w", at, err)
	}
	if opaque && !hidden {
		hidden = true
		// overlayfs marks every new directory, also where there was none before.
		old, err := l.lower(at)
		if err != nil {
			return err
		}
		if err := l.flush(); err != nil {
			return err
		}
		if l.opt.Lower == nil || old != nil && old.st.Type() == sys.TypeDir {
			if err := l.mark(at + opaqueMark); err != nil {
				return err
			}
		}
		old.close()
	}
	for _, name := range names {
		if err := l.entry(dir, name, at+name, depth, hidden); err != nil {
			return err
		}
	}
	return nil
}

func (l *layer) entry(dir *pinned, name, full string, depth int, hidden bool) error {
	if strings.HasPrefix(name, whiteoutPrefix) {
		return fmt.Errorf("the name %q would delete files in a layer: %w", full, errdefs.ErrFailedPrecondition)
	}
	p, err := pinEntry(dir.f, name)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	defer p.close()
	if isWhiteout(&p.st) {
		if err := l.flush(); err != nil {
			return err
		}
		return l.mark(path.Join(path.Dir(full), whiteoutPrefix+name))
	}
	if l.exclude[full] {
		if empty, err := p.isEmpty(); err != nil || empty {
			return err
		}
	}
	if p.st.Type() != sys.TypeDir {
		if _, err := overlayMarks(p); err != nil {
			return fmt.Errorf("%q: %w", full, err)
		}
		if p.st.Type() == sys.TypeSocket {
			return nil
		}
		if err := l.flush(); err != nil {
			return err
		}
		return l.put(full, p)
	}
	l.pending = append(l.pending, pendingDir{full, p})
	// Overlayfs copies a directory up for anything that is opened for writing
	// below it; that alone gives it no entry.
	if hidden || l.opt.Lower == nil && !l.above[full] {
		if err := l.flush(); err != nil {
			return err
		}
	}
	if err := l.dir(p, full+"/", depth+1, hidden); err != nil {
		return err
	}
	if len(l.pending) == 0 {
		return nil
	}
	// Nothing below it was written, so it is the last one.
	if l.opt.Lower != nil {
		old, err := l.lower(full)
		if err != nil {
			return err
		}
		defer old.close()
		// What the engine mounts on changes the time of the directory it is in.
		if old == nil || !sameDir(p, old) || !l.above[full] && !sameTime(p, old) {
			return l.flush()
		}
	}
	l.pending = l.pending[:len(l.pending)-1]
	return nil
}

// flush writes the entries of the directories that lead to what comes next.
func (l *layer) flush() error {
	for _, d := range l.pending {
		if err := l.put(d.name+"/", d.pinned); err != nil {
			return err
		}
	}
	l.pending = l.pending[:0]
	return nil
}

// lower pins what the layers below have at a path; nil for nothing. The path
// goes through directories of the upper, and none of them is opaque, so that
// they are directories below as well.
func (l *layer) lower(at string) (*pinned, error) {
	if l.opt.Lower == nil {
		return nil, nil
	}
	at = strings.TrimSuffix(at, "/")
	f, err := sys.OpenInRoot(l.opt.Lower, "./"+at, sys.OnlyPin|syscall.O_NOFOLLOW, 0)
	if err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, err
	}
	return pinOwned(f)
}

func isWhiteout(st *sys.FileStat) bool {
	return st.Type() == sys.TypeChar && st.Major == 0 && st.Minor == 0
}

// overlayMarks reads what overlayfs noted of a file of an upper directory:
// whether a directory hides what lies below it.
func overlayMarks(p *pinned) (opaque bool, err error) {
	for _, x := range p.attrs {
		switch x.Name {
		case "trusted.overlay.opaque":
			opaque = x.Value == "y"
		case "trusted.overlay.redirect", "trusted.overlay.metacopy":
			return false, fmt.Errorf("overlayfs has its contents elsewhere (%s): %w", x.Name, errdefs.ErrFailedPrecondition)
		}
	}
	return opaque, nil
}

func sameTime(a, b *pinned) bool { return a.st.Sec == b.st.Sec && a.st.Nsec == b.st.Nsec }

// sameDir says whether two directories have mode, owner and attributes in common.
func sameDir(a, b *pinned) bool {
	return a.st.Mode == b.st.Mode && a.st.UID == b.st.UID && a.st.GID == b.st.GID &&
		slices.Equal(ownXattrs(a.attrs, layerXattr), ownXattrs(b.attrs, layerXattr))
}
