package engine

import (
	"context"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/isolation"
	"proa/internal/rootfs"
)

// CommitOptions say what image Commit makes.
type CommitOptions struct {
	Name    string // "" makes a dangling one
	Author  string
	Message string
	Changes []string          // lines of a Dockerfile
	Config  *container.Config // what takes precedence over the container's; nil for nothing
	NoPause bool              // processes go on meanwhile: what they write may be in it by half
}

// Commit makes an image of a container's image and what the container has
// written since. Volumes, binds and what the engine made to mount on are not in
// it. It works in every state, behind both walls; of a running VM the guest's
// processes are held still, the VM goes on.
func (e *Engine) Commit(ctx context.Context, ref string, o CommitOptions) (*image.Image, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	c := b.snap.Load()
	if c.State == Removing || c.State == Dead {
		return nil, conflict("You cannot commit container %s which is %s", short(b.id), c.State)
	}
	config, err := commitConfig(c.Config, o.Config, o.Changes)
	if err != nil {
		return nil, err
	}
	if c.Kind == isolation.Container && !o.NoPause {
		resume, err := b.hold(ctx)
		if err != nil {
			return nil, err
		}
		defer resume()
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		<-done
	}()
	go func() {
		defer close(done)
		w.CloseWithError(e.files(ctx, b, &rootfs.Request{Op: rootfs.OpLayer, Still: !o.NoPause}, nil, w))
	}()
	img, err := e.cfg.Images.Commit(ctx, r, image.CommitOptions{
		Parent: c.Image, Name: o.Name, Author: o.Author, Message: o.Message,
		Command: strings.Join(append([]string{c.Path}, c.Args...), " "), Config: config,
	})
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		return nil, err
	}
	e.emit(c, event.ContainerCommit, o.Message, img.ID.String(), image.FamiliarTag(o.Name))
	return img, nil
}

// hold stops the processes of a running container until the returned function
// is called. The record says nothing of it: where an engine dies meanwhile, the
// next one finds a paused instance that nobody wanted paused, and lets it go on.
func (b *box) hold(ctx context.Context) (resume func(), err error) {
	sh, err := b.shim()
	if err != nil || b.snap.Load().State != Running {
		return func() {}, nil
	}
	switch err := sh.Pause(ctx); {
	case err == nil:
		return func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyLimit)
			defer cancel()
			_ = sh.Resume(ctx) // an error: it was killed meanwhile
		}, nil
	case errdefs.IsConflict(err), errdefs.IsFailedPrecondition(err), errdefs.IsUnavailable(err):
		return func() {}, nil // it has ended, or somebody else has paused it
	default:
		return nil, err
	}
}

// commitConfig is the configuration of the new image: what the client wants,
// changed by lines of a Dockerfile, with the container's where it is open.
func commitConfig(have, want *container.Config, changes []string) (dockerspec.DockerOCIImageConfig, error) {
	var base dockerspec.DockerOCIImageConfig
	if want != nil {
		base = imageConfigOf(want)
	}
	// ENV and WORKDIR build upon what is there.
	base.Env = append(base.Env, missingEnv(base.Env, have.Env)...)
	if base.WorkingDir == "" {
		base.WorkingDir = have.WorkingDir
	}
	if len(base.Shell) == 0 {
		base.Shell = have.Shell
	}
	if err := image.ApplyChanges(&base, changes); err != nil {
		return base, invalid("cannot commit: %w", err)
	}
	merged, err := merge(containerConfigOf(base), imageConfigOf(have))
	if err != nil {
		return base, err
	}
	out := imageConfigOf(merged)
	out.OnBuild = base.OnBuild
	return out, nil
}

// missingEnv gives the variables of more that env does not set.
func missingEnv(env, more []string) (out []string) {
	set := map[string]bool{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		set[name] = true
	}
	for _, kv := range more {
		if name, _, _ := strings.Cut(kv, "="); !set[name] {
			out = append(out, kv)
		}
	}
	return out
}

// imageConfigOf is what of a container's configuration belongs into an image.
func imageConfigOf(c *container.Config) dockerspec.DockerOCIImageConfig {
	i := dockerspec.DockerOCIImageConfig{
		ImageConfig: ocispec.ImageConfig{
			User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Volumes: c.Volumes,
			WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
		},
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{Healthcheck: c.Healthcheck, OnBuild: c.OnBuild, Shell: c.Shell},
	}
	for p := range c.ExposedPorts {
		if i.ExposedPorts == nil {
			i.ExposedPorts = map[string]struct{}{}
		}
		i.ExposedPorts[p.String()] = struct{}{}
	}
	return i
}

// containerConfigOf undoes imageConfigOf.
func containerConfigOf(i dockerspec.DockerOCIImageConfig) *container.Config {
	c := &container.Config{
		User: i.User, Env: i.Env, Entrypoint: i.Entrypoint, Cmd: i.Cmd, Volumes: i.Volumes,
		WorkingDir: i.WorkingDir, Labels: i.Labels, StopSignal: i.StopSignal,
		Healthcheck: i.Healthcheck, OnBuild: i.OnBuild, Shell: i.Shell,
	}
	for s := range i.ExposedPorts {
		if p, err := network.ParsePort(s); err == nil { // changes were checked
			if c.ExposedPorts == nil {
				c.ExposedPorts = network.PortSet{}
			}
			c.ExposedPorts[p] = struct{}{}
		}
	}
	return c
}
