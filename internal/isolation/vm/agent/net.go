package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// cardWait is how long a network card may take to appear after its driver was loaded.
const cardWait = 5 * time.Second

// setupNetwork brings up the loopback and the cards, found by their MACs.
func setupNetwork(nics []isolation.NIC) error {
	n, err := sys.OpenRTNL()
	if err != nil {
		return err
	}
	defer n.Close()
	links, err := n.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Name == "lo" {
			if err := n.SetLink(l.Index, "", 0); err != nil {
				return err
			}
		}
	}
	for i := range nics {
		if err := setupNIC(n, links, &nics[i]); err != nil {
			return err
		}
	}
	return nil
}

func setupNIC(n *sys.RTNL, links []sys.Link, nic *isolation.NIC) error {
	mac, err := parseMAC(nic.MAC)
	if err != nil {
		return err
	}
	link, ok := byMAC(links, mac)
	for begin := time.Now(); !ok; link, ok = byMAC(links, mac) {
		if time.Since(begin) > cardWait {
			return fmt.Errorf("cannot find a network card with address %s", nic.MAC)
		}
		time.Sleep(2 * time.Millisecond)
		if links, err = n.Links(); err != nil {
			return err
		}
	}
	name := nic.Name
	if name == link.Name {
		name = ""
	}
	var prefixes []netip.Prefix
	v6 := false
	for _, s := range nic.Address {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("cannot use address %q: %w", s, err)
		}
		prefixes = append(prefixes, p)
		v6 = v6 || p.Addr().Is6()
	}
	if !v6 {
		// As behind the other wall: without an address of ours no link-local one either. A kernel without IPv6 has no such file.
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+link.Name+"/disable_ipv6", []byte("1"), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot disable IPv6 on %q: %w", link.Name, err)
		}
	}
	if err := n.SetLink(link.Index, name, nic.MTU); err != nil {
		return err
	}
	for _, p := range prefixes {
		if err := n.AddAddress(link.Index, p); err != nil {
			return err
		}
	}
	for _, s := range nic.Gateway {
		if s == "" {
			continue
		}
		gw, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("cannot use gateway %q: %w", s, err)
		}
		if err := n.AddDefaultRoute(link.Index, gw); err != nil {
			return err
		}
	}
	return nil
}

func byMAC(links []sys.Link, mac [6]byte) (sys.Link, bool) {
	for _, l := range links {
		if l.MAC == mac {
			return l, true
		}
	}
	return sys.Link{}, false
}

// parseMAC is here because package net would double the program's size.
func parseMAC(s string) (mac [6]byte, err error) {
	parts := strings.Split(s, ":")
	if len(parts) != len(mac) {
		return mac, fmt.Errorf("cannot parse hardware address %q", s)
	}
	for i, p := range parts {
		b, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) != 2 {
			return mac, fmt.Errorf("cannot parse hardware address %q", s)
		}
		mac[i] = byte(b)
	}
	if mac == [6]byte{} {
		return mac, fmt.Errorf("cannot use hardware address %q", s)
	}
	return mac, nil
}
