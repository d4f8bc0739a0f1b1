package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
)

// Filters are Docker's: a key with several values matches any of them.
type Filters map[string][]string

// query encodes filters as Docker's clients do: {"key":{"value":true}}.
func (f Filters) query() url.Values {
	q := url.Values{}
	if len(f) == 0 {
		return q
	}
	m := map[string]map[string]bool{}
	for k, values := range f {
		m[k] = map[string]bool{}
		for _, v := range values {
			m[k][v] = true
		}
	}
	b, _ := json.Marshal(m)
	q.Set("filters", string(b))
	return q
}

// ImageList lists images; all includes the untagged ones, manifests what each
// of them leads to.
func (c *Client) ImageList(ctx context.Context, all, manifests bool, f Filters) ([]image.Summary, error) {
	q := f.query()
	if all {
		q.Set("all", "1")
	}
	if manifests {
		q.Set("manifests", "1")
	}
	var out []image.Summary
	err := c.Do(ctx, http.MethodGet, "/images/json", q, nil, &out)
	return out, err
}

// Platforms puts platforms, "os/arch[/variant]", into a query, as the API wants
// them: JSON. Empty ones are left out.
func Platforms(q url.Values, key string, list []string) error {
	for _, s := range list {
		if s == "" {
			continue
		}
		p, err := platforms.Parse(s)
		if err != nil {
			return fmt.Errorf("invalid --platform %q: %w", s, err)
		}
		raw, err := json.Marshal(p)
		if err != nil {
			return err
		}
		q.Add(key, string(raw))
	}
	return nil
}

// ImageHistory lists the steps an image was made of, newest first.
func (c *Client) ImageHistory(ctx context.Context, ref string, platform ...string) ([]image.HistoryResponseItem, error) {
	var out []image.HistoryResponseItem
	q := url.Values{}
	if err := Platforms(q, "platform", platform); err != nil {
		return nil, err
	}
	err := c.Do(ctx, http.MethodGet, "/images/"+ref+"/history", q, nil, &out)
	return out, err
}

// ImageRemove untags or deletes.
func (c *Client) ImageRemove(ctx context.Context, ref string, force, noPrune bool, platform ...string) ([]image.DeleteResponse, error) {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	if noPrune {
		q.Set("noprune", "1")
	}
	if err := Platforms(q, "platforms", platform); err != nil {
		return nil, err
	}
	var out []image.DeleteResponse
	err := c.Do(ctx, http.MethodDelete, "/images/"+ref, q, nil, &out)
	return out, err
}

// ImageTag gives an image one more name.
func (c *Client) ImageTag(ctx context.Context, ref, repo, tag string) error {
	return c.Do(ctx, http.MethodPost, "/images/"+ref+"/tag", url.Values{"repo": {repo}, "tag": {tag}}, nil, nil)
}

// ImagePrune removes images that nothing needs.
func (c *Client) ImagePrune(ctx context.Context, f Filters) (image.PruneReport, error) {
	var out image.PruneReport
	err := c.Do(ctx, http.MethodPost, "/images/prune", f.query(), nil, &out)
	return out, err
}

// ImageSave streams one archive with the named images.
func (c *Client) ImageSave(ctx context.Context, refs []string, platform ...string) (io.ReadCloser, error) {
	q := url.Values{"names": refs}
	if err := Platforms(q, "platform", platform); err != nil {
		return nil, err
	}
	return c.Stream(ctx, http.MethodGet, "/images/get", q, nil, "")
}

// Progress is one message of a long request (load, import, pull, push).
type Progress struct {
	Stream string `json:"stream"`
	Status string `json:"status"`
	ID     string `json:"id"`
	// Detail is set where the message is about something that moves, such as a
	// layer; Total is 0 where it is not counted.
	Detail *struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error       string `json:"error"`
	ErrorDetail *struct {
		Message string `json:"message"`
	} `json:"errorDetail"`
}

// progress hands each message to show; an error message ends it.
func progress(r io.ReadCloser, show func(Progress)) error {
	defer r.Close()
	dec := json.NewDecoder(r)
	for {
		var p Progress
		if err := dec.Decode(&p); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if p.ErrorDetail != nil || p.Error != "" {
			msg := p.Error
			if p.ErrorDetail != nil && p.ErrorDetail.Message != "" {
				msg = p.ErrorDetail.Message
			}
			return &APIError{Status: http.StatusInternalServerError, Message: msg}
		}
		show(p)
	}
}

// ImageLoad sends an archive.
func (c *Client) ImageLoad(ctx context.Context, r io.Reader, show func(Progress), platform ...string) error {
	q := url.Values{}
	if err := Platforms(q, "platform", platform); err != nil {
		return err
	}
	body, err := c.Stream(ctx, http.MethodPost, "/images/load", q, r, "application/x-tar")
	if err != nil {
		return err
	}
	return progress(body, show)
}

// ImageImport makes an image of a root file system tar.
func (c *Client) ImageImport(ctx context.Context, r io.Reader, repo, tag, message, platform string, changes []string, show func(Progress)) error {
	q := url.Values{"fromSrc": {"-"}, "changes": changes}
	for k, v := range map[string]string{"repo": repo, "tag": tag, "message": message, "platform": platform} {
		if v != "" {
			q.Set(k, v)
		}
	}
	body, err := c.Stream(ctx, http.MethodPost, "/images/create", q, r, "application/x-tar")
	if err != nil {
		return err
	}
	return progress(body, show)
}

