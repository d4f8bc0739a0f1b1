package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func stopFlags(cmd *cobra.Command) func() client.StopOptions {
	var signal string
	var timeout int
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "signal to send first")
	cmd.Flags().IntVarP(&timeout, "timeout", "t", 0, "seconds until it is killed (default: its own, 10); -1 waits for ever")
	cmd.Flags().IntVar(&timeout, "time", 0, "same as --timeout")
	_ = cmd.Flags().MarkHidden("time")
	return func() client.StopOptions {
		o := client.StopOptions{Signal: signal}
		if cmd.Flags().Changed("time") || cmd.Flags().Changed("timeout") {
			o.Timeout = &timeout
		}
		return o
	}
}

func (a *app) stopCmd() *cobra.Command {
	var opts func() client.StopOptions
	cmd := a.many("stop", "Ask containers to end, and end them after a while", func(ctx context.Context, c *client.Client, id string) error {
		return c.ContainerStop(ctx, id, opts())
	})
	opts = stopFlags(cmd)
	return cmd
}
