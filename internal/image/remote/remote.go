// Package remote speaks to registries: the OCI distribution protocol over
// HTTPS, and what lies below it. It owns which host is spoken to and how
// (certificates, proxies, plain HTTP for loopback alone), who gets which
// credential, when a request is made again, and how much is believed of an
// answer. It keeps nothing on disk, knows nothing of platforms or layers, and
// never looks into what it carries beyond its size and digest.
//
// # Credentials
//
// Credentials are bound to the one host (name and port) that a Repository was
// opened with. They go
//   - to that host, and
//   - to the token server that this host names in its challenge, when that is
//     reached by HTTPS, or when both are on loopback,
//
// and nowhere else: a redirect or an upload location on another host, even
// another port of the same name, is followed without them, and what that host
// asks for is not answered. A token server may not redirect to another host.
//
// # Trying again
//
// Requests that change nothing, or whose repetition changes nothing, are made
// again after a connection that broke or stands still, and after the statuses
// 408, 429, 500, 502, 503 and 504, with growing pauses, or after as long as
// Retry-After says. A blob that was cut goes on where it ended.
package remote

import (
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sync/singleflight"

	"proa/internal/version"
)

// Limits for what registries send.
const (
	MaxManifest = 4 << 20 // bytes of a manifest, as in the distribution specification
	maxToken    = 1 << 20 // bytes of a token server's answer
	maxError    = 64 << 10
	maxTagList  = 4 << 20 // bytes of one page of tags
	maxTags     = 50_000
	maxHeader   = 256 << 10
)

// DefaultCertsDir is where Docker keeps certificates of registries:
// <dir>/<host[:port]>/*.crt are authorities that this host may be signed by,
// x.cert and x.key are what to show it.
const DefaultCertsDir = "/etc/docker/certs.d"

// Config says how registries are reached. Zero values are the defaults.
type Config struct {
	CertsDir string
	// Proxy chooses the proxy of a request; the default is what HTTPS_PROXY
	// and NO_PROXY say. Loopback is never reached by a proxy.
	Proxy func(*http.Request) (*url.URL, error)
	// Stall is how long a connection may stand still; 0 means 30 s.
	Stall time.Duration
	// Pause is the first pause before trying again, doubled each time up to
	// MaxPause; 0 means 250 ms and 8 s.
	Pause, MaxPause time.Duration
	// Attempts is how often a request is made that makes no progress; 0 means 6.
	Attempts int
}

// Client reaches registries. It can be used from many goroutines. As an
// http.RoundTripper it applies the rules of hosts to requests that others make.
type Client struct {
	cfg Config

	mu    sync.Mutex
	hosts map[string]*host // by name[:port]
}

// New makes a Client. It does not connect.
func New(cfg Config) *Client {
	if cfg.CertsDir == "" {
		cfg.CertsDir = DefaultCertsDir
	}
	if cfg.Proxy == nil {
		cfg.Proxy = http.ProxyFromEnvironment
	}
	if cfg.Stall == 0 {
		cfg.Stall = 30 * time.Second
	}
	if cfg.Pause == 0 {
		cfg.Pause = 250 * time.Millisecond
	}
	if cfg.MaxPause == 0 {
		cfg.MaxPause = 8 * time.Second
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = 6
	}
	return &Client{cfg: cfg, hosts: map[string]*host{}}
}

// Credentials are what a person has for one registry.
type Credentials struct {
	Username, Password string
	// IdentityToken is a refresh token of the registry's token server; it is
	// used instead of the password.
	IdentityToken string
	// RegistryToken is sent to the registry as it is.
	RegistryToken string
}

// None tells whether there are no credentials.
func (c Credentials) None() bool { return c == Credentials{} }

// hubHost is where the images of docker.io are served.
const hubHost = "registry-1.docker.io"

// HostOf is the host, name[:port], that serves the images of a domain in an
// image's name or of an address that was given to login: "docker.io",
// "https://index.docker.io/v1/", "http://localhost:5000", "registry:5000/v2/".
func HostOf(address string) string {
	a := address
	if _, rest, ok := strings.Cut(a, "://"); ok {
		a = rest
	}
	a, _, _ = strings.Cut(a, "/")
	switch a {
	case "docker.io", "index.docker.io", "registry.hub.docker.com", "":
		return hubHost
	}
	return a
}

// Repository is the way to one repository with one person's credentials.
type Repository struct {
	c    *Client
	host string // name[:port]
	name string // path within the host
	s    *session
}

// Anonymous reports whether requests have no credentials.
func (r *Repository) Anonymous() bool { return r.s.cred.None() }

// Repository opens the way to the repository of name. It does not connect.
func (c *Client) Repository(name reference.Named, cred Credentials) *Repository {
	h := HostOf(reference.Domain(name))
	return &Repository{c: c, host: h, name: reference.Path(name), s: c.session(h, cred)}
}

// Host is the host that is spoken to.
func (r *Repository) Host() string { return r.host }

// Name is the repository's path within its host.
func (r *Repository) Name() string { return r.name }

func (c *Client) session(host string, cred Credentials) *session {
	return &session{c: c, host: host, cred: cred, tokens: map[string]token{}, fetch: &singleflight.Group{}}
}

// url is an address below the repository.
func (r *Repository) url(format string, args ...any) *url.URL {
	return &url.URL{Scheme: "https", Host: r.host, Path: "/v2/" + r.name + "/" + fmt.Sprintf(format, args...)}
}

func (r *Repository) pull() []string { return []string{"repository:" + r.name + ":pull"} }
func (r *Repository) push() []string { return []string{"repository:" + r.name + ":pull,push"} }

func userAgent() string {
	return "proa/" + version.Version + " (" + runtime.GOOS + "; " + runtime.GOARCH + ")"
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", fmt.Errorf(format, args...), errdefs.ErrInvalidArgument)
}
