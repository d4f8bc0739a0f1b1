package build

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// hosts tells how a registry is reached: by TLS with the certificates that lie
// for it below one of the directories (HOST/*.crt are authorities, HOST/*.cert
// and .key a client's), without TLS only where it is this host itself.
func hosts(certs []string) docker.RegistryHosts {
	return func(host string) ([]docker.RegistryHost, error) {
		name := host
		if host == "docker.io" {
			host = "registry-1.docker.io"
		}
		h := docker.RegistryHost{
			Host: host, Scheme: "https", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush | docker.HostCapabilityReferrers,
		}
		conf, found, err := tlsFor(certs, name)
		if err != nil {
			return nil, err
		}
		if local, err := docker.MatchLocalhost(host); err == nil && local && !found {
			h.Scheme = "http"
		}
		h.Client = &http.Client{Transport: &http.Transport{
			Proxy:           http.ProxyFromEnvironment,
			DialContext:     (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 60 * time.Second}).DialContext,
			TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: 5 * time.Second,
			MaxIdleConns: 30, MaxIdleConnsPerHost: 4, IdleConnTimeout: 2 * time.Minute,
			// Flow control of HTTP/2 slows uploads down.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}}
		return []docker.RegistryHost{h}, nil
	}
}

// tlsFor reads the certificates for host; found tells whether there are any.
func tlsFor(dirs []string, host string) (_ *tls.Config, found bool, err error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, dir := range dirs {
		files, err := os.ReadDir(filepath.Join(dir, host))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("cannot read the certificates of %s: %w", host, err)
		}
		for _, f := range files {
			path := filepath.Join(dir, host, f.Name())
			switch filepath.Ext(f.Name()) {
			case ".crt":
				pem, err := os.ReadFile(path)
				if err != nil {
					return nil, false, fmt.Errorf("cannot read the certificates of %s: %w", host, err)
				}
				if conf.RootCAs == nil {
					if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
						conf.RootCAs = x509.NewCertPool()
					}
				}
				if !conf.RootCAs.AppendCertsFromPEM(pem) {
					return nil, false, fmt.Errorf("cannot use %q for %s: it holds no certificate", path, host)
				}
				found = true
			case ".cert":
				pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
				if err != nil {
					return nil, false, fmt.Errorf("cannot use the client certificate for %s: %w", host, err)
				}
				conf.Certificates = append(conf.Certificates, pair)
				found = true
			}
		}
	}
	return conf, found, nil
}
