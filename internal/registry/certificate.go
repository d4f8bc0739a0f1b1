package registry

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"proa/internal/sys"
)

// How long certificates live. A client is given the authority's once; the
// server's own is made anew by each process and lies on no disk.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	serverLife    = 90 * 24 * time.Hour
	renewBefore   = 30 * 24 * time.Hour
)

// authority is a certificate authority of one registry's own.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	file string // of the certificate, for clients
}

// openAuthority reads the authority in dir, or makes it. The certificate is
// written last: where it is, the key is.
func openAuthority(dir string) (*authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	if _, err := os.Stat(certFile); errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(dir, certFile, keyFile); err != nil {
			return nil, fmt.Errorf("cannot make a certificate authority: %w", err)
		}
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read the registry's certificate authority (remove %q to get a new one, which clients must be given again): %w", dir, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || pair.Leaf == nil || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%q is no certificate authority", certFile)
	}
	if left := time.Until(pair.Leaf.NotAfter); left < serverLife {
		return nil, fmt.Errorf("the registry's certificate authority ends on %s: remove %q to get a new one, and give it to the clients", pair.Leaf.NotAfter.Format(time.DateOnly), dir)
	}
	return &authority{cert: pair.Leaf, key: key, file: certFile}, nil
}

func makeAuthority(dir, certFile, keyFile string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	host, _ := os.Hostname()
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "Proa registry of " + host},
		NotAfter: time.Now().Add(authorityLife),
		IsCA:     true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, der, err := makeCertificate(template, nil)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeFile(keyFile, "PRIVATE KEY", raw); err != nil {
		return err
	}
	return writeFile(certFile, "CERTIFICATE", der)
}

// writeFile writes one PEM block so that the file is whole or not there.
func writeFile(path, kind string, raw []byte) error {
	return sys.ReplaceSynced(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
}

// makeCertificate makes a key and a certificate for it, signed by a or, if
// that is nil, by itself.
func makeCertificate(template *x509.Certificate, a *authority) (key *ecdsa.PrivateKey, der []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, nil, err
	}
	template.NotBefore = time.Now().Add(-time.Hour) // clocks differ
	parent, signer := template, crypto.Signer(key)
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err = x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	return key, der, err
}

// fingerprint is the SHA-256 of the authority's certificate, to compare by eye.
func (a *authority) fingerprint() string {
	sum := sha256.Sum256(a.cert.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// serve makes certificates for these names and addresses, a new one in good time.
func (a *authority) serve(names []string, log *slog.Logger) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var now *tls.Certificate
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if now != nil && time.Until(now.Leaf.NotAfter) > renewBefore {
			return now, nil
		}
		template := &x509.Certificate{
			Subject:     pkix.Name{CommonName: names[0]},
			NotAfter:    time.Now().Add(serverLife),
			KeyUsage:    x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		for _, name := range names {
			if ip := net.ParseIP(name); ip != nil {
				template.IPAddresses = append(template.IPAddresses, ip)
			} else {
				template.DNSNames = append(template.DNSNames, name)
			}
		}
		key, der, err := makeCertificate(template, a)
		if err != nil {
			return nil, err
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		now = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
		log.Debug("certificate made", "names", names, "until", leaf.NotAfter)
		return now, nil
	}
}

// serveFiles gives the certificate of two files, read again when they change,
// so that a renewal needs no restart. One that cannot be read is said, and the
// one of before stays in use.
func serveFiles(certFile, keyFile string, log *slog.Logger) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	var mu sync.Mutex
	var now tls.Certificate
	var cert, key stamp
	load := func() error {
		ci, err := os.Stat(certFile)
		if err != nil {
			return fmt.Errorf("cannot read the certificate: %w", err)
		}
		ki, err := os.Stat(keyFile)
		if err != nil {
			return fmt.Errorf("cannot read the certificate's key: %w", err)
		}
		if cert.same(stampOf(ci)) && key.same(stampOf(ki)) {
			return nil
		}
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return fmt.Errorf("cannot use the certificate %q with the key %q: %w", certFile, keyFile, err)
		}
		if time.Now().After(pair.Leaf.NotAfter) {
			log.Warn("the certificate has expired: clients will refuse it", "file", certFile, "on", pair.Leaf.NotAfter)
		}
		now, cert, key = pair, stampOf(ci), stampOf(ki)
		return nil
	}
	if err := load(); err != nil {
		return nil, err
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if err := load(); err != nil {
			log.Warn("the certificate cannot be read again; the one of before stays in use", "err", err)
		}
		c := now
		return &c, nil
	}, nil
}

// ownNames are the names and addresses under which clients may reach a
// listener: the first is the one to tell people.
func ownNames(host string, ip net.IP, extra []string) []string {
	var list []string
	seen := map[string]bool{"": true}
	add := func(names ...string) {
		for _, n := range names {
			if !seen[n] {
				seen[n] = true
				list = append(list, n)
			}
		}
	}
	add(extra...)
	if !ip.IsUnspecified() {
		add(host, ip.String())
	} else {
		if name, err := os.Hostname(); err == nil {
			add(name)
		}
		addrs, _ := net.InterfaceAddrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				add(n.IP.String())
			}
		}
	}
	if ip.IsUnspecified() || ip.IsLoopback() {
		add("localhost", "127.0.0.1", "::1")
	}
	return list
}
