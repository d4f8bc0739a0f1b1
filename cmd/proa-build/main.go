// Command proa-build builds images: `serve` is the builder that proad starts,
// `build` is what `proa build` becomes.
package main

import (
	"os"

	"proa/internal/build/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
