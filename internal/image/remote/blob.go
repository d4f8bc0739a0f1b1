package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob reads a blob. A connection that breaks or stands still is made again
// from the byte where it ended; after Config.Attempts of them without one new
// byte, Read gives the last error. It ends after desc.Size bytes; more or
// fewer than that are an error. The digest is left to the reader, who has to
// compute it to store the blob: errdefs.ErrDataLoss is the kind for that.
func (r *Repository) Blob(ctx context.Context, desc ocispec.Descriptor) io.ReadCloser {
	return &blob{ctx: ctx, r: r, desc: desc, pause: r.c.cfg.Pause}
}

type blob struct {
	ctx   context.Context // of the whole transfer, as its reader's
	r     *Repository
	desc  ocispec.Descriptor
	n     int64 // bytes that were read
	body  io.ReadCloser
	fails int // since the last new byte
	pause time.Duration
	err   error
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		switch {
		case b.err != nil:
			return 0, b.err
		case len(p) == 0:
			return 0, nil
		case b.n == b.desc.Size && b.body == nil:
			b.err = io.EOF
			continue
		}
		if b.body == nil {
			body, err := b.open()
			if err != nil {
				if err = b.failed(err); err != nil {
					b.err = fmt.Errorf("cannot fetch blob %s: %w", b.desc.Digest, err)
				}
				continue
			}
			b.body = body
		}
		if left := b.desc.Size - b.n; int64(len(p)) > left {
			p = p[:max(left, 1)]
		}
		n, err := b.body.Read(p)
		switch {
		case b.n+int64(n) > b.desc.Size:
			b.err = fmt.Errorf("cannot fetch blob %s: registry %s sends more than its %d bytes: %w", b.desc.Digest, b.r.host, b.desc.Size, errdefs.ErrDataLoss)
			b.close()
			continue
		case n > 0:
			b.n += int64(n)
			b.fails, b.pause = 0, b.r.c.cfg.Pause
			if err == nil {
				return n, nil
			}
		case err == nil:
			continue
		}
		b.close()
		if b.n == b.desc.Size { // however the connection ended
			if n > 0 {
				return n, nil
			}
			continue
		}
		if err == io.EOF {
			err = &connError{err: fmt.Errorf("registry %s sent %d of %d bytes: %w", b.r.host, b.n, b.desc.Size, errdefs.ErrUnavailable), temporary: true}
		}
		if serr := b.failed(err); serr != nil {
			b.err = fmt.Errorf("cannot fetch blob %s: %w", b.desc.Digest, serr)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// failed counts a failure and waits, or says that it was the last.
func (b *blob) failed(err error) error {
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if !temporary(err) || tooOften(err) {
		return err
	}
	if b.fails++; b.fails >= b.r.c.cfg.Attempts {
		return &exhausted{err, b.fails}
	}
	return b.r.c.wait(b.ctx, &b.pause, err)
}

func (b *blob) close() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

// open asks for what is missing.
func (b *blob) open() (io.ReadCloser, error) {
	c := call{method: http.MethodGet, url: b.r.url("blobs/%s", b.desc.Digest), scopes: b.r.pull(), header: http.Header{}}
	if b.n > 0 {
		c.header.Set("Range", fmt.Sprintf("bytes=%d-", b.n))
	}
	resp, err := b.r.s.do(b.ctx, c)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (io.ReadCloser, error) {
		resp.Body.Close()
		return nil, err
	}
	if resp.StatusCode == http.StatusPartialContent {
		var from, to, total int64
		if n, _ := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total); n < 2 || from != b.n || n == 3 && total != b.desc.Size {
			return fail(&connError{err: fmt.Errorf("registry %s answers %q when asked for bytes %d to %d: %w",
				b.r.host, resp.Header.Get("Content-Range"), b.n, b.desc.Size-1, errdefs.ErrDataLoss), temporary: true})
		}
		return resp.Body, nil
	}
	if resp.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("registry %s answers %s to a request for a blob: %w", b.r.host, resp.Status, errdefs.ErrUnknown))
	}
	if resp.ContentLength > b.desc.Size {
		return fail(&connError{err: fmt.Errorf("registry %s has %d bytes where the manifest says %d: %w", b.r.host, resp.ContentLength, b.desc.Size, errdefs.ErrDataLoss), temporary: true})
	}
	// A registry that knows no ranges sends everything again.
	if _, err := io.CopyN(io.Discard, resp.Body, b.n); err != nil {
		if errors.Is(err, io.EOF) {
			err = &connError{err: fmt.Errorf("registry %s sent fewer than %d bytes: %w", b.r.host, b.n, errdefs.ErrUnavailable), temporary: true}
		}
		return fail(err)
	}
	return resp.Body, nil
}

// Close ends the transfer.
func (b *blob) Close() error {
	b.close()
	if b.err == nil {
		b.err = errors.New("the blob is closed")
	}
	return nil
}
