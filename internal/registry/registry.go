// Package registry owns the registry in the box: the distribution
// specification 1.1 over HTTP, who may use it (htpasswd), its certificates,
// and the program proa-registry. What it stores it asks of the room store.
//
// It never imports the engine, shares no data with it, and believes nothing
// that a client says: names and digests are checked before they are used,
// content is hashed, manifests are read before they are kept, and every body
// has limits in size and time.
package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"proa/internal/registry/store"
)

// stallLimit is how long a client may send or take nothing while a body is
// under way.
const stallLimit = 60 * time.Second

// Config says how a registry answers.
type Config struct {
	Store       *store.Store
	Auth        *Passwords // nil: everybody may do everything
	AllowDelete bool
	MaxReceive  int                    // bodies that are received at once; 0 is 64
	OwnName     func(host string) bool // whether a Host header means this registry; nil: every one does
	Stall       time.Duration          // 0 is one minute
	Log         *slog.Logger
}

// Registry answers requests.
type Registry struct {
	cfg     Config
	receive chan struct{} // a token for each body that is received
	reading chan struct{} // a token for each manifest that is read: it is in memory
	deleted atomic.Bool   // something was, since the last collection
	wake    chan struct{}
}

// New makes a registry over an open store.
func New(cfg Config) *Registry {
	if cfg.MaxReceive == 0 {
		cfg.MaxReceive = 64
	}
	if cfg.Stall == 0 {
		cfg.Stall = stallLimit
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Registry{cfg: cfg, receive: make(chan struct{}, cfg.MaxReceive), reading: make(chan struct{}, manifestsAtOnce), wake: make(chan struct{}, 1)}
}

// request is one request on its way through the handlers.
type request struct {
	*http.Request
	id   string
	user string
	rc   *http.ResponseController

	repo string // checked
	ref  string // the last part of the path, not yet checked
}

// client is whose uploads a request's are counted among: the user, or where
// there are none the address. A host has a whole /64 of IPv6.
func (r *request) client() string {
	if r.user != "" {
		return "user " + r.user
	}
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}

// route is one line of the table of all routes.
type route struct {
	method, kind string
	do           func(*Registry, *answer, *request) error
	deletes      bool // needs --allow-delete
}

var routes = []route{
	{"GET", "base", (*Registry).base, false},
	{"GET", "catalog", (*Registry).catalog, false},
	{"GET", "tags", (*Registry).tags, false},
	{"GET", "referrers", (*Registry).referrers, false},
	{"GET", "manifest", (*Registry).getManifest, false},
	{"PUT", "manifest", (*Registry).putManifest, false},
	{"DELETE", "manifest", (*Registry).deleteManifest, true},
	{"GET", "blob", (*Registry).getBlob, false},
	{"DELETE", "blob", (*Registry).deleteBlob, true},
	{"POST", "uploads", (*Registry).beginUpload, false},
	{"GET", "upload", (*Registry).uploadStatus, false},
	{"PATCH", "upload", (*Registry).appendUpload, false},
	{"PUT", "upload", (*Registry).endUpload, false},
	{"DELETE", "upload", (*Registry).cancelUpload, false},
}

// split finds what a path asks for. Names may contain any of the words that
// the paths are made of, so it is read from its end.
func split(path string) (kind, repo, ref string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v2")
	switch {
	case !ok:
		return "", "", "", false
	case rest == "" || rest == "/":
		return "base", "", "", true
	case rest == "/_catalog":
		return "catalog", "", "", true
	case rest[0] != '/':
		return "", "", "", false
	}
	w := strings.Split(rest[1:], "/")
	n := len(w)
	name := func(drop int) string { return strings.Join(w[:n-drop], "/") }
	switch {
	case n > 2 && w[n-2] == "tags" && w[n-1] == "list":
		return "tags", name(2), "", true
	case n > 2 && w[n-2] == "manifests":
		return "manifest", name(2), w[n-1], true
	case n > 2 && w[n-2] == "referrers":
		return "referrers", name(2), w[n-1], true
	case n > 3 && w[n-3] == "blobs" && w[n-2] == "uploads" && w[n-1] == "":
		return "uploads", name(3), "", true
	case n > 3 && w[n-3] == "blobs" && w[n-2] == "uploads":
		return "upload", name(3), w[n-1], true
	case n > 2 && w[n-2] == "blobs" && w[n-1] == "uploads":
		return "uploads", name(2), "", true
	case n > 2 && w[n-2] == "blobs":
		return "blob", name(2), w[n-1], true
	}
	return "", "", "", false
}

// ServeHTTP answers one request and writes one line of the access log.
func (g *Registry) ServeHTTP(rw http.ResponseWriter, hr *http.Request) {
	began := time.Now()
	r := &request{Request: hr, rc: http.NewResponseController(rw), id: newID()}
	w := &answer{rw: rw, rc: r.rc, stall: g.cfg.Stall, head: hr.Method == http.MethodHead}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			g.cfg.Log.Error("a request failed in a way that it must not", "request", r.id, "panic", p)
			panic(http.ErrAbortHandler)
		}
	}()
	// A client that is refused may still owe its body, which net/http waits for
	// (CWE-400).
	if hr.ContentLength != 0 {
		_ = r.rc.SetReadDeadline(began.Add(g.cfg.Stall))
	}
	err := g.handle(w, r)
	if err != nil {
		err = g.refuse(w, r, err)
	}
	level := slog.LevelDebug
	if w.status >= 500 {
		level = slog.LevelWarn
	}
	if g.cfg.Log.Enabled(hr.Context(), level) {
		args := []any{"request", r.id, "from", hr.RemoteAddr, "user", r.user, "method", hr.Method, "path", hr.URL.Path, "status", w.status, "bytes", w.sent, "took", time.Since(began).Round(time.Microsecond)}
		if err != nil {
			args = append(args, "err", err)
		}
		g.cfg.Log.Log(hr.Context(), level, "request", args...)
	}
}

