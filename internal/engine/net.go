package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"

	"proa/internal/isolation"
	"proa/internal/network"
)

// wantedNetworks reads NetworkingConfig. What is in it is kept as it is; the
// start refuses networks that there are not, because clients may make them
// between create and start.
func wantedNetworks(n *dockernet.NetworkingConfig, h *container.HostConfig) (map[string]*dockernet.EndpointSettings, error) {
	if n == nil {
		return nil, nil
	}
	out := map[string]*dockernet.EndpointSettings{}
	for name, s := range n.EndpointsConfig {
		if name == "default" {
			name = string(h.NetworkMode)
		}
		if h.NetworkMode.IsContainer() && strings.HasPrefix(name, "container:") {
			continue // clients name it as they were told; it has no settings of its own
		}
		if s != nil && len(s.Links) > 0 {
			return nil, invalid("cannot honour Links of network %s: links are not supported", name)
		}
		for key := range endpointOpts(s) {
			return nil, invalid("cannot honour driver option %s of network %s: it is not supported", key, name)
		}
		out[name] = s.Copy()
	}
	if names := slices.Sorted(maps.Keys(out)); len(names) > 1 && !slices.ContainsFunc(names, func(n string) bool { return !fixed(n) }) {
		return nil, invalid("Container cannot be connected to network endpoints: %s", strings.Join(names, ", "))
	}
	return out, nil
}

// endpointOpts are the driver options that would do something in Docker; it
// keeps and shows any other without an effect, and so does the engine.
func endpointOpts(s *dockernet.EndpointSettings) map[string]string {
	out := map[string]string{}
	if s == nil {
		return out
	}
	for k, v := range s.DriverOpts {
		if strings.HasPrefix(k, "com.docker.network.") {
			out[k] = v
		}
	}
	return out
}

// fixed reports whether a network is one of the three that always exist.
func fixed(name string) bool { return name == "bridge" || name == "host" || name == "none" }

// checkNetworks refuses networks that there are not. Those of the users' own
// are not served yet, so it has the answer of a Docker without any.
func checkNetworks(rec *record) error {
	mode := rec.Host.NetworkMode
	if rec.Config.NetworkDisabled || mode.IsContainer() {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(rec.Networking)) {
		if !fixed(name) {
			return refusef(errdefs.ErrNotFound, "network %s not found", name)
		}
		if s := rec.Networking[name]; s != nil && len(s.Aliases) > 0 {
			return &ownMessage{refusal{errdefs.ErrInvalidArgument, errors.New("network-scoped alias is supported only for containers in user defined networks")}}
		}
		if name != string(mode) && fixed(string(mode)) {
			return conflict("container cannot be connected to network %s: its network mode is %s", name, mode)
		}
	}
	if !fixed(string(mode)) {
		return refusef(errdefs.ErrNotFound, "network %s not found", mode)
	}
	return nil
}

// networkKind is what a container is plugged into.
func (r *record) networkKind() isolation.NetworkMode {
	if r.Config.NetworkDisabled && !r.Host.NetworkMode.IsHost() && !r.Host.NetworkMode.IsContainer() {
		return isolation.NetworkNone
	}
	return isolation.NetworkMode(r.Host.NetworkMode)
}

// networkRequest reads what a container wants of the network.
func (e *Engine) networkRequest(rec *record) (network.Request, error) {
	h, c := rec.Host, rec.Config
	req := network.Request{
		Kind: rec.networkKind(), Hostname: c.Hostname, Domain: c.Domainname,
		DNSSearch: h.DNSSearch, DNSOptions: h.DNSOptions, ExtraHosts: h.ExtraHosts,
	}
	if req.Hostname == "" {
		req.Hostname = e.host
	}
	for _, a := range h.DNS {
		req.DNS = append(req.DNS, a.String())
	}
	if s := rec.Networking[string(h.NetworkMode)]; s != nil {
		req.MAC = s.MacAddress.String()
		if ip := s.IPAMConfig; ip != nil {
			if ip.IPv6Address.IsValid() || len(ip.LinkLocalIPs) > 0 {
				return req, invalid("cannot honour a wanted IPv6 or link-local address: it is not supported")
			}
			if ip.IPv4Address.IsValid() {
				req.IP = ip.IPv4Address.String()
			}
		}
	}
	if req.Kind != isolation.NetworkBridge {
		return req, nil // ports of --network host and none mean nothing, as in Docker
	}
	ports, err := wantedPorts(h.PortBindings, c.ExposedPorts, h.PublishAllPorts)
	req.Ports = ports
	return req, err
}

