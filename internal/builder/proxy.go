package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/failure"
	"proa/internal/isolation"
)

// IsolationHeader names the wall that RUN steps of a session or a build run
// behind.
const IsolationHeader = "Proa-Isolation"

// wanted reads which wall a request asks for.
func (b *Builders) wanted(r *http.Request) (isolation.Kind, error) {
	if word := r.Header.Get(IsolationHeader); word != "" {
		return b.kind(word)
	}
	return b.kind(r.URL.Query().Get("isolation"))
}

// upgraded refuses what is no request for HTTP/2 on this connection. Docker
// takes the header Upgrade alone for one; behind it that of the connection is needed.
func upgraded(r *http.Request) error {
	if p := r.Header.Get("Upgrade"); !strings.EqualFold(p, "h2c") {
		return fmt.Errorf("cannot serve %s: Upgrade is %q, and h2c is needed: %w", r.URL.Path, p, errdefs.ErrInvalidArgument)
	}
	r.Header.Set("Connection", "Upgrade")
	return nil
}

// Session passes a client's session through, byte for byte: the builder asks,
// the client answers, and the files of the build context come this way.
func (b *Builders) Session(w http.ResponseWriter, r *http.Request) error {
	if err := upgraded(r); err != nil {
		return err
	}
	return b.pass(w, r)
}

// Build passes Docker's classic build through. A builder that dies in it ends
// the stream with a message that says so.
func (b *Builders) Build(w http.ResponseWriter, r *http.Request) error { return b.pass(w, r) }

// Cancel ends a classic build, whichever builder has it.
func (b *Builders) Cancel(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Get("id") == "" {
		return fmt.Errorf("build ID not provided: %w", errdefs.ErrInvalidArgument)
	}
	for kind := range b.byKind {
		if !b.running(kind) {
			continue
		}
		if err := b.ask(r.Context(), kind, http.MethodPost, "/build/cancel", r.URL.Query(), nil); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// running tells whether a builder runs already.
func (b *Builders) running(kind isolation.Kind) bool {
	s := b.byKind[kind]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return false
	}
	select {
	case <-s.now.gone:
		return false
	default:
		return true
	}
}

// pass is one request from the client to the builder and its answer back.
func (b *Builders) pass(w http.ResponseWriter, r *http.Request) error {
	kind, err := b.wanted(r)
	if err != nil {
		return err
	}
	p, release, err := b.use(r.Context(), kind)
	if err != nil {
		return err
	}
	defer release()
	_ = http.NewResponseController(w).EnableFullDuplex()
	var failed error
	out := &answer{ResponseWriter: w}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", "builder"
			pr.Out.Host = "builder"
		},
		Transport:     p.plain,
		FlushInterval: -1,
		ErrorHandler:  func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode != http.StatusSwitchingProtocols {
				resp.Body = &followed{resp.Body, p, r.Context()}
			}
			return nil
		},
	}
	proxy.ServeHTTP(out, r)
	if failed != nil && r.Context().Err() == nil {
		return p.lost(failed)
	}
	return nil
}

// answer keeps what the engine says of itself over what the builder says.
type answer struct{ http.ResponseWriter }

func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// followed is the builder's stream of messages; when it breaks off, one more
// message says why.
type followed struct {
	io.ReadCloser
	p   *process
	ctx context.Context
}

func (f *followed) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if n > 0 || err == nil || errors.Is(err, io.EOF) || f.ctx.Err() != nil {
		return n, err
	}
	text := failure.Words(f.p.lost(err))
	line, err := json.Marshal(map[string]any{"error": text, "errorDetail": map[string]string{"message": text}})
	if err != nil {
		return 0, err
	}
	f.ReadCloser.Close()
	f.ReadCloser = io.NopCloser(strings.NewReader("\r\n" + string(line) + "\r\n"))
	return f.ReadCloser.Read(b)
}

// ask is one plain question to a builder.
func (b *Builders) ask(ctx context.Context, kind isolation.Kind, method, path string, query url.Values, into any) error {
	p, release, err := b.use(ctx, kind)
	if err != nil {
		return err
	}
	defer release()
	u := "http://builder" + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return err
	}
	resp, err := p.plain.RoundTrip(req)
	if err != nil {
		return p.lost(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		var m struct{ Message string }
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&m); err != nil || m.Message == "" {
			m.Message = resp.Status
		}
		if resp.StatusCode == http.StatusBadRequest {
			return fmt.Errorf("%s: %w", m.Message, errdefs.ErrInvalidArgument)
		}
		return fmt.Errorf("%s", m.Message)
	}
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("cannot read the builder's answer: %w", err)
	}
	return nil
}

// Record is one record of a build cache.
type Record struct {
	ID          string
	Parents     []string
	Type        string
	Description string
	InUse       bool
	Shared      bool
	Size        int64 // bytes
	CreatedAt   time.Time
	LastUsedAt  *time.Time
	UsageCount  int
}

