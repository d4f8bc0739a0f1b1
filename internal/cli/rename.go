package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) renameCmd() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Give a container another name", Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return c.ContainerRename(ctx, args[0], args[1])
		}),
	}
}
