package remote

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func quick(t *testing.T) *Client {
	return New(Config{CertsDir: t.TempDir(), Stall: time.Second, Pause: time.Millisecond, MaxPause: 5 * time.Millisecond})
}

func repo(t *testing.T, c *Client, host string, cred Credentials) *Repository {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(host + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	return c.Repository(n, cred)
}

func hostOf(s *httptest.Server) string { return s.Listener.Addr().String() }

const emptyManifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`

func serveManifest(w http.ResponseWriter) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	fmt.Fprint(w, emptyManifest)
}

func TestHostOf(t *testing.T) {
	for in, want := range map[string]string{
		"docker.io": hubHost, "https://index.docker.io/v1/": hubHost, "": hubHost, "registry-1.docker.io": hubHost,
		"http://localhost:5000": "localhost:5000", "registry:5000/v2/": "registry:5000", "quay.io": "quay.io",
	} {
		if got := HostOf(in); got != want {
			t.Errorf("HostOf(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:5000": true, "::1": true,
		"localhost.example:5000": false, "10.0.0.1:5000": false, "127.0.0.1.example": false, "0.0.0.0": false, "": false,
	} {
		if got := Loopback(in); got != want {
			t.Errorf("Loopback(%q) = %v", in, got)
		}
	}
}

// tokenServer is a registry with a token server on another port.
type tokenServer struct {
	registry, tokens *httptest.Server

	mu     sync.Mutex
	asked  []url.Values
	basics []string
	posts  []url.Values
	token  string
	realm  string
	answer func(http.ResponseWriter)
}

func newTokenServer(t *testing.T) *tokenServer {
	s := &tokenServer{token: "t0"}
	s.tokens = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.asked = append(s.asked, q.URL.Query())
		user, pass, _ := q.BasicAuth()
		s.basics = append(s.basics, user+":"+pass)
		if q.Method == "POST" {
			_ = q.ParseForm()
			s.posts = append(s.posts, q.PostForm)
		}
		if pass == "wrong" {
			w.WriteHeader(401)
			fmt.Fprint(w, `{"details":"incorrect username or password"}`)
			return
		}
		if s.answer != nil {
			s.answer(w)
			return
		}
		fmt.Fprintf(w, `{"token":%q,"expires_in":300,"refresh_token":"again"}`, s.token)
	}))
	s.registry = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if q.Header.Get("Authorization") != "Bearer "+s.token {
			realm := s.realm
			if realm == "" {
				realm = s.tokens.URL + "/token"
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="the service",scope="repository:team/app:pull"`, realm))
			w.WriteHeader(401)
			return
		}
		serveManifest(w)
	}))
	t.Cleanup(s.tokens.Close)
	t.Cleanup(s.registry.Close)
	return s
}

