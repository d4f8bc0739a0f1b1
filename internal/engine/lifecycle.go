package engine

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// next is the table of a container's life: from each state, where it can go.
//
//	created --> running <--> paused
//	   |         |  ^           |
//	   |         v  |           v
//	   |   exited/restarting <--+      (running -> running: a new engine adopted it)
//	   v         v
//	  removing --> (gone)
//	     +-> dead --> removing
var next = map[State][]State{
	Created:    {Running, Exited, Removing}, // Exited: the start failed
	Running:    {Running, Paused, Restarting, Exited, Removing},
	Paused:     {Running, Restarting, Exited, Removing},
	Restarting: {Running, Restarting, Exited, Removing},
	Exited:     {Running, Restarting, Exited, Removing},
	Removing:   {Dead, Removing},
	Dead:       {Removing},
}

// TransitionError says that a step is not possible from where a container stands.
type TransitionError struct {
	ID       string
	From, To State
	Kind     error // of errdefs; nil means errdefs.ErrConflict
	Hint     string
}

// Error names both states and the way out.
func (e *TransitionError) Error() string {
	s := fmt.Sprintf("container %s is %s and cannot become %s", short(e.ID), e.From, e.To)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

// Unwrap gives the kind.
func (e *TransitionError) Unwrap() error {
	if e.Kind != nil {
		return e.Kind
	}
	return errdefs.ErrConflict
}

// canBecome checks a step against the table.
func (s State) canBecome(id string, to State) error {
	if slices.Contains(next[s], to) {
		return nil
	}
	e := &TransitionError{ID: id, From: s, To: to}
	switch {
	case s == Removing:
		e.Hint = "its removal is in progress"
	case s == Dead:
		e.Hint = "only removing it again is possible"
	case to == Paused:
		e.Hint = "only a running container can be paused"
	}
	return e
}

// alive says whether processes of it exist.
func (s State) alive() bool { return s == Running || s == Paused }

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}
