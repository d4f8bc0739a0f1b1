package words

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"proa/internal/image/remote"
)

// What BuildKit's layers say is cut to what is of use; what a step or a
// registry says itself stays.
func TestTidied(t *testing.T) {
	for in, want := range map[string]string{
		`process "/bin/sh -c echo \"a\" && exit 3" did not complete successfully: exit code: 3`:                                                                       "exit code: 3",
		"process \"/bin/sh -c set -e\\nfalse: unavailable\" did not complete successfully: exit code: 1":                                                              "exit code: 1",
		`failed to do request: Head "https://registry/v2/b/manifests/latest": cannot reach registry registry: nothing listens there: unavailable`:                     "cannot reach registry registry: nothing listens there",
		`failed to compute cache key: failed to calculate checksum of ref proa-container::qahtbq4p39hmf6igxiuyp8c29: "/helo.txt": not found`:                          `"/helo.txt": not found`,
		`biuld: failed to resolve source metadata for docker.io/library/biuld:latest: cannot reach it: failed precondition (did you mean build?)`:                     `biuld: cannot reach it (did you mean build?)`,
		`failed to commit yacusf8nv to lqd8ueq73 during finalize: cannot commit snapshot "yacusf8nv": entry "f": the layer holds more than 1 bytes: invalid argument`: `entry "f": the layer holds more than 1 bytes`,
		`failed to load cache key: invalid response status 404`:                                                                                                       "invalid response status 404",
		`failed to push h:5010/team/q:latest: unexpected status from HEAD request to http://h:5010/v2/team/q/blobs/sha256:cf: 401 Unauthorized`:                       "failed to push h:5010/team/q:latest: registry h:5010 says 401 Unauthorized",
		"h:5010/team/app:1: h:5010/team/app:1: not found":                                                                                                             "h:5010/team/app:1: not found",
		"secret key: not found": "secret key: not found",
		"dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)": "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)",
	} {
		if got := tidied(in); got != want {
			t.Errorf("%s\n got %s\nwant %s", in, got, want)
		}
	}
}

func TestTidy(t *testing.T) {
	s := &controlapi.StatusResponse{
		Vertexes: []*controlapi.Vertex{{Name: "[stage-1 2/3] ADD http://h/x /", Error: "failed to load cache key: invalid response status 404"}, {Name: "[1/3] FROM bb"}},
		Statuses: []*controlapi.VertexStatus{{ID: "exporting layers"}, {ID: "naming to dangling@sha256:00"}, {ID: "naming to docker.io/library/x:latest"}},
	}
	tidy(s, "dangling")
	if s.Vertexes[0].Error != "invalid response status 404" || s.Vertexes[1].Error != "" || len(s.Statuses) != 2 || s.Statuses[1].ID != "naming to docker.io/library/x:latest" {
		t.Errorf("passed on: %+v", s)
	}
}

// An answer keeps the code and the details of its error, is told once, and
// what is no failed build stays as it is.
func TestAnswers(t *testing.T) {
	sessions, err := session.NewManager()
	if err != nil {
		t.Fatal(err)
	}
	say := &Teller{Sessions: sessions}
	src := &errdefs.Source{Info: &pb.SourceInfo{Filename: "Dockerfile", Data: []byte("FROM bb\nRUN nosuch\n")}, Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2}}}}
	failed := errdefs.WithSource(grpcerrors.WrapCode(&gatewaypb.ExitError{ExitCode: 127, Err: errors.New("exit code: 127")}, codes.DataLoss), src)
	answer := func(ctx context.Context, req any, err error) error {
		_, got := say.Unary(ctx, req, nil, func(context.Context, any) (any, error) { return nil, err })
		return grpcerrors.FromGRPC(grpcerrors.ToGRPC(ctx, got))
	}
	const want = "RUN in line 2: exit code: 127\nhint: a program that this step names is not in the image: install it in a step above, or COPY it"
	_, err = say.Unary(context.Background(), &controlapi.SolveRequest{Ref: "r"}, nil, func(ctx context.Context, _ any) (any, error) {
		inner := answer(metadata.NewIncomingContext(ctx, metadata.Pairs("buildkit-controlapi-buildid", "r")), &gatewaypb.SolveRequest{}, failed)
		return nil, fmt.Errorf("as the client has it: %w", inner)
	})
	err = grpcerrors.FromGRPC(grpcerrors.ToGRPC(context.Background(), err))
	var exit *gatewaypb.ExitError
	if !strings.HasSuffix(err.Error(), want) || strings.Count(err.Error(), "hint: ") != 1 || strings.Contains(err.Error(), "rpc error") {
		t.Errorf("it says %q", err)
	}
	if grpcerrors.Code(err) != codes.DataLoss || !errors.As(err, &exit) || exit.ExitCode != 127 || len(errdefs.Sources(err)) == 0 {
		t.Errorf("code %v, exit %v, sources %v", grpcerrors.Code(err), exit, errdefs.Sources(err))
	}
	if len(say.builds) != 0 {
		t.Errorf("it remembers %v", say.builds)
	}
	other := errors.New("failed to solve: failed to load cache key: as it was")
	if got := answer(context.Background(), &controlapi.PruneRequest{}, other); got.Error() != other.Error() {
		t.Errorf("another request: %q", got)
	}
}

// A registry that wants to know who asks gives no room for doubts of the name,
// unless there is a stage of nearly that name.
func TestLoginHint(t *testing.T) {
	say := &Teller{}
	for from, want := range map[string]string{"r.example/app": "proa login r.example, or docker login r.example", "biuld": `no stage and no image is called "biuld"; there is a stage "build"`} {
		src := &errdefs.Source{Info: &pb.SourceInfo{Data: []byte("FROM scratch AS build\nFROM " + from + "\n")}, Ranges: []*pb.Range{{Start: &pb.Position{Line: 2}}}}
		for _, err := range []error{
			fmt.Errorf("%s: %w", from, &remote.StatusError{Host: "r.example", Status: 401}),
			errors.New("unexpected status from HEAD request to https://r.example/v2/app/manifests/latest: 401 Unauthorized"),
		} {
			if got := say.hint(context.Background(), build{}, errdefs.WithSource(err, src)); got != want {
				t.Errorf("FROM %s, %v: %q, want %q", from, err, got, want)
			}
			if got := say.hint(context.Background(), build{}, err); got != "proa login r.example, or docker login r.example" {
				t.Errorf("a push, %v: %q", err, got)
			}
		}
	}
	hub := &remote.StatusError{Host: "registry-1.docker.io", Status: 403}
	if got := loginHint(hub); got != "proa login, or docker login" {
		t.Errorf("Docker Hub: %q", got)
	}
}

func TestNearImage(t *testing.T) {
	here := []string{"x:latest", "debian:12", "team/app:v1", "localhost:5000/web:v2"}
	for name, want := range map[string]string{
		"debain": "debian:12", "debian": "debian:12", "team/apq": "team/app:v1", "b": "", "postgres": "", "localhost:5000/wbe": "localhost:5000/web:v2",
	} {
		if got := nearImage(name, here); got != want {
			t.Errorf("near %q: %q, want %q", name, got, want)
		}
	}
}