func TestTokens(t *testing.T) {
	s := newTokenServer(t)
	c := quick(t)
	ctx := context.Background()
	r := repo(t, c, hostOf(s.registry), Credentials{Username: "ada", Password: "pw"})
	for range 3 {
		if _, err := r.Manifest(ctx, "latest"); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.asked) != 1 || s.basics[0] != "ada:pw" || s.asked[0].Get("service") != "the service" || s.asked[0].Get("scope") != "repository:team/app:pull" {
		t.Errorf("the token server was asked %v by %v", s.asked, s.basics)
	}
	// A token that is refused before its time is asked for again.
	s.mu.Lock()
	s.token = "t1"
	s.mu.Unlock()
	if _, err := r.Manifest(ctx, "latest"); err != nil {
		t.Error(err)
	}
	// The identity token is used instead of a password.
	r = repo(t, c, hostOf(s.registry), Credentials{IdentityToken: "refresh me"})
	if _, err := r.Manifest(ctx, "latest"); err != nil {
		t.Error(err)
	}
	if len(s.posts) != 1 || s.posts[0].Get("refresh_token") != "refresh me" || s.posts[0].Get("grant_type") != "refresh_token" || s.basics[len(s.basics)-1] != ":" {
		t.Errorf("posted %v", s.posts)
	}
	// A token of the registry's own is sent as it is.
	if _, err := repo(t, c, hostOf(s.registry), Credentials{RegistryToken: "t1"}).Manifest(ctx, "latest"); err != nil {
		t.Error(err)
	}
	// Wrong password, and nobody.
	_, err := repo(t, c, hostOf(s.registry), Credentials{Username: "ada", Password: "wrong"}).Manifest(ctx, "latest")
	if !errdefs.IsUnauthorized(err) || strings.Count(err.Error(), "wrong user name") != 1 || !strings.Contains(err.Error(), "incorrect username") {
		t.Errorf("wrong password: %v", err)
	}
	if _, err := repo(t, c, hostOf(s.registry), Credentials{}).Manifest(ctx, "latest"); err != nil {
		t.Errorf("anonymous: %v", err)
	}
	got, err := c.Login(ctx, "http://"+hostOf(s.registry)+"/v2/", Credentials{Username: "ada", Password: "pw"})
	if err != nil || got != "again" || s.asked[len(s.asked)-1].Get("offline_token") != "true" {
		t.Errorf("login: %q %v %v", got, err, s.asked[len(s.asked)-1])
	}
	if _, err := c.Login(ctx, hostOf(s.registry), Credentials{Username: "ada", Password: "wrong"}); !errdefs.IsUnauthorized(err) || strings.Count(err.Error(), "wrong user name") != 1 {
		t.Errorf("login with a wrong password: %v", err)
	}
	// What a token server can send wrong.
	for what, answer := range map[string]func(http.ResponseWriter){
		"no token":   func(w http.ResponseWriter) { fmt.Fprint(w, `{}`) },
		"no JSON":    func(w http.ResponseWriter) { fmt.Fprint(w, `<html>`) },
		"a bad one":  func(w http.ResponseWriter) { fmt.Fprint(w, `{"token":"a\nHost: evil"}`) },
		"too much":   func(w http.ResponseWriter) { fmt.Fprintf(w, `{"x":%q,"token":"t1"}`, strings.Repeat("x", maxToken)) },
		"deep":       func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat(`{"a":`, 20000)) },
		"elsewhere":  func(w http.ResponseWriter) { w.Header().Set("Location", "http://127.0.0.2:1/"); w.WriteHeader(302) },
		"elsewhere2": func(w http.ResponseWriter) { w.Header().Set("Location", "https://example.com/"); w.WriteHeader(307) },
	} {
		s.mu.Lock()
		s.answer = answer
		s.mu.Unlock()
		if _, err := repo(t, c, hostOf(s.registry), Credentials{Username: "ada", Password: "pw"}).Manifest(ctx, "latest"); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	// Realms that get nothing.
	before := len(s.asked)
	for _, realm := range []string{"http://example.com/token", "ftp://127.0.0.1/", "https://user:pw@127.0.0.1/", "/token", ""} {
		s.mu.Lock()
		s.realm = realm
		if realm == "" {
			s.realm = " "
		}
		s.mu.Unlock()
		if _, err := repo(t, c, hostOf(s.registry), Credentials{Username: "ada", Password: "pw"}).Manifest(ctx, "latest"); err == nil {
			t.Errorf("realm %q was taken", realm)
		}
	}
	if len(s.asked) != before {
		t.Error("a realm that must not be asked was asked")
	}
}

