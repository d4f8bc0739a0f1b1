package wire

import (
	"errors"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// Error is an error on its way from shim to engine. It keeps its text and its
// kind: errors.Is with a kind of errdefs and errors.As with
// *isolation.StartError work on both sides.
type Error struct {
	Kind    string                `json:"kind,omitempty"`
	Message string                `json:"message"`
	Start   *isolation.StartError `json:"start,omitempty"`
}

// kinds that can travel. Order counts: the first match names the error.
var kinds = []struct {
	name string
	err  error
}{
	{"not-found", errdefs.ErrNotFound},
	{"already-exists", errdefs.ErrAlreadyExists},
	{"invalid-argument", errdefs.ErrInvalidArgument},
	{"failed-precondition", errdefs.ErrFailedPrecondition},
	{"conflict", errdefs.ErrConflict},
	{"not-implemented", errdefs.ErrNotImplemented},
	{"permission-denied", errdefs.ErrPermissionDenied},
	{"resource-exhausted", errdefs.ErrResourceExhausted},
	{"unavailable", errdefs.ErrUnavailable},
	{"not-modified", errdefs.ErrNotModified},
}

// NewError makes an error ready to travel; nil stays nil.
func NewError(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Message: err.Error()}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			e.Kind = k.name
			break
		}
	}
	var start *isolation.StartError
	if errors.As(err, &start) {
		e.Start = start
	}
	return e
}

// Error is the text from the other side.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the kind and the start error.
func (e *Error) Unwrap() []error {
	var out []error
	for _, k := range kinds {
		if k.name == e.Kind {
			out = append(out, k.err)
		}
	}
	if e.Start != nil {
		out = append(out, e.Start)
	}
	return out
}
