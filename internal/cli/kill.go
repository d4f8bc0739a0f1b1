package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) killCmd() *cobra.Command {
	var signal string
	cmd := a.many("kill", "Send a signal to containers", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerKill(ctx, id, signal)
	})
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal by name or number")
	return cmd
}
