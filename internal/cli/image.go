package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/image"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
	"proa/internal/filters"
)

func (a *app) imagesCmd() *cobra.Command {
	var all, quiet, noTrunc, digests, tree bool
	var format string
	var wanted []string
	cmd := &cobra.Command{Use: "images [NAME[:TAG]]", Short: "List images", Args: cobra.MaximumNArgs(1)}
	fl := cmd.Flags()
	fl.BoolVarP(&all, "all", "a", false, "those without a name as well")
	fl.BoolVarP(&quiet, "quiet", "q", false, "ids only")
	fl.BoolVar(&noTrunc, "no-trunc", false, "whole ids")
	fl.BoolVar(&digests, "digests", false, "show digests")
	fl.BoolVar(&tree, "tree", false, "show the platforms of each image below it")
	fl.StringVar(&format, "format", "", "table, json, or a Go template")
	fl.StringArrayVarP(&wanted, "filter", "f", nil, "only those that match KEY=VALUE")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if tree && (quiet || noTrunc || digests || format != "") {
			return errors.New("--tree cannot be given together with --quiet, --no-trunc, --digests or --format")
		}
		f, err := parseFilters(&filters.Images, wanted)
		if err != nil {
			return err
		}
		if len(args) == 1 {
			f["reference"] = append(f["reference"], args[0])
		}
		list, err := c.ImageList(ctx, all, tree, f)
		if err != nil {
			return err
		}
		if tree {
			return printTree(a.out, list)
		}
		var rows []row
		for _, s := range list {
			id := s.ID
			if !noTrunc {
				id = shortID(id)
			}
			if quiet {
				fmt.Fprintln(a.out, id)
				continue
			}
			names := s.RepoTags
			if len(names) == 0 {
				names = []string{"<none>:<none>"}
				if len(s.RepoDigests) > 0 { // pulled by its digest
					repo, _, _ := strings.Cut(s.RepoDigests[0], "@")
					names = []string{repo + ":<none>"}
				}
			}
			digest := "<none>"
			if len(s.RepoDigests) > 0 {
				_, digest, _ = strings.Cut(s.RepoDigests[0], "@")
			}
			for _, n := range names {
				cut := strings.LastIndex(n, ":")
				rows = append(rows, row{
					"Repository": n[:cut], "Tag": n[cut+1:], "ID": id, "Digest": digest, "CreatedSince": ago(s.Created),
					"CreatedAt": unixString(s.Created), "Size": humanSize(s.Size), "Containers": fmt.Sprint(s.Containers),
				})
			}
		}
		if quiet {
			return nil
		}
		heading := "-DIGEST"
		if digests {
			heading = "DIGEST"
		}
		return printRows(a.out, format, []column{
			{"Repository", "REPOSITORY"}, {"Tag", "TAG"}, {"Digest", heading}, {"ID", "IMAGE ID"}, {"CreatedSince", "CREATED"}, {"Size", "SIZE"},
			{"CreatedAt", "-CREATED AT"}, {"Containers", "-CONTAINERS"},
		}, rows)
	})
	return cmd
}

// printTree lists images with the platforms that they have, here or not.
func printTree(w io.Writer, list []image.Summary) error {
	var rows []row
	for _, s := range list {
		name := "<untagged>"
		if len(s.RepoTags) > 0 {
			name = strings.Join(s.RepoTags, ", ")
		}
		rows = append(rows, row{"Image": name, "ID": shortID(s.ID), "Disk": humanSize(s.Size), "Content": ""})
		for _, m := range s.Manifests {
			if m.Kind != image.ManifestKindImage || m.ImageData == nil {
				continue
			}
			r := row{"Image": "  " + platforms.Format(m.ImageData.Platform), "ID": shortID(m.ID), "Disk": "not here", "Content": ""}
			if m.Available {
				r["Disk"], r["Content"] = humanSize(m.Size.Total), humanSize(m.Size.Content)
			}
			rows = append(rows, r)
		}
	}
	return printRows(w, "", []column{{"Image", "IMAGE"}, {"ID", "ID"}, {"Disk", "DISK USAGE"}, {"Content", "CONTENT SIZE"}}, rows)
}

func (a *app) loadCmd() *cobra.Command {
	var input string
	var quiet bool
	var platform []string
	cmd := &cobra.Command{
		Use: "load", Short: "Load images from an archive (docker archive or OCI layout, plain, gzip or zstd)", Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			in := io.Reader(a.in)
			if input != "" {
				f, err := os.Open(input)
				if err != nil {
					return fmt.Errorf("cannot load: %w", err)
				}
				defer f.Close()
				in = f
			} else if isTerminal(a.in) {
				return failure.Hint(errors.New("cannot load: standard input is a terminal"), "proa load -i FILE, or proa load < FILE")
			}
			return c.ImageLoad(ctx, in, func(p client.Progress) {
				if p.Stream != "" && !quiet {
					fmt.Fprint(a.out, p.Stream)
				}
			}, platform...)
		}),
	}
	cmd.Flags().StringSliceVar(&platform, "platform", nil, "take these platforms alone, os/arch[/variant]")
	cmd.Flags().StringVarP(&input, "input", "i", "", "file to read instead of standard input")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	return cmd
}

