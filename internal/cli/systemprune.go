package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
	"proa/internal/filters"
)

// pruned is one kind of objects that system prune removes.
type pruned struct {
	heading, warning string
	list             *filters.List
	do               func(context.Context, *client.Client, client.Filters, bool) ([]string, uint64, error)
}

// systemKinds are the kinds in Docker's order, volumes where they are wanted.
func systemKinds(all, volumes bool) []pruned {
	images := "all dangling images"
	if all {
		images = "all images without at least one container associated to them"
	}
	kinds := []pruned{
		{"Deleted Containers:", "all stopped containers", &filters.ContainerPrune, func(ctx context.Context, c *client.Client, f client.Filters, _ bool) ([]string, uint64, error) {
			r, err := c.ContainerPrune(ctx, f)
			return r.ContainersDeleted, r.SpaceReclaimed, err
		}},
		{"Deleted Networks:", "all networks not used by at least one container", &filters.NetworkPrune, func(ctx context.Context, c *client.Client, f client.Filters, _ bool) ([]string, uint64, error) {
			r, err := c.NetworkPrune(ctx, f)
			return r.NetworksDeleted, 0, err
		}},
	}
	if volumes {
		kinds = append(kinds, pruned{"Deleted Volumes:", "all anonymous volumes not used by at least one container", &filters.VolumePrune, func(ctx context.Context, c *client.Client, f client.Filters, _ bool) ([]string, uint64, error) {
			r, err := c.VolumePrune(ctx, f)
			return r.VolumesDeleted, r.SpaceReclaimed, err
		}})
	}
	return append(kinds,
		pruned{"Deleted Images:", images, &filters.ImagePrune, pruneImages},
		pruned{"Deleted build cache objects:", "unused build cache", &filters.BuildPrune, func(ctx context.Context, c *client.Client, f client.Filters, all bool) ([]string, uint64, error) {
			r, err := c.BuildPrune(ctx, f, all)
			return r.CachesDeleted, r.SpaceReclaimed, err
		}})
}

func (a *app) systemPruneCmd() *cobra.Command {
	var force, all, volumes bool
	var wanted []string
	cmd := &cobra.Command{Use: "prune", Short: "Remove what nothing uses: containers, networks, images, build cache", Args: cobra.NoArgs}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all images that no container uses, not only those without a name")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "anonymous volumes as well")
	cmd.Flags().StringArrayVar(&wanted, "filter", nil, "only those that match KEY=VALUE (label, until)")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		kinds := systemKinds(all, volumes)
		for _, w := range wanted {
			if key, _, _ := strings.Cut(w, "="); volumes && strings.TrimSpace(key) == "until" {
				return errors.New(`ERROR: The "until" filter is not supported with "--volumes"`)
			}
		}
		if !force {
			question := "This will remove:\n"
			for _, k := range kinds {
				question += "  - " + k.warning + "\n"
			}
			if !a.ask(question + "Are you sure you want to continue?") {
				return failure.Hint(errors.New("nothing was removed"), "answer y, or give -f where nobody can answer")
			}
		}
		var total uint64
		for _, k := range kinds {
			f, err := parseFilters(k.list, wanted)
			if err != nil {
				return err
			}
			gone, bytes, err := k.do(ctx, c, f, all)
			if len(gone) > 0 {
				fmt.Fprintf(a.out, "%s\n%s\n\n", k.heading, strings.Join(gone, "\n"))
			}
			if err != nil {
				return err
			}
			total += bytes
		}
		fmt.Fprintf(a.out, "Total reclaimed space: %s\n", humanSize(int64(total)))
		return nil
	})
	return cmd
}
