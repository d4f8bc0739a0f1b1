// Package event owns what has happened, for those who want to watch: a ring of
// the last events and the subscribers who get the next ones. It is never a
// source of truth: nobody may decide anything by an event, it ends with the
// process, and whoever is too slow loses its subscription instead of
// slowing anybody down.
package event

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// Event is one thing that has happened.
type Event struct {
	Type       string // "container", "image", "volume", "network", "builder"
	Action     string // "start", "die", "tag", ...
	ID         string // of the object
	Attributes map[string]string
	Time       time.Time // zero: Publish sets it
	Since      int       // minor version of the API whose clients see it first; 0: all
}

// ErrSlow ends a subscription whose reader did not keep up.
var ErrSlow = errors.New("events came faster than they were read")

// backlog is how many events a subscriber may be behind.
const backlog = 1024

// Kept is how many past events can be asked for, as in Docker.
const Kept = 256

// Ring keeps the last events. The zero value is not usable; see New.
type Ring struct {
	mu   sync.Mutex // guards all below; never held while anybody waits
	buf  []Event
	next int // where the next event goes once buf is full
	subs map[*Subscription]struct{}
}

// New makes a ring of the last size events.
func New(size int) *Ring {
	return &Ring{buf: make([]Event, 0, max(1, size)), subs: map[*Subscription]struct{}{}}
}

// Publish adds an event and hands it to every subscriber. It never blocks. A
// nil ring drops it.
func (r *Ring) Publish(e Event) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if len(r.buf) < cap(r.buf) {
		r.buf = append(r.buf, e)
	} else {
		r.buf[r.next] = e
		r.next = (r.next + 1) % len(r.buf)
	}
	for s := range r.subs {
		select {
		case s.ch <- e:
		default:
			r.drop(s, ErrSlow)
		}
	}
}

// drop ends a subscription; r.mu is held.
func (r *Ring) drop(s *Subscription, err error) {
	if _, ok := r.subs[s]; !ok {
		return
	}
	delete(r.subs, s)
	s.err = err
	close(s.ch)
}

// Subscription is one watcher.
type Subscription struct {
	ring *Ring
	ch   chan Event
	err  error // guarded by ring.mu
}

// Subscribe gives the kept events from since to until, oldest first, and a
// subscription to all that follow, with no gap between the two. A zero time is
// no bound; where both are zero no kept event is given. The caller closes it.
func (r *Ring) Subscribe(since, until time.Time) ([]Event, *Subscription) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var past []Event
	if !since.IsZero() || !until.IsZero() {
		for _, e := range slices.Concat(r.buf[r.next:], r.buf[:r.next]) {
			if !e.Time.Before(since) && (until.IsZero() || !e.Time.After(until)) {
				past = append(past, e)
			}
		}
	}
	s := &Subscription{ring: r, ch: make(chan Event, backlog)}
	r.subs[s] = struct{}{}
	return past, s
}

// Events delivers what happens. It is closed when the subscription ends.
func (s *Subscription) Events() <-chan Event { return s.ch }

// Err tells why Events was closed: ErrSlow, or nil after Close.
func (s *Subscription) Err() error {
	s.ring.mu.Lock()
	defer s.ring.mu.Unlock()
	return s.err
}

// Close ends the subscription. It can be called twice.
func (s *Subscription) Close() {
	s.ring.mu.Lock()
	defer s.ring.mu.Unlock()
	s.ring.drop(s, nil)
}
