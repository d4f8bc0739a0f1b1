package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// NetworkList lists networks.
func (c *Client) NetworkList(ctx context.Context, f Filters) ([]network.Summary, error) {
	var out []network.Summary
	err := c.Do(ctx, http.MethodGet, "/networks", f.query(), nil, &out)
	return out, err
}

// NetworkPrune removes networks that no container uses.
func (c *Client) NetworkPrune(ctx context.Context, f Filters) (network.PruneReport, error) {
	var out network.PruneReport
	err := c.Do(ctx, http.MethodPost, "/networks/prune", f.query(), nil, &out)
	return out, err
}

// ContainerUpdate changes limits and the restart policy; it gives the engine's warnings.
func (c *Client) ContainerUpdate(ctx context.Context, id string, u container.UpdateConfig) ([]string, error) {
	var out container.UpdateResponse
	err := c.Do(ctx, http.MethodPost, "/containers/"+url.PathEscape(id)+"/update", nil, u, &out)
	return out.Warnings, err
}
