package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) topCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top CONTAINER [PS OPTIONS]", Short: "List the processes of a container", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			top, err := c.ContainerTop(ctx, args[0], strings.Join(args[1:], " "))
			if err != nil {
				return err
			}
			cols := make([]column, 0, len(top.Titles))
			for _, t := range top.Titles {
				cols = append(cols, column{strings.Map(letters, t), t})
			}
			rows := make([]row, 0, len(top.Processes))
			for _, p := range top.Processes {
				r := row{}
				for i, v := range p {
					if i < len(cols) {
						r[cols[i].key] = v
					}
				}
				rows = append(rows, r)
			}
			return printRows(a.out, "", cols, rows)
		}),
	}
	cmd.Flags().SetInterspersed(false) // what follows the container is for ps
	return cmd
}

// letters keeps what a template key may hold.
func letters(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
		return r
	}
	return 'x'
}
