package image

import (
	"io"
	"sync"
)

// ahead reads a stream in a goroutine of its own, some buffers in advance, so
// that unpacking a layer and writing it take one core each.
type ahead struct {
	full, empty chan []byte
	stop        chan struct{}
	once        sync.Once
	done        sync.WaitGroup
	err         error // set before full is closed
	cur, rest   []byte
}

const (
	aheadBuffers = 4
	aheadSize    = 256 << 10
)

// readAhead begins to read r. Close must be called; it does not close r.
func readAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan []byte, aheadBuffers), empty: make(chan []byte, aheadBuffers), stop: make(chan struct{})}
	for range aheadBuffers {
		a.empty <- make([]byte, aheadSize)
	}
	a.done.Go(func() {
		defer close(a.full)
		for {
			var b []byte
			select {
			case <-a.stop:
				return
			case b = <-a.empty:
			}
			n, err := fill(r, b[:aheadSize])
			if n > 0 {
				a.full <- b[:n] // has room for every buffer there is
			}
			if err != nil {
				a.err = err
				return
			}
		}
	})
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur != nil {
			a.empty <- a.cur
			a.cur = nil
		}
		b, ok := <-a.full
		if !ok {
			if a.err == nil {
				return 0, io.ErrClosedPipe
			}
			return 0, a.err
		}
		a.cur, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the reading and waits for it.
func (a *ahead) Close() error {
	a.once.Do(func() { close(a.stop) })
	a.done.Wait()
	return nil
}

// fill is io.ReadFull but for the end: it passes on what r says there, whose
// io.ErrUnexpectedEOF means a truncated stream.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}
