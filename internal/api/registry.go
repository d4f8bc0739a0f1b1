package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/auxprogress"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/image/remote"
)

// step is one message of a pull or a push, as Docker's clients draw it.
type step struct {
	Status   string               `json:"status,omitempty"`
	Progress *jsonstream.Progress `json:"progressDetail,omitempty"`
	ID       string               `json:"id,omitempty"`
	Aux      any                  `json:"aux,omitempty"`
}

// stepOf is a layer's progress in Docker's words.
func stepOf(p image.Progress) step {
	s := step{ID: p.Layer.Encoded()[:12], Progress: &jsonstream.Progress{}}
	switch p.Stage {
	case image.Announced:
		s.Status = "Pulling fs layer"
	case image.Exists:
		s.Status = "Already exists"
	case image.Downloading:
		s.Status = "Downloading"
	case image.Verifying:
		s.Status = "Verifying Checksum"
	case image.Downloaded:
		s.Status = "Download complete"
	case image.Unpacking:
		s.Status = "Extracting"
	case image.Pulled:
		s.Status = "Pull complete"
	case image.Preparing:
		s.Status = "Preparing"
	case image.Pushing:
		s.Status = "Pushing"
	case image.Pushed:
		s.Status = "Pushed"
	case image.Present:
		s.Status = "Layer already exists"
	case image.Linked:
		s.Status = "Mounted from " + p.Note
	}
	switch p.Stage {
	case image.Downloading, image.Unpacking, image.Pushing:
		s.Progress.Current, s.Progress.Total = p.Done, p.Total
	}
	return s
}

// credentials are those of the request, if they are for the registry that the
// image's name says.
func (c *call) credentials(named reference.Named) (remote.Credentials, error) {
	a := readAuth(c.Request.Header.Get(registry.AuthHeader))
	if a.ServerAddress != "" && remote.HostOf(a.ServerAddress) != remote.HostOf(reference.Domain(named)) {
		return remote.Credentials{}, nil
	}
	return credentialsOf(a), nil
}

// readAuth decodes a header of credentials: base64 of any alphabet, padded or
// not. One that cannot be read is none, as in Docker: the registry decides
// whether it lets such a client in.
func readAuth(header string) *registry.AuthConfig {
	var a registry.AuthConfig
	raw, err := decodeBase64(header)
	if err != nil || json.Unmarshal(raw, &a) != nil {
		return &registry.AuthConfig{}
	}
	return &a
}

// decodeBase64 reads standard and URL-safe base64, padded or not.
func decodeBase64(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimSpace(s)), "="))
}

func credentialsOf(a *registry.AuthConfig) remote.Credentials {
	out := remote.Credentials{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if out.None() && a.Auth != "" {
		if raw, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			out.Username, out.Password, _ = strings.Cut(string(raw), ":")
		}
	}
	return out
}

// imagePull serves POST /images/create?fromImage=. Without a tag it pulls
// every tag, as Docker has it; clients give "latest" where they mean that.
func (s *Server) imagePull(c *call) error {
	from := c.query("fromImage")
	named, err := reference.ParseNormalizedNamed(from)
	if err != nil {
		return bad("invalid reference %q: %w", from, err)
	}
	if tag := c.query("tag"); tag != "" {
		if d, derr := digest.Parse(tag); derr == nil {
			named, err = reference.WithDigest(reference.TrimNamed(named), d)
		} else {
			named, err = reference.WithTag(reference.TrimNamed(named), tag)
		}
		if err != nil {
			return bad("invalid tag %q: %w", tag, err)
		}
	}
	auth, err := c.credentials(named)
	if err != nil {
		return err
	}
	m := &messages{c: c}
	refs := []string{named.String()}
	if reference.IsNameOnly(named) {
		tags, err := s.Images.RemoteTags(c.Context(), named.String(), auth)
		if err != nil {
			return err
		}
		refs = nil
		for _, t := range tags {
			refs = append(refs, named.Name()+":"+t)
		}
	}
	for _, ref := range refs {
		if err := s.pullOne(c.Context(), m, ref, c.query("platform"), auth); err != nil {
			return m.fail(err)
		}
	}
	return nil
}

