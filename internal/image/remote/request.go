package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// maxRetryAfter is how long a registry can make a request wait.
const maxRetryAfter = 2 * time.Minute

// maxRedirects is how often one request is sent elsewhere.
const maxRedirects = 5

// call is one request, which may be made several times.
type call struct {
	method string
	url    *url.URL
	header http.Header
	scopes []string
	// body makes the body anew for each attempt; nil is none.
	body func() (io.ReadCloser, int64, error)
	once bool // its repetition could change something: it is made once
	same bool // it follows no redirect to another host
	// slow is set where the registry has work to do before it answers.
	slow bool
	// accept401 gives that answer to the caller, as it came.
	accept401 bool
	// accept404 gives that answer to the caller.
	accept404 bool
}

// text is a body of a few bytes, none if s is empty.
func text(s string) func() (io.ReadCloser, int64, error) {
	if s == "" {
		return nil
	}
	return func() (io.ReadCloser, int64, error) { return io.NopCloser(strings.NewReader(s)), int64(len(s)), nil }
}

// do makes a call until it succeeds or trying again is of no use. What it
// returns is a success, with a body that must be closed and ends with an error
// when it stands still. Other answers are *StatusError.
func (s *session) do(ctx context.Context, c call) (*http.Response, error) {
	pause := s.c.cfg.Pause
	for attempt := 1; ; attempt++ {
		resp, err := s.try(ctx, c)
		if err == nil {
			return resp, nil
		}
		if c.once || !temporary(err) || ctx.Err() != nil {
			return nil, err
		}
		if attempt >= s.c.cfg.Attempts || attempt >= 2 && unreached(err) {
			return nil, &exhausted{err, attempt}
		}
		if err := s.c.wait(ctx, &pause, err); err != nil {
			return nil, err
		}
	}
}

// exhausted is the last error of a request that was made again and again.
type exhausted struct {
	error
	times int
}

func (e *exhausted) Error() string { return fmt.Sprintf("tried %d times: %v", e.times, e.error) }
func (e *exhausted) Unwrap() error { return e.error }

// tooOften tells an error that trying again has not mended.
func tooOften(err error) bool {
	var e *exhausted
	return errors.As(err, &e)
}

// wait pauses before another attempt after the error why, as long as the
// registry wants or as *pause says, which it doubles.
func (c *Client) wait(ctx context.Context, pause *time.Duration, why error) error {
	d := *pause
	*pause = min(2*d, c.cfg.MaxPause)
	var after *retryAfter
	if errors.As(why, &after) {
		if after.wait > maxRetryAfter {
			return fmt.Errorf("%w: it wants %s of silence: try again then", why, after.wait.Round(time.Second))
		}
		d = max(after.wait, c.cfg.Pause)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", context.Cause(ctx), why)
	case <-t.C:
		return nil
	}
}

// retryAfter is a status that says when to come again.
type retryAfter struct {
	*StatusError
	wait time.Duration
}

