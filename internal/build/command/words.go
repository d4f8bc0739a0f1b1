package command

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrors "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"

	"proa/internal/build"
	"proa/internal/failure"
)

// failed gives a failure the lines of the Dockerfile that it is about, words
// for people, and a hint. step is the name of the step that failed.
func (a *app) failed(ctx context.Context, f *buildFlags, src *source, step string, err error) error {
	if ctx.Err() != nil {
		return failure.Exit(130, errors.New("the build was cancelled"))
	}
	sources := solvererrors.Sources(err)
	for _, s := range sources {
		_ = s.Print(a.err)
	}
	text := plain(err)
	var exit *gatewaypb.ExitError
	switch {
	case errors.As(err, &exit) && len(sources) > 0 && len(sources[len(sources)-1].Ranges) > 0:
		text = fmt.Sprintf("RUN in line %d: %s", sources[len(sources)-1].Ranges[0].Start.Line, text)
	case len(sources) == 0 && step != "" && !strings.Contains(step, "exporting"):
		text = step + ": " + text
	}
	hint := hintFor(ctx, f, src, err)
	if hint != "" {
		text = suggestion.ReplaceAllString(text, "") // the hint says the same
	}
	return failure.Hint(&plainError{err, "cannot build: " + text}, hint)
}

// plainError is an error without the words of the layers between.
type plainError struct {
	error
	text string
}

func (p *plainError) Error() string { return p.text }
func (p *plainError) Unwrap() error { return p.error }

var (
	// between is what BuildKit's layers put before an error: their own steps, ids
	// of their cache, and the address of a request whose host the error names.
	between = regexp.MustCompile(`failed to (compute|load) cache key: |failed to calculate checksum of ref \S+: |failed to resolve source metadata for \S+: |failed to do request: [A-Z][a-z]+ "[^"]*": |failed to authorize: |` +
		`failed to commit \S+ to \S+ during finalize: |cannot commit snapshot "[^"]*": `)
	// process is what it puts before the end of a RUN: the whole instruction,
	// which stands above already.
	process = regexp.MustCompile(`(?s)^process "(?:[^"\\]|\\.)*" did not complete successfully: `)
	// refused is an answer of a registry, which BuildKit gives no type.
	refused = regexp.MustCompile(`unexpected status from [A-Z]+ request to https?://([^/\s]+)/\S*: ([0-9]{3} [A-Z][A-Za-z ]+)`)
	// kind is the kind of an error, which its words say already. "not found" stays,
	// because BuildKit says of a secret or a file nothing else.
	kind = regexp.MustCompile(`: (` + strings.Join([]string{
		errdefs.ErrUnavailable.Error(), errdefs.ErrInvalidArgument.Error(), errdefs.ErrFailedPrecondition.Error(), errdefs.ErrNotImplemented.Error(),
	}, "|") + `)( \(did you mean [^()]*\))?$`)
	suggestion = regexp.MustCompile(` \(did you mean [^()]*\)$`)
	// position is "[stage 2/3] " before the name of a step.
	position = regexp.MustCompile(`^\[[^\[\]]*\] `)
)

// plain is an error of a build in words for people.
func plain(err error) string {
	text := err.Error()
	for _, p := range []string{"failed to solve: ", "failed to call info: ", "rpc error: code = " + grpcerrors.Code(err).String() + " desc = ", grpcerrors.Code(err).String() + ": "} {
		text = strings.TrimPrefix(text, p)
	}
	return tidied(text)
}

// tidied takes out of an error's words what is of no use to people.
func tidied(text string) string {
	if end := process.FindString(text); end != "" {
		return text[len(end):]
	}
	text = refused.ReplaceAllString(between.ReplaceAllString(text, ""), "registry $1 says $2")
	if name, rest, _ := strings.Cut(text, ": "); strings.HasPrefix(rest, name+": ") {
		text = rest // two layers name the same image
	}
	return kind.ReplaceAllString(text, "$2")
}

// tidy passes on what a build says, in words for people, until from is closed;
// then it closes to. It gives the name of the step that failed, "" if none did.
func tidy(from <-chan *client.SolveStatus, to chan<- *client.SolveStatus) (failed string) {
	defer close(to)
	for s := range from {
		for _, v := range s.Vertexes {
			if v.Error == "" {
				continue
			}
			v.Error = tidied(v.Error)
			if !strings.HasSuffix(v.Error, context.Canceled.Error()) {
				failed = position.ReplaceAllString(v.Name, "")
			}
		}
		keep := s.Statuses[:0]
		for _, st := range s.Statuses {
			// The name that an image without a name has on its way into the store.
			if !strings.HasPrefix(st.ID, "naming to "+build.DanglingPrefix+"@") {
				keep = append(keep, st)
			}
		}
		s.Statuses = keep
		to <- s
	}
	return failed
}
