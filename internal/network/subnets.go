package network

import "net/netip"

// Subnets are the networks of the bridge, IPv4 and IPv6; the second is invalid
// where there is none. The gateway is the first address of each.
func (m *Manager) Subnets() (netip.Prefix, netip.Prefix) {
	m.bridge.Lock()
	defer m.bridge.Unlock()
	return m.record.Subnet, m.record.Subnet6
}