// wantedPorts lists what is to be published, in a fixed order.
func wantedPorts(bindings dockernet.PortMap, exposed dockernet.PortSet, all bool) ([]network.Port, error) {
	var out []network.Port
	seen := map[network.Port]bool{}
	for p, list := range bindings {
		if p.Proto() != dockernet.TCP && p.Proto() != dockernet.UDP {
			return nil, invalid("cannot publish port %s: only tcp and udp are supported", p)
		}
		if len(list) == 0 {
			list = []dockernet.PortBinding{{}}
		}
		for _, b := range list {
			w := network.Port{Proto: string(p.Proto()), ContainerPort: p.Num()}
			if b.HostIP.IsValid() {
				w.HostIP = b.HostIP.String()
			}
			if b.HostPort != "" {
				n, err := strconv.ParseUint(b.HostPort, 10, 16)
				if err != nil {
					return nil, invalid("invalid host port %q for %s: give one number from 1 to 65535, or none for a free one", b.HostPort, p)
				}
				w.HostPort = uint16(n)
			}
			if seen[w] && w.HostPort != 0 {
				continue
			}
			seen[w] = true
			out = append(out, w)
		}
	}
	if all {
		for p := range exposed {
			if _, bound := bindings[p]; !bound && (p.Proto() == dockernet.TCP || p.Proto() == dockernet.UDP) {
				out = append(out, network.Port{Proto: string(p.Proto()), ContainerPort: p.Num()})
			}
		}
	}
	slices.SortFunc(out, func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.HostIP, b.HostIP))
	})
	return out, nil
}

// unpublished says which exposed ports PublishAllPorts leaves out.
func unpublished(c *container.Config, h *container.HostConfig) (warnings []string) {
	if !h.PublishAllPorts {
		return nil
	}
	for p := range c.ExposedPorts {
		if p.Proto() != dockernet.TCP && p.Proto() != dockernet.UDP {
			warnings = append(warnings, fmt.Sprintf("port %s is not published: only tcp and udp are supported", p))
		}
	}
	slices.Sort(warnings)
	return warnings
}

// takeNetwork shows an endpoint in Docker's shapes.
func (l *live) takeNetwork(r *record, ep *network.Endpoint) {
	l.resolv, l.hosts, l.hostname = ep.ResolvConf, ep.Hosts, ep.HostsName
	s := r.Networking[string(r.Host.NetworkMode)].Copy()
	if s == nil {
		s = &dockernet.EndpointSettings{}
	}
	s.NetworkID, s.EndpointID = network.ID(string(r.Host.NetworkMode)), r.ID
	if ep.Address.IsValid() {
		s.IPAddress, s.IPPrefixLen, s.Gateway = ep.Address.Addr(), ep.Address.Bits(), ep.Gateway
	}
	if ep.Address6.IsValid() {
		s.GlobalIPv6Address, s.GlobalIPv6PrefixLen, s.IPv6Gateway = ep.Address6.Addr(), ep.Address6.Bits(), ep.Gateway6
	}
	if ep.MAC != "" {
		_ = s.MacAddress.UnmarshalText([]byte(ep.MAC)) // the network room made it
	}
	l.endpoint, l.ports = map[string]*dockernet.EndpointSettings{}, dockernet.PortMap{}
	if r.Config.NetworkDisabled {
		return
	}
	l.endpoint[string(r.Host.NetworkMode)] = s
	if r.networkKind() == isolation.NetworkBridge {
		l.ports = boundPorts(ep.Ports, r.Config.ExposedPorts)
	}
}

func (l *live) forgetNetwork() {
	l.resolv, l.hosts, l.hostname, l.endpoint, l.ports = "", "", "", nil, nil
}

// boundPorts lists published ports, and exposed ones with nothing behind them.
func boundPorts(ports []network.Port, exposed dockernet.PortSet) dockernet.PortMap {
	out := dockernet.PortMap{}
	for p := range maps.Keys(exposed) {
		out[p] = nil
	}
	for _, p := range ports {
		key, ok := dockernet.PortFrom(p.ContainerPort, dockernet.IPProtocol(p.Proto))
		if !ok {
			continue
		}
		out[key] = append(out[key], portBinding(p))
	}
	return out
}

// netStats adds the counters of the card, which the engine reads on the host's side.
func (e *Engine) netStats(ctx context.Context, id string, s *isolation.Stats) {
	n, err := e.cfg.Network.Stats(ctx, id)
	if err != nil {
		return // no card
	}
	s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped = n.RxBytes, n.RxPackets, n.RxErrors, n.RxDropped
	s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped = n.TxBytes, n.TxPackets, n.TxErrors, n.TxDropped
}

func portBinding(p network.Port) dockernet.PortBinding {
	b := dockernet.PortBinding{HostPort: strconv.Itoa(int(p.HostPort))}
	b.HostIP, _ = netip.ParseAddr(p.HostIP) // as the network room bound it
	return b
}
