package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"syscall"

	"proa/internal/sys"
)

// Apply carries out, on the tree itself, what an OCI layer tar says: whiteouts
// delete, everything else is put. The layer is read twice.
func (t *Tree) Apply(ctx context.Context, layer io.ReadSeeker) error {
	// Deletions come first: an opaque mark speaks of what was there before.
	for tr := tar.NewReader(layer); ; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("cannot read the layer: %w", err)
		}
		if err := t.whiteout(h.Name); err != nil {
			return fmt.Errorf("cannot carry out %q: %w", h.Name, err)
		}
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("cannot read the layer again: %w", err)
	}
	out, in := io.Pipe()
	go func() { in.CloseWithError(withoutWhiteouts(in, layer)) }()
	err := t.Put(ctx, &Request{Op: OpPut, Path: "/"}, out)
	out.CloseWithError(err)
	return err
}

// whiteout deletes what a whiteout names; any other name is left alone.
func (t *Tree) whiteout(name string) error {
	parts, err := components(name)
	if err != nil || len(parts) == 0 {
		return err
	}
	base, dir := parts[len(parts)-1], path.Join(parts[:len(parts)-1]...)
	victim, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return nil
	}
	parent, err := sys.OpenInRoot(t.Root, "/"+dir, syscall.O_RDONLY|syscall.O_DIRECTORY, 0)
	if err != nil {
		if gone(err) {
			return nil
		}
		return err
	}
	defer parent.Close()
	if base != opaqueMark {
		if victim == "" || victim == "." || victim == ".." {
			return nil
		}
		return sys.RemoveTreeAt(parent, victim)
	}
	names, err := parent.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := sys.RemoveTreeAt(parent, n); err != nil {
			return err
		}
	}
	return nil
}

// withoutWhiteouts copies a layer tar without them.
func withoutWhiteouts(w io.Writer, layer io.Reader) error {
	tw := tar.NewWriter(w)
	for tr := tar.NewReader(layer); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return tw.Close()
		}
		if err != nil {
			return err
		}
		if strings.HasPrefix(path.Base(h.Name), whiteoutPrefix) {
			continue
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
}
