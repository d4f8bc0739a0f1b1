package logs

import (
	"bytes"
	"sync"
)

// queue keeps records of a log that must never hold the container back
// (mode=non-blocking) until the disk takes them. A record that finds the queue
// full is dropped, as by Docker's ring logger.
type queue struct {
	limit int64
	put   func([]byte)
	done  chan struct{} // closed when the last record is written

	mu     sync.Mutex // guards the rest, never held across a write to the log
	wake   *sync.Cond
	held   [][]byte // whole records
	size   int64
	lost   int64
	closed bool
}

func newQueue(limit int64, put func([]byte)) *queue {
	q := &queue{limit: limit, put: put, done: make(chan struct{})}
	q.wake = sync.NewCond(&q.mu)
	go q.run()
	return q
}

// add takes a copy of the records in b that find room. An empty queue takes a
// record of any size.
func (q *queue) add(b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n') + 1
		if n == 0 {
			n = len(b)
		}
		if q.size > 0 && q.size+int64(n) > q.limit {
			q.lost += int64(n)
		} else {
			q.held, q.size = append(q.held, bytes.Clone(b[:n])), q.size+int64(n)
		}
		b = b[n:]
	}
	q.wake.Signal()
}

// run writes records until the queue is closed and empty.
func (q *queue) run() {
	defer close(q.done)
	for {
		q.mu.Lock()
		for len(q.held) == 0 && !q.closed {
			q.wake.Wait()
		}
		if len(q.held) == 0 {
			q.mu.Unlock()
			return
		}
		record := q.held[0]
		q.held[0] = nil
		q.held, q.size = q.held[1:], q.size-int64(len(record))
		q.mu.Unlock()
		q.put(record)
	}
}

func (q *queue) dropped() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lost
}

// close waits until everything that was taken is written.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.wake.Signal()
	q.mu.Unlock()
	<-q.done
}
