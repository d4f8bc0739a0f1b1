package engine

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

// refusal is an error for a person with a kind for the API; the kind's own
// words are not added to the message.
type refusal struct {
	kind error
	err  error
}

func (r *refusal) Error() string   { return r.err.Error() }
func (r *refusal) Unwrap() []error { return []error{r.kind, r.err} }

func refusef(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Errorf(format, args...)}
}

func invalid(format string, args ...any) error {
	return refusef(errdefs.ErrInvalidArgument, format, args...)
}

func conflict(format string, args ...any) error {
	return refusef(errdefs.ErrConflict, format, args...)
}

// ownMessage is a refusal of a start whose message is Docker's whole answer.
type ownMessage struct{ refusal }

// noSuch has Docker's words, which scripts look for.
func noSuch(ref string) error {
	return refusef(errdefs.ErrNotFound, "No such container: %s", ref)
}

func notRunning(c *Container) error {
	return conflict("container %s is not running", c.ID)
}

// startFailed is the exit code of a container that could not be started for a
// reason that is not its command's.
const startFailed = 128

// startFailure turns a driver's refusal to start into what Docker answers:
// clients read the words "executable file not found", "no such file or
// directory" and "permission denied" to choose the exit code (docker/cli
// cli/command/container/run.go, toStatusError). The second value is the
// process's exit code.
func startFailure(what string, err error) (error, int) {
	var s *isolation.StartError
	var whole *ownMessage
	if errors.As(err, &whole) || errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
		return err, 128 // another container or network
	}
	if !errors.As(err, &s) {
		return fmt.Errorf("%s: %w", what, err), startFailed
	}
	switch s.Kind {
	case isolation.StartNotFound:
		return refusef(errdefs.ErrInvalidArgument, "%s: %w", what, err), 127
	case isolation.StartNotAllowed:
		return refusef(errdefs.ErrInvalidArgument, "%s: %w", what, err), 126
	}
	return fmt.Errorf("%s: %w", what, err), startFailed
}
