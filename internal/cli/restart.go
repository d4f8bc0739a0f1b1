package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) restartCmd() *cobra.Command {
	var opts func() client.StopOptions
	cmd := a.many("restart", "Stop and start containers", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerRestart(ctx, id, opts())
	})
	opts = stopFlags(cmd)
	return cmd
}
