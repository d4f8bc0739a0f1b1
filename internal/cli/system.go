package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/events"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/filters"
	"proa/internal/version"
)

func isStdoutTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(f)
}

func (a *app) versionCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of proa and of its engine", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			v, err := c.Version(ctx)
			if err != nil {
				return err
			}
			both := map[string]any{
				"Client": map[string]string{"Version": version.Version, "GoVersion": runtime.Version(), "Os": runtime.GOOS, "Arch": runtime.GOARCH},
				"Server": v,
			}
			if done, err := printFormatted(a.out, format, both); done {
				return err
			}
			fmt.Fprintf(a.out, "Client: %s (%s, %s/%s)\n", version.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			fmt.Fprintf(a.out, "Engine: %s (%s, %s/%s, kernel %s)\n", v.Version, v.GoVersion, v.Os, v.Arch, v.KernelVersion)
			fmt.Fprintf(a.out, "API:    %s (oldest understood: %s)\n", v.APIVersion, v.MinAPIVersion)
			return nil
		}),
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "json, or a Go template")
	return cmd
}

func (a *app) infoCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info", Short: "Show what the engine and its host are", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			i, err := c.Info(ctx)
			if err != nil {
				return err
			}
			if done, err := printFormatted(a.out, format, i); done {
				return err
			}
			var runtimes []string
			for r := range i.Runtimes {
				runtimes = append(runtimes, r)
			}
			sort.Strings(runtimes)
			w := tabwriter.NewWriter(a.out, 0, 1, 1, ' ', 0)
			defer w.Flush()
			line := func(k string, v any) { fmt.Fprintf(w, "%s:\t%v\n", k, v) }
			line("Engine", i.ServerVersion)
			line("Containers", fmt.Sprintf("%d (running %d, paused %d, stopped %d)", i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped))
			line("Images", i.Images)
			line("Image mounts", i.Driver)
			for _, kv := range i.DriverStatus {
				line(" "+kv[0], kv[1])
			}
			line("Walls", strings.Join(runtimes, ", ")+" (default "+i.DefaultRuntime+")")
			line("Cgroups", "v"+i.CgroupVersion+" ("+i.CgroupDriver+")")
			line("Security", strings.Join(i.SecurityOptions, ", "))
			line("Kernel", i.KernelVersion)
			line("System", i.OperatingSystem+", "+i.Architecture)
			line("CPUs", i.NCPU)
			line("Memory", units.BytesSize(float64(i.MemTotal)))
			line("Data root", i.DockerRootDir)
			for _, warn := range i.Warnings {
				line("Warning", warn)
			}
			return nil
		}),
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "json, or a Go template")
	return cmd
}

func (a *app) eventsCmd() *cobra.Command {
	var since, until, format string
	var wanted []string
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happens, as it happens", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			f, err := parseFilters(&filters.Events, wanted)
			if err != nil {
				return err
			}
			for _, t := range []*string{&since, &until} {
				if *t != "" {
					if *t, err = unixTime(*t); err != nil {
						return err
					}
				}
			}
			var failed error
			err = c.Events(ctx, since, until, f, func(m events.Message) {
				if err := printEvent(a.out, format, m); err != nil && failed == nil {
					failed = err
				}
			})
			if failed != nil {
				return failed
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&since, "since", "", "from this time on")
	cmd.Flags().StringVar(&until, "until", "", "up to this time, then end")
	cmd.Flags().StringVar(&format, "format", "", "json, or a Go template")
	cmd.Flags().StringArrayVarP(&wanted, "filter", "f", nil, "only those that match KEY=VALUE")
	return cmd
}

func printEvent(w io.Writer, format string, m events.Message) error {
	if done, err := printFormatted(w, format, m); done {
		return err
	}
	attrs := make([]string, 0, len(m.Actor.Attributes))
	for k, v := range m.Actor.Attributes {
		attrs = append(attrs, k+"="+v)
	}
	sort.Strings(attrs)
	tail := ""
	if len(attrs) > 0 {
		tail = " (" + strings.Join(attrs, ", ") + ")"
	}
	_, err := fmt.Fprintf(w, "%s %s %s %s%s\n", time.Unix(0, m.TimeNano).Format(time.RFC3339Nano), m.Type, m.Action, m.Actor.ID, tail)
	return err
}

func (a *app) systemCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "system", Short: "The engine as a whole"}
	df := &cobra.Command{
		Use: "df", Short: "Show what takes up disk", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			u, err := c.DiskUsage(ctx)
			if err != nil {
				return err
			}
			var rows []row
			add := func(kind string, total, active, size, reclaimable int64) {
				perc := int64(0)
				if size > 0 {
					perc = reclaimable * 100 / size
				}
				rows = append(rows, row{"Type": kind, "TotalCount": fmt.Sprint(total), "Active": fmt.Sprint(active), "Size": humanSize(size), "Reclaimable": fmt.Sprintf("%s (%d%%)", humanSize(reclaimable), perc)})
			}
			if i := u.ImageUsage; i != nil {
				add("Images", i.TotalCount, i.ActiveCount, i.TotalSize, i.Reclaimable)
			}
			if i := u.ContainerUsage; i != nil {
				add("Containers", i.TotalCount, i.ActiveCount, i.TotalSize, i.Reclaimable)
			}
			if i := u.VolumeUsage; i != nil {
				add("Local Volumes", i.TotalCount, i.ActiveCount, i.TotalSize, i.Reclaimable)
			}
			if i := u.BuildCacheUsage; i != nil {
				add("Build Cache", i.TotalCount, i.ActiveCount, i.TotalSize, i.Reclaimable)
			}
			return printRows(a.out, "", []column{{"Type", "TYPE"}, {"TotalCount", "TOTAL"}, {"Active", "ACTIVE"}, {"Size", "SIZE"}, {"Reclaimable", "RECLAIMABLE"}}, rows)
		}),
	}
	cmd.AddCommand(df, a.systemPruneCmd(), a.infoCmd(), a.eventsCmd())
	return cmd
}

// doctorCmd asks the engine what this host can do. An engine starts on any
// host that has namespaces and cgroups; what keeps it from starting is said by
// its log, whose end is part of that error.
func (a *app) doctorCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what works on this host, what does not, and the command that mends it", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			checks, err := c.Doctor(ctx)
			if err != nil {
				return err
			}
			return printChecks(a.out, format, checks)
		}),
	}
	cmd.Flags().StringVar(&format, "format", "", "json, or a Go template")
	return cmd
}

func printChecks(w io.Writer, format string, checks []client.Check) error {
	if format != "" {
		rows := make([]row, 0, len(checks))
		for _, c := range checks {
			rows = append(rows, row{"Name": c.Name, "State": c.State, "Detail": c.Detail, "Mend": c.Mend})
		}
		return printRows(w, format, []column{{"Name", "CHECK"}, {"State", "STATE"}, {"Detail", "DETAIL"}, {"Mend", "MEND"}}, rows)
	}
	tw := tabwriter.NewWriter(w, 0, 1, 2, ' ', 0)
	for _, c := range checks {
		mark := map[string]string{"yes": "ok", "no": "NO", "unknown": "?"}[c.State]
		line := fmt.Sprintf("%s\t%s\t%s", mark, c.Name, c.Detail)
		if c.Mend != "" {
			line += " -> " + c.Mend
		}
		fmt.Fprintln(tw, line)
	}
	return tw.Flush()
}
