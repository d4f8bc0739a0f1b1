package cli

import (
	"fmt"
	"os"
	"path/filepath"
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

// become replaces this process by a program that lies beside it.
func become(program string, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find %s: %w", program, err)
	}
	path := filepath.Join(filepath.Dir(self), program)
	if err := syscall.Exec(path, append([]string{program}, args...), os.Environ()); err != nil {
		return &hinted{fmt.Errorf("cannot start %s: %w", path, err), "it belongs beside proa; make build puts all programs into bin/"}
	}
	return nil
}
