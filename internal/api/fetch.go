package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// fetcher gets what an import names by its URL, from the engine's host as
// Docker does: a client of the API may ask for any address that the host
// reaches. The limits are those of a server that answers at all; the size is
// bounded by the import.
var fetcher = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	DialContext:           (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
	TLSHandshakeTimeout:   30 * time.Second,
	ResponseHeaderTimeout: time.Minute,
	DisableKeepAlives:     true,
	DisableCompression:    true, // a packed archive stays one
}}

// fetch opens a URL of http or https, which may leave out its scheme. A status
// of 404 is errdefs.ErrNotFound. from is the URL without its credentials.
func fetch(ctx context.Context, src string) (_ io.ReadCloser, from string, err error) {
	if !strings.Contains(src, "://") {
		src = "http://" + src
	}
	u, err := url.Parse(src)
	if err != nil {
		return nil, "", bad("cannot import: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, "", bad("cannot import from %q: a URL of http or https is needed", u.Redacted())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, "", bad("cannot import from %q: %w", u.Redacted(), err)
	}
	resp, err := fetcher.Do(req)
	if err != nil {
		cancel(nil)
		return nil, "", fmt.Errorf("cannot import from %q: %w: %w", u.Redacted(), errors.Unwrap(err), errdefs.ErrUnavailable)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		resp.Body.Close()
		cancel(nil)
		var kind error = errdefs.ErrUnknown
		switch {
		case resp.StatusCode == http.StatusNotFound:
			kind = errdefs.ErrNotFound
		case resp.StatusCode < 500:
			kind = errdefs.ErrInvalidArgument
		}
		return nil, "", fmt.Errorf("failed to GET %s with status %s: %q: %w", u.Redacted(), resp.Status, strings.TrimSpace(string(text)), kind)
	}
	stalled := fmt.Errorf("%s sent nothing for %v: %w", u.Redacted(), stallTime, errdefs.ErrUnavailable)
	return &fetched{resp.Body, cancel, time.AfterFunc(stallTime, func() { cancel(stalled) }), ctx}, u.Redacted(), nil
}

// fetched is the body of an answer that must keep moving.
type fetched struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	clock  *time.Timer
	ctx    context.Context
}

func (f *fetched) Read(p []byte) (int, error) {
	f.clock.Reset(stallTime)
	n, err := f.ReadCloser.Read(p)
	if err != nil && err != io.EOF && f.ctx.Err() != nil {
		err = context.Cause(f.ctx)
	}
	return n, err
}

func (f *fetched) Close() error {
	f.clock.Stop()
	f.cancel(nil)
	return f.ReadCloser.Close()
}