func newID() string {
	var b [6]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func (g *Registry) handle(w *answer, r *request) error {
	if err := g.keepBrowsersOut(r); err != nil {
		return err
	}
	kind, repo, ref, ok := split(r.URL.Path)
	if !ok {
		return &problem{status: http.StatusNotFound, code: codeUnsupported, message: "there is nothing at this path: the registry serves /v2/"}
	}
	if g.cfg.Auth != nil {
		user, password, _ := r.BasicAuth()
		if !g.cfg.Auth.Check(r.Context(), user, password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="proa registry", charset="UTF-8"`)
			message := "this registry wants a name and a password: proa login, docker login"
			if user != "" {
				message = "name or password is wrong"
			}
			return &problem{status: http.StatusUnauthorized, code: codeUnauthorized, message: message}
		}
		r.user = user
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var allowed []string
	for _, rt := range routes {
		if rt.kind != kind || rt.deletes && !g.cfg.AllowDelete {
			continue
		}
		if rt.method != method {
			allowed = append(allowed, rt.method)
			continue
		}
		r.repo, r.ref = repo, ref
		if repo != "" {
			if err := store.CheckName(repo); err != nil {
				return because(codeNameInvalid, err)
			}
		}
		return rt.do(g, w, r)
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	message := r.Method + " is not served here"
	if method == http.MethodDelete && (kind == "manifest" || kind == "blob") {
		message = "nothing can be deleted from this registry: it was started without --allow-delete"
	}
	return &problem{status: http.StatusMethodNotAllowed, code: codeUnsupported, message: message}
}

// keepBrowsersOut refuses what a web page may have sent. A registry without a
// password listens on loopback, and so does every browser of this host: a page
// can name 127.0.0.1, or a name of its own that resolves to it by then (DNS
// rebinding). A browser says where a page came from in Origin or
// Sec-Fetch-Site, and the name it was told in Host; no client of a registry
// sends the first two.
func (g *Registry) keepBrowsersOut(r *request) error {
	message := ""
	switch {
	case r.Header.Get("Origin") != "", r.Header.Get("Sec-Fetch-Site") != "" && r.Header.Get("Sec-Fetch-Site") != "none":
		message = "this registry is not for web pages"
	case g.cfg.OwnName != nil && !g.cfg.OwnName(r.Host):
		message = "this registry does not know itself under this name: start it with --name"
	default:
		return nil
	}
	return &problem{status: http.StatusForbidden, code: codeDenied, message: message}
}

func (g *Registry) base(w *answer, r *request) error {
	return w.json(http.StatusOK, "application/json", struct{}{})
}

// Collect collects garbage at once, every period, and a minute after
// something was deleted, until ctx ends.
func (g *Registry) Collect(ctx context.Context, period time.Duration) {
	var wait sync.WaitGroup
	defer wait.Wait()
	for {
		g.deleted.Store(false)
		c, err := g.cfg.Store.Collect(ctx, false)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			g.cfg.Log.Warn("garbage was not collected", "err", err)
		case c != store.Collected{}:
			g.cfg.Log.Info("garbage collected", "blobs", c.Blobs, "bytes", c.Bytes, "uploads", c.Uploads)
		}
		timer := time.NewTimer(period)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-g.wake:
			timer.Reset(min(period, time.Minute)) // more may follow
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
	}
}

// removed says that a collection would find something.
func (g *Registry) removed() {
	if !g.deleted.Swap(true) {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

// answer is the way back to the client. It counts, and gives a client that
// takes nothing no more than the stall limit.
type answer struct {
	rw     http.ResponseWriter
	rc     *http.ResponseController
	stall  time.Duration
	head   bool
	status int
	sent   int64
}

func (w *answer) Header() http.Header         { return w.rw.Header() }
func (w *answer) Unwrap() http.ResponseWriter { return w.rw }

func (w *answer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.extend()
	w.rw.WriteHeader(status)
}

func (w *answer) extend() { _ = w.rc.SetWriteDeadline(time.Now().Add(w.stall)) }

func (w *answer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.extend()
	n, err := w.rw.Write(p)
	w.sent += int64(n)
	return n, err
}

// piece is what a client must take within the stall limit.
const piece = 1 << 20

// ReadFrom hands a file on piece by piece, so that the kernel still copies it
// (sendfile) where the connection is plain.
func (w *answer) ReadFrom(src io.Reader) (total int64, err error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	left := int64(1<<63 - 1)
	if l, ok := src.(*io.LimitedReader); ok {
		src, left = l.R, l.N
		defer func() { l.N -= total }()
	}
	for left > 0 {
		w.extend()
		n, err := io.Copy(w.rw, &io.LimitedReader{R: src, N: min(left, piece)})
		total, left, w.sent = total+n, left-n, w.sent+n
		if err != nil {
			return total, err
		}
		if n < min(left+n, piece) {
			return total, nil
		}
	}
	return total, nil
}

// body is what a client sends. A client that sends nothing for the stall
// limit is given up.
type body struct {
	r       io.Reader
	rc      *http.ResponseController
	stall   time.Duration
	next    time.Time // when the deadline is set again
	stopped atomic.Bool
}

func (r *request) source(stall time.Duration) *body {
	return &body{r: r.Body, rc: r.rc, stall: stall}
}

var errReplaced = errors.New("a newer request for the same upload took its place")

func (b *body) Read(p []byte) (int, error) {
	if now := time.Now(); now.After(b.next) {
		_ = b.rc.SetReadDeadline(now.Add(b.stall))
		b.next = now.Add(b.stall / 16)
	}
	if b.stopped.Load() {
		return 0, errReplaced
	}
	n, err := b.r.Read(p)
	switch {
	case err == io.EOF:
		// It has all arrived: from here on we are the slow ones.
		_ = b.rc.SetReadDeadline(time.Time{})
	case err != nil && b.stopped.Load():
		err = errReplaced
	}
	return n, err
}

// Interrupt is for store.Source.
func (b *body) Interrupt() {
	b.stopped.Store(true)
	_ = b.rc.SetReadDeadline(time.Now())
}
