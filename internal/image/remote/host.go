package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// plainTime is how long it is believed that a loopback port speaks plain HTTP
// or TLS: whoever listens there may be another one soon.
const plainTime = 30 * time.Second

// dialTime is how long a host may take to accept a connection.
const dialTime = 10 * time.Second

// host is what is known of one host.
type host struct {
	name      string // name[:port]
	stamp     string // state of its directory of certificates
	tls       *tls.Config
	transport *http.Transport

	mu     sync.Mutex // guards what was found out about a loopback port
	plain  bool
	probed time.Time
}

// Loopback tells whether a host, name[:port], is this machine: only such hosts
// may be spoken to without TLS.
func Loopback(hostport string) bool {
	name := hostname(hostport)
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

func hostname(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

// host gives what is known of name[:port], with the certificates as they lie
// in the directory now.
func (c *Client) rules(hostport string) (*host, error) {
	dirs := []string{filepath.Join(c.cfg.CertsDir, hostport)}
	if hostport == hubHost {
		dirs = append(dirs, filepath.Join(c.cfg.CertsDir, "docker.io"))
	}
	stamp, files, err := listCerts(dirs)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates for registry %s: %w", hostport, err)
	}
	c.mu.Lock()
	h := c.hosts[hostport]
	c.mu.Unlock()
	if h != nil && h.stamp == stamp {
		return h, nil
	}
	conf, err := tlsConfig(files)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates for registry %s: %w", hostport, err)
	}
	h = &host{name: hostport, stamp: stamp, tls: conf}
	dialer := &net.Dialer{Timeout: min(c.cfg.Stall, dialTime), KeepAlive: 30 * time.Second}
	h.transport = &http.Transport{
		Proxy: c.cfg.Proxy,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, addr)
		},
		// HTTP/1.1: a connection for each layer, which breaks and stalls by itself,
		// and TLS alerts that name their reason.
		TLSClientConfig: conf, TLSHandshakeTimeout: c.cfg.Stall,
		DisableCompression: true, // digests are those of the bytes as they are sent
		MaxIdleConns:       8, MaxIdleConnsPerHost: 4, IdleConnTimeout: 20 * time.Second, MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
	}
	if Loopback(hostport) {
		h.transport.Proxy = nil
		h.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			if a, ok := conn.RemoteAddr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
				conn.Close()
				return nil, fmt.Errorf("%q leads to %s, which is not this machine", addr, conn.RemoteAddr())
			}
			return conn, nil
		}
	}
	c.mu.Lock()
	old := c.hosts[hostport]
	c.hosts[hostport] = h
	c.mu.Unlock()
	if old != nil {
		old.transport.CloseIdleConnections()
	}
	return h, nil
}

// listCerts gives the files of certificates and a word that changes with them.
func listCerts(dirs []string) (stamp string, files []string, err error) {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".crt", ".cert", ".key":
			default:
				continue
			}
			path := filepath.Join(dir, e.Name())
			fi, err := os.Stat(path)
			if err != nil {
				return "", nil, err
			}
			files = append(files, path)
			stamp += fmt.Sprintf("%s %d %d\n", path, fi.Size(), fi.ModTime().UnixNano())
		}
	}
	return stamp, files, nil
}

func tlsConfig(files []string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, f := range files {
		switch filepath.Ext(f) {
		case ".crt":
			pem, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			if conf.RootCAs == nil {
				if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
					conf.RootCAs = x509.NewCertPool()
				}
			}
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%q holds no PEM certificate", f)
			}
		case ".cert":
			key := strings.TrimSuffix(f, ".cert") + ".key"
			pair, err := tls.LoadX509KeyPair(f, key)
			if err != nil {
				return nil, fmt.Errorf("client certificate %q with its key %q: %w", f, key, err)
			}
			conf.Certificates = append(conf.Certificates, pair)
		case ".key":
			if _, err := os.Stat(strings.TrimSuffix(f, ".key") + ".cert"); err != nil {
				return nil, fmt.Errorf("the key %q has no certificate beside it: %w", f, err)
			}
		}
	}
	return conf, nil
}

