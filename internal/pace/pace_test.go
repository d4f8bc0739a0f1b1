package pace

import (
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	is := func(want int) {
		t.Helper()
		if got := debug.SetGCPercent(want); got != want {
			t.Fatalf("GC percent is %d, want %d", got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		p := New(40)
		is(40)
		one := p.Begin()
		two := p.Begin()
		is(busyPercent)
		one()
		time.Sleep(2 * after)
		is(busyPercent)
		two()
		time.Sleep(after / 2)
		is(busyPercent)
		three := p.Begin() // before it came to rest
		time.Sleep(2 * after)
		is(busyPercent)
		three()
		time.Sleep(2 * after)
		is(40)
		p.Begin()()
		is(busyPercent)
		time.Sleep(2 * after)
		is(40)
	})
}
