package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// ContainerCreate makes a container; name and platform may be empty.
func (c *Client) ContainerCreate(ctx context.Context, name, platform string, cfg *container.Config, host *container.HostConfig, net *network.NetworkingConfig) (container.CreateResponse, error) {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	if platform != "" {
		q.Set("platform", platform)
	}
	var out container.CreateResponse
	err := c.Do(ctx, http.MethodPost, "/containers/create", q, container.CreateRequest{Config: cfg, HostConfig: host, NetworkingConfig: net}, &out)
	return out, err
}

// container sends POST /containers/{id}/{verb}.
func (c *Client) container(ctx context.Context, id, verb string, q url.Values) error {
	return c.Do(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/"+verb, q, nil, nil)
}

// ContainerStart starts a created or exited container.
func (c *Client) ContainerStart(ctx context.Context, id string) error {
	return c.container(ctx, id, "start", nil)
}

// StopOptions say how a container is stopped.
type StopOptions struct {
	Signal  string // empty: the container's own stop signal
	Timeout *int   // seconds until SIGKILL; nil: the container's own; -1: never
}

func (o StopOptions) query() url.Values {
	q := url.Values{}
	if o.Signal != "" {
		q.Set("signal", o.Signal)
	}
	if o.Timeout != nil {
		q.Set("t", strconv.Itoa(*o.Timeout))
	}
	return q
}

// ContainerStop stops a container and returns when it has ended.
func (c *Client) ContainerStop(ctx context.Context, id string, o StopOptions) error {
	return c.container(ctx, id, "stop", o.query())
}

// ContainerRestart stops and starts a container.
func (c *Client) ContainerRestart(ctx context.Context, id string, o StopOptions) error {
	return c.container(ctx, id, "restart", o.query())
}

// ContainerKill sends a signal by name or number.
func (c *Client) ContainerKill(ctx context.Context, id, signal string) error {
	return c.container(ctx, id, "kill", url.Values{"signal": {signal}})
}

// ContainerPause freezes every process of a container.
func (c *Client) ContainerPause(ctx context.Context, id string) error {
	return c.container(ctx, id, "pause", nil)
}

// ContainerUnpause thaws them.
func (c *Client) ContainerUnpause(ctx context.Context, id string) error {
	return c.container(ctx, id, "unpause", nil)
}

// ContainerRename gives a container another name.
func (c *Client) ContainerRename(ctx context.Context, id, name string) error {
	return c.container(ctx, id, "rename", url.Values{"name": {name}})
}

// ContainerResize tells the main process's terminal its size.
func (c *Client) ContainerResize(ctx context.Context, id string, rows, cols int) error {
	return c.container(ctx, id, "resize", url.Values{"h": {strconv.Itoa(rows)}, "w": {strconv.Itoa(cols)}})
}

// ContainerRemove deletes a container.
func (c *Client) ContainerRemove(ctx context.Context, id string, force, volumes bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	if volumes {
		q.Set("v", "1")
	}
	return c.Do(ctx, http.MethodDelete, "/containers/"+url.PathEscape(id), q, nil, nil)
}

// Summary is one line of the container list.
type Summary struct {
	container.Summary
	Proa struct {
		Isolation string // "" from another engine
	}
}

// ContainerList lists containers; filters as in Docker's API.
func (c *Client) ContainerList(ctx context.Context, all, size bool, limit int, f Filters) ([]Summary, error) {
	q := f.query()
	if all {
		q.Set("all", "1")
	}
	if size {
		q.Set("size", "1")
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var out []Summary
	err := c.Do(ctx, http.MethodGet, "/containers/json", q, nil, &out)
	return out, err
}

// ContainerInspect gives everything about one container.
func (c *Client) ContainerInspect(ctx context.Context, id string) (container.InspectResponse, error) {
	var out container.InspectResponse
	err := c.Do(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/json", nil, nil, &out)
	return out, err
}

// ContainerWait sends the request at once and returns a function that blocks
// until the condition holds, so that a caller can wait before it starts.
func (c *Client) ContainerWait(ctx context.Context, id string, cond container.WaitCondition) (func() (container.WaitResponse, error), error) {
	r, err := c.Stream(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/wait", url.Values{"condition": {string(cond)}}, nil, "")
	if err != nil {
		return nil, err
	}
	return func() (container.WaitResponse, error) {
		defer r.Close()
		var out container.WaitResponse
		err := json.NewDecoder(r).Decode(&out)
		return out, err
	}, nil
}

// ContainerAttach connects to the streams of a container's main process.
func (c *Client) ContainerAttach(ctx context.Context, id string, stdin, stdout, stderr, logs bool) (*Conn, error) {
	q := url.Values{"stream": {"1"}}
	for k, v := range map[string]bool{"stdin": stdin, "stdout": stdout, "stderr": stderr, "logs": logs} {
		if v {
			q.Set(k, "1")
		}
	}
	return c.Hijack(ctx, "/containers/"+url.PathEscape(id)+"/attach", q, nil)
}

// ContainerLogs streams logs; the caller closes it.
func (c *Client) ContainerLogs(ctx context.Context, id string, q url.Values) (io.ReadCloser, error) {
	return c.Stream(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/logs", q, nil, "")
}

// ContainerStats streams one JSON reading a second, or one only.
func (c *Client) ContainerStats(ctx context.Context, id string, stream bool) (io.ReadCloser, error) {
	q := url.Values{}
	if !stream {
		q.Set("stream", "0")
	}
	return c.Stream(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/stats", q, nil, "")
}

// Usage is what the latest run of a container has taken of the host, as
// GET /proa/containers/{id}/usage tells it. Sizes are bytes, CPU times nanoseconds.
type Usage struct {
	ID         string
	Name       string
	Isolation  string // "container" or "vm"
	Emulated   bool   // the VM's processors are made by software
	Kernel     string // release that processes inside see
	Running    bool
	StartedAt  time.Time // the main process was executed
	FinishedAt time.Time // it has ended; the zero time while it runs
	CPU        struct {
		Total, User, System uint64 // of the control group: the container's processes, or the whole VMM
		Shim                uint64 // of the shim, which is not in the group
	}
	Memory struct {
		Peak     uint64 // most that was charged to the control group, page cache included; 0: not known
		ShimPeak uint64 // most that the shim had resident
	}
	Disk struct {
		Used int64 // blocks of its writable layer or VM disk, and of its log
	}
	IO struct {
		Stored                  uint64  // sent towards storage by its processes and its shim
		BlockReads, BlockWrites *uint64 // as the control group counts them; nil where it does not
	}
	Processes int // of the host that belong to the instance now, its shim included
}

// ContainerUsage reads what a running container takes, or took in its last run.
func (c *Client) ContainerUsage(ctx context.Context, id string) (Usage, error) {
	var out Usage
	err := c.Do(ctx, http.MethodGet, "/proa/containers/"+url.PathEscape(id)+"/usage", nil, nil, &out)
	return out, err
}

// ContainerTop lists the processes of a container.
func (c *Client) ContainerTop(ctx context.Context, id string, psArgs string) (container.TopResponse, error) {
	q := url.Values{}
	if psArgs != "" {
		q.Set("ps_args", psArgs)
	}
	var out container.TopResponse
	err := c.Do(ctx, http.MethodGet, "/containers/"+url.PathEscape(id)+"/top", q, nil, &out)
	return out, err
}

// ContainerPrune removes stopped containers.
func (c *Client) ContainerPrune(ctx context.Context, f Filters) (container.PruneReport, error) {
	var out container.PruneReport
	err := c.Do(ctx, http.MethodPost, "/containers/prune", f.query(), nil, &out)
	return out, err
}

// ExecCreate prepares a process in a running container.
func (c *Client) ExecCreate(ctx context.Context, id string, r container.ExecCreateRequest) (string, error) {
	var out container.ExecCreateResponse
	err := c.Do(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/exec", nil, r, &out)
	return out.ID, err
}

// ExecStart runs it, attached.
func (c *Client) ExecStart(ctx context.Context, execID string, r container.ExecStartRequest) (*Conn, error) {
	return c.Hijack(ctx, "/exec/"+execID+"/start", nil, r)
}

// ExecStartDetached runs it and returns.
func (c *Client) ExecStartDetached(ctx context.Context, execID string) error {
	return c.Do(ctx, http.MethodPost, "/exec/"+execID+"/start", nil, container.ExecStartRequest{Detach: true}, nil)
}

// ExecInspect tells whether it runs and how it ended.
func (c *Client) ExecInspect(ctx context.Context, execID string) (container.ExecInspectResponse, error) {
	var out container.ExecInspectResponse
	err := c.Do(ctx, http.MethodGet, "/exec/"+execID+"/json", nil, nil, &out)
	return out, err
}

// ExecResize tells its terminal its size.
func (c *Client) ExecResize(ctx context.Context, execID string, rows, cols int) error {
	return c.Do(ctx, http.MethodPost, "/exec/"+execID+"/resize", url.Values{"h": {strconv.Itoa(rows)}, "w": {strconv.Itoa(cols)}}, nil, nil)
}
