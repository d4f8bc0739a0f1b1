package rootfs

import (
	"context"
	"fmt"
	"path"

	"proa/internal/sys"
)

// The kinds of a change, as Docker's API numbers them.
const (
	Modified = 0
	Added    = 1
	Deleted  = 2
)

// Change is one path that differs from the image.
type Change struct {
	Path string `json:"Path"` // from the root on, with a slash in front
	Kind int    `json:"Kind"`
}

// Changes tells what differs between Upper with Lower below it and Lower alone,
// as docker diff does: parents of a change are changed themselves, a removed
// directory is named without what was in it, and a file that was written counts
// as changed whatever is in it. The order is that of a walk by sorted names.
func (t *Tree) Changes(ctx context.Context, f func(Change) error) error {
	c := &changes{layer: &layer{tarOut: newTarOut(ctx, nil, layerXattr), opt: LayerOptions{Exclude: t.Exclude, Lower: t.Lower}}, f: f}
	c.setExcluded()
	root, err := pin(t.Upper)
	if err != nil {
		return err
	}
	if err := c.dir(root, "", 0, false, false); err != nil {
		return fmt.Errorf("cannot compare with the image: %w", err)
	}
	return nil
}

type changes struct {
	*layer
	f    func(Change) error
	held []string // directories to be told of with the first change below them
}

func (c *changes) tell(full string, kind int) error {
	for _, d := range c.held {
		if err := c.f(Change{"/" + d, Modified}); err != nil {
			return err
		}
	}
	c.held = c.held[:0]
	return c.f(Change{"/" + full, kind})
}

// dir tells of what is in a directory of the upper. hidden: nothing below shows
// through, because the directory is new or stands in the place of another. cut:
// it or one above it is opaque, so that what lies below it does not show.
func (c *changes) dir(dir *pinned, at string, depth int, hidden, cut bool) error {
	names, err := c.list(dir.f, at, depth)
	if err != nil {
		return err
	}
	opaque, err := overlayMarks(dir)
	if err != nil {
		return fmt.Errorf("%q: %w", at, err)
	}
	cut = cut || opaque
	if cut && !hidden {
		if names, err = c.withHidden(names, at, depth); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := c.entry(dir, name, at+name, depth, hidden, cut); err != nil {
			return err
		}
	}
	return nil
}

// withHidden adds the names of the directory below that an opaque one hides.
func (c *changes) withHidden(names []string, at string, depth int) ([]string, error) {
	old, err := c.lower(at)
	if err != nil || old == nil || old.st.Type() != sys.TypeDir {
		return names, err
	}
	defer old.close()
	below, err := c.list(old.f, at, depth)
	if err != nil {
		return nil, err
	}
	return union(names, below), nil
}

// union merges two sorted lists.
func union(a, b []string) (out []string) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return out
}

func (c *changes) entry(dir *pinned, name, full string, depth int, hidden, cut bool) error {
	var old *pinned
	var err error
	if !hidden {
		if old, err = c.lower(full); err != nil {
			return err
		}
		defer old.close()
	}
	p, err := pinEntry(dir.f, name)
	if gone(err) {
		if old != nil && cut {
			return c.tell(full, Deleted)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer p.close()
	if isWhiteout(&p.st) {
		if old == nil {
			return nil
		}
		return c.tell(full, Deleted)
	}
	if c.exclude[full] {
		if empty, err := p.isEmpty(); err != nil || empty {
			return err
		}
	}
	isDir := p.st.Type() == sys.TypeDir
	kind := Modified
	if old == nil {
		kind = Added
	}
	if isDir && old != nil && old.st.Type() == sys.TypeDir {
		// In an upper only because of what is below it, unless it shows otherwise.
		if sameDir(p, old) && (c.above[full] || p.st.Sec == old.st.Sec && p.st.Nsec == old.st.Nsec) {
			c.held = append(c.held, full)
		} else if err := c.tell(full, Modified); err != nil {
			return err
		}
	} else if isDir && c.above[full] && c.onlyExcluded(p, full, depth) {
		return nil
	} else if err := c.tell(full, kind); err != nil {
		return err
	}
	if !isDir {
		return nil
	}
	if err := c.dir(p, full+"/", depth+1, hidden || old == nil || old.st.Type() != sys.TypeDir, cut); err != nil {
		return err
	}
	if n := len(c.held); n > 0 && c.held[n-1] == full {
		c.held = c.held[:n-1]
	}
	return nil
}

// onlyExcluded says whether a new directory leads to nothing but excluded names.
func (c *changes) onlyExcluded(dir *pinned, full string, depth int) bool {
	names, err := c.list(dir.f, full, depth)
	if err != nil {
		return false
	}
	for _, n := range names {
		p, err := pinEntry(dir.f, n)
		if err != nil {
			return false
		}
		at := path.Join(full, n)
		empty, _ := p.isEmpty()
		ok := c.exclude[at] && empty || c.above[at] && p.st.Type() == sys.TypeDir && c.onlyExcluded(p, at, depth+1)
		p.close()
		if !ok {
			return false
		}
	}
	return true
}
