// Package cli is the command line: one file a command or a family of them.
// A command parses its flags, asks the engine one thing and prints the answer.
// It owns wording, columns, exit codes and the terminal; it never touches the
// engine's files and links none of its code.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"proa/internal/client"
	"proa/internal/version"
)

// DefaultHost is where an engine listens unless told otherwise.
const DefaultHost = "unix:///run/proa/proa.sock"

// app is what every command shares: the streams and the way to the engine.
type app struct {
	in       *os.File
	out, err io.Writer

	hostFlag string
	cl       *client.Client
}

// exitError ends the program with a code; a nil err prints nothing more.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// hinted adds what to try next to an error.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Main runs one command line and returns the exit code: 0, the code of the
// process that was run, 125 when the engine failed a run, 1 for other errors.
func Main(args []string) int {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		if exit.err == nil {
			return code
		}
	}
	fmt.Fprintf(a.err, "proa: %s\n", strings.TrimRight(err.Error(), "\n"))
	var h *hinted
	if errors.As(err, &h) && h.hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", h.hint)
	}
	return code
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "proa",
		Short:         "One image, two walls: run it as a container or as a virtual machine",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version.Version,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringVarP(&a.hostFlag, "host", "H", "", "engine to talk to (default $PROA_HOST, then "+DefaultHost+")")
	// Without this cobra takes -h, which is --hostname of a run.
	root.PersistentFlags().Bool("help", false, "show what a command takes")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exitError{125, fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(
		a.runCmd(), a.createCmd(), a.startCmd(), a.stopCmd(), a.restartCmd(), a.killCmd(), a.pauseCmd(), a.unpauseCmd(),
		a.rmCmd(), a.renameCmd(), a.waitCmd(), a.attachCmd(), a.execCmd(), a.logsCmd(), a.psCmd(), a.topCmd(), a.statsCmd(), a.portCmd(),
		a.inspectCmd(), a.cpCmd(), a.commitCmd(), a.diffCmd(), a.exportCmd(), a.containerCmd(),
		a.pullCmd(), a.pushCmd(), a.loginCmd(), a.logoutCmd(),
		a.imagesCmd(), a.loadCmd(), a.saveCmd(), a.importCmd(), a.tagCmd(), a.rmiCmd(), a.historyCmd(), a.imageCmd(),
		a.buildCmd(), a.builderCmd(),
		a.volumeCmd(), a.eventsCmd(), a.infoCmd(), a.versionCmd(), a.systemCmd(), a.doctorCmd(), a.registryCmd(),
		a.compareCmd(),
	)
	explainArgs(root)
	return root
}

// explainArgs gives every command words of ours for arguments that do not fit.
func explainArgs(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		explainArgs(sub)
	}
	if cmd.HasSubCommands() {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q\nRun '%s --help' for the commands", strings.Join(append(strings.Fields(cmd.CommandPath())[1:], args[0]), " "), cmd.CommandPath())
			}
			return nil
		}
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		return
	}
	fits := cmd.Args
	if fits == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := fits(cmd, args)
		var exit *exitError
		if err == nil || errors.As(err, &exit) {
			return err
		}
		words := fmt.Sprintf("%d arguments do", len(args))
		switch len(args) {
		case 0:
			return &hinted{fmt.Errorf("%s: an argument is missing", cmd.CommandPath()), cmd.UseLine()}
		case 1:
			words = fmt.Sprintf("the argument %q does", args[0])
		}
		return &hinted{fmt.Errorf("%s: %s not fit", cmd.CommandPath(), words), cmd.UseLine()}
	}
}

// host is the engine's address: -H, $PROA_HOST, the default socket, in that order.
func (a *app) host() (host string, chosen bool) {
	if a.hostFlag != "" {
		return a.hostFlag, true
	}
	if h := os.Getenv("PROA_HOST"); h != "" {
		return h, true
	}
	return DefaultHost, false
}

// client gives the way to the engine. Where no engine was chosen and none
// answers at the default socket, it starts one.
func (a *app) client(ctx context.Context) (*client.Client, error) {
	if a.cl != nil {
		return a.cl, nil
	}
	host, chosen := a.host()
	c, err := client.New(host)
	if err != nil {
		return nil, err
	}
	if !chosen {
		if err := startEngine(ctx, c, a.err); err != nil {
			return nil, err
		}
	}
	a.cl = c
	return c, nil
}

// each runs do for every argument, prints the argument on success and the
// error otherwise, and fails if one did.
func (a *app) each(args []string, do func(string) error) error {
	failed := false
	for _, arg := range args {
		if err := do(arg); err != nil {
			fmt.Fprintf(a.err, "proa: %v\n", err)
			failed = true
			continue
		}
		fmt.Fprintln(a.out, arg)
	}
	if failed {
		return &exitError{code: 1}
	}
	return nil
}

// withClient makes the RunE of a command that needs the engine.
func (a *app) withClient(do func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client(cmd.Context())
		if err != nil {
			return explain(err)
		}
		return explain(do(cmd.Context(), c, args))
	}
}

// explain adds a hint to the errors that people meet.
func explain(err error) error {
	var dial *client.DialError
	if errors.As(err, &dial) {
		switch {
		case errors.Is(dial.Err, os.ErrPermission):
			return &hinted{err, "the engine's socket belongs to root and the group proa; to join it: sudo usermod -aG proa $USER, then log in again"}
		case errors.Is(dial.Err, os.ErrNotExist), errors.Is(dial.Err, syscall.ECONNREFUSED):
			return &hinted{err, "start one with: proad -H " + dial.Host}
		}
	}
	return err
}
