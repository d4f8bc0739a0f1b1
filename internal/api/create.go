package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// createBody is a create request with the two fields that its newest shape has
// no more: what they mean depends on other fields, so no row of the table can
// say it.
type createBody struct {
	container.CreateRequest
	HostConfig   *createHost
	ExposedPorts exposedPorts // ports and ranges of ports
	MacAddress   string       // of the container, until 1.51
}

// exposedPorts reads ports and ranges of ports, "8000-8002/tcp", as single ones.
type exposedPorts network.PortSet

// UnmarshalJSON reads the keys of the object.
func (e *exposedPorts) UnmarshalJSON(raw []byte) error {
	var in map[string]struct{}
	if err := json.Unmarshal(raw, &in); err != nil || in == nil {
		return err
	}
	*e = make(exposedPorts, len(in))
	for s := range in {
		r, err := network.ParsePortRange(s)
		if err != nil {
			return fmt.Errorf("invalid exposed port %q: %w", s, err)
		}
		for p := range r.All() {
			(*e)[p] = struct{}{}
		}
	}
	return nil
}

type createHost struct {
	container.HostConfig
	Capabilities []string // of 1.40 alone
}

// newest turns the request of a version into one of the newest, with the
// warnings of the way there (moby container/container_routes.go).
func (b *createBody) newest(version int) (warnings []string, err error) {
	if b.HostConfig == nil {
		b.HostConfig = &createHost{}
	}
	b.Config.ExposedPorts = network.PortSet(b.ExposedPorts)
	h := &b.HostConfig.HostConfig
	b.CreateRequest.HostConfig = h
	if b.NetworkingConfig == nil {
		b.NetworkingConfig = &network.NetworkingConfig{}
	}
	if version == 40 && len(b.HostConfig.Capabilities) > 0 {
		return nil, bad("the HostConfig.Capabilities field is not supported by this daemon; use CapAdd and CapDrop to set capabilities")
	}
	if eps := b.NetworkingConfig.EndpointsConfig; len(eps) > 1 && version < 44 {
		return nil, bad("Container cannot be connected to network endpoints: %s", strings.Join(slices.Sorted(maps.Keys(eps)), ", "))
	}
	if err := mountsOf(h, version); err != nil {
		return nil, err
	}
	if w := driverWarning(h, version); w != "" {
		warnings = append(warnings, w)
	}
	w, err := b.macAddress(version)
	if err != nil {
		return nil, err
	}
	if w != "" {
		warnings = append(warnings, w)
	}
	if w := portWarning(h, version); w != "" {
		warnings = append(warnings, w)
	}
	return warnings, nil
}

// mountsOf refuses what a version did not have where ignoring it would mount
// something else, and drops what it let pass unread.
func mountsOf(h *container.HostConfig, version int) error {
	for i := range h.Mounts {
		m := &h.Mounts[i]
		if version < 42 {
			if m.Type != mount.TypeVolume {
				m.VolumeOptions = nil
			}
			if m.Type != mount.TypeTmpfs {
				m.TmpfsOptions = nil
			}
		}
		switch {
		case version < 44 && m.Type == mount.TypeBind && m.BindOptions != nil && m.BindOptions.ReadOnlyForceRecursive:
			return bad("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
		case version < 45 && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "":
			return bad("VolumeOptions.Subpath needs API v1.45 or newer")
		case version < 48 && m.Type == mount.TypeImage:
			return bad(`Mount type "Image" needs API v1.48 or newer`)
		}
	}
	return nil
}

// driverWarning is about a volume driver that mounts do not take.
func driverWarning(h *container.HostConfig, version int) string {
	if h.VolumeDriver == "" || version < 48 {
		return ""
	}
	for _, m := range h.Mounts {
		o := m.VolumeOptions
		if m.Type == mount.TypeVolume && (o == nil || o.DriverConfig == nil || o.DriverConfig.Name == "") {
			return "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead"
		}
	}
	return ""
}

// portWarning gives a port without bindings one that leaves the address to the
// engine, which 1.52 says is going to end.
func portWarning(h *container.HostConfig, version int) string {
	var ports []string
	for p, bindings := range h.PortBindings {
		if len(bindings) == 0 {
			h.PortBindings[p] = []network.PortBinding{{}}
			ports = append(ports, p.String())
		}
	}
	if len(ports) == 0 || version < 52 {
		return ""
	}
	slices.Sort(ports)
	return "Following container port(s) have an empty list of port-bindings: " + strings.Join(ports, ", ") + ". Such bindings will be discarded in a future version."
}

// macAddress moves the container's MAC address to the endpoint of its network:
// before 1.44 there was no other place, and since 1.52 it is refused.
func (b *createBody) macAddress(version int) (warning string, err error) {
	eps := b.NetworkingConfig.EndpointsConfig
	if b.MacAddress == "" {
		for _, ep := range eps {
			if version < 44 && ep != nil {
				ep.MacAddress = nil
			}
		}
		return "", nil
	}
	if version >= 52 {
		return "", bad("container-wide MAC address no longer supported; use endpoint-specific MAC address instead")
	}
	hw, err := net.ParseMAC(b.MacAddress)
	if err != nil {
		return "", bad("invalid MAC address: %w", err)
	}
	mac, mode := network.HardwareAddr(hw), b.HostConfig.NetworkMode
	if mode == "" || mode.IsDefault() {
		mode = network.NetworkBridge
	}
	joins := mode.IsBridge() || mode.IsUserDefined()
	if version < 44 && !joins {
		return "", bad("conflicting options: mac-address and the network mode")
	}
	if joins {
		ep, err := b.endpoint(string(mode), version)
		if err != nil {
			return "", err
		}
		if len(ep.MacAddress) > 0 && version >= 44 && !bytes.Equal(ep.MacAddress, mac) {
			return "", bad("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
		}
		ep.MacAddress = mac
	}
	if version < 44 {
		return "", nil
	}
	return "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.", nil
}

// endpoint is the one of the container's main network. Before 1.44 the only one
// was that, under whatever name.
func (b *createBody) endpoint(mode string, version int) (*network.EndpointSettings, error) {
	n := b.NetworkingConfig
	names := slices.Collect(maps.Keys(n.EndpointsConfig))
	name := mode
	switch {
	case len(names) == 0:
		n.EndpointsConfig = map[string]*network.EndpointSettings{}
	case version < 44:
		name = names[0]
	default:
		if _, ok := n.EndpointsConfig[mode]; ok {
			break
		}
		if _, ok := n.EndpointsConfig[network.NetworkDefault]; ok && mode == network.NetworkBridge {
			name = network.NetworkDefault
			break
		}
		return nil, bad("unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks")
	}
	if n.EndpointsConfig[name] == nil {
		n.EndpointsConfig[name] = &network.EndpointSettings{}
	}
	return n.EndpointsConfig[name], nil
}
