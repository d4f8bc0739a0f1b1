package event

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func ids(past []Event) (out string) {
	for _, e := range past {
		out += e.ID
	}
	return out
}

func TestReplayKeepsTheLastInOrder(t *testing.T) {
	r := New(3)
	base := time.Now()
	for i := range 5 {
		r.Publish(Event{ID: fmt.Sprint(i), Time: base.Add(time.Duration(i) * time.Second)})
	}
	past, s := r.Subscribe(base, time.Time{})
	defer s.Close()
	if got := ids(past); got != "234" {
		t.Errorf("kept %q, want 234", got)
	}
	past, s2 := r.Subscribe(base.Add(3*time.Second), time.Time{})
	defer s2.Close()
	if got := ids(past); got != "34" {
		t.Errorf("since 3: %q, want 34", got)
	}
	past, s3 := r.Subscribe(time.Time{}, time.Time{})
	defer s3.Close()
	if past != nil {
		t.Errorf("from now on: %v, want nothing", past)
	}
}

func TestSubscriberGetsWhatFollows(t *testing.T) {
	r := New(2)
	_, s := r.Subscribe(time.Time{}, time.Time{})
	r.Publish(Event{ID: "a"})
	if e := <-s.Events(); e.ID != "a" || e.Time.IsZero() {
		t.Errorf("got %+v", e)
	}
	s.Close()
	s.Close()
	if _, ok := <-s.Events(); ok || s.Err() != nil {
		t.Errorf("after Close: open %v, error %v", ok, s.Err())
	}
	r.Publish(Event{ID: "b"}) // must not panic on the closed channel
}

func TestSlowSubscriberIsDroppedAndNobodyWaits(t *testing.T) {
	r := New(2)
	_, slow := r.Subscribe(time.Time{}, time.Time{})
	_, quick := r.Subscribe(time.Time{}, time.Time{})
	for i := range backlog + 1 {
		r.Publish(Event{ID: fmt.Sprint(i)})
		<-quick.Events()
	}
	n := 0
	for range slow.Events() {
		n++
	}
	if n != backlog || !errors.Is(slow.Err(), ErrSlow) {
		t.Errorf("%d events and error %v, want %d and ErrSlow", n, slow.Err(), backlog)
	}
	if quick.Err() != nil {
		t.Errorf("the quick one was dropped: %v", quick.Err())
	}
}
