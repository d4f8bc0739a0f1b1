package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) commitCmd() *cobra.Command {
	var o client.CommitOptions
	pause, noPause := true, false
	cmd := &cobra.Command{Use: "commit CONTAINER [NAME[:TAG]]", Short: "Make an image of a container and what it has written", Args: cobra.RangeArgs(1, 2)}
	fl := cmd.Flags()
	fl.StringVarP(&o.Author, "author", "a", "", "who made it: \"Ada Lovelace <ada@example.org>\"")
	fl.StringArrayVarP(&o.Changes, "change", "c", nil, "a Dockerfile instruction to apply (CMD, ENV, EXPOSE, ...)")
	fl.StringVarP(&o.Message, "message", "m", "", "comment in the image's history")
	fl.BoolVarP(&pause, "pause", "p", true, "hold the container's processes still meanwhile; --pause=false lets them run")
	fl.BoolVar(&noPause, "no-pause", false, "the same as --pause=false")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if len(args) == 2 {
			o.Repo, o.Tag = splitTag(args[1])
		}
		if o.NoPause = noPause || !pause; noPause && fl.Changed("pause") && pause {
			return errors.New("--pause and --no-pause contradict each other: give one of them")
		}
		id, err := c.ContainerCommit(ctx, args[0], o)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.out, id)
		return nil
	})
	return cmd
}

func (a *app) diffCmd() *cobra.Command {
	return &cobra.Command{
		Use: "diff CONTAINER", Short: "List what a container has added (A), changed (C) and deleted (D)", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.ContainerChanges(ctx, args[0])
			if err != nil {
				return err
			}
			letters := map[container.ChangeType]string{container.ChangeModify: "C", container.ChangeAdd: "A", container.ChangeDelete: "D"}
			for _, f := range list {
				path := f.Path
				if isStdoutTerminal(a.out) {
					path = failure.Visible(path, "")
				}
				fmt.Fprintln(a.out, letters[f.Kind], path)
			}
			return nil
		}),
	}
}

func (a *app) exportCmd() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "export CONTAINER", Short: "Write all files of a container as a tar", Args: cobra.ExactArgs(1)}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file to write instead of standard output")
	cmd.RunE = a.withClient(func(ctx context.Context, c *client.Client, args []string) error {
		if output == "" && isStdoutTerminal(a.out) {
			return failure.Hint(errors.New("cannot export: standard output is a terminal"), "proa export -o FILE CONTAINER, or proa export CONTAINER > FILE")
		}
		r, err := c.ContainerExport(ctx, args[0])
		if err != nil {
			return err
		}
		defer r.Close()
		if output == "" {
			_, err := io.Copy(a.out, r)
			return err
		}
		if err := writeWhole(output, r); err != nil {
			return fmt.Errorf("cannot export to %q: %w", output, err)
		}
		return nil
	})
	return cmd
}