func (a *app) saveCmd() *cobra.Command {
	var output string
	var platform []string
	cmd := &cobra.Command{
		Use: "save IMAGE...", Short: "Write images to an archive that is both a docker archive and an OCI layout", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			if output == "" && isStdoutTerminal(a.out) {
				return failure.Hint(errors.New("cannot save: standard output is a terminal"), "proa save -o FILE IMAGE, or proa save IMAGE > FILE")
			}
			r, err := c.ImageSave(ctx, args, platform...)
			if err != nil {
				return err
			}
			defer r.Close()
			if output == "" {
				_, err = io.Copy(a.out, r)
				return err
			}
			if err := writeWhole(output, r); err != nil {
				return fmt.Errorf("cannot save to %q: %w", output, err)
			}
			return nil
		}),
	}
	cmd.Flags().StringSliceVar(&platform, "platform", nil, "write these platforms alone, os/arch[/variant]")
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write instead of standard output")
	return cmd
}

// writeWhole writes a file beside its name and renames it: never half a file
// under that name.
func writeWhole(name string, r io.Reader) error {
	tmp := name + ".partial"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return failure.Hint(fmt.Errorf("there is no directory %q", filepath.Dir(name)), "mkdir -p "+filepath.Dir(name))
	} else if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

func (a *app) importCmd() *cobra.Command {
	var changes []string
	var message, platform string
	cmd := &cobra.Command{
		Use: "import FILE|- [NAME[:TAG]]", Short: "Make an image of a root file system tar", Args: cobra.RangeArgs(1, 2),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			in := io.Reader(a.in)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("cannot import: %w", err)
				}
				defer f.Close()
				in = f
			}
			name, tag := "", ""
			if len(args) == 2 {
				name, tag = splitTag(args[1])
			}
			return c.ImageImport(ctx, in, name, tag, message, platform, changes, func(p client.Progress) {
				if p.Status != "" {
					fmt.Fprintln(a.out, p.Status)
				}
			})
		}),
	}
	cmd.Flags().StringArrayVarP(&changes, "change", "c", nil, "a Dockerfile instruction to apply (CMD, ENV, EXPOSE, ...)")
	cmd.Flags().StringVarP(&message, "message", "m", "", "comment in the image's history")
	cmd.Flags().StringVar(&platform, "platform", "", "platform of the image, os/arch[/variant]")
	return cmd
}

// splitTag parts NAME:TAG; a colon before a slash belongs to a registry's port.
func splitTag(ref string) (name, tag string) {
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		return ref[:i], ref[i+1:]
	}
	return ref, ""
}

func (a *app) tagCmd() *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME[:TAG]", Short: "Give an image one more name", Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			name, tag := splitTag(args[1])
			return c.ImageTag(ctx, args[0], name, tag)
		}),
	}
}

func (a *app) rmiCmd() *cobra.Command {
	var force, noPrune bool
	var platform []string
	cmd := &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove names of images, and images without a name", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			failed := false
			for _, ref := range args {
				gone, err := c.ImageRemove(ctx, ref, force, noPrune, platform...)
				for _, g := range gone {
					if g.Untagged != "" {
						fmt.Fprintln(a.out, "Untagged:", g.Untagged)
					}
					if g.Deleted != "" {
						fmt.Fprintln(a.out, "Deleted:", g.Deleted)
					}
				}
				if err != nil {
					failure.Report(a.err, "proa", err)
					failed = failed || !force || !client.IsNotFound(err) // as docker rmi -f
				}
			}
			if failed {
				return failure.Exit(1, nil)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove it even when stopped containers use it")
	cmd.Flags().StringSliceVar(&platform, "platform", nil, "remove these platforms of the image alone, os/arch[/variant]")
	cmd.Flags().BoolVar(&noPrune, "no-prune", false, "keep parents without a name")
	return cmd
}

func (a *app) historyCmd() *cobra.Command {
	var quiet, noTrunc, human bool
	var format, platform string
	cmd := &cobra.Command{Use: "history IMAGE", Short: "Show the steps an image was made of", Args: cobra.ExactArgs(1)}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "ids only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "whole commands and ids")
	cmd.Flags().StringVar(&platform, "platform", "", "show the image for this platform, os/arch[/variant]")
	cmd.Flags().BoolVar(&human, "human", true, "sizes and times for people")
	cmd.Flags().StringVar(&format, "format", "", "table, json, or a Go template")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		steps, err := c.ImageHistory(ctx, args[0], platform)
		if err != nil {
			return err
		}
		var rows []row
		for _, s := range steps {
			by, id := strings.ReplaceAll(s.CreatedBy, "\t", " "), s.ID
			if r := []rune(by); !noTrunc && len(r) > 45 {
				by = string(r[:44]) + "…"
			}
			if !noTrunc && id != "<missing>" {
				id = shortID(id)
			}
			size := fmt.Sprint(s.Size)
			if human {
				size = humanSize(s.Size)
			}
			if quiet {
				fmt.Fprintln(a.out, id)
				continue
			}
			rows = append(rows, row{"ID": id, "CreatedSince": ago(s.Created), "CreatedAt": time.Unix(s.Created, 0).Format(time.RFC3339), "CreatedBy": by, "Size": size, "Comment": s.Comment})
		}
		if quiet {
			return nil
		}
		since, at := "CREATED", "-CREATED AT"
		if !human {
			since, at = "-CREATED", "CREATED AT"
		}
		return printRows(a.out, format, []column{{"ID", "IMAGE"}, {"CreatedSince", since}, {"CreatedAt", at}, {"CreatedBy", "CREATED BY"}, {"Size", "SIZE"}, {"Comment", "COMMENT"}}, rows)
	})
	return cmd
}

