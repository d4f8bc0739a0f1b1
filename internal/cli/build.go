package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/build"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
	"proa/internal/filters"
)

// buildCmd becomes the program proa-build: the client that talks to BuildKit
// is large, and nothing else of the command line needs it.
func (a *app) buildCmd() *cobra.Command {
	return &cobra.Command{
		Use:                "build [flags] PATH | URL | -",
		Short:              "Build an image from a Dockerfile",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			bin, err := beside("proa-build")
			if err != nil {
				return err
			}
			if a.hostFlag = hostIn(args); !slices.Contains(args, "--help") {
				if _, err := a.client(cmd.Context()); err != nil { // starts an engine where none was chosen
					return err
				}
			}
			argv := append([]string{"proa-build", "build"}, args...)
			if err := syscall.Exec(bin, argv, os.Environ()); err != nil {
				return fmt.Errorf("cannot run %s: %w", bin, err)
			}
			return nil
		},
	}
}

// hostIn finds the engine's address among arguments that are parsed later.
func hostIn(args []string) string {
	for i, a := range args {
		switch {
		case a == "--":
			return ""
		case (a == "-H" || a == "--host") && i+1 < len(args):
			return args[i+1]
		case strings.HasPrefix(a, "--host="):
			return strings.TrimPrefix(a, "--host=")
		case strings.HasPrefix(a, "-H") && len(a) > 2:
			return strings.TrimPrefix(a[2:], "=")
		}
	}
	return ""
}

// beside finds a program of this installation beside this one, else on the path.
func beside(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(self), name); isFile(p) {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", failure.Hint(fmt.Errorf("%s is neither beside proa nor on the path", name), "make build puts the programs into bin/")
	}
	return p, nil
}

func (a *app) builderCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "builder", Short: "The build cache"}
	cmd.AddCommand(a.builderPruneCmd(), a.builderUsageCmd(), a.buildCmd())
	return cmd
}

func (a *app) builderPruneCmd() *cobra.Command {
	return a.pruneCmd("build cache that no build uses", &filters.BuildPrune, func(ctx context.Context, c *client.Client, f client.Filters, all bool) ([]string, uint64, error) {
		r, err := c.BuildPrune(ctx, f, all)
		return r.CachesDeleted, r.SpaceReclaimed, err
	}, true)
}

func (a *app) builderUsageCmd() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "df", Aliases: []string{"du"}, Short: "Show what the build cache holds", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			u, err := c.DiskUsage(ctx)
			if err != nil {
				return err
			}
			if u.BuildCacheUsage == nil {
				return nil
			}
			items := u.BuildCacheUsage.Items
			slices.SortFunc(items, func(a, b build.CacheRecord) int { return cmp.Compare(b.Size, a.Size) })
			rows := make([]row, 0, len(items))
			shared := int64(0)
			for _, r := range items {
				if r.Shared {
					shared += r.Size
				}
				last := "never"
				if r.LastUsedAt != nil {
					last = ago(r.LastUsedAt.Unix())
				}
				rows = append(rows, row{
					"ID": r.ID, "Type": r.Type, "Size": humanSize(r.Size), "UsageCount": fmt.Sprint(r.UsageCount), "LastUsed": last,
					"InUse": fmt.Sprint(r.InUse), "Shared": fmt.Sprint(r.Shared), "Description": firstLine(r.Description),
				})
			}
			cols := []column{{"ID", "ID"}, {"Type", "TYPE"}, {"Size", "SIZE"}, {"UsageCount", "USED"}, {"LastUsed", "LAST USED"}, {"Description", "DESCRIPTION"}}
			if err := printRows(a.out, format, cols, rows); err != nil || format != "" {
				return err
			}
			fmt.Fprintf(a.out, "Total: %s, reclaimable: %s", humanSize(u.BuildCacheUsage.TotalSize), humanSize(u.BuildCacheUsage.Reclaimable))
			if shared > 0 {
				fmt.Fprintf(a.out, "; %s more belong to images", humanSize(shared))
			}
			fmt.Fprintln(a.out)
			return nil
		}),
	}
	cmd.Flags().StringVar(&format, "format", "", "json, or a Go template")
	return cmd
}

// firstLine is the beginning of a text that fits into a column.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return s
}
