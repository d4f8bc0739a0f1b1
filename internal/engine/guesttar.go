package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"

	"proa/internal/rootfs"
)

// guestTar passes on a tar stream of the files at a path that a guest writes.
// Every entry is read and written anew, so that what goes out is a tar stream,
// and only with names that were asked for: clients of Docker's API unpack what
// the engine sends without a doubt (CVE-2019-6111).
func guestTar(ctx context.Context, asked string, out io.Writer, guest func(io.Writer) error) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := guest(w)
		_ = w.CloseWithError(err)
		sent <- err
	}()
	err := copyAsked(ctx, asked, r, out)
	_ = r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	if serr := <-sent; err == nil {
		err = serr
	}
	return err
}

// maxTail is how many bytes may follow the end of a tar stream.
const maxTail = 1 << 20

func copyAsked(ctx context.Context, asked string, r io.Reader, out io.Writer) error {
	base := rootfs.EntryBase(asked)
	all := base == "" || base == "."
	tw := tar.NewWriter(out)
	for tr := tar.NewReader(r); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return err
		}
		clean := path.Clean("/" + h.Name)[1:]
		if first, _, _ := strings.Cut(clean, "/"); !all && first != base {
			return fmt.Errorf("the guest sends %.200q when asked for %q: %w", h.Name, asked, errdefs.ErrUnknown)
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, tr); err != nil {
			return err
		}
	}
	n, err := io.Copy(io.Discard, io.LimitReader(r, maxTail))
	if err != nil {
		return err
	}
	if n == maxTail {
		return fmt.Errorf("the guest's archive has no end: %w", errdefs.ErrUnknown)
	}
	return tw.Close()
}
