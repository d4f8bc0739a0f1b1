package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
)

func (a *app) statsCmd() *cobra.Command {
	var all, noStream, noTrunc bool
	var format string
	cmd := &cobra.Command{Use: "stats [CONTAINER...]", Short: "Show what containers use, live"}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that do not run as well")
	cmd.Flags().BoolVar(&noStream, "no-stream", false, "one reading only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "whole ids")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a Go template")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		for {
			ids := args
			if len(ids) == 0 {
				list, err := c.ContainerList(ctx, all, false, 0, nil)
				if err != nil {
					return err
				}
				for _, s := range list {
					ids = append(ids, s.ID)
				}
			}
			rows, err := readStats(ctx, c, ids, noTrunc)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			if !noStream && isStdoutTerminal(a.out) {
				fmt.Fprint(a.out, "\033[H\033[2J")
			}
			if err := printRows(a.out, format, []column{
				{"ID", "CONTAINER ID"}, {"Name", "NAME"}, {"CPUPerc", "CPU %"}, {"MemUsage", "MEM USAGE / LIMIT"}, {"MemPerc", "MEM %"},
				{"NetIO", "NET I/O"}, {"BlockIO", "BLOCK I/O"}, {"PIDs", "PIDS"},
			}, rows); err != nil || noStream {
				return err
			}
		}
	})
	return cmd
}

// readStats asks for all readings at once; the engine takes one second for
// each to have a CPU figure.
func readStats(ctx context.Context, c *client.Client, ids []string, noTrunc bool) ([]row, error) {
	rows, errs := make([]row, len(ids)), make([]error, len(ids))
	done := make(chan struct{})
	for i, id := range ids {
		go func() {
			defer func() { done <- struct{}{} }()
			r, err := c.ContainerStats(ctx, id, false)
			if err != nil {
				errs[i] = err
				return
			}
			defer r.Close()
			var s container.StatsResponse
			if errs[i] = json.NewDecoder(r).Decode(&s); errs[i] == nil {
				rows[i] = statsRow(s, noTrunc)
			}
		}()
	}
	for range ids {
		<-done
	}
	return rows, errors.Join(errs...)
}

func statsRow(s container.StatsResponse, noTrunc bool) row {
	cpu := 0.0
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	if host := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage); host > 0 && used > 0 {
		cpu = used / host * float64(max(1, s.CPUStats.OnlineCPUs)) * 100
	}
	mem := s.MemoryStats.Usage
	for _, k := range []string{"total_inactive_file", "inactive_file"} {
		if v, ok := s.MemoryStats.Stats[k]; ok {
			if v < mem {
				mem -= v
			}
			break
		}
	}
	perc := 0.0
	if s.MemoryStats.Limit > 0 {
		perc = float64(mem) / float64(s.MemoryStats.Limit) * 100
	}
	var rx, tx, rd, wr uint64
	for _, n := range s.Networks {
		rx, tx = rx+n.RxBytes, tx+n.TxBytes
	}
	for _, b := range s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(b.Op) {
		case "read":
			rd += b.Value
		case "write":
			wr += b.Value
		}
	}
	id := s.ID
	if !noTrunc {
		id = shortID(id)
	}
	return row{
		"ID": id, "Container": id, "Name": strings.TrimPrefix(s.Name, "/"), "CPUPerc": fmt.Sprintf("%.2f%%", cpu),
		"MemUsage": units.BytesSize(float64(mem)) + " / " + units.BytesSize(float64(s.MemoryStats.Limit)), "MemPerc": fmt.Sprintf("%.2f%%", perc),
		"NetIO": humanSize(int64(rx)) + " / " + humanSize(int64(tx)), "BlockIO": humanSize(int64(rd)) + " / " + humanSize(int64(wr)),
		"PIDs": fmt.Sprint(s.PidsStats.Current),
	}
}
