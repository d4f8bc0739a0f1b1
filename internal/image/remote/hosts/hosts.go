// Package hosts gives containerd's resolver, and through it BuildKit, the
// rules of package remote: which host serves a name, by which certificates and
// proxies it is reached, and that it is reached by HTTPS unless it is on
// loopback. It owns nothing; credentials are the resolver's.
package hosts

import (
	"errors"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"proa/internal/image/remote"
)

// Registry gives the hosts of registries to a resolver. It sets no Authorizer.
func Registry(c *remote.Client) docker.RegistryHosts {
	client := &http.Client{Transport: c, CheckRedirect: checkRedirect}
	return func(domain string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Client: client, Host: remote.HostOf(domain), Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush | docker.HostCapabilityReferrers,
		}}, nil
	}
}

// checkRedirect keeps a request's credentials with its host, and a registry
// elsewhere away from this machine. The standard
// library would give them to other ports, and to names below the host's.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("the registry redirects more than 10 times")
	}
	if err := remote.Reaches(via[len(via)-1].URL.Host, req.URL.Host); err != nil {
		return err
	}
	if req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
	}
	return nil
}