// Usage lists the build caches of both walls. A wall that never built anything
// here has none, and no builder is started for it.
func (b *Builders) Usage(ctx context.Context) ([]Record, error) {
	var out []Record
	for _, kind := range []isolation.Kind{isolation.Container, isolation.VM} {
		if !b.known(kind) {
			continue
		}
		var some []Record
		if err := b.ask(ctx, kind, http.MethodGet, "/usage", nil, &some); err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	return out, nil
}

// Pruned is what a prune of build caches took away.
type Pruned struct {
	CachesDeleted  []string
	SpaceReclaimed uint64 // bytes
}

// Prune removes records of both walls' build caches as Docker's query says.
func (b *Builders) Prune(ctx context.Context, query url.Values) (Pruned, error) {
	all := Pruned{CachesDeleted: []string{}}
	for _, kind := range []isolation.Kind{isolation.Container, isolation.VM} {
		if !b.known(kind) {
			continue
		}
		var some Pruned
		if err := b.ask(ctx, kind, http.MethodPost, "/build/prune", query, &some); err != nil {
			return all, err
		}
		all.CachesDeleted = append(all.CachesDeleted, some.CachesDeleted...)
		all.SpaceReclaimed += some.SpaceReclaimed
	}
	return all, nil
}

// GRPC serves BuildKit's control API on this connection. The engine speaks
// HTTP/2 itself, so that a client whose builder dies gets an answer to what it
// asked instead of a connection that breaks.
func (b *Builders) GRPC(w http.ResponseWriter, r *http.Request) error {
	if err := upgraded(r); err != nil {
		return err
	}
	kind, err := b.wanted(r)
	if err != nil {
		return err
	}
	p, release, err := b.use(r.Context(), kind)
	if err != nil {
		return err
	}
	defer release()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("cannot take the connection over: %w", err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/grpc\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		return nil //nolint:nilerr // the client has gone
	}
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	one := &oneConn{conn: &bufferedConn{Conn: conn, r: rw.Reader}, ended: make(chan struct{})}
	srv := &http.Server{
		Handler: &grpcPass{p}, Protocols: &two,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(r.Context()) },
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				one.end()
			}
		},
	}
	// The connection is the request: it ends with the engine's requests.
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	defer stop()
	_ = srv.Serve(one)
	_ = srv.Close()
	return nil
}

// Call passes one call of BuildKit's control API on that came over HTTP/2
// without an upgrade (prior knowledge: buildctl, buildx's remote driver).
func (b *Builders) Call(w http.ResponseWriter, r *http.Request) {
	kind, err := b.wanted(r)
	if err == nil {
		var p *process
		var release func()
		if p, release, err = b.use(r.Context(), kind); err == nil {
			defer release()
			(&grpcPass{p}).ServeHTTP(w, r)
			return
		}
	}
	refuseCall(w, err)
}

// refuseCall answers a call that the builder cannot be asked, in gRPC's way.
func refuseCall(w http.ResponseWriter, err error) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", codeUnavailable)
	h.Set("Grpc-Message", grpcText(err))
	w.WriteHeader(http.StatusOK)
}

// bufferedConn is a connection of which some bytes were read already.
type bufferedConn struct {
	net.Conn
	r io.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// oneConn is a listener that accepts one connection and lasts as long as that.
type oneConn struct {
	conn  net.Conn
	given bool // only Accept's caller touches it
	once  sync.Once
	ended chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.given {
		l.given = true
		return l.conn, nil
	}
	<-l.ended
	return nil, net.ErrClosed
}

func (l *oneConn) end()           { l.once.Do(func() { close(l.ended) }) }
func (l *oneConn) Close() error   { l.end(); return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// grpcPass passes calls on to the builder, streams and trailers included.
type grpcPass struct{ p *process }

// codeUnavailable is gRPC's code for a server that has gone.
const codeUnavailable = "14"

func (g *grpcPass) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.Host, out.RequestURI = "http", "builder", "builder", ""
	resp, err := g.p.grpc.RoundTrip(out)
	if err != nil {
		if r.Context().Err() != nil {
			return
		}
		refuseCall(w, g.p.lost(err))
		return
	}
	defer resp.Body.Close()
	h := w.Header()
	for k, vs := range resp.Header {
		h[k] = vs
	}
	w.WriteHeader(resp.StatusCode)
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, rerr := resp.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			_ = rc.Flush()
		}
		if rerr == nil {
			continue
		}
		if !errors.Is(rerr, io.EOF) && r.Context().Err() == nil {
			h.Set(http.TrailerPrefix+"Grpc-Status", codeUnavailable)
			h.Set(http.TrailerPrefix+"Grpc-Message", grpcText(g.p.lost(rerr)))
			return
		}
		for k, vs := range resp.Trailer {
			h[http.TrailerPrefix+k] = vs
		}
		return
	}
}

// grpcText writes an error as gRPC's messages are written in a header:
// everything but plain ASCII as %XX.
func grpcText(err error) string {
	text := failure.Words(err)
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