// Whoever a request is redirected to sees no credentials, gets none by asking,
// and plain HTTP is not followed away from loopback.
func TestRedirects(t *testing.T) {
	var leaks []string
	lure := false
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if a := q.Header.Get("Authorization"); a != "" {
			leaks = append(leaks, a)
		}
		if lure {
			w.Header().Set("WWW-Authenticate", `Basic realm="give"`)
			w.WriteHeader(401)
			return
		}
		serveManifest(w)
	}))
	defer other.Close()
	to := other.URL + "/blob"
	main := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, _, ok := q.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(401)
			return
		}
		if q.URL.Path == "/here" {
			serveManifest(w)
			return
		}
		w.Header().Set("Location", to)
		w.WriteHeader(307)
	}))
	defer main.Close()
	r := repo(t, quick(t), hostOf(main), Credentials{Username: "ada", Password: "pw"})
	ctx := context.Background()
	if _, err := r.Manifest(ctx, "latest"); err != nil {
		t.Error(err)
	}
	lure = true
	if _, err := r.Manifest(ctx, "latest"); !errdefs.IsUnauthorized(err) {
		t.Errorf("lured: %v", err)
	}
	to = "/here"
	if _, err := r.Manifest(ctx, "latest"); err != nil {
		t.Errorf("redirected on the same host: %v", err)
	}
	to = "http://example.com/blob"
	var plain *PlainHTTPError
	if _, err := r.Manifest(ctx, "latest"); !errors.As(err, &plain) || plain.Host != "example.com" {
		t.Errorf("redirected to plain HTTP: %v", err)
	}
	to = "/v2/again"
	if _, err := r.Manifest(ctx, "latest"); err == nil || !strings.Contains(err.Error(), "redirects more than") {
		t.Errorf("redirected for ever: %v", err)
	}
	if len(leaks) != 0 {
		t.Errorf("the other host saw %q", leaks)
	}
}

func TestTryAgain(t *testing.T) {
	var statuses []int
	after := ""
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n++
		if len(statuses) > 0 {
			code := statuses[0]
			statuses = statuses[1:]
			if after != "" {
				w.Header().Set("Retry-After", after)
			}
			if code == 0 {
				panic(http.ErrAbortHandler)
			}
			if code == 1 {
				<-q.Context().Done()
				return
			}
			w.WriteHeader(code)
			return
		}
		serveManifest(w)
	}))
	defer s.Close()
	r := repo(t, quick(t), hostOf(s), Credentials{})
	ctx := context.Background()
	for _, code := range []int{408, 429, 500, 502, 503, 504, 0, 1} {
		statuses, n = []int{code, code}, 0
		if _, err := r.Manifest(ctx, "latest"); err != nil || n < 3 {
			t.Errorf("twice %d: %v after %d requests", code, err, n)
		}
	}
	for _, code := range []int{400, 401, 403, 404, 405, 501} {
		statuses, n = []int{code, code}, 0
		if _, err := r.Manifest(ctx, "latest"); err == nil || n != 1 {
			t.Errorf("%d: %v after %d requests", code, err, n)
		}
	}
	statuses, after = []int{429}, "1"
	begin := time.Now()
	if _, err := r.Manifest(ctx, "latest"); err != nil || time.Since(begin) < time.Second {
		t.Errorf("Retry-After: 1: %v after %v", err, time.Since(begin))
	}
	statuses, after, n = []int{429}, "100000", 0
	if _, err := r.Manifest(ctx, "latest"); !errdefs.IsUnavailable(err) || n != 1 || !strings.Contains(err.Error(), "27h46m40s") {
		t.Errorf("Retry-After of more than a day: %v", err)
	}
	statuses, after, n = slices.Repeat([]int{503}, 20), "", 0
	if _, err := r.Manifest(ctx, "latest"); !errdefs.IsUnavailable(err) || n != 6 || !strings.Contains(err.Error(), "tried 6 times") {
		t.Errorf("always 503: %v after %d", err, n)
	}
	// Nothing listens: once more is enough.
	dead := httptest.NewServer(nil)
	host := hostOf(dead)
	dead.Close()
	if _, err := repo(t, quick(t), host, Credentials{}).Manifest(ctx, "latest"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "nothing listens there") || !strings.Contains(err.Error(), "tried 2 times") {
		t.Errorf("nothing listens: %v", err)
	}
	now := time.Now()
	for v, want := range map[string]time.Duration{"0": 0, "7": 7 * time.Second, now.Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour, "-1": -1, "soon": -1, "": -1} {
		got, ok := parseRetryAfter(v, now)
		if !ok {
			got = -1
		}
		if d := got - want; d < -time.Second || d > time.Second {
			t.Errorf("Retry-After %q: %v", v, got)
		}
	}
}

