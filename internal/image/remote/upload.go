package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// small blobs are sent by one request, which is cheaper to begin again than to
// resume.
const small = 1 << 20

// Upload is how a blob comes to a registry.
type Upload struct {
	Desc ocispec.Descriptor
	// Open reads the blob from a byte on.
	Open func(from int64) (io.ReadCloser, error)
	// Sources are repositories of the same host that have the blob: it can be
	// mounted from them.
	Sources []string
	// Progress, which may be nil, is told how many bytes the registry took.
	Progress func(done int64)
}

// Uploaded tells how a blob came to be in a repository: at most one is set.
type Uploaded struct {
	Existed     bool
	MountedFrom string // a repository of the same host
}

// Upload brings a blob into the repository unless it is there. A connection
// that breaks is made again; the upload goes on where the registry says that
// it ended.
func (r *Repository) Upload(ctx context.Context, u Upload) (Uploaded, error) {
	out, err := r.upload(ctx, u)
	if err != nil {
		return Uploaded{}, fmt.Errorf("cannot upload blob %s: %w", u.Desc.Digest, err)
	}
	return out, nil
}

func (r *Repository) upload(ctx context.Context, u Upload) (Uploaded, error) {
	if u.Progress == nil {
		u.Progress = func(int64) {}
	}
	have, err := r.HasBlob(ctx, u.Desc.Digest)
	if have || err != nil {
		return Uploaded{Existed: have}, err
	}
	sources := slices.DeleteFunc(slices.Clone(u.Sources), func(s string) bool { return s == r.name })
	pause := r.c.cfg.Pause
	for fails := 1; ; fails++ {
		var err error
		at, from, err := r.begin(ctx, u.Desc, sources)
		if err == nil && at == nil {
			return Uploaded{MountedFrom: from}, nil
		}
		if err == nil {
			sources = nil // not to be tried again
			if err = r.transfer(ctx, u, at); err == nil {
				return Uploaded{}, nil
			}
		}
		if ctx.Err() != nil || tooOften(err) || !temporary(err) && !isLost(err) || fails >= r.c.cfg.Attempts {
			return Uploaded{}, err
		}
		if err := r.c.wait(ctx, &pause, err); err != nil {
			return Uploaded{}, err
		}
		// The last answer may have been lost, not the blob.
		if have, err := r.HasBlob(ctx, u.Desc.Digest); have || err != nil {
			return Uploaded{}, err
		}
	}
}

// HasBlob tells whether the repository has a blob.
func (r *Repository) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	resp, err := r.s.do(ctx, call{method: http.MethodHead, url: r.url("blobs/%s", d), scopes: r.push(), accept404: true})
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// begin starts an upload, which gives its address, or mounts the blob from
// another repository, which gives that one's name.
func (r *Repository) begin(ctx context.Context, d ocispec.Descriptor, sources []string) (at *url.URL, from string, err error) {
	post := func(q url.Values, scopes []string) (*http.Response, error) {
		u := r.url("blobs/uploads/")
		u.RawQuery = q.Encode()
		resp, err := r.s.do(ctx, call{method: http.MethodPost, url: u, scopes: scopes, header: http.Header{"Content-Length": {"0"}}})
		if err == nil {
			discard(resp)
		}
		return resp, err
	}
	var resp *http.Response
	if len(sources) > 0 {
		from = sources[0]
		scopes := append(r.push(), "repository:"+from+":pull")
		resp, err = post(url.Values{"mount": {d.Digest.String()}, "from": {from}}, scopes)
		if err == nil && resp.StatusCode == http.StatusCreated {
			return nil, from, nil
		}
		// Not being allowed to read there is no reason not to write here.
		if err != nil && temporary(err) {
			return nil, "", err
		}
	}
	if resp == nil || err != nil {
		if resp, err = post(nil, r.push()); err != nil {
			return nil, "", err
		}
	}
	if resp.StatusCode != http.StatusAccepted {
		return nil, "", fmt.Errorf("registry %s answers %s when an upload begins: %w", r.host, resp.Status, errdefs.ErrUnknown)
	}
	at, err = follow(r.url("blobs/uploads/"), resp.Header.Get("Location"))
	return at, "", err
}

