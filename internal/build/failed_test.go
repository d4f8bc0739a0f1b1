package build

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/tonistiigi/fsutil"
	"google.golang.org/grpc/codes"

	"proa/internal/build/tarfs"
)

// Whoever asks for a build gets the same words when it fails, once, and all that
// programs go by.
func TestFailuresAreTold(t *testing.T) {
	k := newKit(t)
	for name, c := range map[string]struct {
		dockerfile, says string
		line             int32 // 0: it is about none
		attrs            map[string]string
	}{
		"syntax":     {"FROM scratch\nRUNN x\n", "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)", 2, nil},
		"stage":      {"FROM scratch AS build\nFROM scratch\nCOPY --from=biuld /a /b\n", "hint: no stage is called \"biuld\"; there is \"build\"", 3, nil},
		"target":     {"FROM scratch AS build\n", "target stage \"biuld\" could not be found (did you mean build?)", 0, map[string]string{"target": "biuld"}},
		"file":       {"FROM scratch\nCOPY helo.txt /\n", "\"/helo.txt\": not found\nhint: the context has no helo.txt; there is hello.txt", 2, nil},
		"elsewhere":  {"FROM scratch\nCOPY deep.txt /\n", "\"/deep.txt\": not found\nhint: the context has no deep.txt; there is a/b/deep.txt", 2, nil},
		"ignored":    {"FROM scratch\nCOPY secret.txt /\n", "\"/secret.txt\": not found\nhint: secret.txt is in the context, and the line \"secret.*\" of .dockerignore leaves it out", 2, nil},
		"everywhere": {"FROM scratch\nCOPY no/where /\n", "\"/no/where\": not found\nhint: the context has no no/where; paths begin at the context's directory, and nothing outside of it can be copied", 2, nil},
	} {
		files, err := tarfs.Read(context.Background(), strings.NewReader(string(archive(t,
			"Dockerfile", c.dockerfile, ".dockerignore", "*.log\nsecret.*\n", "a/b/deep.txt", "x", "hello.txt", "x", "secret.txt", "x"))), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { files.Close() })
		attrs := map[string]string{}
		for k, v := range c.attrs {
			attrs[k] = v
		}
		opt := client.SolveOpt{
			Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": files},
			Session: []session.Attachable{secretsprovider.FromMap(nil)},
		}
		_, asked := k.client().Solve(context.Background(), nil, opt, nil)
		// buildx runs the frontend itself, and sends its failure back.
		opt.Frontend, opt.FrontendAttrs = "", nil
		_, byItself := k.client().Build(context.Background(), opt, "test", func(ctx context.Context, g gateway.Client) (*gateway.Result, error) {
			return g.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: attrs, Evaluate: true})
		}, nil)
		for who, err := range map[string]error{"solve": asked, "gateway": byItself} {
			if err == nil {
				t.Errorf("%s by %s: it was built", name, who)
				continue
			}
			if !strings.HasSuffix(err.Error(), c.says) || strings.Count(err.Error(), "hint: ") > 1 || strings.Contains(err.Error(), "failed to compute") || strings.Contains(err.Error(), "rpc error") {
				t.Errorf("%s by %s: %q does not say %q", name, who, err, c.says)
			}
			var lines []int32
			for _, s := range errdefs.Sources(err) {
				for _, r := range s.Ranges {
					lines = append(lines, r.Start.Line)
				}
			}
			if c.line == 0 && len(lines) > 0 || c.line != 0 && (len(lines) == 0 || lines[len(lines)-1] != c.line) {
				t.Errorf("%s by %s: lines %v, want %d", name, who, lines, c.line)
			}
		}
	}
}

// A build that its client has cancelled is told nothing more.
func TestCancelledIsNotExplained(t *testing.T) {
	k := newKit(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := k.client().Solve(ctx, nil, client.SolveOpt{Frontend: "dockerfile.v0"}, nil)
	if !errors.Is(err, context.Canceled) && grpcerrors.Code(err) != codes.Canceled || strings.Contains(err.Error(), "hint") {
		t.Errorf("%v", err)
	}
}

// The classic build says the same, with the lines below.
func TestClassicFailuresAreTold(t *testing.T) {
	k := newKit(t)
	_, body := k.post("/build", archive(t, "Dockerfile", "FROM scratch\nCOPY helo.txt /\n", "hello.txt", "x"))
	want := `\"/helo.txt\": not found\nhint: the context has no helo.txt; there is hello.txt\nDockerfile:2\n`
	if !strings.Contains(body, want) || strings.Contains(body, "failed to") {
		t.Errorf("%s does not say %s", body, want)
	}
	if status, body := k.post("/build", archive(t, "Dockerfile", "FROM scratch\nRUNN\n")); status != http.StatusInternalServerError || !strings.Contains(body, "did you mean RUN?") {
		t.Errorf("%d %s", status, body)
	}
}
