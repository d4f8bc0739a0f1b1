package cli

import (
	"context"

	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/filters"
)

// many is a command that does one thing to each named container.
func (a *app) many(use, short string, do func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " CONTAINER...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return a.each(args, func(id string) error { return do(ctx, c, id) })
		}),
	}
}

// containerCmd holds Docker's long forms.
func (a *app) containerCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "container", Short: "Containers, by the long names of the commands"}
	ls := a.psCmd()
	ls.Use, ls.Aliases = "ls", []string{"list", "ps"}
	cmd.AddCommand(a.runCmd(), a.createCmd(), a.startCmd(), a.stopCmd(), a.restartCmd(), a.killCmd(), a.pauseCmd(), a.unpauseCmd(), a.rmCmd(),
		a.renameCmd(), a.waitCmd(), a.attachCmd(), a.execCmd(), a.logsCmd(), a.topCmd(), a.statsCmd(), a.portCmd(), ls,
		a.cpCmd(), a.updateCmd(), a.commitCmd(), a.diffCmd(), a.exportCmd(),
		a.inspectOf("container", "inspect"), a.pruneCmd("containers that do not run", &filters.ContainerPrune, func(ctx context.Context, c *client.Client, f client.Filters, _ bool) ([]string, uint64, error) {
			r, err := c.ContainerPrune(ctx, f)
			return r.ContainersDeleted, r.SpaceReclaimed, err
		}, false))
	return cmd
}
