package sys

import (
	"os"
	"slices"
	"strings"
	"time"
)

func rdtsc() uint64

// TSCKHz measures how fast this host's time stamp counter runs, in kHz, within
// about 20 parts per million. It takes 50 ms. The "cpu MHz" of /proc/cpuinfo is
// no substitute: with frequency scaling it is the speed of this moment.
func TSCKHz() uint64 {
	// A pair of readings is as good as the time between its two clocks; the
	// tightest of some is taken, since the scheduler may come in between.
	pair := func() (uint64, time.Time) {
		var best uint64 = 1 << 63
		var ticks uint64
		var when time.Time
		for range 16 {
			before := rdtsc()
			now := time.Now()
			after := rdtsc()
			if after-before < best {
				best, ticks, when = after-before, before+(after-before)/2, now
			}
		}
		return ticks, when
	}
	t0, w0 := pair()
	time.Sleep(50 * time.Millisecond)
	t1, w1 := pair()
	return uint64(float64(t1-t0) * 1e6 / float64(w1.Sub(w0).Nanoseconds()))
}

// SteadyTSC says whether the kernel takes the time stamp counter for a clock:
// it runs at one rate, in idle states too, and agrees on all processors. A
// counter that failed its tests is not listed, one that another clock is
// preferred to is.
func SteadyTSC() bool {
	// Without sysfs nothing vouches for it.
	b, _ := os.ReadFile("/sys/devices/system/clocksource/clocksource0/available_clocksource")
	return slices.Contains(strings.Fields(string(b)), "tsc")
}
