package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/filters"
)

func (a *app) networkCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "Networks"}
	cmd.AddCommand(a.networkLsCmd(), a.inspectOf("network", "inspect"),
		a.pruneCmd("networks that no container uses", &filters.NetworkPrune, func(ctx context.Context, c *client.Client, f client.Filters, _ bool) ([]string, uint64, error) {
			r, err := c.NetworkPrune(ctx, f)
			return r.NetworksDeleted, 0, err
		}, false))
	return cmd
}

func (a *app) networkLsCmd() *cobra.Command {
	var quiet, noTrunc bool
	var format string
	var wanted []string
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "whole ids")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a Go template")
	cmd.Flags().StringArrayVarP(&wanted, "filter", "f", nil, "only those that match KEY=VALUE")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		f, err := parseFilters(&filters.Networks, wanted)
		if err != nil {
			return err
		}
		list, err := c.NetworkList(ctx, f)
		if err != nil {
			return err
		}
		slices.SortFunc(list, func(a, b network.Summary) int { return strings.Compare(a.Name, b.Name) })
		rows := make([]row, 0, len(list))
		for _, n := range list {
			id := n.ID
			if !noTrunc {
				id = shortID(id)
			}
			if quiet {
				fmt.Fprintln(a.out, id)
				continue
			}
			labels := make([]string, 0, len(n.Labels))
			for k, v := range n.Labels {
				labels = append(labels, k+"="+v)
			}
			slices.Sort(labels)
			rows = append(rows, row{
				"ID": id, "Name": n.Name, "Driver": n.Driver, "Scope": n.Scope, "IPv4": strconv.FormatBool(n.EnableIPv4), "IPv6": strconv.FormatBool(n.EnableIPv6),
				"Internal": strconv.FormatBool(n.Internal), "Labels": strings.Join(labels, ","), "CreatedAt": n.Created.String(),
			})
		}
		if quiet {
			return nil
		}
		return printRows(a.out, format, []column{
			{"ID", "NETWORK ID"}, {"Name", "NAME"}, {"Driver", "DRIVER"}, {"Scope", "SCOPE"}, {"IPv4", "-IPV4"}, {"IPv6", "-IPV6"},
			{"Internal", "-INTERNAL"}, {"Labels", "-LABELS"}, {"CreatedAt", "-CREATED AT"},
		}, rows)
	})
	return cmd
}
