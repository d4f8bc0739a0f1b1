package build

import (
	"context"
	"maps"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
)

// syntaxes is BuildKit's gateway to frontends that are images. Those that are
// Dockerfile frontends of this builder's own version or an earlier one are not
// fetched: `# syntax=docker/dockerfile:1` works with no network, and nothing is
// pulled that would only replace what is here.
type syntaxes struct {
	frontend.Frontend // the gateway
	own               frontend.Frontend
}

// Solve runs the frontend that opt names.
func (s *syntaxes) Solve(ctx context.Context, bridge frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if !isOwnSyntax(opt[frontend.KeySource]) {
		return s.Frontend.Solve(ctx, bridge, exec, opt, inputs, sid, sm)
	}
	opt = maps.Clone(opt)
	delete(opt, frontend.KeySource)
	// With a command line the Dockerfile frontend does not look for a syntax again.
	if opt["cmdline"] == "" {
		opt["cmdline"] = "docker/dockerfile"
	}
	return s.own.Solve(ctx, bridge, exec, opt, inputs, sid, sm)
}

// isOwnSyntax tells whether an image is docker/dockerfile in a stable version
// that the frontend of this builder covers.
func isOwnSyntax(image string) bool {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil || named.Name() != "docker.io/docker/dockerfile" {
		return false
	}
	if _, pinned := named.(reference.Digested); pinned {
		return false
	}
	tag := "latest"
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	if tag == "latest" || tag == "1" {
		return true
	}
	words := strings.Split(tag, ".")
	if len(words) > 3 || words[0] != "1" {
		return false
	}
	own := strings.Split(dockerfileversion.Version(), ".")
	if len(own) < 2 {
		return false
	}
	have, err1 := strconv.Atoi(own[1])
	want, err2 := strconv.Atoi(words[1])
	if len(words) == 3 {
		if _, err := strconv.Atoi(words[2]); err != nil {
			return false // a variant such as 1.4.0-labs
		}
	}
	return err1 == nil && err2 == nil && want <= have
}
