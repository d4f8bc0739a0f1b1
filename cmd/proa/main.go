// Command proa is the command line of the Proa engine: Docker's verbs, and a
// wall that is chosen per run.
package main

import (
	"os"

	"proa/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:]))
}
