package cli

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) attachCmd() *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	cmd := &cobra.Command{
		Use: "attach CONTAINER", Short: "Connect to a running container's main process", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			return a.attachTo(context.WithoutCancel(cmd.Context()), c, args[0], !noStdin, false, keys, sigProxy)
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not connect standard input")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the process")
	cmd.Flags().StringVar(&keys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave a terminal")
	return cmd
}

// attachTo joins the main process, starting it first where asked.
func (a *app) attachTo(ctx context.Context, c *client.Client, id string, stdin, start bool, detachKeys string, sigProxy bool) error {
	keys, err := parseDetachKeys(detachKeys)
	if err != nil {
		return err
	}
	info, err := c.ContainerInspect(ctx, id)
	if err != nil {
		return err
	}
	if !start && !info.State.Running {
		return failure.Hint(fmt.Errorf("cannot attach to %q: it is not running", id), "proa start -a "+id)
	}
	s := &session{
		app: a, c: c, tty: info.Config.Tty, keys: keys,
		stdin: stdin && info.Config.OpenStdin, stdout: true, stderr: true,
		resize: func(rows, cols int) { _ = c.ContainerResize(ctx, info.ID, rows, cols) },
	}
	conn, err := c.ContainerAttach(ctx, info.ID, s.stdin, true, true, false)
	if err != nil {
		return err
	}
	defer conn.Close()
	cond := container.WaitConditionNotRunning
	if start {
		cond = container.WaitConditionNextExit
		if info.HostConfig.AutoRemove {
			cond = container.WaitConditionRemoved
		}
	}
	wait, err := c.ContainerWait(ctx, info.ID, cond)
	if err != nil {
		return err
	}
	if sigProxy {
		defer a.forwardSignals(func(sig string) { _ = c.ContainerKill(ctx, info.ID, sig) }, s.tty)()
	}
	if err := s.begin(conn); err != nil {
		return err
	}
	defer s.restore()
	if start {
		if err := c.ContainerStart(ctx, info.ID); err != nil {
			s.restore()
			return startFailed(err)
		}
	}
	s.sizeTerminal()
	detached, err := s.end()
	s.restore()
	if detached || err != nil {
		return err
	}
	r, err := wait()
	if err != nil {
		return err
	}
	if r.StatusCode != 0 {
		return failure.Exit(int(r.StatusCode), nil)
	}
	return nil
}