func (a *app) imageCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Images, by the long names of the commands"}
	ls, rm := a.imagesCmd(), a.rmiCmd()
	ls.Use, ls.Aliases = "ls [NAME[:TAG]]", []string{"list"}
	rm.Use, rm.Aliases = "rm IMAGE...", []string{"remove"}
	cmd.AddCommand(ls, rm, a.pullCmd(), a.pushCmd(), a.loadCmd(), a.saveCmd(), a.importCmd(), a.tagCmd(), a.historyCmd(), a.inspectOf("image", "inspect"),
		a.pruneCmd("images without a name", &filters.ImagePrune, pruneImages, true))
	return cmd
}

// pruneImages removes images without a name, or all that no container uses.
func pruneImages(ctx context.Context, c *client.Client, f client.Filters, all bool) ([]string, uint64, error) {
	if all {
		if f == nil {
			f = client.Filters{}
		}
		f["dangling"] = []string{"false"}
	}
	r, err := c.ImagePrune(ctx, f)
	var lines []string
	for _, d := range r.ImagesDeleted {
		if d.Untagged != "" {
			lines = append(lines, "untagged: "+d.Untagged)
		} else {
			lines = append(lines, "deleted: "+d.Deleted)
		}
	}
	return lines, r.SpaceReclaimed, err
}

// pruneCmd removes what is not used, after asking a person.
func (a *app) pruneCmd(what string, of *filters.List, do func(context.Context, *client.Client, client.Filters, bool) ([]string, uint64, error), hasAll bool) *cobra.Command {
	var force, all bool
	var wanted []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all " + what, Args: cobra.NoArgs,
		RunE: a.withClient(func(ctx context.Context, c *client.Client, _ []string) error {
			if !force && !a.ask("This removes all "+what+". Go on?") {
				return failure.Hint(errors.New("nothing was removed"), "answer y, or give -f where nobody can answer")
			}
			f, err := parseFilters(of, wanted)
			if err != nil {
				return err
			}
			gone, bytes, err := do(ctx, c, f, all)
			for _, g := range gone {
				fmt.Fprintln(a.out, g)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "Total reclaimed space: %s\n", humanSize(int64(bytes)))
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().StringArrayVar(&wanted, "filter", nil, "only those that match KEY=VALUE")
	if hasAll {
		cmd.Flags().BoolVarP(&all, "all", "a", false, "everything that nothing uses, not only what has no name")
	}
	return cmd
}

// ask puts a yes-or-no question; anything but y is no.
func (a *app) ask(question string) bool {
	fmt.Fprint(a.err, question+" [y/N] ")
	var answer string
	if _, err := fmt.Fscanln(a.in, &answer); err != nil {
		fmt.Fprintln(a.err)
	}
	return strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes")
}

func unixString(t int64) string { return time.Unix(t, 0).Format("2006-01-02 15:04:05 -0700 MST") }

// unixTime reads a point in time as the API takes it: unix seconds with a
// fraction. A duration means that long ago.
func unixTime(s string) (string, error) {
	if d, err := time.ParseDuration(s); err == nil {
		t := time.Now().Add(-d)
		return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()), nil
		}
	}
	var n json.Number
	if json.Unmarshal([]byte(s), &n) == nil {
		return s, nil
	}
	return "", fmt.Errorf("cannot read time %q: use RFC 3339, unix seconds, or a duration such as 10m", s)
}