// ImagePull fetches an image, of which a name without a tag or digest means
// all tags. platform may be empty.
func (c *Client) ImagePull(ctx context.Context, ref, platform string, auth registry.AuthConfig, show func(Progress)) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return err
	}
	q := url.Values{"fromImage": {named.Name()}}
	switch n := named.(type) {
	case reference.Digested:
		q.Set("tag", n.Digest().String())
	case reference.Tagged:
		q.Set("tag", n.Tag())
	}
	if platform != "" {
		q.Set("platform", platform)
	}
	return c.moved(ctx, "/images/create", q, auth, show)
}

// ImagePush sends an image to its registry; a name without a tag means all
// tags that are here.
func (c *Client) ImagePush(ctx context.Context, named reference.Named, auth registry.AuthConfig, show func(Progress), platform ...string) error {
	q := url.Values{}
	if t, ok := named.(reference.Tagged); ok {
		q.Set("tag", t.Tag())
	}
	if err := Platforms(q, "platform", platform); err != nil {
		return err
	}
	return c.moved(ctx, "/images/"+named.Name()+"/push", q, auth, show)
}

func (c *Client) moved(ctx context.Context, path string, q url.Values, auth registry.AuthConfig, show func(Progress)) error {
	req, err := c.request(ctx, http.MethodPost, path, q, nil, "")
	if err != nil {
		return err
	}
	header, err := authconfig.Encode(auth)
	if err != nil {
		return err
	}
	req.Header.Set(registry.AuthHeader, header)
	body, err := c.send(req)
	if err != nil {
		return err
	}
	return progress(body, show)
}

// Login finds out whether a registry accepts credentials.
func (c *Client) Login(ctx context.Context, auth registry.AuthConfig) (registry.AuthResponse, error) {
	var out registry.AuthResponse
	err := c.Do(ctx, http.MethodPost, "/auth", nil, auth, &out)
	return out, err
}

// VolumeCreate makes a volume; an empty name gets one.
func (c *Client) VolumeCreate(ctx context.Context, r volume.CreateRequest) (volume.Volume, error) {
	var out volume.Volume
	err := c.Do(ctx, http.MethodPost, "/volumes/create", nil, r, &out)
	return out, err
}

// VolumeList lists volumes.
func (c *Client) VolumeList(ctx context.Context, f Filters) ([]volume.Volume, error) {
	var out volume.ListResponse
	err := c.Do(ctx, http.MethodGet, "/volumes", f.query(), nil, &out)
	return out.Volumes, err
}

// VolumeRemove deletes a volume.
func (c *Client) VolumeRemove(ctx context.Context, name string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	return c.Do(ctx, http.MethodDelete, "/volumes/"+url.PathEscape(name), q, nil, nil)
}

// VolumePrune removes volumes that no container uses.
func (c *Client) VolumePrune(ctx context.Context, f Filters) (volume.PruneReport, error) {
	var out volume.PruneReport
	err := c.Do(ctx, http.MethodPost, "/volumes/prune", f.query(), nil, &out)
	return out, err
}

// Version tells the engine's version.
func (c *Client) Version(ctx context.Context) (system.VersionResponse, error) {
	var out system.VersionResponse
	err := c.Do(ctx, http.MethodGet, "/version", nil, nil, &out)
	return out, err
}

// Info tells about the engine and its host.
func (c *Client) Info(ctx context.Context) (system.Info, error) {
	var out system.Info
	err := c.Do(ctx, http.MethodGet, "/info", nil, nil, &out)
	return out, err
}

// DiskUsage tells what lies in the data root.
func (c *Client) DiskUsage(ctx context.Context) (system.DiskUsage, error) {
	var out system.DiskUsage
	err := c.Do(ctx, http.MethodGet, "/system/df", nil, nil, &out)
	return out, err
}

// BuildPrune removes build cache that no build uses.
func (c *Client) BuildPrune(ctx context.Context, f Filters, all bool) (build.CachePruneReport, error) {
	q := f.query()
	if all {
		q.Set("all", "1")
	}
	var out build.CachePruneReport
	err := c.Do(ctx, http.MethodPost, "/build/prune", q, nil, &out)
	return out, err
}

// Events hands each event to show until until, or until ctx ends.
func (c *Client) Events(ctx context.Context, since, until string, f Filters, show func(events.Message)) error {
	q := f.query()
	if since != "" {
		q.Set("since", since)
	}
	if until != "" {
		q.Set("until", until)
	}
	r, err := c.Stream(ctx, http.MethodGet, "/events", q, nil, "")
	if err != nil {
		return err
	}
	defer r.Close()
	dec := json.NewDecoder(r)
	for {
		var m events.Message
		if err := dec.Decode(&m); err == io.EOF || ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
		show(m)
	}
}

// Check is one line of `proa doctor`, as the engine's GET /proa/doctor says it.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // "yes", "no", "unknown"
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // one command
}

// Doctor asks the engine what this host can do.
func (c *Client) Doctor(ctx context.Context) ([]Check, error) {
	var out []Check
	err := c.Do(ctx, http.MethodGet, "/proa/doctor", nil, nil, &out)
	return out, err
}
