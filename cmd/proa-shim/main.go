// Command proa-shim keeps one container or machine: its processes, its output,
// its exit code. proad starts it; it has no use by hand.
package main

import (
	"fmt"
	"os"

	"proa/internal/isolation"
	"proa/internal/isolation/container"
	"proa/internal/isolation/vm"
	"proa/internal/shim/server"
)

func main() {
	warn := func(text string) { fmt.Fprintln(os.Stderr, "proa-shim: "+text) }
	os.Exit(server.Main(os.Args, map[isolation.Kind]isolation.Driver{
		isolation.Container: &container.Driver{Warn: warn},
		isolation.VM:        vm.Driver{},
	}))
}
