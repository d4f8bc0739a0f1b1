package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/failure"
)

func (a *app) execCmd() *cobra.Command {
	var r container.ExecCreateRequest
	var detach, interactive bool
	var env, envFile []string
	var detachKeys string
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run one more process in a running container",
		Args:  cobra.MinimumNArgs(2),
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&interactive, "interactive", "i", false, "keep standard input open")
	fl.BoolVarP(&r.Tty, "tty", "t", false, "give the process a terminal")
	fl.BoolVarP(&detach, "detach", "d", false, "run in the background")
	fl.StringArrayVarP(&env, "env", "e", nil, "set an environment variable")
	fl.StringArrayVar(&envFile, "env-file", nil, "read environment variables from a file")
	fl.StringVarP(&r.User, "user", "u", "", "user inside")
	fl.StringVarP(&r.WorkingDir, "workdir", "w", "", "working directory inside")
	fl.BoolVar(&r.Privileged, "privileged", false, "all capabilities")
	fl.StringVar(&detachKeys, "detach-keys", "ctrl-p,ctrl-q", "keys that leave a terminal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := context.WithoutCancel(cmd.Context())
		c, err := a.client(ctx)
		if err != nil {
			return err
		}
		keys, err := parseDetachKeys(detachKeys)
		if err != nil {
			return err
		}
		if r.Tty && interactive && !detach && !isTerminal(a.in) {
			return failure.Hint(errors.New("cannot give a terminal: standard input is not one"), "leave out -t")
		}
		for _, f := range envFile {
			more, err := readEnvFile(f)
			if err != nil {
				return err
			}
			r.Env = append(r.Env, more...)
		}
		for _, e := range env {
			r.Env = append(r.Env, expandEnv(e)...)
		}
		r.Cmd = args[1:]
		r.AttachStdin, r.AttachStdout, r.AttachStderr = interactive && !detach, !detach, !detach
		return a.exec(ctx, c, args[0], &r, detach, keys)
	}
	return cmd
}

func (a *app) exec(ctx context.Context, c *client.Client, id string, r *container.ExecCreateRequest, detach bool, keys []byte) error {
	execID, err := c.ExecCreate(ctx, id, *r)
	if err != nil {
		return startFailedExec(err)
	}
	if detach {
		if err := c.ExecStartDetached(ctx, execID); err != nil {
			return startFailedExec(err)
		}
		return nil
	}
	s := &session{
		app: a, c: c, tty: r.Tty, keys: keys, stdin: r.AttachStdin, stdout: true, stderr: true,
		resize: func(rows, cols int) { _ = c.ExecResize(ctx, execID, rows, cols) },
	}
	conn, err := c.ExecStart(ctx, execID, container.ExecStartRequest{Tty: r.Tty})
	if err != nil {
		return startFailedExec(err)
	}
	defer conn.Close()
	if err := s.begin(conn); err != nil {
		return err
	}
	defer s.restore()
	s.sizeTerminal()
	detached, err := s.end()
	s.restore()
	if detached {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the connection to the process broke: %w", err)
	}
	state, err := c.ExecInspect(ctx, execID)
	if err != nil {
		return fmt.Errorf("cannot learn how the process ended: %w", err)
	}
	if state.ExitCode != nil && *state.ExitCode != 0 {
		return failure.Exit(*state.ExitCode, nil)
	}
	return nil
}

// startFailedExec is startFailed with 1 instead of 125, as docker exec ends.
func startFailedExec(err error) error {
	failed := startFailed(err)
	if code, _ := failure.Code(failed); code == 125 {
		return failure.Exit(1, err)
	}
	return failed
}
