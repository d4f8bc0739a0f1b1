// Answering is the first process of a guest that does nothing but load the
// modules of its channel and disks and answer the host: the floor that a cold
// start of the real agent is measured against. It mounts no root, runs nothing,
// and powers off when asked.
package main

import (
	"os"
	"strings"
	"syscall"
	"time"

	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

func main() {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = syscall.Mount(m[0], m[1], m[0], 0, "")
	}
	list, _ := os.ReadFile("/modules.txt")
	for _, path := range strings.Fields(string(list)) {
		if f, err := os.Open(path); err == nil {
			_ = sys.LoadModule(f, "")
			f.Close()
		}
	}
	var port *os.File
	for port == nil {
		port, _ = os.OpenFile("/dev/vport0p1", os.O_RDWR|syscall.O_NONBLOCK, 0)
		if port == nil {
			time.Sleep(time.Millisecond)
		}
	}
	conn := wire.NewConn(port, true)
	for {
		h, err := conn.Next()
		if err != nil {
			conn.Reset()
			time.Sleep(10 * time.Millisecond)
			continue
		}
		b, err := conn.Payload()
		if err != nil {
			continue
		}
		switch h.Type {
		case wire.TypeHello:
			var g wire.Greeting
			if wire.DecodeJSON(b, &g) != nil {
				continue
			}
			conn.SetEpoch(g.Epoch)
			_ = conn.SendMessage(wire.Header{Epoch: g.Epoch, Type: wire.TypeHello}, wire.Welcome{Version: wire.Version, Epoch: g.Epoch, ReadyTime: sys.SinceBoot()})
		case wire.TypeRequest:
			_ = conn.SendMessage(wire.Header{Epoch: h.Epoch, Type: wire.TypeReply, Sub: h.Sub, ID: h.ID}, nil)
			if wire.Op(h.Sub) == wire.OpShutdown {
				_ = sys.PowerOff(false)
			}
		}
	}
}
