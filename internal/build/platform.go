package build

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/failure"
)

// ResolveSourceMetadata finds what a FROM means. BuildKit takes an image that is
// here whatever its platform is, and warns; Docker's builder does not take one
// of another platform than was asked for, but asks its registry. So do we, and
// where that fails as well the error names both platforms. Its kind is then
// errdefs.ErrInvalidArgument.
func (w *imageWorker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	resp, err := w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, job)
	if err != nil || opt.ImageOpt == nil || opt.ImageOpt.Platform == nil || resp.Image == nil {
		return resp, err
	}
	want, have := *opt.ImageOpt.Platform, ocispec.Platform{}
	if json.Unmarshal(resp.Image.Config, &have) != nil || have.OS == "" || have.Architecture == "" || platforms.Only(want).Match(have) {
		return resp, nil
	}
	name, is := strings.CutPrefix(op.Identifier, srctypes.DockerImageScheme+"://")
	if named, err := reference.ParseNormalizedNamed(name); is && err == nil {
		name = reference.TagNameOnly(named).String()
	}
	if here, err := w.images.Get(ctx, name); err != nil || here.Target.Digest != resp.Image.Digest {
		return resp, nil //nolint:nilerr // it comes from a registry, and all that this has was looked at
	}
	elsewhere := *opt.ImageOpt
	elsewhere.ResolveMode = pb.AttrImageResolveModeForcePull
	opt.ImageOpt = &elsewhere
	fetched, err := w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, job)
	if err != nil {
		return nil, fmt.Errorf("it is here for %s, not for %s, and no other can be fetched: %s: %w",
			platforms.Format(have), platforms.Format(want), failure.Words(err), errdefs.ErrInvalidArgument)
	}
	return fetched, nil
}
