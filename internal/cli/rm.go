package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) rmCmd() *cobra.Command {
	var force, volumes bool
	cmd := a.many("rm", "Remove containers and what they wrote", func(ctx context.Context, c *client.Client, id string) error {
		err := c.ContainerRemove(ctx, id, force, volumes)
		if force && client.IsNotFound(err) {
			failure.Report(a.err, "proa", err)
			return errGone // docker rm -f succeeds and does not print the name
		}
		return err
	})
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill a running one first")
	refuseSwitch(cmd.Flags(), "link", "links between containers are not supported")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove its anonymous volumes as well")
	return cmd
}
