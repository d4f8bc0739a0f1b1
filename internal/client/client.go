// Package client is the Go client of the Docker Engine API as Proa serves it:
// requests, streams, hijacked connections, errors with their status. It owns
// the wire and nothing else: no flags, no output, no defaults. It works
// against any engine that speaks the API.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Client talks to one engine. It is safe for concurrent use.
type Client struct {
	network, address string // as for net.Dial
	http             *http.Client
}

// APIError is an answer of the engine with a status of 400 or above.
type APIError struct {
	Status  int
	Message string
	// ExitCode is the code that a run should end with (125, 126 or 127) where
	// the engine said one; 0 otherwise.
	ExitCode int

	path string // what was asked, without the API's version
}

// Hint says where the names are of what was not found.
func (e *APIError) Hint() string {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(e.path, "/"), "/")
	what := rest[strings.LastIndex(rest, "/")+1:]
	switch {
	case e.Status != http.StatusNotFound || e.ExitCode != 0: // a program that is not in the image
	case kind == "containers" && what != "create" && what != "archive": // an image, a file
		return "proa ps -a lists the containers"
	case kind == "images" && what != "create" && what != "push": // of a registry
		return "proa images lists what is here"
	case kind == "volumes":
		return "proa volume ls lists the volumes"
	}
	return ""
}

// Error gives the engine's own words.
func (e *APIError) Error() string { return e.Message }

// IsNotFound tells a 404 of the engine.
func IsNotFound(err error) bool {
	var e *APIError
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// DefaultHost is where an engine listens unless told otherwise.
const DefaultHost = "unix:///run/proa/proa.sock"

// DialError says that no engine answers at a host.
type DialError struct {
	Host string
	Err  error
}

// Error names the host and the reason.
func (e *DialError) Error() string {
	return fmt.Sprintf("cannot reach an engine at %s: %v", e.Host, e.Err)
}

// Unwrap gives the reason.
func (e *DialError) Unwrap() error { return e.Err }

// Hint says how to get through, or how to get an engine.
func (e *DialError) Hint() string {
	switch {
	case errors.Is(e.Err, os.ErrPermission):
		return "the engine's socket belongs to root and the group proa; to join it: sudo usermod -aG proa $USER, then log in again"
	case errors.Is(e.Err, os.ErrNotExist), errors.Is(e.Err, syscall.ECONNREFUSED):
		return "start one with: proad -H " + e.Host
	}
	return ""
}

// New makes a client for a host such as unix:///run/proa/proa.sock or
// tcp://127.0.0.1:2375. It does not connect.
func New(host string) (*Client, error) {
	scheme, address, ok := strings.Cut(host, "://")
	if !ok {
		return nil, fmt.Errorf("cannot use host %q: it must look like unix:///run/proa/proa.sock or tcp://127.0.0.1:2375", host)
	}
	c := &Client{}
	switch scheme {
	case "unix":
		c.network, c.address = "unix", address
	case "tcp":
		c.network, c.address = "tcp", strings.TrimSuffix(address, "/")
	default:
		return nil, fmt.Errorf("cannot use host %q: scheme %q is not supported (unix, tcp)", host, scheme)
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
		MaxIdleConns:       4,
	}}
	return c, nil
}

// Host is the address that the client talks to.
func (c *Client) Host() string { return c.network + "://" + c.address }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, c.network, c.address)
	if err != nil {
		return nil, &DialError{Host: c.Host(), Err: err}
	}
	return conn, nil
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, body io.Reader, contentType string) (*http.Request, error) {
	u := "http://proa" + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req, nil
}

// Stream sends a request with an optional raw body and returns the answer's
// body. The caller closes it.
func (c *Client) Stream(ctx context.Context, method, path string, query url.Values, body io.Reader, contentType string) (io.ReadCloser, error) {
	req, err := c.request(ctx, method, path, query, body, contentType)
	if err != nil {
		return nil, err
	}
	return c.send(req)
}

func (c *Client) send(req *http.Request) (io.ReadCloser, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		var dial *DialError
		if errors.As(err, &dial) {
			return nil, dial
		}
		return nil, fmt.Errorf("cannot %s %s: %w", req.Method, req.URL.Path, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, apiError(resp)
	}
	return resp.Body, nil
}