// pair makes a key and a certificate, signed by itself or by ca.
func pair(t *testing.T, ca *tls.Certificate, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, NotBefore: until.Add(-240 * time.Hour), NotAfter: until,
		IsCA: ca == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	parent, signer := tmpl, any(key)
	if ca != nil {
		if parent, err = x509.ParseCertificate(ca.Certificate[0]); err != nil {
			t.Fatal(err)
		}
		signer = ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCertificates(t *testing.T) {
	serve := func(conf *tls.Config) *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { serveManifest(w) }))
		s.TLS = conf
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.EnableHTTP2 = true
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	c := quick(t)
	ctx := context.Background()
	soon := time.Now().Add(time.Hour)
	ca := pair(t, nil, soon, "an authority")
	caPEM := pemOf("CERTIFICATE", ca.Certificate[0])
	trust := func(host string) { put(t, filepath.Join(c.cfg.CertsDir, host, "ca.crt"), caPEM) }
	get := func(host string) error {
		_, err := repo(t, c, host, Credentials{}).Manifest(ctx, "latest")
		return err
	}

	good := hostOf(serve(&tls.Config{Certificates: []tls.Certificate{pair(t, &ca, soon, "127.0.0.1")}}))
	if err := get(good); err == nil || !strings.Contains(err.Error(), "authority that this host does not know") || !strings.Contains(err.Error(), filepath.Join(good, "ca.crt")) {
		t.Errorf("unknown authority: %v", err)
	}
	trust(good) // a client that lives on sees it
	if err := get(good); err != nil {
		t.Errorf("known authority: %v", err)
	}
	old := hostOf(serve(&tls.Config{Certificates: []tls.Certificate{pair(t, &ca, time.Now().Add(-time.Minute), "127.0.0.1")}}))
	trust(old)
	if err := get(old); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("expired: %v", err)
	}
	young := hostOf(serve(&tls.Config{Certificates: []tls.Certificate{pair(t, &ca, time.Now().Add(300*time.Hour), "127.0.0.1")}}))
	trust(young)
	if err := get(young); err == nil || !strings.Contains(err.Error(), "valid only from") {
		t.Errorf("not yet valid: %v", err)
	}
	wrong := hostOf(serve(&tls.Config{Certificates: []tls.Certificate{pair(t, &ca, soon, "registry.example")}}))
	trust(wrong)
	if err := get(wrong); err == nil || !strings.Contains(err.Error(), "for another name") || !strings.Contains(err.Error(), "registry.example") && !strings.Contains(err.Error(), "IP SANs") {
		t.Errorf("another name: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	strict := hostOf(serve(&tls.Config{Certificates: []tls.Certificate{pair(t, &ca, soon, "127.0.0.1")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}))
	trust(strict)
	if err := get(strict); err == nil || !strings.Contains(err.Error(), "client.cert") {
		t.Errorf("no client certificate: %v", err)
	}
	mine := pair(t, &ca, soon, "me")
	key, err := x509.MarshalECPrivateKey(mine.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(c.cfg.CertsDir, strict, "client.key"), pemOf("EC PRIVATE KEY", key))
	if err := get(strict); err == nil || !strings.Contains(err.Error(), "no certificate beside it") {
		t.Errorf("key alone: %v", err)
	}
	put(t, filepath.Join(c.cfg.CertsDir, strict, "client.cert"), pemOf("CERTIFICATE", mine.Certificate[0]))
	if err := get(strict); err != nil {
		t.Errorf("client certificate: %v", err)
	}
	put(t, filepath.Join(c.cfg.CertsDir, good, "more.crt"), []byte("no certificate"))
	if err := get(good); err == nil || !strings.Contains(err.Error(), "holds no PEM certificate") {
		t.Errorf("a file that is none: %v", err)
	}
}

// A registry that is not on loopback is reached by HTTPS, through the proxy
// that the environment names; plain HTTP is refused with a reason.
func TestProxyAndPlainHTTP(t *testing.T) {
	soon := time.Now().Add(time.Hour)
	ca := pair(t, nil, soon, "an authority")
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { serveManifest(w) }))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair(t, &ca, soon, "registry.example")}}
	s.StartTLS()
	defer s.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { serveManifest(w) }))
	defer plain.Close()
	target, connects := hostOf(s), 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodConnect {
			t.Errorf("the proxy saw a bare %s %s", q.Method, q.URL)
			return
		}
		connects++
		up, err := net.Dial("tcp", target)
		if err != nil {
			t.Error(err)
			return
		}
		defer up.Close()
		w.WriteHeader(200)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		go func() { _, _ = io.Copy(up, rw) }()
		_, _ = io.Copy(conn, up)
	}))
	defer proxy.Close()
	c := New(Config{
		CertsDir: t.TempDir(), Stall: time.Second, Pause: time.Millisecond,
		Proxy: func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) },
	})
	put(t, filepath.Join(c.cfg.CertsDir, "registry.example:5000", "ca.crt"), pemOf("CERTIFICATE", ca.Certificate[0]))
	ctx := context.Background()
	if _, err := repo(t, c, "registry.example:5000", Credentials{}).Manifest(ctx, "latest"); err != nil || connects != 1 {
		t.Errorf("through the proxy: %v, %d connections", err, connects)
	}
	target = hostOf(plain)
	_, err := repo(t, c, "plain.example:5000", Credentials{}).Manifest(ctx, "latest")
	var e *PlainHTTPError
	if !errors.As(err, &e) || e.Host != "plain.example:5000" || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("plain HTTP elsewhere: %v", err)
	}
	// Loopback never goes through a proxy.
	before := connects
	if _, err := repo(t, c, hostOf(plain), Credentials{}).Manifest(ctx, "latest"); err != nil || connects != before {
		t.Errorf("plain HTTP on loopback: %v", err)
	}
	// Nor by plain HTTP for anybody who uses the rules as a transport.
	req, _ := http.NewRequest("GET", "http://plain.example:5000/v2/", nil)
	if _, err := c.RoundTrip(req); !errors.As(err, &e) {
		t.Errorf("as a transport: %v", err)
	}
}

