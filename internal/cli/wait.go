package cli

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) waitCmd() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait for containers to end and print their exit codes", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			failed := false
			for _, id := range args {
				wait, err := c.ContainerWait(ctx, id, container.WaitConditionNotRunning)
				var r container.WaitResponse
				if err == nil {
					r, err = wait()
				}
				if err != nil {
					failure.Report(a.err, "proa", err)
					failed = true
					continue
				}
				fmt.Fprintln(a.out, r.StatusCode)
			}
			if failed {
				return failure.Exit(1, nil)
			}
			return nil
		}),
	}
}