// version begins the path of a request.
var version = regexp.MustCompile(`^/v[0-9.]+`)

// apiError reads {"message": ...}, or whatever text came instead.
func apiError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var m struct {
		Message  string `json:"message"`
		ExitCode int    `json:"exitCode"`
	}
	if json.Unmarshal(b, &m) != nil || m.Message == "" {
		m.Message = strings.TrimSpace(string(b))
	}
	if m.Message == "" {
		m.Message = resp.Status
	}
	return &APIError{Status: resp.StatusCode, Message: m.Message, ExitCode: m.ExitCode, path: version.ReplaceAllString(resp.Request.URL.Path, "")}
}

// Do sends in (if not nil) as JSON and decodes the answer into out (if not nil).
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, in, out any) error {
	var body io.Reader
	contentType := ""
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body, contentType = bytes.NewReader(b), "application/json"
	}
	r, err := c.Stream(ctx, method, path, query, body, contentType)
	if err != nil {
		return err
	}
	defer r.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, r)
		return err
	}
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return fmt.Errorf("cannot read the engine's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// Conn is a connection that has left HTTP: what is written goes to the
// process, what is read comes from it.
type Conn struct {
	net.Conn
	r *bufio.Reader
	// Multiplexed is true when stdout and stderr come in Docker's frames.
	Multiplexed bool
}

// Read reads what the process wrote.
func (c *Conn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite ends the process's standard input and keeps its output.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Hijack sends a request that turns the connection into a raw stream
// (attach, exec start).
func (c *Client) Hijack(ctx context.Context, path string, query url.Values, in any) (*Conn, error) {
	b := []byte{}
	if in != nil {
		var err error
		if b, err = json.Marshal(in); err != nil {
			return nil, err
		}
	}
	req, err := c.request(ctx, http.MethodPost, path, query, bytes.NewReader(b), "application/json")
	if err != nil {
		return nil, err
	}
	return c.leaveHTTP(ctx, req, "tcp")
}

// Upgrade sends a request that turns the connection into a stream of another
// protocol (session, grpc), with header in addition.
func (c *Client) Upgrade(ctx context.Context, path, protocol string, header http.Header) (net.Conn, error) {
	req, err := c.request(ctx, http.MethodPost, path, nil, nil, "")
	if err != nil {
		return nil, err
	}
	for k, vs := range header {
		req.Header[http.CanonicalHeaderKey(k)] = vs
	}
	conn, err := c.leaveHTTP(ctx, req, protocol)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// leaveHTTP sends a request on a connection of its own, which speaks another
// protocol once the engine has agreed. Only until then ctx can end it.
func (c *Client) leaveHTTP(ctx context.Context, req *http.Request, protocol string) (left *Conn, err error) {
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() {
			err = fmt.Errorf("cannot POST %s: %w", req.URL.Path, context.Cause(ctx))
		}
		if err != nil {
			conn.Close()
			left = nil
		}
	}()
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("cannot POST %s: %w", req.URL.Path, err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("cannot POST %s: %w", req.URL.Path, err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, apiError(resp)
	}
	return &Conn{Conn: conn, r: r, Multiplexed: resp.Header.Get("Content-Type") == "application/vnd.docker.multiplexed-stream"}, nil
}

// Demux splits Docker's multiplexed stream (8-byte header: stream, 0, 0, 0,
// length as big endian) until it ends. A frame over 16 MiB is refused.
func Demux(r io.Reader, stdout, stderr io.Writer) error {
	var h [8]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		n := int64(h[4])<<24 | int64(h[5])<<16 | int64(h[6])<<8 | int64(h[7])
		w := stdout
		switch h[0] {
		case 0, 1:
		case 2:
			w = stderr
		default:
			return fmt.Errorf("cannot read the engine's stream: frame of unknown kind %d", h[0])
		}
		if n > 16<<20 {
			return fmt.Errorf("cannot read the engine's stream: frame of %d bytes", n)
		}
		if _, err := io.CopyN(w, r, n); err != nil {
			return err
		}
	}
}

// Ping waits until the engine answers, or gives the last error at the deadline.
func (c *Client) Ping(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := c.Do(ctx, http.MethodGet, "/_ping", nil, nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}