// RoundTrip sends one request by the rules of its host: HTTPS, except that a
// loopback port that does not speak TLS is spoken to in plain HTTP.
func (c *Client) RoundTrip(req *http.Request) (*http.Response, error) {
	fail := func(err error) (*http.Response, error) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, err
	}
	h, err := c.rules(req.URL.Host)
	if err != nil {
		return fail(err)
	}
	switch {
	case req.URL.Scheme == "https" && Loopback(req.URL.Host):
		plain, err := h.speaksPlain(req.Context(), c.cfg.Stall)
		if err != nil {
			return fail(c.explain(req.URL, err))
		}
		if plain {
			req = req.Clone(req.Context())
			req.URL.Scheme = "http"
		}
	case req.URL.Scheme == "https":
	case req.URL.Scheme == "http" && Loopback(req.URL.Host):
	default:
		return fail(&PlainHTTPError{Host: req.URL.Host})
	}
	resp, err := h.transport.RoundTrip(req)
	if err != nil {
		h.forget()
		return nil, c.explain(req.URL, err)
	}
	if resp.StatusCode == http.StatusBadRequest && req.URL.Scheme == "http" {
		h.forget() // maybe TLS is spoken there by now
	}
	return resp, nil
}

func (h *host) forget() {
	h.mu.Lock()
	h.probed = time.Time{}
	h.mu.Unlock()
}

// speaksPlain finds out whether a loopback port speaks plain HTTP, by offering
// it TLS. Nothing is believed of the other side here, so nothing is verified.
func (h *host) speaksPlain(ctx context.Context, limit time.Duration) (bool, error) {
	h.mu.Lock()
	plain, known := h.plain, time.Since(h.probed) < plainTime
	h.mu.Unlock()
	if known {
		return plain, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	addr := h.name
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(hostname(addr), "443")
	}
	raw, err := h.transport.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	conf := h.tls.Clone()
	conf.InsecureSkipVerify, conf.ServerName = true, hostname(h.name)
	err = tls.Client(raw, conf).HandshakeContext(ctx)
	var record tls.RecordHeaderError
	switch {
	case err == nil:
		plain = false
	case errors.As(err, &record), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		plain = true
	default:
		// It speaks TLS, and the request itself will say what is wrong.
		return false, ctx.Err()
	}
	h.mu.Lock()
	h.plain, h.probed = plain, time.Now()
	h.mu.Unlock()
	return plain, nil
}

// Reaches refuses a way that a registry elsewhere names to this machine: its
// redirects, uploads and logins would make requests of services that listen on
// loopback because they trust whoever is here, in plain HTTP if they speak that
// (CWE-918). errdefs.ErrPermissionDenied.
func Reaches(from, to string) error {
	if Loopback(to) && !Loopback(from) {
		return fmt.Errorf("registry %s leads to %s, which is this machine: refused, because it could use what listens here: %w", from, to, errdefs.ErrPermissionDenied)
	}
	return nil
}

// follow makes the address of a redirect or an upload, which may be relative.
// The same host is always reached in the same way, whatever scheme a registry
// behind a proxy believes it is reached by; another one by HTTPS, or by plain
// HTTP from loopback to loopback. A registry elsewhere cannot send to loopback.
func follow(from *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, errors.New("the registry sent no location")
	}
	to, err := from.Parse(location)
	if err != nil || to.Host == "" || to.User != nil {
		return nil, fmt.Errorf("the registry sent the location %q, which cannot be followed", location)
	}
	if to.Host == from.Host {
		to.Scheme = from.Scheme
		return to, nil
	}
	if err := Reaches(from.Host, to.Host); err != nil {
		return nil, err
	}
	switch {
	case to.Scheme == "https":
	case to.Scheme == "http" && Loopback(to.Host) && Loopback(from.Host):
	default:
		return nil, &PlainHTTPError{Host: to.Host}
	}
	return to, nil
}
