package hosts

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"

	"proa/internal/image/remote"
)

// containerd's resolver, over these rules, resolves at a loopback registry
// without TLS and gives its credentials to no other port.
func TestResolver(t *testing.T) {
	leaked, asked := "", 0
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked++
		leaked += q.Header.Get("Authorization")
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a")
		w.Header().Set("Content-Length", "2")
	}))
	defer other.Close()
	main := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, _, ok := q.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return
		}
		http.Redirect(w, q, other.URL+q.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer main.Close()
	host := main.Listener.Addr().String()
	found, err := Registry(remote.New(remote.Config{CertsDir: t.TempDir(), Stall: 5 * time.Second}))(host)
	if err != nil || len(found) != 1 || found[0].Host != host || found[0].Scheme != "https" {
		t.Fatalf("%+v %v", found, err)
	}
	found[0].Authorizer = docker.NewDockerAuthorizer(docker.WithAuthCreds(func(h string) (string, string, error) {
		if h != host {
			t.Errorf("credentials were asked for %s", h)
			return "", "", nil
		}
		return "ada", "pw", nil
	}))
	r := docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) { return found, nil }})
	_, d, err := r.Resolve(context.Background(), host+"/app:latest")
	if err != nil || d.Size != 2 || asked == 0 {
		t.Errorf("%+v %v after %d requests", d, err, asked)
	}
	if leaked != "" {
		t.Errorf("the other port saw %q", leaked)
	}
	if h, err := Registry(remote.New(remote.Config{}))("docker.io"); err != nil || h[0].Host != "registry-1.docker.io" {
		t.Errorf("%+v %v", h, err)
	}
}

// CWE-918: a registry elsewhere has nobody ask what listens on this machine.
func TestNobodyElseRedirectsToLoopback(t *testing.T) {
	way := func(from, to string) error {
		return checkRedirect(&http.Request{URL: &url.URL{Scheme: "https", Host: to}, Header: http.Header{}},
			[]*http.Request{{URL: &url.URL{Scheme: "https", Host: from}}})
	}
	if err := way("registry.example", "127.0.0.1:2375"); !errdefs.IsPermissionDenied(err) {
		t.Errorf("to loopback: %v", err)
	}
	if err := way("registry.example", "cdn.example"); err != nil {
		t.Errorf("to another host: %v", err)
	}
	if err := way("localhost:5000", "127.0.0.1:5001"); err != nil {
		t.Errorf("from loopback to loopback: %v", err)
	}
}
