// Package words owns the words of builds that fail: what went wrong without the
// layers of BuildKit around it, the line of the Dockerfile, and what to try
// next. They are put into the answers of the builder's control API, so every
// client shows the same: docker, buildx, the classic build and `proa build`.
// What programs go by, the code of an error and its typed details, passes
// unchanged. It never decides whether a build fails, and where it cannot find
// out what would help it says nothing.
package words

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	solvererrors "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Teller finds the words. It is safe for concurrent use.
type Teller struct {
	// Sessions are asked for what lies in the context of a build.
	Sessions *session.Manager
	// Images are those that a FROM finds without a registry.
	Images images.Store
	// Hidden begins names of images that only the builder knows.
	Hidden string
	// TooLarge says which files are refused for their size.
	TooLarge func() string

	mu     sync.Mutex
	builds map[string]*build // those that run, by their references
}

// build is what is known of one that runs.
type build struct {
	session string
	attrs   map[string]string // what the frontend was told
	said    []string          // what was answered already
}

// Unary puts the words into the answers of a server. It belongs inside of
// BuildKit's interceptor of errors.
func (t *Teller) Unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	ref := buildid.FromIncomingContext(ctx)
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		ref = r.Ref
		t.begin(ref, r)
		defer t.end(ref)
	case *gatewaypb.SolveRequest:
		t.learn(ref, r.FrontendOpt)
	}
	resp, err := next(ctx, req)
	if err != nil && ref != "" && ctx.Err() == nil {
		err = t.tell(ctx, ref, err)
	}
	return resp, err
}

// Stream does the same for what is said of a build's steps while it runs.
func (t *Teller) Stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	return next(srv, &statusStream{ss, t.Hidden})
}

type statusStream struct {
	grpc.ServerStream
	hidden string
}

// SendMsg passes on what a build says, in words for people.
func (s *statusStream) SendMsg(m any) error {
	if st, ok := m.(*controlapi.StatusResponse); ok {
		tidy(st, s.hidden)
	}
	return s.ServerStream.SendMsg(m)
}

func tidy(st *controlapi.StatusResponse, hidden string) {
	for _, v := range st.Vertexes {
		v.Error = tidied(v.Error)
	}
	keep := st.Statuses[:0]
	for _, one := range st.Statuses {
		// The name that an image without a name has on its way into the store.
		if !strings.HasPrefix(one.ID, "naming to "+hidden+"@") {
			keep = append(keep, one)
		}
	}
	st.Statuses = keep
}

func (t *Teller) begin(ref string, r *controlapi.SolveRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.builds == nil {
		t.builds = map[string]*build{}
	}
	t.builds[ref] = &build{session: r.Session, attrs: r.FrontendAttrs}
}

// learn keeps what a client that solves by itself (buildx) tells the frontend.
func (t *Teller) learn(ref string, attrs map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.builds[ref]; b != nil && len(attrs) > 0 {
		b.attrs = attrs
	}
}

func (t *Teller) end(ref string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.builds, ref)
}

// tell gives a failure the words. One that a client was told already comes back
// from it as the end of its build, and stays as it is.
func (t *Teller) tell(ctx context.Context, ref string, err error) error {
	t.mu.Lock()
	b := build{}
	if now := t.builds[ref]; now != nil {
		b = *now
	}
	t.mu.Unlock()
	old := err.Error()
	for _, s := range b.said {
		if strings.Contains(old, s) {
			return err
		}
	}
	text := t.text(ctx, b, err)
	t.mu.Lock()
	if now := t.builds[ref]; now != nil {
		now.said = append(now.said, text)
	}
	t.mu.Unlock()
	st, ok := status.FromError(grpcerrors.ToGRPC(ctx, err))
	if !ok {
		return err
	}
	p := st.Proto()
	p.Message = text
	return &told{status.FromProto(p)}
}

// told is an answer whose words are no more than its message: gRPC's own type
// puts its name for the code before them.
type told struct{ st *status.Status }

func (e *told) Error() string              { return e.st.Message() }
func (e *told) GRPCStatus() *status.Status { return e.st }

// text is what people read: what and why in one line, below it what next.
func (t *Teller) text(ctx context.Context, b build, err error) string {
	out := Plain(err)
	sources := solvererrors.Sources(err)
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) && len(sources) > 0 && len(sources[len(sources)-1].Ranges) > 0 {
		out = fmt.Sprintf("RUN in line %d: %s", sources[len(sources)-1].Ranges[0].Start.Line, out)
	}
	if hint := t.hint(ctx, b, err); hint != "" {
		return suggestion.ReplaceAllString(out, "") + "\nhint: " + hint // which says the same as the suggestion
	}
	return out
}

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
)

// Plain is an error of BuildKit's API in words for people: without the
// prefixes of its clients, of gRPC and of the layers between.
func Plain(err error) string {
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
