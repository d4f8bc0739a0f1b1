// Package api is the Docker Engine API: it decodes a request, asks one owner,
// and encodes the answer. It owns the routes (one table), the shapes of
// Docker's answers, the status of each kind of error, and the streams that
// leave HTTP. It never decides anything about containers or images and keeps
// no state of its own.
//
// The newest version served is MaxVersion, the oldest MinVersion. A path
// without a version means the newest.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/api/versions"
	"proa/internal/builder"
	"proa/internal/engine"
	"proa/internal/event"
	"proa/internal/failure"
	"proa/internal/filters"
	"proa/internal/image"
	"proa/internal/image/remote"
	"proa/internal/isolation"
	"proa/internal/volume"
)

// Versions of Docker's API that are served.
const (
	MaxVersion = "1.56"
	MinVersion = "1.24"
)

// Limits for what a client sends.
const (
	maxBody  = 4 << 20          // bytes of a JSON body
	bodyTime = 15 * time.Second // for a whole JSON body to arrive
)

// Check is one line of doctor: what was looked at, whether it works, and the
// command that mends it.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // "yes", "no" or "unknown"
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"`
}

// Host is what version, info and doctor say about the engine's surroundings.
// The daemon fills it.
type Host struct {
	ID            string // of this data root
	DataRoot      string
	KernelVersion string
	OS            string // as in /etc/os-release
	Name          string // the host's name
	MemTotal      int64  // bytes
	CgroupVersion string // "1" or "2"
	CgroupDriver  string
	SwapLimit     bool // memory and swap can be limited together
	UserNS        bool
	Bridge        Bridge
	// Doctor judges the host afresh.
	Doctor func(context.Context) []Check
	// Warnings are shown by info.
	Warnings func(context.Context) []string
}

// Bridge is the default network.
type Bridge struct {
	Name            string
	Subnet, Gateway func() string
}

// Rooms are the owners that the API asks.
type Rooms struct {
	Engine *engine.Engine
	Images *image.Store
	// Registries is the way to registries that Images uses too.
	Registries *remote.Client
	Volumes    *volume.Store
	Builders   *builder.Builders
	Host       Host
	Log        *slog.Logger
	// Publish publishes an event that is not the engine's or a store's.
	Publish func(event.Event)
}

// Server answers requests. It is an http.Handler.
type Server struct {
	Rooms
	table []entry
}

// New makes the handler of one engine.
func New(r Rooms) *Server {
	s := &Server{Rooms: r}
	for _, rt := range s.routes() {
		s.table = append(s.table, entry{rt, parsePattern(rt.path), s.handle(rt)})
	}
	return s
}

// call is one request with what every handler needs of it.
type call struct {
	http.ResponseWriter
	*http.Request
	version int    // minor version of the API, 1.x
	route   string // of the table, as internal/api/versions names it
	started bool
}

// Header is the answer's header.
func (c *call) Header() http.Header { return c.ResponseWriter.Header() }

// Write writes the answer's body.
func (c *call) Write(p []byte) (int, error) { return c.ResponseWriter.Write(p) }

type handler func(c *call) error

type versionKey struct{}

// ServeHTTP finds the route, then checks the version that its path begins
// with: as in Docker an unknown path is 404 whatever its version is, and so is a
// wrong method.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Server", "Proa/"+serverVersion()+" ("+runtime.GOOS+")")
	h.Set("Api-Version", MaxVersion)
	h.Set("Ostype", runtime.GOOS)
	h.Set("Docker-Experimental", "false")
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.Builders.Call(w, r) // as Docker: BuildKit's API for clients that know HTTP/2 beforehand
		return
	}
	if p := clean(r.URL.Path); p != r.URL.Path {
		u := *r.URL
		u.Path, u.RawPath = p, ""
		h.Set("Location", u.String())
		w.WriteHeader(http.StatusMovedPermanently)
		return
	}
	version, rest := cutVersion(r.URL.Path)
	route := s.find(r, rest)
	if route == nil {
		writeError(w, http.StatusNotFound, "page not found", 0)
		return
	}
	minor, err := servedMinor(version)
	if err == nil && minor < route.since {
		err = bad("%s %s requires minimum API version 1.%d", route.method, route.path, route.since)
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error(), 0)
		return
	}
	if version != "" {
		r2 := r.WithContext(context.WithValue(r.Context(), versionKey{}, minor))
		u := *r.URL
		u.Path, u.RawPath = rest, ""
		r2.URL = &u
		r = r2
	}
	route.serve(w, r)
}

// servedMinor reads the version of a path, "" for the newest, and refuses what
// is older or newer than what is served.
func servedMinor(version string) (int, error) {
	if version == "" {
		return minorOf(MaxVersion), nil
	}
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	x, _ := strconv.Atoi(major)
	y, _ := strconv.Atoi(minor)
	switch {
	case x < 1 || x == 1 && y < minorOf(MinVersion):
		return 0, bad("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, MinVersion)
	case x > 1 || y > minorOf(MaxVersion):
		return 0, bad("client version %s is too new. Maximum supported API version is %s", version, MaxVersion)
	}
	return y, nil
}

func minorOf(v string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(v, "1."))
	return n
}