func (s *Server) pullOne(ctx context.Context, m *messages, ref, platform string, auth remote.Credentials) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return bad("invalid reference %q: %w", ref, err)
	}
	what := reference.FamiliarString(named)
	if t, ok := named.(reference.Tagged); ok {
		what = t.Tag()
	}
	r, err := s.Images.Pull(ctx, ref, image.PullOptions{
		Platform: platform, Auth: auth,
		Found:    func(digest.Digest) { m.send(step{Status: "Pulling from " + reference.Path(named), ID: what}) },
		Progress: func(p image.Progress) { m.send(stepOf(p)) },
	})
	if err != nil {
		return err
	}
	m.send(step{Status: "Digest: " + r.Digest.String()})
	if r.Current {
		m.send(step{Status: "Status: Image is up to date for " + r.Name})
	} else {
		m.send(step{Status: "Status: Downloaded newer image for " + r.Name})
	}
	s.transferEvent(ctx, event.ImagePull, r.Name, named)
	return nil
}

// imagePush serves POST /images/{name}/push. Without a tag it pushes every tag
// of the repository that is here.
func (s *Server) imagePush(c *call, name string) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return bad("invalid reference %q: %w", name, err)
	}
	only, err := c.platform(46)
	if err != nil {
		return err
	}
	if tag := c.query("tag"); tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return bad("invalid tag %q: %w", tag, err)
		}
	}
	auth, err := c.credentials(named)
	if err != nil {
		return err
	}
	refs := []string{named.String()}
	if reference.IsNameOnly(named) {
		if refs, err = s.tagsHere(c.Context(), named); err != nil {
			return err
		}
	}
	m := &messages{c: c}
	for _, ref := range refs {
		r, err := s.Images.Push(c.Context(), ref, image.PushOptions{
			Auth:     auth,
			Platform: only,
			Begun:    func() { m.send(step{Status: "The push refers to repository [" + named.Name() + "]"}) },
			Progress: func(p image.Progress) { m.send(stepOf(p)) },
		})
		if err != nil {
			return m.fail(err)
		}
		m.send(step{Status: fmt.Sprintf("%s: digest: %s size: %d", r.Tag, r.Target.Digest, r.Target.Size)})
		m.send(step{Progress: &jsonstream.Progress{}, Aux: map[string]any{"Tag": r.Tag, "Digest": r.Target.Digest.String(), "Size": r.Target.Size}})
		if r.Part {
			m.send(step{Aux: auxprogress.ManifestPushedInsteadOfIndex{ManifestPushedInsteadOfIndex: true, OriginalIndex: r.Index, SelectedManifest: r.Target}})
		}
		s.transferEvent(c.Context(), event.ImagePush, r.Name, named)
	}
	return nil
}

// tagsHere lists the names with a tag that a repository has here.
func (s *Server) tagsHere(ctx context.Context, repo reference.Named) ([]string, error) {
	all, err := s.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, img := range all {
		for _, n := range img.Names {
			if m, err := reference.ParseNormalizedNamed(n); err == nil && m.Name() == repo.Name() {
				out = append(out, m.String())
			}
		}
	}
	if len(out) == 0 {
		return nil, bad("An image does not exist locally with the tag: %s", reference.FamiliarName(repo)) //nolint:staticcheck // Docker's words
	}
	return out, nil
}

// auth serves POST /auth: are these credentials good?
func (s *Server) auth(c *call) error {
	var a registry.AuthConfig
	if err := c.decode(&a, false); err != nil {
		return err
	}
	token, err := s.Registries.Login(c.Context(), a.ServerAddress, credentialsOf(&a))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, registry.AuthResponse{IdentityToken: token, Status: "Login Succeeded"})
}

// distribution serves GET /distribution/{name}/json: what a registry has,
// without pulling it.
func (s *Server) distribution(c *call, name string) error {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return bad("invalid reference %q: %w", name, err)
	}
	auth, err := c.credentials(named)
	if err != nil {
		return err
	}
	d, platforms, err := s.Images.Distribution(c.Context(), name, auth)
	if err != nil {
		return err
	}
	if platforms == nil {
		platforms = []ocispec.Platform{}
	}
	return c.reply(http.StatusOK, registry.DistributionInspect{Descriptor: d, Platforms: platforms})
}
