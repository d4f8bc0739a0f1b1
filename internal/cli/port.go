package cli

import (
	"context"
	"fmt"
	"sort"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) portCmd() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTO]]", Short: "Show where a container's ports are published", Args: cobra.RangeArgs(1, 2),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			info, err := c.ContainerInspect(ctx, args[0])
			if err != nil {
				return err
			}
			var lines []string
			for port, bindings := range info.NetworkSettings.Ports {
				if len(args) == 2 && port.String() != args[1] && port.String() != args[1]+"/tcp" {
					continue
				}
				for _, b := range bindings {
					line := b.HostIP.String() + ":" + b.HostPort
					if b.HostIP.Is6() {
						line = "[" + b.HostIP.String() + "]:" + b.HostPort
					}
					if len(args) == 1 {
						line = port.String() + " -> " + line
					}
					lines = append(lines, line)
				}
			}
			if len(args) == 2 && len(lines) == 0 {
				return fmt.Errorf("port %s of %s is not published", args[1], args[0])
			}
			sort.Strings(lines)
			for _, l := range lines {
				fmt.Fprintln(a.out, l)
			}
			return nil
		}),
	}
}
