package build

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/failure"
	"proa/internal/image/remote"
	"proa/internal/image/remote/pick"
	"proa/internal/platform"
)

// ResolveSourceMetadata finds what a FROM means. BuildKit takes an image that is
// here whatever its platform is, and warns; Docker's builder does not take one
// of another platform than was asked for, but asks its registry. So do we, and
// where that fails as well the error names both platforms. Its kind is then
// errdefs.ErrInvalidArgument.
func (w *imageWorker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	resp, err := w.resolve(ctx, op, opt, sm, job)
	if err != nil || opt.ImageOpt == nil || opt.ImageOpt.Platform == nil || resp.Image == nil {
		return resp, err
	}
	want, have := *opt.ImageOpt.Platform, ocispec.Platform{}
	if json.Unmarshal(resp.Image.Config, &have) != nil || have.Architecture == "" {
		return resp, nil
	}
	have = platform.Of(have)
	if platforms.Only(want).Match(have) || platform.Exact(platform.Host()).Match(want) && platform.Fits(have) {
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
	fetched, err := w.resolve(ctx, op, opt, sm, job)
	if err != nil {
		return nil, fmt.Errorf("it is here for %s, not for %s, and no other can be fetched: %s: %w",
			platforms.Format(have), platforms.Format(want), failure.Words(err), errdefs.ErrInvalidArgument)
	}
	return fetched, nil
}

// atMost is how long a registry is asked again for the reason of its refusal.
const atMost = 10 * time.Second

// resolve says of an image that its registry does not give what a pull would
// say: which tags or platforms there are, what is wrong with the manifest.
// BuildKit has other words for it, or none: an answer that is too large is
// "content size of zero" to it.
func (w *imageWorker) resolve(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	resp, err := w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, job)
	name, is := strings.CutPrefix(op.Identifier, srctypes.DockerImageScheme+"://")
	if err == nil || !is || ctx.Err() != nil || errdefs.IsUnavailable(err) || errdefs.IsFailedPrecondition(err) {
		return resp, err // what could not be reached is not asked again
	}
	named, perr := reference.ParseNormalizedNamed(name)
	if perr != nil {
		return resp, err //nolint:nilerr // the error is about the name
	}
	host := platforms.Normalize(platforms.DefaultSpec())
	wanted := host
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		wanted = platforms.Normalize(*opt.ImageOpt.Platform)
	}
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	var cred remote.Credentials
	if job != nil {
		domain := reference.Domain(named)
		if domain == "docker.io" {
			domain = authprovider.DockerHubRegistryHost
		}
		if _, user, secret, cerr := auth.CredentialsFunc(ctx, sm, job.Session())(domain); cerr == nil && user != "" {
			cred.Username, cred.Password = user, secret
		} else {
			cred.IdentityToken = secret
		}
	}
	why := pick.Why(ctx, w.registries.Repository(named, cred), named, wanted, !platforms.Only(host).Match(wanted))
	if why == nil || ctx.Err() != nil {
		return resp, err
	}
	return resp, why
}
