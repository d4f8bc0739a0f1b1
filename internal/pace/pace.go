// Package pace trades memory for CPU in programs that are idle nearly always:
// while they are, the heap is kept small; while there is much to do, garbage
// may pile up, and afterwards it is given back to the host. It owns the
// process's GC percent (runtime/debug), so a program has one Pace.
package pace

import (
	"runtime/debug"
	"sync"
	"time"
)

const (
	// busyPercent is how much a heap may grow while there is work: at the
	// percent of an idle program, a quarter of a build's CPU time was
	// collections.
	busyPercent = 300
	// after is how long a program stays at ease when its work has ended; the
	// next piece of it often follows at once.
	after = 3 * time.Second
)

// Pace is the pace of the process. Its methods may be called from many goroutines.
type Pace struct {
	idle int

	mu    sync.Mutex
	users int
	timer *time.Timer
}

// New sets the GC percent of an idle program.
func New(idle int) *Pace {
	debug.SetGCPercent(idle)
	return &Pace{idle: idle}
}

// Hurry is for a program that ends with its work: it is never idle.
func Hurry() { debug.SetGCPercent(busyPercent) }

// Begin tells that there is work until the returned function is called, once.
func (p *Pace) Begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users++; p.users == 1 {
		if p.timer != nil {
			p.timer.Stop()
			p.timer = nil
		}
		debug.SetGCPercent(busyPercent)
	}
	return p.end
}

func (p *Pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users > 0 {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(after, func() {
		p.mu.Lock()
		over := p.timer == t
		if over {
			p.timer = nil
			debug.SetGCPercent(p.idle)
		}
		p.mu.Unlock()
		if over {
			debug.FreeOSMemory()
		}
	})
	p.timer = t
}