func (r *retryAfter) Unwrap() error { return r.StatusError }

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3).
func parseRetryAfter(v string, now time.Time) (time.Duration, bool) {
	if n, err := strconv.ParseUint(strings.TrimSpace(v), 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}

// try makes a call once: with what the host asks for, and where it redirects to.
func (s *session) try(ctx context.Context, c call) (*http.Response, error) {
	at := c.url
	for redirects, refused := 0, 0; ; {
		req := (&http.Request{Method: c.method, URL: at, Host: at.Host, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1})
		for k, v := range c.header {
			if k == "Authorization" && at.Host != c.url.Host {
				continue
			}
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", userAgent())
		if err := s.authorize(ctx, req, c.scopes); err != nil {
			return nil, err
		}
		resp, err := s.send(ctx, req, c)
		if err != nil {
			return nil, err
		}
		switch code := resp.StatusCode; {
		case code >= 200 && code < 300, code == http.StatusNotFound && c.accept404, code == http.StatusUnauthorized && c.accept401:
			return resp, nil
		case code == http.StatusUnauthorized && at.Host == s.host && refused < 2:
			more, err := s.challenged(resp, c.scopes, req.Header.Get("Authorization"))
			if err == nil && !more {
				err = statusError(at.Host, resp)
			}
			discard(resp)
			if err != nil && c.same {
				return nil, err
			}
			if err != nil {
				return nil, s.loginHint(err)
			}
			refused++
		case code >= 300 && code < 400 && code != http.StatusNotModified && (c.method == http.MethodGet || c.method == http.MethodHead):
			discard(resp)
			if redirects++; redirects > maxRedirects {
				return nil, invalid("registry %s redirects more than %d times", s.host, maxRedirects)
			}
			to, err := follow(at, resp.Header.Get("Location"))
			if err != nil {
				return nil, fmt.Errorf("registry %s redirects: %w", s.host, err)
			}
			if c.same && to.Host != c.url.Host {
				return nil, fmt.Errorf("%s redirects to %s, which gets no credentials: %w", c.url.Host, to.Host, errdefs.ErrPermissionDenied)
			}
			at = to
		default:
			serr := statusError(at.Host, resp)
			discard(resp)
			if d, ok := parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()); ok && again(code) {
				return nil, &retryAfter{serr, d}
			}
			if at.Host != s.host || c.same {
				return nil, serr // whoever asks a token server knows what it was asked with
			}
			return nil, s.loginHint(serr)
		}
	}
}

// send makes one HTTP request that ends when it stands still.
func (s *session) send(ctx context.Context, req *http.Request, c call) (*http.Response, error) {
	limit := s.c.cfg.Stall
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{limit: limit, cancel: cancel}
	if c.body != nil {
		body, size, err := c.body()
		if err != nil {
			cancel(nil)
			return nil, err
		}
		out := &sending{ReadCloser: body, w: w, slow: c.slow}
		defer out.end()
		req.Body, req.ContentLength = out, size
		if size == 0 {
			body.Close()
			req.Body = http.NoBody
		}
	}
	if c.slow {
		limit *= 10
	}
	w.timer = time.AfterFunc(limit, w.expire)
	resp, err := s.c.RoundTrip(req.WithContext(ctx))
	w.timer.Stop()
	if err != nil {
		err = s.c.stalled(ctx, req.URL, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &receiving{ReadCloser: resp.Body, w: w, ctx: ctx, c: s.c, u: req.URL}
	return resp, nil
}

// stalled says that a request stood still where that is why it was cancelled.
func (c *Client) stalled(ctx context.Context, u *url.URL, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return c.explain(u, errStalled)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// watch ends a request in which nothing moves.
type watch struct {
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func (w *watch) expire() { w.cancel(errStalled) }

// sending is the body of a request; each part that is taken of it shows that
// something moves.
type sending struct {
	io.ReadCloser
	w    *watch
	slow bool

	mu    sync.Mutex // held while the caller's reader is read
	ended bool
}

// end lets nothing more be read: a transport may go on reading a body whose
// request has an answer, or has failed.
func (s *sending) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
}

func (s *sending) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, errors.New("the request has ended")
	}
	n, err := s.ReadCloser.Read(p)
	limit := s.w.limit
	if err != nil && s.slow {
		limit *= 10
	}
	s.w.timer.Reset(limit)
	return n, err
}

// receiving is the body of an answer.
type receiving struct {
	io.ReadCloser
	w   *watch
	ctx context.Context // of this request, ended by Close
	c   *Client
	u   *url.URL
}

func (r *receiving) Read(p []byte) (int, error) {
	// The clock runs only while somebody waits for bytes.
	r.w.timer.Reset(r.w.limit)
	n, err := r.ReadCloser.Read(p)
	r.w.timer.Stop()
	if err != nil && err != io.EOF {
		err = r.c.stalled(r.ctx, r.u, err)
		var known *connError
		if r.ctx.Err() == nil && !errors.As(err, &known) {
			err = r.c.explain(r.u, err)
		}
	}
	return n, err
}

func (r *receiving) Close() error {
	r.w.timer.Stop()
	r.w.cancel(nil)
	return r.ReadCloser.Close()
}

// discard ends an answer whose body is of no interest, keeping the connection
// if little is left of it.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxError)
	resp.Body.Close()
}