func TestManifestLimits(t *testing.T) {
	body, header := "", ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if header != "" {
			w.Header().Set("Docker-Content-Digest", header)
		}
		if len(body) > 1<<20 {
			_ = http.NewResponseController(w).Flush() // no length
		}
		_, _ = io.WriteString(w, body)
	}))
	defer s.Close()
	r := repo(t, quick(t), hostOf(s), Credentials{})
	ctx := context.Background()
	body = strings.Repeat("x", MaxManifest+1)
	if _, err := r.Manifest(ctx, "latest"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "4194304") {
		t.Errorf("more than 4 MiB: %v", err)
	}
	body = emptyManifest
	if m, err := r.Manifest(ctx, digest.FromString(body).String()); err != nil || m.Digest != digest.FromString(body) || m.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("%+v %v", m, err)
	}
	if _, err := r.Manifest(ctx, digest.FromString("other").String()); !errdefs.IsDataLoss(err) {
		t.Errorf("another digest than asked for: %v", err)
	}
	header = digest.FromString("other").String()
	if _, err := r.Manifest(ctx, "latest"); !errdefs.IsDataLoss(err) {
		t.Errorf("another digest than announced: %v", err)
	}
}

func TestTagPages(t *testing.T) {
	evil := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch q.URL.Query().Get("last") {
		case "":
			w.Header().Set("Link", `</v2/team/app/tags/list?last=b&n=2>; rel="next"`)
			if evil != "" {
				w.Header().Set("Link", "<"+evil+`>; rel="next"`)
			}
			fmt.Fprint(w, `{"tags":["a","b"]}`)
		case "b":
			w.Header().Add("Link", `</other>; rel="first", <list?last=c>; title="x, y"; rel=next`)
			fmt.Fprint(w, `{"tags":["c"]}`)
		default:
			fmt.Fprint(w, `{"tags":["d"]}`)
		}
	}))
	defer s.Close()
	r := repo(t, quick(t), hostOf(s), Credentials{})
	got, err := r.Tags(context.Background())
	if err != nil || !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("%q %v", got, err)
	}
	evil = "https://example.com/tags"
	if _, err := r.Tags(context.Background()); err == nil || !strings.Contains(err.Error(), "another host") {
		t.Errorf("a list that goes on elsewhere: %v", err)
	}
}

