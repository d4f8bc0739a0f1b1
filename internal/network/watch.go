package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
)

// While the bridge is up, interfaces of the host come and go (a laptop changes
// from cable to radio) and somebody may switch forwarding on for all. The watch
// keeps openForwarding true.

// Multicast groups, messages and attributes of linux/rtnetlink.h and linux/netconf.h.
const (
	groupLink       = 1
	groupNetconf4   = 24
	groupNetconf6   = 25
	rtmNewNetconf   = 80
	netconfaIfIndex = 1
	netconfAll      = -1
	settleTime      = 200 * time.Millisecond // events come in bunches
)

// startWatch listens until stopWatch. The caller holds m.bridge.
func (m *Manager) startWatch() error {
	if m.watch != nil {
		return nil
	}
	c, err := netlink.Dial(syscall.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("cannot watch the host's links: %w", err)
	}
	for _, g := range []uint32{groupLink, groupNetconf4, groupNetconf6} {
		if err := c.JoinGroup(g); err != nil {
			c.Close()
			return fmt.Errorf("cannot watch the host's links: %w", err)
		}
	}
	m.watch = c
	m.background.Go(func() { m.follow(c) })
	return nil
}

// stopWatch ends the watch; background waits for it. The caller holds m.bridge.
func (m *Manager) stopWatch() {
	if m.watch != nil {
		m.watch.Close()
		m.watch = nil
	}
}

func (m *Manager) follow(c *netlink.Conn) {
	for {
		msgs, err := c.Receive()
		if err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return // closed
		}
		matters := err != nil // events were lost: look
		for _, msg := range msgs {
			matters = matters || m.eventMatters(msg)
		}
		if !matters {
			continue
		}
		time.Sleep(settleTime)
		m.bridge.Lock()
		if m.watch == c && m.openForwarding() == nil {
			// An error is met again, and told, by the next bridgeUp or Reconcile.
			_ = m.syncTableLocked()
		}
		m.bridge.Unlock()
	}
}

// eventMatters leaves out our own cards, which come and go with every start.
func (m *Manager) eventMatters(msg netlink.Message) bool {
	switch msg.Header.Type {
	case syscall.RTM_NEWLINK:
		if len(msg.Data) < sizeofIfInfo || binary.NativeEndian.Uint32(msg.Data[8:])&(syscall.IFF_UP|syscall.IFF_LOOPBACK) != syscall.IFF_UP {
			return false
		}
		ad, err := netlink.NewAttributeDecoder(msg.Data[sizeofIfInfo:])
		if err != nil {
			return false
		}
		for ad.Next() {
			switch ad.Type() {
			case syscall.IFLA_MASTER:
				return false
			case syscall.IFLA_IFNAME:
				if n := ad.String(); n == m.cfg.Bridge || strings.HasPrefix(n, linkPrefix) {
					return false
				}
			}
		}
		return true
	case rtmNewNetconf:
		if len(msg.Data) < 4 {
			return false
		}
		ad, err := netlink.NewAttributeDecoder(msg.Data[4:]) // struct netconfmsg is one byte, padded
		if err != nil {
			return false
		}
		for ad.Next() {
			if ad.Type() == netconfaIfIndex {
				return int32(ad.Uint32()) == netconfAll
			}
		}
	}
	return false
}
