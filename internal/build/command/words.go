package command

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"github.com/moby/buildkit/client"
	solvererrors "github.com/moby/buildkit/solver/errdefs"

	"proa/internal/build/words"
	"proa/internal/failure"
)

// failed shows the lines of the Dockerfile that a failure is about. Its words
// and the hint below them are the builder's; step, the name of the step that
// failed, stands before what is about no line.
func (a *app) failed(ctx context.Context, step string, err error) error {
	if ctx.Err() != nil {
		return failure.Exit(130, errors.New("the build was cancelled"))
	}
	sources := solvererrors.Sources(err)
	for _, s := range sources {
		_ = s.Print(a.err)
	}
	text := words.Plain(err)
	if len(sources) == 0 && step != "" && !strings.Contains(step, "exporting") {
		text = step + ": " + text
	}
	return &plainError{err, "cannot build: " + text}
}

// plainError is an error without the words of the layers between.
type plainError struct {
	error
	text string
}

func (p *plainError) Error() string { return p.text }
func (p *plainError) Unwrap() error { return p.error }

// position is "[stage 2/3] " before the name of a step.
var position = regexp.MustCompile(`^\[[^\[\]]*\] `)

// follow passes on what a build says until from is closed; then it closes to.
// It gives the name of the step that failed, "" if none did.
func follow(from <-chan *client.SolveStatus, to chan<- *client.SolveStatus) (failed string) {
	defer close(to)
	for s := range from {
		for _, v := range s.Vertexes {
			if v.Error != "" && !strings.HasSuffix(v.Error, context.Canceled.Error()) {
				failed = position.ReplaceAllString(v.Name, "")
			}
		}
		to <- s
	}
	return failed
}
