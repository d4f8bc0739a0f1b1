package build

import (
	"context"
	"fmt"
	"os/exec"

	"github.com/containerd/errdefs"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/exporter/util/epoch"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"google.golang.org/grpc"
)

// buildxProvenance is what buildx asks for when its user asked for nothing.
const buildxProvenance = "mode=min,inline-only=true"

// adjust gives a solve request this builder's defaults, whoever sent it.
func (b *Builder) adjust(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if r, ok := req.(*controlapi.SolveRequest); ok {
		b.boundFiles()
		adjustSolve(r)
		if err := fetchable(r.FrontendAttrs["context"]); err != nil {
			return nil, err
		}
	}
	return next(ctx, req)
}

// fetchable refuses a context in a git repository where there is no git.
func fetchable(where string) error {
	if where == "" {
		return nil
	}
	if _, isGit, err := dfgitutil.ParseGitRef(where); err != nil || !isGit {
		return nil //nolint:nilerr // something else, whose own error says more
	}
	if _, err := exec.LookPath("git"); err != nil {
		return fmt.Errorf("cannot build from %q: git is not installed on the engine's host; install it, or clone there and build the directory: %w", where, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// adjustSolve turns provenance off where nobody asked for it, and makes an
// image whose build was given SOURCE_DATE_EPOCH the same wherever it is built:
// its files get that time as well, not only its config.
func adjustSolve(r *controlapi.SolveRequest) {
	if r.FrontendAttrs["attest:provenance"] == buildxProvenance {
		delete(r.FrontendAttrs, "attest:provenance")
	}
	if _, ok := epoch.ParseBuildArgs(r.FrontendAttrs); !ok {
		return
	}
	for _, e := range r.Exporters {
		switch e.Type {
		case mobyExporter, client.ExporterImage, client.ExporterOCI, client.ExporterDocker:
			key := string(exptypes.OptKeyRewriteTimestamp)
			if e.Attrs == nil {
				e.Attrs = map[string]string{}
			}
			if _, chosen := e.Attrs[key]; !chosen {
				e.Attrs[key] = "true"
			}
		}
	}
}
