package snapshot

import (
	"io"
	"sync"
)

// behind writes to a writer in a goroutine of its own, some buffers later, so
// that reading files and packing them take one core each.
type behind struct {
	w     io.Writer
	cur   []byte
	full  chan []byte
	empty chan []byte
	done  sync.WaitGroup

	mu  sync.Mutex
	err error
}

const (
	behindBuffers = 4
	behindSize    = 256 << 10
)

// writeBehind begins. Close must be called; it does not close w.
func writeBehind(w io.Writer) *behind {
	b := &behind{w: w, full: make(chan []byte, behindBuffers), empty: make(chan []byte, behindBuffers)}
	for range behindBuffers {
		b.empty <- make([]byte, 0, behindSize)
	}
	b.cur = <-b.empty
	b.done.Go(func() {
		for buf := range b.full {
			if b.failed() == nil {
				if _, err := b.w.Write(buf); err != nil {
					b.mu.Lock()
					b.err = err
					b.mu.Unlock()
				}
			}
			b.empty <- buf[:0]
		}
	})
	return b
}

func (b *behind) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Write gives the error of an earlier write, if one failed.
func (b *behind) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), cap(b.cur)-len(b.cur))
		b.cur, p = append(b.cur, p[:k]...), p[k:]
		if len(b.cur) == cap(b.cur) {
			if err := b.failed(); err != nil {
				return n - len(p), err
			}
			b.full <- b.cur
			b.cur = <-b.empty
		}
	}
	return n, nil
}

// Close waits until all is written.
func (b *behind) Close() error {
	b.full <- b.cur
	close(b.full)
	b.done.Wait()
	return b.failed()
}
