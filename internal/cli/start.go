package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) startCmd() *cobra.Command {
	var attach, interactive bool
	var keys string
	cmd := a.many("start", "Start containers that were made or have ended", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerStart(ctx, id)
	})
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "show its output and wait for its end")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "connect standard input")
	cmd.Flags().StringVar(&keys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave a terminal")
	refuseFlag(cmd.Flags(), "checkpoint", "checkpoints are not supported")
	refuseFlag(cmd.Flags(), "checkpoint-dir", "checkpoints are not supported")
	plain := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !attach && !interactive {
			return plain(cmd, args)
		}
		if len(args) != 1 {
			return errors.New("cannot attach to more than one container")
		}
		c, err := a.client(cmd.Context())
		if err != nil {
			return err
		}
		return a.attachTo(context.WithoutCancel(cmd.Context()), c, args[0], interactive, true, keys, true)
	}
	return cmd
}
