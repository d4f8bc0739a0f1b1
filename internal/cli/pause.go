package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) pauseCmd() *cobra.Command {
	return a.many("pause", "Freeze every process of containers", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerPause(ctx, id)
	})
}

func (a *app) unpauseCmd() *cobra.Command {
	return a.many("unpause", "Let frozen containers go on", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerUnpause(ctx, id)
	})
}
