package vm_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"proa/internal/isolation"
)

// BenchmarkColdStart measures, interleaved, from the start of QEMU: until the
// agent has set up the guest, until /bin/true has exited and the machine is
// gone; and for the same QEMU and kernel with a first process that only
// answers, until it has. Run it on an idle machine with -benchtime 10x. The
// processor time that QEMU took depends less on what else the machine does.
func BenchmarkColdStart(b *testing.B) {
	real, floor := newLab(b, agentProgram), newLab(b, "proa/internal/isolation/vm/testdata/answering")
	var ready, done, answered, readyCPU, answeredCPU, hello, floorHello []time.Duration
	n := 0
	for b.Loop() {
		for _, l := range []*lab{real, floor} {
			n++
			l.id = fmt.Sprintf("%064x", time.Now().UnixNano()+int64(n))
			spec := l.spec("/bin/true")
			l.prepare(spec)
			begin := time.Now()
			i, err := l.boot(spec)
			if err != nil {
				b.Fatal(err)
			}
			took := time.Since(begin)
			stats, err := i.Stats(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			cpu := time.Duration(stats.CPUNanos)
			if l == floor {
				answered, answeredCPU = append(answered, took), append(answeredCPU, cpu)
				floorHello = append(floorHello, i.Welcome().ReadyTime)
				if err := i.Delete(context.Background()); err != nil {
					b.Fatal(err)
				}
				continue
			}
			ready, readyCPU = append(ready, took), append(readyCPU, cpu)
			hello = append(hello, i.Welcome().ReadyTime)
			r, err := i.Start(context.Background(), isolation.Stdio{})
			if err != nil {
				b.Fatal(err)
			}
			if exit, err := r.Wait(context.Background()); err != nil || exit.Code != 0 {
				b.Fatal(exit, err)
			}
			done = append(done, time.Since(begin))
		}
	}
	b.ReportMetric(median(ready), "ready-ms")
	b.ReportMetric(median(done), "true-ms")
	b.ReportMetric(median(answered), "floor-ms")
	b.ReportMetric(median(ready)/median(answered), "ready/floor")
	b.ReportMetric(median(readyCPU), "ready-cpu-ms")
	b.ReportMetric(median(answeredCPU), "floor-cpu-ms")
	b.ReportMetric(median(hello), "port-ms")
	b.ReportMetric(median(floorHello), "floor-port-ms")
	b.ReportMetric(0, "ns/op")
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}
