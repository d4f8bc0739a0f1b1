package network

import (
	"fmt"
	"os"
	"testing"
	"time"

	vnl "github.com/vishvananda/netlink"

	"proa/internal/isolation"
)

// BenchmarkStart is what the network adds to a start and an end of one
// container with one published port, while the bridge is up. Namespaces are made
// beforehand: they belong to the container driver.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	m := w.open(Config{})
	defer m.Close()
	keep := w.plug(m, "keep", Request{Hostname: "keep"})
	defer m.Release(ctx, keep.ID)
	spaces := make([]*os.File, 64)
	for i := range spaces {
		spaces[i] = newNetns(b)
	}
	var reserve, plug, release time.Duration
	b.ResetTimer()
	for i := range b.N {
		id := fmt.Sprintf("c%d", i)
		t0 := time.Now()
		e, err := m.Reserve(ctx, id, Request{Kind: isolation.NetworkBridge, Hostname: id, Ports: []Port{{Proto: TCP, HostPort: 8080, ContainerPort: 80}}})
		check(b, err)
		t1 := time.Now()
		check(b, m.Plug(ctx, id, spaces[i%len(spaces)]))
		t2 := time.Now()
		e.Close()
		check(b, m.Release(ctx, id))
		t3 := time.Now()
		reserve, plug, release = reserve+t1.Sub(t0), plug+t2.Sub(t1), release+t3.Sub(t2)
		b.StopTimer()
		for linkExists(fmt.Sprint(e.Link)) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(50 * time.Millisecond) // the kernel is not done when the name is gone
		b.StartTimer()
	}
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N) }
	b.ReportMetric(us(reserve), "µs/reserve")
	b.ReportMetric(us(plug), "µs/plug")
	b.ReportMetric(us(release), "µs/release")
}

// BenchmarkBridge is what the first Reserve and the last Release cost more.
func BenchmarkBridge(b *testing.B) {
	w := newWorld(b)
	m := w.open(Config{Linger: -1})
	defer m.Close()
	var up, down time.Duration
	for range b.N {
		t0 := time.Now()
		e, err := m.Reserve(ctx, "one", Request{Kind: isolation.NetworkBridge, Hostname: "one"})
		check(b, err)
		e.Close()
		t1 := time.Now()
		check(b, m.Release(ctx, "one"))
		up, down = up+t1.Sub(t0), down+time.Since(t1)
	}
	b.ReportMetric(float64(up.Microseconds())/float64(b.N), "µs/up")
	b.ReportMetric(float64(down.Microseconds())/float64(b.N), "µs/down")
}

func linkExists(name string) bool {
	_, err := vnl.LinkByName(name)
	return err == nil
}
