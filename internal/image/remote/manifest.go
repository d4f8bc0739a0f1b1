package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of Docker's manifests.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var manifestTypes = []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, dockerList, dockerManifest}

// Manifest is a manifest or an index as the registry has it.
type Manifest struct {
	ocispec.Descriptor
	Raw []byte
}

// Manifest fetches what a tag or a digest names. The media type is what the
// document itself says, or else what the registry says. Its digest is that of
// its bytes, and the one that was asked for. Errors: errdefs.ErrNotFound,
// ErrUnauthenticated, ErrPermissionDenied; errdefs.ErrInvalidArgument for what
// is too large or of no known kind; errdefs.ErrDataLoss for bytes that are not
// what the registry says they are.
func (r *Repository) Manifest(ctx context.Context, ref string) (Manifest, error) {
	pause := r.c.cfg.Pause
	for attempt := 1; ; attempt++ {
		m, err := r.manifest(ctx, ref)
		if err == nil {
			return m, nil
		}
		// The request is made again by do; here, what came after its header broke.
		if !temporary(err) && !errdefs.IsDataLoss(err) || attempt >= r.c.cfg.Attempts || ctx.Err() != nil || tooOften(err) {
			return Manifest{}, err
		}
		if err := r.c.wait(ctx, &pause, err); err != nil {
			return Manifest{}, err
		}
	}
}

func (r *Repository) manifest(ctx context.Context, ref string) (Manifest, error) {
	c := call{method: http.MethodGet, url: r.url("manifests/%s", ref), header: http.Header{"Accept": manifestTypes}, scopes: r.pull()}
	resp, err := r.s.do(ctx, c)
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	if resp.ContentLength > MaxManifest {
		return Manifest{}, invalid("the manifest %s of registry %s has %d bytes, more than the %d that are allowed", ref, r.host, resp.ContentLength, MaxManifest)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err != nil {
		return Manifest{}, err
	}
	if len(raw) > MaxManifest {
		return Manifest{}, invalid("the manifest %s of registry %s is larger than the %d bytes that are allowed", ref, r.host, MaxManifest)
	}
	m := Manifest{Raw: raw, Descriptor: ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}}
	for _, want := range []string{ref, resp.Header.Get("Docker-Content-Digest")} {
		if d, err := digest.Parse(want); err == nil && d.Algorithm() == digest.SHA256 && d != m.Digest {
			return Manifest{}, fmt.Errorf("registry %s sent a manifest with digest %s for %s: %w", r.host, m.Digest, d, errdefs.ErrDataLoss)
		}
	}
	m.MediaType, err = mediaType(raw, resp.Header.Get("Content-Type"))
	if err != nil {
		return Manifest{}, fmt.Errorf("cannot use the manifest %s of registry %s: %w", ref, r.host, err)
	}
	return m, nil
}

// mediaType tells what kind of manifest a document is. A document that could
// be read as both a manifest and an index is refused (CVE-2021-41190).
func mediaType(raw []byte, header string) (string, error) {
	var doc struct {
		Schema    int              `json:"schemaVersion"`
		MediaType string           `json:"mediaType"`
		Manifests *json.RawMessage `json:"manifests"`
		Config    *json.RawMessage `json:"config"`
		Layers    *json.RawMessage `json:"layers"`
		FSLayers  *json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	kind, _, err := mime.ParseMediaType(header)
	if doc.MediaType != "" {
		kind = doc.MediaType
	} else if err != nil || kind == "application/json" || kind == "text/plain" || kind == "application/octet-stream" {
		kind = ""
	}
	switch {
	case doc.Schema == 1 || doc.FSLayers != nil || strings.HasPrefix(kind, "application/vnd.docker.distribution.manifest.v1"):
		return "", invalid("it is of Docker's schema 1, which is not supported: push the image again with a Docker of 2016 or later (1.10)")
	case doc.Manifests != nil && (doc.Config != nil || doc.Layers != nil):
		return "", invalid("it is a manifest and an index at once")
	case kind != "":
		return kind, nil
	case doc.Manifests != nil:
		return ocispec.MediaTypeImageIndex, nil
	case doc.Config != nil:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", invalid("it is neither a manifest nor an index")
}

// Head asks what a tag or a digest names, without fetching it. A registry that
// does not say is asked for the manifest itself.
func (r *Repository) Head(ctx context.Context, ref string) (ocispec.Descriptor, error) {
	resp, err := r.s.do(ctx, call{method: http.MethodHead, url: r.url("manifests/%s", ref), header: http.Header{"Accept": manifestTypes}, scopes: r.pull()})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	resp.Body.Close()
	d, derr := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if derr == nil && err == nil && d.Algorithm() == digest.SHA256 && resp.ContentLength > 0 {
		return ocispec.Descriptor{MediaType: kind, Digest: d, Size: resp.ContentLength}, nil
	}
	m, err := r.Manifest(ctx, ref)
	return m.Descriptor, err
}

// PutManifest gives a manifest, whose blobs must be there, the name ref: a tag,
// or its digest.
func (r *Repository) PutManifest(ctx context.Context, ref string, m Manifest) error {
	body := func() (io.ReadCloser, int64, error) {
		return io.NopCloser(strings.NewReader(string(m.Raw))), int64(len(m.Raw)), nil
	}
	resp, err := r.s.do(ctx, call{
		method: http.MethodPut, url: r.url("manifests/%s", ref), header: http.Header{"Content-Type": {m.MediaType}}, scopes: r.push(), body: body, slow: true,
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest")); err == nil && d.Algorithm() == digest.SHA256 && d != m.Digest {
		return fmt.Errorf("registry %s took the manifest %s for %s: %w", r.host, m.Digest, d, errdefs.ErrDataLoss)
	}
	return nil
}

// HasManifest tells whether the repository has a manifest with this digest.
func (r *Repository) HasManifest(ctx context.Context, d digest.Digest) (bool, error) {
	resp, err := r.s.do(ctx, call{
		method: http.MethodHead, url: r.url("manifests/%s", d), header: http.Header{"Accept": manifestTypes}, scopes: r.push(), accept404: true,
	})
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// Tags lists the tags of the repository.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	at := r.url("tags/list")
	at.RawQuery = "n=1000"
	var out []string
	tags, pages := map[string]bool{}, map[string]bool{}
	for range 1000 {
		pages[at.String()] = true
		page, next, err := r.tagPage(ctx, at)
		if err != nil {
			return nil, err
		}
		for _, t := range page {
			if !tags[t] {
				tags[t] = true
				out = append(out, t)
			}
		}
		// A page that names one that was seen would be followed for ever.
		if next == nil || len(page) == 0 || len(out) >= maxTags || pages[next.String()] {
			break
		}
		at = next
	}
	return out, nil
}

func (r *Repository) tagPage(ctx context.Context, at *url.URL) (tags []string, next *url.URL, err error) {
	resp, err := r.s.do(ctx, call{method: http.MethodGet, url: at, scopes: r.pull()})
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxTagList+1))
	if err != nil {
		return nil, nil, err
	}
	var doc struct {
		Tags []string `json:"tags"`
	}
	if len(raw) > maxTagList {
		return nil, nil, invalid("registry %s sent a list of tags of more than %d bytes", r.host, maxTagList)
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, nil, invalid("registry %s sent a list of tags that is not JSON: %w", r.host, err)
	}
	next, err = parseNext(at, resp.Header)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list the tags of %s at registry %s: %w", r.name, r.host, err)
	}
	return doc.Tags, next, nil
}
