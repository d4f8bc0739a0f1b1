package cli

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/filters"
)

func (a *app) volumeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "Named volumes"}
	cmd.AddCommand(a.volumeCreateCmd(), a.volumeLsCmd(), a.volumeRmCmd(), a.inspectOf("volume", "inspect"),
		a.pruneCmd("volumes without a name that no container uses", &filters.VolumePrune, func(ctx context.Context, c *client.Client, f client.Filters, all bool) ([]string, uint64, error) {
			if all {
				f["all"] = []string{"true"}
			}
			r, err := c.VolumePrune(ctx, f)
			return r.VolumesDeleted, r.SpaceReclaimed, err
		}, true))
	return cmd
}

func (a *app) volumeCreateCmd() *cobra.Command {
	var driver string
	var labels, opts []string
	cmd := &cobra.Command{
		Use: "create [NAME]", Short: "Make a volume", Args: cobra.MaximumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			r := volume.CreateRequest{Driver: driver}
			var err error
			if r.Labels, err = keyValues("--label", labels, true); err != nil {
				return err
			}
			if r.DriverOpts, err = keyValues("--opt", opts, false); err != nil {
				return err
			}
			if len(args) == 1 {
				r.Name = args[0]
			}
			v, err := c.VolumeCreate(ctx, r)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, v.Name)
			return nil
		}),
	}
	cmd.Flags().StringVarP(&driver, "driver", "d", "local", "volume driver")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "set a label")
	cmd.Flags().StringArrayVarP(&opts, "opt", "o", nil, "option of the driver")
	return cmd
}

func (a *app) volumeLsCmd() *cobra.Command {
	var quiet bool
	var format string
	var wanted []string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List volumes", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			f, err := parseFilters(&filters.Volumes, wanted)
			if err != nil {
				return err
			}
			list, err := c.VolumeList(ctx, f)
			if err != nil {
				return err
			}
			var rows []row
			for _, v := range list {
				if quiet {
					fmt.Fprintln(a.out, v.Name)
				}
				rows = append(rows, row{"Driver": v.Driver, "Name": v.Name, "Mountpoint": v.Mountpoint, "Scope": v.Scope})
			}
			if quiet {
				return nil
			}
			return printRows(a.out, format, []column{{"Driver", "DRIVER"}, {"Name", "VOLUME NAME"}, {"Mountpoint", "-MOUNTPOINT"}, {"Scope", "-SCOPE"}}, rows)
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a Go template")
	cmd.Flags().StringArrayVarP(&wanted, "filter", "f", nil, "only those that match KEY=VALUE")
	return cmd
}

func (a *app) volumeRmCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove volumes", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			return a.each(args, func(name string) error { return c.VolumeRemove(ctx, name, force) })
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "no error when it does not exist")
	return cmd
}
