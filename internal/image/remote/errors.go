package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
)

// PlainHTTPError says that a host would have to be spoken to without TLS. Its
// kind is errdefs.ErrFailedPrecondition.
type PlainHTTPError struct{ Host string }

// Error says why, and what to do.
func (e *PlainHTTPError) Error() string {
	return fmt.Sprintf("registry %s does not speak TLS; plain HTTP is used on loopback only, because anybody on the way could read passwords and change images: "+
		"give it a certificate, or reach it by `ssh -L 5000:%s HOST` as localhost:5000", e.Host, e.Host)
}

// Unwrap gives the kind.
func (e *PlainHTTPError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// StatusError is an answer of a registry that is no success.
type StatusError struct {
	Host   string
	Status int
	Code   string // the registry's word for it, "MANIFEST_UNKNOWN"
	Detail string // what else it says
	kind   error
}

// Error gives the registry's words.
func (e *StatusError) Error() string {
	out := fmt.Sprintf("registry %s says %d %s", e.Host, e.Status, http.StatusText(e.Status))
	if e.Code != "" {
		out += " (" + e.Code + ")"
	}
	if e.Detail != "" {
		out += ": " + e.Detail
	}
	return out
}

// Unwrap gives the kind.
func (e *StatusError) Unwrap() error { return e.kind }

// statusError reads a registry's answer. The body is not closed.
func statusError(host string, resp *http.Response) *StatusError {
	e := &StatusError{Host: host, Status: resp.StatusCode}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
		e.kind = errdefs.ErrUnauthenticated
	case resp.StatusCode == http.StatusForbidden:
		e.kind = errdefs.ErrPermissionDenied
	case resp.StatusCode == http.StatusNotFound:
		e.kind = errdefs.ErrNotFound
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		e.kind = errdefs.ErrUnavailable
	default:
		e.kind = errdefs.ErrUnknown
	}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // token servers
	}
	if json.Unmarshal(raw, &doc) == nil {
		for i, d := range doc.Errors {
			if i == 0 {
				e.Code = printable(d.Code, 60)
			}
			if d.Message != "" && i < 3 {
				e.Detail = strings.TrimPrefix(e.Detail+"; "+printable(d.Message, 300), "; ")
			}
		}
		if e.Detail == "" {
			e.Detail = printable(doc.Details, 300)
		}
	} else if resp.Header.Get("Content-Type") != "text/html" {
		e.Detail = printable(strings.TrimSpace(string(raw)), 200)
	}
	return e
}

// printable makes a stranger's text fit for a terminal.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}

// errStalled is why a request that stands still is given up.
var errStalled = errors.New("the connection stands still")

// connError is a connection that could not be made or broke. Trying again can
// help if temporary is set.
type connError struct {
	err       error
	temporary bool
	unreached bool // no connection was made: once more is enough
}

func (e *connError) Error() string { return e.err.Error() }
func (e *connError) Unwrap() error { return e.err }

// explain turns what a transport says into words for people, and into what can
// be tried again.
func (c *Client) explain(u *url.URL, err error) error {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		cert    x509.CertificateInvalidError
		dns     *net.DNSError
		plain   *PlainHTTPError
		op      *net.OpError
		record  tls.RecordHeaderError
	)
	host := u.Host
	permanent := func(format string, args ...any) error {
		return &connError{err: fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errdefs.ErrFailedPrecondition)}
	}
	switch {
	case errors.As(err, &plain):
		return err
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return &PlainHTTPError{Host: host}
	case errors.As(err, &unknown):
		return permanent("cannot trust registry %s: its certificate is signed by an authority that this host does not know; "+
			"if you trust it, put the authority's certificate into %s: %w", host, filepath.Join(c.cfg.CertsDir, host, "ca.crt"), err)
	case errors.As(err, &name):
		return permanent("cannot trust registry %s: its certificate is for another name (%w); use a name that is in the certificate", host, err)
	case errors.As(err, &cert) && cert.Reason == x509.Expired:
		now, valid := time.Now(), "expired on "+cert.Cert.NotAfter.UTC().Format(time.RFC3339)
		if now.Before(cert.Cert.NotBefore) {
			valid = "is valid only from " + cert.Cert.NotBefore.UTC().Format(time.RFC3339)
		}
		return permanent("cannot trust registry %s: its certificate %s, and this host's clock says %s: renew the certificate, or set the clock: %w",
			host, valid, now.UTC().Format(time.RFC3339), err)
	case errors.As(err, &cert):
		return permanent("cannot trust registry %s: %w", host, err)
	case errors.As(err, &op) && op.Op == "remote error": // a TLS alert
		return permanent("registry %s refuses the TLS connection (%w); if it wants a client certificate, put client.cert and client.key into %s", host, err, filepath.Join(c.cfg.CertsDir, host))
	case errors.As(err, &dns) && dns.IsNotFound:
		return permanent("cannot reach registry %s: there is no host of that name (behind a proxy the engine needs HTTPS_PROXY)", host)
	case errors.As(err, &dns):
		// The resolver has tried again already.
		return &connError{err: fmt.Errorf("cannot reach registry %s: its name cannot be looked up: %s (is this host connected? behind a proxy the engine needs HTTPS_PROXY): %w", host, last(dns.Err), errdefs.ErrUnavailable)}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &connError{err: fmt.Errorf("cannot reach registry %s: nothing listens there: %w", host, errdefs.ErrUnavailable), temporary: true, unreached: true}
	case errors.As(err, &op) && op.Op == "dial":
		return &connError{err: fmt.Errorf("cannot reach registry %s: %w: %w", host, err, errdefs.ErrUnavailable), temporary: true, unreached: true}
	case errors.Is(err, errStalled):
		return &connError{err: fmt.Errorf("registry %s: %w: %w", host, errStalled, errdefs.ErrUnavailable), temporary: true}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return &connError{err: fmt.Errorf("the connection to registry %s broke: %w: %w", host, err, errdefs.ErrUnavailable), temporary: true}
}

// last is the reason at the end of a resolver's words: those before name the
// addresses of name servers.
func last(words string) string {
	if at := strings.LastIndex(words, ": "); at >= 0 {
		return words[at+2:]
	}
	return words
}

// temporary tells whether the same request may succeed in a moment.
func temporary(err error) bool {
	var c *connError
	var s *StatusError
	switch {
	case errors.As(err, &c):
		return c.temporary
	case errors.As(err, &s):
		return again(s.Status)
	}
	return false
}

// unreached tells whether nothing answers at all.
func unreached(err error) bool {
	var c *connError
	return errors.As(err, &c) && c.unreached
}

// again tells whether a status may be another one in a moment.
func again(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}