// A registry that knows no ranges sends everything again, and the reader skips
// what it has.
func TestBlobWithoutRanges(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	cuts := 3
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		if cuts > 0 {
			cuts--
			_, _ = w.Write(content[:len(content)-1000*(cuts+1)])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(content)
	}))
	defer s.Close()
	r := repo(t, quick(t), hostOf(s), Credentials{})
	b := r.Blob(context.Background(), ocispec.Descriptor{Digest: digest.FromBytes(content), Size: int64(len(content))})
	defer b.Close()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	empty := r.Blob(context.Background(), ocispec.Descriptor{Digest: digest.FromString(""), Size: 0})
	if got, err := io.ReadAll(empty); err != nil || len(got) != 0 {
		t.Errorf("a blob of no bytes: %d, %v", len(got), err)
	}
	wrong := r.Blob(context.Background(), ocispec.Descriptor{Digest: digest.FromBytes(content), Size: 100})
	if _, err := io.ReadAll(wrong); !errdefs.IsDataLoss(err) {
		t.Errorf("more than promised: %v", err)
	}
}

func TestParseChallenges(t *testing.T) {
	for in, want := range map[string]string{
		`Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull"`: "bearer realm=https://auth.docker.io/token scope=repository:library/busybox:pull service=registry.docker.io",
		`Basic realm="a \"quoted\", one"`:               `basic realm=a "quoted", one`,
		`Basic realm=plain, Bearer realm="x",service=y`: "basic realm=plain|bearer realm=x service=y",
		`Negotiate, Basic realm="x"`:                    "negotiate|basic realm=x",
		`BEARER REALM = "x"`:                            "bearer realm=x",
		`Bearer realm="never ends`:                      "bearer",
		``:                                              "",
		`,,,`:                                           "",
		`Bearer realm="x",realm="y"`:                    "bearer realm=x",
	} {
		var out []string
		for _, c := range parseChallenges(http.Header{"Www-Authenticate": {in}}) {
			line := c.scheme
			for _, k := range []string{"realm", "scope", "service"} {
				if v, ok := c.params[k]; ok {
					line += " " + k + "=" + v
				}
			}
			out = append(out, line)
		}
		if got := strings.Join(out, "|"); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.docker.io/token",service="registry.docker.io"`)
	f.Add(`Basic realm=x, Bearer a="\"" b=,c`)
	f.Fuzz(func(t *testing.T, v string) {
		for _, c := range parseChallenges(http.Header{"Www-Authenticate": {v}}) {
			if c.scheme == "" || len(c.scheme) > len(v) {
				t.Errorf("%q gives %+v", v, c)
			}
			for k := range c.params {
				if k == "" || k != strings.ToLower(k) {
					t.Errorf("%q gives %+v", v, c)
				}
			}
		}
	})
}

func FuzzLink(f *testing.F) {
	f.Add(`</v2/x/tags/list?last=b>; rel="next"`)
	f.Add(`<a>; rel=first, <b>; x="y, <z>"; rel=next`)
	page := &url.URL{Scheme: "https", Host: "registry:5000", Path: "/v2/x/tags/list"}
	f.Fuzz(func(t *testing.T, v string) {
		next, err := parseNext(page, http.Header{"Link": {v}})
		if err == nil && next != nil && (next.Host != page.Host || next.Scheme != "https" || next.User != nil) {
			t.Errorf("%q leads to %s", v, next)
		}
	})
}

func FuzzLocation(f *testing.F) {
	f.Add("/v2/x/blobs/uploads/1?_state=a", true)
	f.Add("http://127.0.0.1/", false)
	f.Add("https://user@registry:5000/", true)
	f.Fuzz(func(t *testing.T, v string, far bool) {
		from := &url.URL{Scheme: "https", Host: "127.0.0.1:5000", Path: "/v2/"}
		if far {
			from.Host = "registry:5000"
		}
		to, err := follow(from, v)
		if err != nil {
			return
		}
		if to.User != nil || to.Scheme != "https" && !(to.Scheme == "http" && Loopback(to.Host) && Loopback(from.Host)) {
			t.Errorf("%q leads from %s to %s", v, from, to)
		}
	})
}

func FuzzMediaType(f *testing.F) {
	f.Add([]byte(emptyManifest), "application/json")
	f.Add([]byte(`{"schemaVersion":1}`), "")
	f.Fuzz(func(t *testing.T, raw []byte, header string) {
		if kind, err := mediaType(raw, header); err == nil && kind == "" {
			t.Errorf("%q of kind nothing", raw)
		}
	})
}

// CWE-918: a registry elsewhere cannot have the engine ask what listens on this
// machine, neither by a redirect, an upload, a list, nor as its token server.
func TestNobodyElseLeadsToLoopback(t *testing.T) {
	c := quick(t)
	far, near := &url.URL{Scheme: "https", Host: "registry.example"}, &url.URL{Scheme: "https", Host: "localhost:5000"}
	for _, host := range []string{"127.0.0.1:8080", "localhost", "[::1]:2375", "127.9.9.9", "[::ffff:127.0.0.1]:80"} {
		for _, scheme := range []string{"https", "http"} {
			where := scheme + "://" + host + "/token"
			realm := &challenge{scheme: "bearer", params: map[string]string{"realm": where}}
			if to, err := follow(far, where); !errdefs.IsPermissionDenied(err) {
				t.Errorf("a redirect of %s leads to %v, %v", far.Host, to, err)
			}
			if to, err := c.session(far.Host, Credentials{}).realm(realm); !errdefs.IsPermissionDenied(err) {
				t.Errorf("%s has the token server %v, %v", far.Host, to, err)
			}
			if _, err := follow(near, where); err != nil {
				t.Errorf("from loopback to %s: %v", where, err)
			}
			if _, err := c.session(near.Host, Credentials{}).realm(realm); err != nil {
				t.Errorf("from loopback to the token server %s: %v", where, err)
			}
		}
	}
	for _, where := range []string{"https://cdn.example/blob", "https://10.0.0.1/blob"} {
		if _, err := follow(far, where); err != nil {
			t.Errorf("to %s: %v", where, err)
		}
	}
}

// A registry may answer before it has read a blob. From then on nothing is read of
// it, though the transport would go on, and nobody is told of progress: a push
// has closed its channel by then.
func TestNothingIsToldAfterAnUpload(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch q.Method {
		case http.MethodPost:
			w.Header().Set("Location", q.URL.Path+"here")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			c := http.NewResponseController(w)
			if err := c.EnableFullDuplex(); err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusForbidden)
			_ = c.Flush()
			_, _ = io.Copy(io.Discard, q.Body)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer s.Close()
	const size = 200 << 10
	body := &slowly{data: bytes.Repeat([]byte("x"), size)}
	var ended atomic.Bool
	var late atomic.Int32
	_, err := repo(t, quick(t), hostOf(s), Credentials{}).Upload(t.Context(), Upload{
		Desc: ocispec.Descriptor{Digest: digest.FromBytes(body.data), Size: size},
		Open: func(int64) (io.ReadCloser, error) { return body, nil },
		Progress: func(int64) {
			if ended.Load() {
				late.Add(1)
			}
		},
	})
	ended.Store(true)
	if err == nil || body.read() == size {
		t.Fatalf("the answer did not come in the middle: %v, %d of %d bytes were read", err, body.read(), size)
	}
	at := body.read()
	time.Sleep(200 * time.Millisecond)
	if body.read() != at || late.Load() != 0 {
		t.Errorf("after the answer %d bytes were read, and %d times somebody was told", body.read()-at, late.Load())
	}
}

// slowly is a body that comes a kilobyte every two milliseconds.
type slowly struct {
	data []byte
	at   atomic.Int64
}

func (s *slowly) read() int { return int(s.at.Load()) }

func (s *slowly) Read(p []byte) (int, error) {
	time.Sleep(2 * time.Millisecond)
	if s.read() == len(s.data) {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 1<<10)], s.data[s.read():])
	s.at.Add(int64(n))
	return n, nil
}

func (s *slowly) Close() error { return nil }
