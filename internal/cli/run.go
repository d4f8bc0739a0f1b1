package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) createCmd() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "create [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Make a container without starting it",
		Args:  needImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			id, err := a.create(cmd, c, &f, args, 1)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, id)
			return nil
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	var detach, sigProxy bool
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Make a container and run it: as a container, or with --vm as a virtual machine",
		Args:  needImage,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client(cmd.Context())
		if err != nil {
			return failure.Exit(125, err)
		}
		return a.run(cmd, c, &f, args, detach, sigProxy, detachKeys)
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "run in the background and print the id")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the process")
	cmd.Flags().StringVar(&detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave a terminal and keep the container")
	return cmd
}

func needImage(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return failure.Exit(125, failure.Hint(errors.New("no image given"), "proa run [flags] IMAGE [COMMAND]; `proa images` lists what is here"))
	}
	return nil
}

// create makes the container. Flags that cannot be read are an exit code of
// 125, everything else is code, which is 125 of docker run and 1 of create.
func (a *app) create(cmd *cobra.Command, c *client.Client, f *runFlags, args []string, code int) (string, error) {
	cfg, host, net, err := f.parse(cmd.Flags(), args)
	if err != nil {
		return "", failure.Exit(125, err)
	}
	if len(f.attach) > 0 {
		cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr = slices.Contains(f.attach, "stdin"), slices.Contains(f.attach, "stdout"), slices.Contains(f.attach, "stderr")
	}
	if f.cidfile != "" {
		if _, err := os.Stat(f.cidfile); err == nil {
			return "", failure.Exit(code, fmt.Errorf("cannot write the id: %q exists already, maybe of another run", f.cidfile))
		}
	}
	if f.pull == "always" {
		if err := a.pullFor(cmd.Context(), c, f, cfg.Image); err != nil {
			return "", failure.Exit(code, err)
		}
	}
	made, err := c.ContainerCreate(cmd.Context(), f.name, f.platform, cfg, host, net)
	if client.IsNotFound(err) && f.pull == "missing" && strings.HasPrefix(err.Error(), "No such image: ") {
		if !f.quiet {
			fmt.Fprintf(a.err, "Unable to find image '%s' locally\n", familiarTag(cfg.Image))
		}
		if err = a.pullFor(cmd.Context(), c, f, cfg.Image); err == nil {
			made, err = c.ContainerCreate(cmd.Context(), f.name, f.platform, cfg, host, net)
		}
	}
	if err != nil {
		if client.IsNotFound(err) && f.pull == "never" {
			err = failure.Hint(err, "leave out --pull never to fetch it from its registry, or bring it with `proa load -i FILE`; `proa images` lists what is here")
		}
		return "", failure.Exit(code, err)
	}
	for _, w := range made.Warnings {
		fmt.Fprintln(a.err, "warning:", w)
	}
	if f.cidfile != "" {
		if err := os.WriteFile(f.cidfile, []byte(made.ID), 0o644); err != nil {
			return "", failure.Exit(code, fmt.Errorf("cannot write the id: %w", err))
		}
	}
	return made.ID, nil
}

// pullFor fetches the image of a run; how that goes is no output of the run.
func (a *app) pullFor(ctx context.Context, c *client.Client, f *runFlags, image string) error {
	named, err := parseRef(image)
	if err != nil {
		return err
	}
	out := a.err
	if f.quiet {
		out = io.Discard
	}
	return a.pull(ctx, c, reference.TagNameOnly(named), f.platform, f.quiet, out)
}

// familiarTag is an image's name as people write it, with its tag.
func familiarTag(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

// run is create, attach, wait, start, in that order, so that neither the first
// byte nor the exit can be missed.
func (a *app) run(cmd *cobra.Command, c *client.Client, f *runFlags, args []string, detach, sigProxy bool, detachKeys string) error {
	ctx := context.WithoutCancel(cmd.Context())
	if detach && len(f.attach) > 0 {
		return failure.Exit(125, errors.New("cannot use -d together with -a"))
	}
	keys, err := parseDetachKeys(detachKeys)
	if err != nil {
		return failure.Exit(125, err)
	}
	if f.tty && f.interactive && !detach && !isTerminal(a.in) {
		return failure.Exit(125, failure.Hint(errors.New("cannot give a terminal: standard input is not one"), "leave out -t"))
	}
	id, err := a.create(cmd, c, f, args, 125)
	if err != nil {
		return err
	}
	if detach {
		if err := c.ContainerStart(ctx, id); err != nil {
			return startFailed(err)
		}
		fmt.Fprintln(a.out, id)
		return nil
	}
	want := func(name string, otherwise bool) bool {
		if len(f.attach) == 0 {
			return otherwise
		}
		return slices.Contains(f.attach, name)
	}
	s := &session{
		app: a, c: c, tty: f.tty, keys: keys,
		stdin: f.interactive && want("stdin", true), stdout: want("stdout", true), stderr: want("stderr", true),
		resize: func(rows, cols int) { _ = c.ContainerResize(ctx, id, rows, cols) },
	}
	conn, err := c.ContainerAttach(ctx, id, s.stdin, s.stdout, s.stderr, false)
	if err != nil {
		return failure.Exit(125, err)
	}
	defer conn.Close()
	cond := container.WaitConditionNextExit
	if f.rm {
		cond = container.WaitConditionRemoved
	}
	wait, err := c.ContainerWait(ctx, id, cond)
	if err != nil {
		return failure.Exit(125, err)
	}
	if sigProxy {
		defer a.forwardSignals(func(sig string) { _ = c.ContainerKill(ctx, id, sig) }, f.tty)()
	}
	if err := s.begin(conn); err != nil {
		return failure.Exit(125, err)
	}
	defer s.restore()
	if err := c.ContainerStart(ctx, id); err != nil {
		s.restore()
		if f.rm {
			_ = c.ContainerRemove(ctx, id, true, true)
		}
		return startFailed(err)
	}
	s.sizeTerminal()
	detached, err := s.end()
	s.restore()
	if detached {
		return nil
	}
	if err != nil {
		return failure.Exit(125, fmt.Errorf("the connection to the container broke: %w", err))
	}
	r, err := wait()
	if err != nil {
		return failure.Exit(125, fmt.Errorf("cannot learn how the container ended: %w", err))
	}
	if r.Error != nil && r.Error.Message != "" {
		return failure.Exit(125, errors.New(r.Error.Message))
	}
	if r.StatusCode != 0 {
		return failure.Exit(int(r.StatusCode), nil)
	}
	return nil
}

// startFailed gives Docker's exit codes: 127 no such command, 126 a command
// that cannot be run, 125 anything else. The engine says which.
func startFailed(err error) error {
	code := 125
	var api *client.APIError
	if errors.As(err, &api) && api.ExitCode != 0 {
		code = api.ExitCode
	}
	return failure.Exit(code, err)
}
