package cli

import (
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"
)

// registryCmd hands over to proa-registry, which is a program of its own: the
// command line links no server, and a registry needs no engine.
func (a *app) registryCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "registry COMMAND",
		Short: "A registry in the box: serve, gc, check, htpasswd",
		// Every flag is proa-registry's, --help among them.
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return become("proa-registry", args)
		},
	}
}

// become replaces this process by a program of this installation.
func become(program string, args []string) error {
	path, err := beside(program)
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, append([]string{program}, args...), os.Environ()); err != nil {
		return fmt.Errorf("cannot run %s: %w", path, err)
	}
	return nil
}
