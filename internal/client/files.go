package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"github.com/moby/moby/api/types/container"
)

// PathStat is what the engine says about a path in a container.
type PathStat struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`
	Mode       fs.FileMode `json:"mode"`
	Mtime      time.Time   `json:"mtime"`
	LinkTarget string      `json:"linkTarget"` // where a symbolic link leads to in the end
}

func archivePath(id string) string { return "/containers/" + url.PathEscape(id) + "/archive" }

// ContainerStat looks at a path in a container.
func (c *Client) ContainerStat(ctx context.Context, id, path string) (*PathStat, error) {
	req, err := c.request(ctx, http.MethodHead, archivePath(id), url.Values{"path": {path}}, nil, "")
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot look at %s in container %s: %w", path, id, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 400 {
		return pathStat(resp)
	}
	// An answer to HEAD has no words: that to GET has.
	body, st, err := c.ContainerGet(ctx, id, path)
	if err != nil {
		return nil, err
	}
	return st, body.Close()
}

func pathStat(resp *http.Response) (*PathStat, error) {
	text, err := base64.StdEncoding.DecodeString(resp.Header.Get("X-Docker-Container-Path-Stat"))
	st := new(PathStat)
	if err == nil {
		err = json.Unmarshal(text, st)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read what the engine says about a path: %w", err)
	}
	return st, nil
}

// ContainerGet streams a path of a container as a tar, and says what it is. The
// caller closes it.
func (c *Client) ContainerGet(ctx context.Context, id, path string) (io.ReadCloser, *PathStat, error) {
	req, err := c.request(ctx, http.MethodGet, archivePath(id), url.Values{"path": {path}}, nil, "")
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot copy %s of container %s: %w", path, id, err)
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		return nil, nil, apiError(resp)
	}
	st, err := pathStat(resp)
	if err != nil {
		resp.Body.Close()
		return nil, nil, err
	}
	return resp.Body, st, nil
}

// ContainerPut unpacks a tar in a directory of a container. Directories and
// other files do not take each other's place. owned makes everything the
// container's user's.
func (c *Client) ContainerPut(ctx context.Context, id, path string, tar io.Reader, owned bool) error {
	q := url.Values{"path": {path}, "noOverwriteDirNonDir": {"true"}}
	if owned {
		q.Set("copyUIDGID", "true")
	}
	r, err := c.Stream(ctx, http.MethodPut, archivePath(id), q, tar, "application/x-tar")
	if err != nil {
		return err
	}
	return r.Close()
}

// ContainerChanges lists what differs from the image.
func (c *Client) ContainerChanges(ctx context.Context, id string) ([]container.FilesystemChange, error) {
	var out []container.FilesystemChange
	err := c.Do(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/changes", nil, nil, &out)
	return out, err
}

// ContainerExport streams all files of a container as a tar. The caller closes it.
func (c *Client) ContainerExport(ctx context.Context, id string) (io.ReadCloser, error) {
	return c.Stream(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/export", nil, nil, "")
}

// CommitOptions say what image ContainerCommit makes.
type CommitOptions struct {
	Repo, Tag       string // empty: a dangling image
	Author, Message string
	Changes         []string // lines of a Dockerfile
	NoPause         bool
}

// ContainerCommit makes an image of a container and returns its id.
func (c *Client) ContainerCommit(ctx context.Context, id string, o CommitOptions) (string, error) {
	q := url.Values{"container": {id}, "changes": o.Changes, "pause": {"1"}}
	if o.NoPause {
		q.Set("pause", "0")
	}
	for k, v := range map[string]string{"repo": o.Repo, "tag": o.Tag, "author": o.Author, "comment": o.Message} {
		if v != "" {
			q.Set(k, v)
		}
	}
	var out container.CommitResponse
	err := c.Do(ctx, http.MethodPost, "/commit", q, nil, &out)
	return out.ID, err
}
