package engine

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

// BenchmarkRun is the life of a short container without a network, and says
// where its time goes.
func BenchmarkRun(b *testing.B) {
	w := newWorld(b)
	ctx := context.Background()
	spent := map[string]time.Duration{}
	last := time.Now()
	onStep = func(name string) {
		now := time.Now()
		spent[name] += now.Sub(last)
		last = now
	}
	defer func() { onStep = nil }()
	b.ResetTimer()
	for range b.N {
		last = time.Now()
		res, err := w.Create(ctx, CreateRequest{
			Config: &container.Config{Image: "box", Cmd: []string{"true"}},
			Host:   &container.HostConfig{NetworkMode: "none", AutoRemove: true},
		})
		if err != nil {
			b.Fatal(err)
		}
		gone, err := w.Wait(ctx, res.ID, "removed")
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Start(ctx, res.ID); err != nil {
			b.Fatal(err)
		}
		<-gone
	}
	b.StopTimer()
	for name, d := range spent {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N), strings.ReplaceAll(name, " ", "-")+"-us")
	}
}
