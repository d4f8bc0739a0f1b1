// Package network owns the addresses, the published ports, the bridge and the
// one nftables table of the engine, and the three files that name things inside
// (hosts, resolv.conf, hostname). It is the one package that speaks netlink.
//
// It never changes a rule, a link or a route that it did not make, and never
// enters an instance except to give its network card an address. It does not know
// what runs behind an address. It starts no process, except that Blockers has nft
// and iptables-save put foreign rules into words.
//
// # Who knows what
//
// A lease is one file, Dir/<id>/endpoint.json, written before anything of it
// exists in the kernel and removed after all of it is gone. Everything in the
// kernel follows from the leases: a new engine reads them, compares the kernel
// with them and mends the difference. No lease needs to survive a reboot, so none
// is synced.
//
//	Reserve   lease, files, sockets bound, bridge and table exist
//	Plug      card inside the network namespace, ports translated
//	Release   ports, card, files, lease gone; after the last one also the
//	          bridge, the table and every sysctl that was changed
//
// # The path of a packet
//
//	outside -> published port   prerouting: translated to the container, if the address is the host's
//	host    -> published port   output: translated; from 127/8 also masqueraded
//	inside  -> published port   prerouting, then masqueraded, so that the answer comes back this way
//	inside  -> outside          postrouting: masqueraded
//	outside -> inside, directly forward: dropped (only translated or established traffic passes)
//
// IPv6 goes the same ways, except that a client on the host which tries ::1 is
// refused: the kernel translates no IPv6 loopback.
package network

import (
	"net/netip"
	"os"
	"time"

	"proa/internal/isolation"
)

// Config says where a Manager works. Two managers with different Bridge, Table
// and Dir do not meet.
type Config struct {
	Bridge string // name of the bridge, at most 15 bytes; "" is "proa0"
	Table  string // name of the nftables table (family inet); "" is "proa"
	// Subnet is the IPv4 network of the bridge in CIDR form; the first address is
	// the gateway. "": one that meets no route or address of the host is
	// chosen at the first Open and kept in Dir.
	Subnet string
	// Subnet6 is the same for IPv6. "": a unique local /64 where the host has
	// IPv6, else none. "none": no IPv6.
	Subnet6 string
	Dir     string // leases and files, one directory per endpoint; lives as long as the boot
	MTU     int    // bytes; 0: that of the interface of the default route
	// Linger is how long an unused bridge and table stay after the last Release,
	// so that runs in a row do not each make them anew; 0 is one second, negative is not at all.
	Linger time.Duration
}

// Protocols of a published port.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Port is one published port. In a Request an empty HostIP means every address
// of both families, and HostPort 0 a free one that the kernel chooses. In an
// Endpoint both are what was really bound, one Port per address family.
type Port struct {
	Proto         string `json:"proto"` // TCP or UDP
	HostIP        string `json:"hostIP"`
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
}

// Request is what one instance asks of the network.
type Request struct {
	// Kind is bridge, none or host. For none and host only the files are made.
	Kind       isolation.NetworkMode
	Hostname   string
	Domain     string
	Ports      []Port   // bridge only
	DNS        []string // nameservers instead of the host's
	DNSSearch  []string // search domains instead of the host's; "." alone means none
	DNSOptions []string // resolver options instead of the host's
	ExtraHosts []string // "name:address" or "name=address"; the address may be "host-gateway"
	MAC        string   // "": made from the address
	IP         string   // IPv4 address inside the subnet; "": the next free one
}

// Endpoint is what Reserve gave. It stays true until Release.
type Endpoint struct {
	ID       string                `json:"id"`
	Kind     isolation.NetworkMode `json:"kind"`
	Address  netip.Prefix          `json:"address"`  // IPv4; invalid without a bridge
	Gateway  netip.Addr            `json:"gateway"`  // IPv4
	Address6 netip.Prefix          `json:"address6"` // invalid where the bridge has no IPv6
	Gateway6 netip.Addr            `json:"gateway6"`
	MAC      string                `json:"mac"`
	MTU      int                   `json:"mtu"`   // bytes
	Link     string                `json:"link"`  // name of the host's end
	Ports    []Port                `json:"ports"` // as bound

	// Paths on the host of the files for /etc/hosts, /etc/resolv.conf and /etc/hostname.
	Hosts      string `json:"hosts"`
	ResolvConf string `json:"resolvConf"`
	HostsName  string `json:"hostname"`

	// Held are the bound sockets of Ports. Only the Endpoint that Reserve returns
	// has them; who called it owns them, hands them to whatever lives as long as the
	// instance, and closes its own copies. A port is free for others as soon as
	// no process holds its socket.
	Held []*os.File `json:"-"`
}

// NIC is the endpoint's card as an isolation driver wants it; Tap is left empty.
func (e *Endpoint) NIC() isolation.NIC {
	n := isolation.NIC{Name: cardName, MAC: e.MAC, MTU: e.MTU}
	if e.Address.IsValid() {
		n.Address = append(n.Address, e.Address.String())
		n.Gateway = append(n.Gateway, e.Gateway.String())
	}
	if e.Address6.IsValid() {
		n.Address = append(n.Address, e.Address6.String())
		n.Gateway = append(n.Gateway, e.Gateway6.String())
	}
	return n
}

// Close closes the held sockets that are still open here.
func (e *Endpoint) Close() {
	for _, f := range e.Held {
		f.Close()
	}
	e.Held = nil
}

// Stats are the counters of one card as seen from inside.
type Stats struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Blocker is a rule of somebody else that drops traffic which the bridge needs
// forwarded.
type Blocker struct {
	Where   string // "nftables table inet filter, chain forward" or "iptables (legacy) filter FORWARD"
	What    string // the rule, or "policy drop"
	Traffic string // what it hits: "from containers to the outside", "to published ports", ...
	Certain bool   // false: a condition of the rule or of one before it could not be judged
	Hint    string // one command that lets the traffic of the bridge through
}
