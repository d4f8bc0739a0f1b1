// Package failure owns how a program of ours ends badly: its exit code, the
// words of the error, and the hint of what to try next. Any error that has a
// method Hint() string brings its own. It never finds out what went wrong, and
// it knows nothing of engines, builds or registries.
package failure

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
)

// exit is an error with the code that the program ends with.
type exit struct {
	code int
	err  error // nil: nothing more is to be said
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// Exit gives err the code that the program ends with. With a nil err the
// program ends without a word, because what happened has been shown already.
func Exit(code int, err error) error { return &exit{code, err} }

// Code finds the code that Exit gave; ok says whether it did.
func Code(err error) (code int, ok bool) {
	var e *exit
	if !errors.As(err, &e) {
		return 0, false
	}
	return e.code, true
}

// hinted is an error and what to try next.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }

// Hint adds to an error what to try next: a command, or one sentence without a
// full stop. An empty hint adds nothing.
func Hint(err error, next string) error {
	if err == nil || next == "" {
		return err
	}
	return &hinted{err, next}
}

// Next finds the hint that is nearest to the surface of err; "" where there is
// none.
func Next(err error) string {
	var h interface{ Hint() string }
	if !errors.As(err, &h) {
		return ""
	}
	return h.Hint()
}

// kinds are errdefs' kinds of errors, which programs go by and people do not.
var kinds = []error{
	errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrConflict, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition,
	errdefs.ErrNotImplemented, errdefs.ErrUnavailable, errdefs.ErrPermissionDenied, errdefs.ErrUnauthenticated,
	errdefs.ErrResourceExhausted, errdefs.ErrAborted, errdefs.ErrDataLoss, errdefs.ErrOutOfRange, errdefs.ErrInternal, errdefs.ErrUnknown,
}

// Words are what a person reads: the error without the words for its kinds at
// its end, which the words before say better.
func Words(err error) string {
	text := err.Error()
	for again := true; again; {
		again = false
		for _, kind := range kinds {
			if short, cut := strings.CutSuffix(text, ": "+kind.Error()); cut && errors.Is(err, kind) {
				text, again = short, true
			}
		}
	}
	return text
}

// Report writes an error in the name of a program, with its hint below, and
// gives the code to end with: that of Exit, else 1, and 0 without an error.
func Report(w io.Writer, program string, err error) (code int) {
	if err == nil {
		return 0
	}
	code = 1
	var e *exit
	if errors.As(err, &e) {
		code = e.code
		if e.err == nil {
			return code
		}
	}
	fmt.Fprintf(w, "%s: %s\n", program, Visible(strings.TrimRight(Words(err), "\n"), "\n\t"))
	if next := Next(err); next != "" {
		fmt.Fprintf(w, "hint: %s\n", Visible(next, "\n\t"))
	}
	return code
}
