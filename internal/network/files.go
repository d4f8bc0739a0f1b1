package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// Where the host says how names are resolved.
const (
	etcResolvConf     = "/etc/resolv.conf"
	systemdResolvConf = "/run/systemd/resolve/resolv.conf" // the true servers behind the stub at 127.0.0.53
	etcHosts          = "/etc/hosts"
)

// writeFiles writes hosts, resolv.conf and hostname of e into dir and names
// them in e.
func writeFiles(dir string, e *Endpoint, r Request) error {
	extra, err := extraHosts(r.ExtraHosts, hostGateway(e))
	if err != nil {
		return err
	}
	hosts := hostsFile(e, r, extra)
	if e.Kind == isolation.NetworkHost {
		b, err := os.ReadFile(etcHosts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot copy the host's hosts file: %w", err)
		}
		hosts = append(endLine(b), extra...)
	}
	e.Hosts = filepath.Join(dir, "hosts")
	e.ResolvConf = filepath.Join(dir, "resolv.conf")
	e.HostsName = filepath.Join(dir, "hostname")
	for _, f := range []struct {
		path string
		data []byte
	}{
		{e.Hosts, hosts},
		{e.ResolvConf, resolvConfFile(e, r)},
		{e.HostsName, []byte(r.Hostname + "\n")},
	} {
		// 0644 and never replaced by rename: the file is bind mounted, and read by every user inside.
		if err := os.WriteFile(f.path, f.data, 0o644); err != nil {
			return fmt.Errorf("cannot write %q: %w", f.path, err)
		}
	}
	return nil
}

// hostGateway is what "host-gateway" stands for: the host as seen from inside.
func hostGateway(e *Endpoint) []netip.Addr {
	switch {
	case e.Kind == isolation.NetworkHost:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case e.Gateway6.IsValid():
		return []netip.Addr{e.Gateway, e.Gateway6}
	case e.Gateway.IsValid():
		return []netip.Addr{e.Gateway}
	}
	return nil
}

// extraHosts turns --add-host values into lines.
func extraHosts(list []string, gw []netip.Addr) ([]byte, error) {
	var b bytes.Buffer
	for _, s := range list {
		i := strings.IndexAny(s, ":=")
		if i <= 0 || strings.ContainsAny(s, " \t\r\n#") {
			return nil, fmt.Errorf("cannot add host %q: want name:address: %w", s, errdefs.ErrInvalidArgument)
		}
		name, addr := s[:i], s[i+1:]
		if addr == "host-gateway" {
			if len(gw) == 0 {
				return nil, fmt.Errorf("cannot add host %q: this network has no way to the host: %w", s, errdefs.ErrInvalidArgument)
			}
			for _, a := range gw {
				fmt.Fprintf(&b, "%s\t%s\n", a, name)
			}
			continue
		}
		a, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if err != nil {
			return nil, fmt.Errorf("cannot add host %q: %q is not an address: %w", s, addr, errdefs.ErrInvalidArgument)
		}
		fmt.Fprintf(&b, "%s\t%s\n", a, name)
	}
	return b.Bytes(), nil
}

func hostsFile(e *Endpoint, r Request, extra []byte) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\n" +
		"ff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n")
	b.Write(extra)
	if r.Hostname == "" {
		return b.Bytes()
	}
	names := r.Hostname
	if r.Domain != "" {
		names = r.Hostname + "." + r.Domain + " " + r.Hostname
	} else if short, _, dotted := strings.Cut(r.Hostname, "."); dotted {
		names += " " + short
	}
	for _, p := range []netip.Prefix{e.Address, e.Address6} {
		if p.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", p.Addr(), names)
		}
	}
	return b.Bytes()
}

// hostResolvConf is the file that says which servers the host asks in the end.
func hostResolvConf() string {
	ns := nameservers(readResolvConf(etcResolvConf))
	if len(ns) == 1 && ns[0] == "127.0.0.53" {
		if _, err := os.Stat(systemdResolvConf); err == nil {
			return systemdResolvConf
		}
	}
	return etcResolvConf
}

// readResolvConf reads a resolver configuration; one that is not there is empty.
func readResolvConf(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b
}

// loopbackResolver is the host's own resolver where there is no other server to
// ask; invalid elsewhere.
func loopbackResolver() (a netip.Addr) {
	for _, s := range nameservers(readResolvConf(hostResolvConf())) {
		ns, err := netip.ParseAddr(s)
		switch {
		case err != nil:
		case !ns.IsLoopback():
			return netip.Addr{}
		case ns.Is4() && !a.IsValid():
			a = ns
		}
	}
	return a
}

func nameservers(conf []byte) (list []string) {
	for line := range strings.Lines(string(conf)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			list = append(list, f[1])
		}
	}
	return list
}

// resolvConfFile is the host's configuration with what the request replaces.
// Nameservers on the host's loopback cannot be reached from inside and are left
// out; where only such ones exist, the bridge's gateway takes their place, which
// the table translates to the host's own resolver (see table.go). Nobody is asked
// whom the host does not ask.
func resolvConfFile(e *Endpoint, r Request) []byte {
	path := etcResolvConf
	if e.Kind == isolation.NetworkBridge {
		path = hostResolvConf()
	}
	return mergeResolvConf(readResolvConf(path), e, r)
}

func mergeResolvConf(conf []byte, e *Endpoint, r Request) []byte {
	var servers, options, rest []string
	var search string
	loopback := false
	for line := range strings.Lines(string(conf)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";"):
		case f[0] == "nameserver":
			a, err := netip.ParseAddr(strings.Join(f[1:], " "))
			switch {
			case err != nil:
			case e.Kind != isolation.NetworkBridge:
				servers = append(servers, f[1])
			case a.IsLoopback():
				loopback = true
			case a.Is6() && (!e.Address6.IsValid() || a.Zone() != ""): // link-local ones need the host's interface
			default:
				servers = append(servers, f[1])
			}
		case f[0] == "search" || f[0] == "domain":
			search = strings.Join(f[1:], " ") // the last one wins
		case f[0] == "options":
			options = append(options, f[1:]...)
		default:
			rest = append(rest, strings.Join(f, " "))
		}
	}
	if len(r.DNS) > 0 {
		servers = r.DNS
	} else if len(servers) == 0 && loopback && e.Gateway.IsValid() {
		servers = []string{e.Gateway.String()}
	}
	if len(r.DNSSearch) > 0 {
		search = strings.Join(r.DNSSearch, " ")
		if search == "." {
			search = ""
		}
	}
	if len(r.DNSOptions) > 0 {
		options = r.DNSOptions
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if search != "" {
		fmt.Fprintf(&b, "search %s\n", search)
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	for _, l := range rest {
		b.WriteString(l + "\n")
	}
	return []byte(b.String())
}

// checkNames refuses values that would break out of their line.
func checkNames(r Request) error {
	for _, s := range append(append([]string{r.Hostname, r.Domain}, r.DNSSearch...), r.DNSOptions...) {
		if strings.ContainsAny(s, " \t\r\n\x00") {
			return fmt.Errorf("cannot use name %q: it holds white space: %w", s, errdefs.ErrInvalidArgument)
		}
	}
	for _, s := range r.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			return fmt.Errorf("cannot use nameserver %q: not an address: %w", s, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func endLine(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b, '\n')
	}
	return b
}
