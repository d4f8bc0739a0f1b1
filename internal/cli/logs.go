package cli

import (
	"context"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) logsCmd() *cobra.Command {
	var follow, timestamps, details bool
	var tail, since, until string
	cmd := &cobra.Command{Use: "logs CONTAINER", Short: "Show what a container wrote", Args: cobra.ExactArgs(1)}
	fl := cmd.Flags()
	fl.BoolVarP(&follow, "follow", "f", false, "go on as more comes")
	fl.BoolVarP(&timestamps, "timestamps", "t", false, "put the time before each line")
	fl.BoolVar(&details, "details", false, "put labels and variables before each line that --log-opt labels and env name")
	fl.StringVarP(&tail, "tail", "n", "all", "number of last lines")
	fl.StringVar(&since, "since", "", "only from this time on (RFC 3339, unix seconds, or 10m ago)")
	fl.StringVar(&until, "until", "", "only up to this time")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		info, err := c.ContainerInspect(ctx, args[0])
		if err != nil {
			return err
		}
		q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {tail}}
		if follow {
			q.Set("follow", "1")
		}
		if timestamps {
			q.Set("timestamps", "1")
		}
		if details {
			q.Set("details", "1")
		}
		for k, v := range map[string]string{"since": since, "until": until} {
			if v != "" {
				t, err := unixTime(v)
				if err != nil {
					return err
				}
				q.Set(k, t)
			}
		}
		r, err := c.ContainerLogs(ctx, info.ID, q)
		if err != nil {
			return err
		}
		defer r.Close()
		if info.Config.Tty {
			_, err = io.Copy(a.out, r)
		} else {
			err = client.Demux(r, a.out, a.err)
		}
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	return cmd
}
