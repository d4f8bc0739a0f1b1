package cli

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/filters"
)

func (a *app) psCmd() *cobra.Command {
	var all, quiet, noTrunc, size, latest bool
	var last int
	var format string
	var wanted []string
	cmd := &cobra.Command{Use: "ps", Short: "List containers, whichever wall they are behind", Args: cobra.NoArgs}
	fl := cmd.Flags()
	fl.BoolVarP(&all, "all", "a", false, "those that do not run as well")
	fl.BoolVarP(&quiet, "quiet", "q", false, "ids only")
	fl.BoolVar(&noTrunc, "no-trunc", false, "whole ids and commands")
	fl.BoolVarP(&size, "size", "s", false, "what each wrote on disk")
	fl.BoolVarP(&latest, "latest", "l", false, "the one made last")
	fl.IntVarP(&last, "last", "n", 0, "the last N made")
	fl.StringVar(&format, "format", "", "table, json, or a Go template")
	fl.StringArrayVarP(&wanted, "filter", "f", nil, "only those that match KEY=VALUE")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
		f, err := parseFilters(&filters.Containers, wanted)
		if err != nil {
			return err
		}
		if latest {
			last = 1
		}
		list, err := c.ContainerList(ctx, all || last > 0, size, last, f)
		if err != nil {
			return err
		}
		rows := make([]row, 0, len(list))
		for _, s := range list {
			rows = append(rows, containerRow(s, noTrunc))
		}
		if quiet {
			for _, r := range rows {
				fmt.Fprintln(a.out, r["ID"])
			}
			return nil
		}
		cols := []column{
			{"ID", "CONTAINER ID"}, {"Image", "IMAGE"}, {"Isolation", "WALL"}, {"Command", "COMMAND"}, {"RunningFor", "CREATED"},
			{"Status", "STATUS"}, {"Ports", "PORTS"}, {"Names", "NAMES"},
			{"State", "-STATE"}, {"Labels", "-LABELS"}, {"CreatedAt", "-CREATED AT"}, {"Networks", "-NETWORKS"}, {"Mounts", "-MOUNTS"},
		}
		sizeHeading := "-SIZE"
		if size {
			sizeHeading = "SIZE"
		}
		return printRows(a.out, format, append(cols, column{"Size", sizeHeading}), rows)
	})
	return cmd
}

func containerRow(s client.Summary, noTrunc bool) row {
	id, command := s.ID, s.Command
	if !noTrunc {
		id = shortID(id)
		if r := []rune(command); len(r) > 20 {
			command = string(r[:19]) + "…"
		}
	}
	names := make([]string, 0, len(s.Names))
	for _, n := range s.Names {
		names = append(names, strings.TrimPrefix(n, "/"))
	}
	labels := make([]string, 0, len(s.Labels))
	for k, v := range s.Labels {
		labels = append(labels, k+"="+v)
	}
	sort.Strings(labels)
	var nets, mounts []string
	if s.NetworkSettings != nil {
		for n := range s.NetworkSettings.Networks {
			nets = append(nets, n)
		}
		sort.Strings(nets)
	}
	for _, m := range s.Mounts {
		if m.Name != "" {
			mounts = append(mounts, m.Name)
		} else {
			mounts = append(mounts, m.Source)
		}
	}
	wall := s.Proa.Isolation
	if wall == "" {
		wall = "container"
	}
	image := s.Image
	if strings.HasPrefix(image, "sha256:") && !noTrunc {
		image = shortID(image)
	}
	return row{
		"ID": id, "Image": image, "Isolation": wall, "Command": fmt.Sprintf("%q", command), "RunningFor": ago(s.Created),
		"CreatedAt": unixString(s.Created), "Status": s.Status, "State": string(s.State), "Ports": portList(s.Ports),
		"Names": strings.Join(names, ","), "Labels": strings.Join(labels, ","), "Networks": strings.Join(nets, ","), "Mounts": strings.Join(mounts, ","),
		"Size": humanSize(s.SizeRw) + " (virtual " + humanSize(s.SizeRootFs) + ")",
	}
}

// portList is Docker's column: 0.0.0.0:8080->80/tcp, 443/tcp.
func portList(ports []container.PortSummary) string {
	out := make([]string, 0, len(ports))
	for _, p := range ports {
		s := fmt.Sprintf("%d/%s", p.PrivatePort, p.Type)
		if p.PublicPort != 0 {
			ip := p.IP.String()
			if p.IP.Is6() {
				ip = "[" + ip + "]"
			}
			s = fmt.Sprintf("%s:%d->%s", ip, p.PublicPort, s)
		}
		out = append(out, s)
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}
