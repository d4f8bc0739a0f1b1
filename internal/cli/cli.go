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
	"proa/internal/failure"
	"proa/internal/version"
)

// app is what every command shares: the streams and the way to the engine.
type app struct {
	in       *os.File
	out, err io.Writer

	hostFlag string
	cl       *client.Client
}

// Main runs one command line and returns the exit code: 0, the code of the
// process that was run, 125 when the engine failed a run, 1 for other errors.
func Main(args []string) int {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	root := a.root()
	root.SetArgs(args)
	return failure.Report(a.err, "proa", root.ExecuteContext(ctx))
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
	root.PersistentFlags().StringVarP(&a.hostFlag, "host", "H", "", "engine to talk to (default $PROA_HOST, then "+client.DefaultHost+")")
	// Without this cobra takes -h, which is --hostname of a run.
	root.PersistentFlags().Bool("help", false, "show what a command takes")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return failure.Exit(125, fmt.Errorf("%w\nSee '%s --help'", err, cmd.CommandPath()))
	})
	root.AddCommand(
		a.runCmd(), a.createCmd(), a.startCmd(), a.stopCmd(), a.restartCmd(), a.killCmd(), a.pauseCmd(), a.unpauseCmd(),
		a.rmCmd(), a.renameCmd(), a.waitCmd(), a.attachCmd(), a.execCmd(), a.logsCmd(), a.psCmd(), a.topCmd(), a.statsCmd(), a.portCmd(),
		a.inspectCmd(), a.cpCmd(), a.commitCmd(), a.diffCmd(), a.exportCmd(), a.containerCmd(),
		a.pullCmd(), a.pushCmd(), a.loginCmd(), a.logoutCmd(),
		a.imagesCmd(), a.loadCmd(), a.saveCmd(), a.importCmd(), a.tagCmd(), a.rmiCmd(), a.historyCmd(), a.imageCmd(),
		a.buildCmd(), a.builderCmd(),
		a.updateCmd(), a.volumeCmd(), a.networkCmd(), a.eventsCmd(), a.infoCmd(), a.versionCmd(), a.systemCmd(), a.doctorCmd(), a.registryCmd(),
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
		if _, said := failure.Code(err); err == nil || said {
			return err
		}
		words := fmt.Sprintf("%d arguments do", len(args))
		switch len(args) {
		case 0:
			return failure.Hint(fmt.Errorf("%s: an argument is missing", cmd.CommandPath()), cmd.UseLine())
		case 1:
			words = fmt.Sprintf("the argument %q does", args[0])
		}
		return failure.Hint(fmt.Errorf("%s: %s not fit", cmd.CommandPath(), words), cmd.UseLine())
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
	return client.DefaultHost, false
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

// errGone is for what was asked to go and did not exist: no failure, and no
// name on standard output.
var errGone = errors.New("it does not exist")

// each runs do for every argument, prints the argument on success and the
// error otherwise, and fails if one did.
func (a *app) each(args []string, do func(string) error) error {
	failed := false
	for _, arg := range args {
		err := do(arg)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			failure.Report(a.err, "proa", err)
			failed = true
			continue
		}
		fmt.Fprintln(a.out, arg)
	}
	if failed {
		return failure.Exit(1, nil)
	}
	return nil
}

// withClient makes the RunE of a command that needs the engine.
func (a *app) withClient(do func(ctx context.Context, c *client.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client(cmd.Context())
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	}
}
