// Command proa-registry is the registry in the box: it serves the OCI
// distribution specification from one directory. `proa registry` starts it.
package main

import (
	"os"

	"proa/internal/registry"
)

func main() { os.Exit(registry.Main(os.Args)) }