// handle runs one handler and turns its error into an answer.
func (s *Server) handle(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, stop := outlive(r, rt.lifetime(r))
		defer stop()
		c := &call{ResponseWriter: w, Request: r.WithContext(ctx), version: versions.Newest, route: rt.method + " " + rt.path}
		if v, ok := r.Context().Value(versionKey{}).(int); ok {
			c.version = v
		}
		err := rt.do(c)
		if err == nil {
			return
		}
		if c.started {
			if r.Context().Err() == nil {
				s.Log.Warn("request ended early", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			return
		}
		status, code := statusOf(err)
		if status == http.StatusNotModified {
			w.WriteHeader(status)
			return
		}
		if status == http.StatusInternalServerError {
			s.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		writeError(w, status, failure.Words(err), code)
	}
}

// statusOf is the one place where a kind of error becomes an HTTP status, and
// where a start that failed becomes the exit code that a run should end with.
func statusOf(err error) (status, exitCode int) {
	var start *isolation.StartError
	if errors.As(err, &start) {
		switch start.Kind {
		case isolation.StartNotFound:
			return http.StatusBadRequest, 127
		case isolation.StartNotAllowed:
			return http.StatusBadRequest, 126
		}
		return http.StatusInternalServerError, 125
	}
	var bad *badRequest
	switch {
	case errors.As(err, &bad), errdefs.IsInvalidArgument(err):
		return http.StatusBadRequest, 0
	case errdefs.IsNotModified(err):
		return http.StatusNotModified, 0
	case errdefs.IsNotFound(err):
		return http.StatusNotFound, 0
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err):
		return http.StatusConflict, 0
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented, 0
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable, 0
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden, 0
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized, 0
	}
	return http.StatusInternalServerError, 0
}

// badRequest is a request that could not be read.
type badRequest struct{ err error }

func (b *badRequest) Error() string { return b.err.Error() }
func (b *badRequest) Unwrap() error { return b.err }

func bad(format string, args ...any) error { return &badRequest{fmt.Errorf(format, args...)} }

func writeError(w http.ResponseWriter, status int, message string, exitCode int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(struct {
		Message  string `json:"message"`
		ExitCode int    `json:"exitCode,omitempty"`
	}{message, exitCode})
}

// reply encodes an answer, in the shape of the client's version.
func (c *call) reply(status int, v any) error {
	b, err := versions.Answer(c.route, c.version, v)
	if err != nil {
		return err
	}
	c.started = true
	c.Header().Set("Content-Type", "application/json")
	c.WriteHeader(status)
	_, err = c.Write(b)
	return err
}

// encode writes one document of a stream, in the shape of the client's version.
func (c *call) encode(v any) error {
	b, err := versions.Answer(c.route, c.version, v)
	if err != nil {
		return err
	}
	_, err = c.Write(b)
	return err
}

func (c *call) noContent() error {
	c.started = true
	c.WriteHeader(http.StatusNoContent)
	return nil
}

// decode reads a JSON body of bounded size, depth (encoding/json stops at
// 10,000) and time. A missing body leaves v as it is where optional.
func (c *call) decode(v any, optional bool) error {
	if ct := c.Request.Header.Get("Content-Type"); ct != "" || c.ContentLength != 0 {
		mt, _, err := mime.ParseMediaType(ct)
		if err != nil {
			return bad("malformed Content-Type header (%s): %w", ct, err)
		}
		if mt != "application/json" {
			return bad("unsupported Content-Type header (%s): must be 'application/json'", ct)
		}
	}
	rc := http.NewResponseController(c.ResponseWriter)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	var body io.Reader = http.MaxBytesReader(c.ResponseWriter, c.Body, maxBody)
	if versions.Rewrites(c.route, c.version) {
		b, err := io.ReadAll(body)
		if err != nil {
			c.Header().Set("Connection", "close")
			return bad("cannot read the request: %w", err)
		}
		body = bytes.NewReader(versions.Request(c.route, c.version, b))
	}
	dec := json.NewDecoder(body)
	if err := dec.Decode(v); err != nil {
		if optional && c.ContentLength <= 0 && errors.Is(err, io.EOF) {
			return rc.SetReadDeadline(noDeadline)
		}
		// The deadline stays: what is left of the body is not waited for.
		c.Header().Set("Connection", "close")
		return bad("cannot read the request: %w", err)
	}
	if dec.More() {
		return bad("cannot read the request: something follows the JSON document")
	}
	return rc.SetReadDeadline(noDeadline)
}

// discard reads away the body that a request declares and no handler reads,
// within the bounds of other bodies: what comes behind it on the connection is
// the input of a process.
func (c *call) discard() error {
	rc := http.NewResponseController(c.ResponseWriter)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(c.ResponseWriter, c.Body, maxBody)); err != nil {
		// The deadline stays: what is left of the body is not waited for.
		c.Header().Set("Connection", "close")
		return bad("cannot read the request: %w", err)
	}
	return rc.SetReadDeadline(noDeadline)
}

// flag reads a boolean of the query as Docker does: absent, "", 0, no, false,
// none are false.
func (c *call) flag(name string) bool {
	switch strings.ToLower(strings.TrimSpace(c.URL.Query().Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

func (c *call) query(name string) string { return c.URL.Query().Get(name) }

// filters reads the filters of a list and checks them against its table.
func (c *call) filters(of *filters.List) (filters.Args, error) { return of.Read(c.query("filters")) }

// timestamp reads unix seconds with an optional fraction.
func timestamp(s string) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	secs, frac, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(secs, 10, 64)
	if err != nil {
		return time.Time{}, bad("cannot read time %q: must be unix seconds", s)
	}
	frac = (frac + "000000000")[:9]
	ns, err := strconv.ParseInt(frac, 10, 64)
	if err != nil {
		return time.Time{}, bad("cannot read time %q: must be unix seconds", s)
	}
	return time.Unix(n, ns), nil
}

// flush sends what was written so far.
func (c *call) flush() { _ = http.NewResponseController(c.ResponseWriter).Flush() }