// lost is an upload that the registry knows nothing of any more.
type lost struct{ error }

func (l *lost) Unwrap() error { return l.error }

func isLost(err error) bool {
	var l *lost
	return errors.As(err, &l)
}

// transfer sends a blob to the upload at, and ends it.
func (r *Repository) transfer(ctx context.Context, u Upload, at *url.URL) error {
	size, from := u.Desc.Size, int64(0)
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	body := func() (io.ReadCloser, int64, error) {
		f, err := u.Open(from)
		if err != nil {
			return nil, 0, err
		}
		return &counted{f, from, u.Progress}, size - from, nil
	}
	finish := func(body func() (io.ReadCloser, int64, error)) error {
		end := *at
		q := end.Query()
		q.Set("digest", u.Desc.Digest.String())
		end.RawQuery = q.Encode()
		resp, err := r.s.do(ctx, call{method: http.MethodPut, url: &end, header: header, scopes: r.push(), body: body, once: true, slow: true})
		if err != nil {
			return r.gone(err)
		}
		discard(resp)
		u.Progress(size)
		return nil
	}
	if size <= small {
		return finish(body)
	}
	pause := r.c.cfg.Pause
	for fails := 0; from < size; {
		h := header.Clone()
		if from > 0 {
			h.Set("Content-Range", fmt.Sprintf("%d-%d", from, size-1))
		}
		resp, err := r.s.do(ctx, call{method: http.MethodPatch, url: at, header: h, scopes: r.push(), body: body, once: true, slow: true})
		if err == nil {
			discard(resp)
			from = size
			if loc := resp.Header.Get("Location"); loc != "" {
				if at, err = follow(at, loc); err != nil {
					return err
				}
			}
			break
		}
		if !temporary(err) || ctx.Err() != nil {
			return r.gone(err)
		}
		if fails++; fails >= r.c.cfg.Attempts {
			return &exhausted{err, fails}
		}
		if err := r.c.wait(ctx, &pause, err); err != nil {
			return err
		}
		got, next, err := r.uploaded(ctx, at)
		if err != nil {
			return r.gone(err)
		}
		if got > size {
			return &lost{fmt.Errorf("registry %s has %d bytes of a blob of %d: %w", r.host, got, size, errdefs.ErrDataLoss)}
		}
		if got > from {
			fails, pause = 0, r.c.cfg.Pause
		}
		from, at = got, next
		u.Progress(from)
	}
	return finish(nil)
}

// gone marks an error that a new upload can mend.
func (r *Repository) gone(err error) error {
	var s *StatusError
	if errors.As(err, &s) && (s.Status == http.StatusNotFound || s.Status == http.StatusRequestedRangeNotSatisfiable || strings.HasPrefix(s.Code, "BLOB_UPLOAD_")) {
		return &lost{err}
	}
	return err
}

// uploaded asks how many bytes of an upload have arrived.
func (r *Repository) uploaded(ctx context.Context, at *url.URL) (int64, *url.URL, error) {
	resp, err := r.s.do(ctx, call{method: http.MethodGet, url: at, scopes: r.push()})
	if err != nil {
		return 0, nil, err
	}
	discard(resp)
	var first, last int64
	v := strings.TrimPrefix(resp.Header.Get("Range"), "bytes=")
	if n, _ := fmt.Sscanf(v, "%d-%d", &first, &last); n != 2 || first != 0 || last < 0 {
		return 0, nil, &lost{fmt.Errorf("registry %s says %q when asked how much of an upload it has: %w", r.host, v, errdefs.ErrUnknown)}
	}
	if loc := resp.Header.Get("Location"); loc != "" {
		if at, err = follow(at, loc); err != nil {
			return 0, nil, err
		}
	}
	// "0-0" is one byte by the letter, and none with every registry there is.
	if last == 0 {
		return 0, at, nil
	}
	return last + 1, at, nil
}

// counted reports what was read.
type counted struct {
	io.ReadCloser
	n    int64
	tell func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}
