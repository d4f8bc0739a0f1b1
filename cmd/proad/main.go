// Command proad is the engine: it serves the Docker Engine API and owns
// containers, images, volumes and the network.
package main

import (
	"os"

	"proa/internal/daemon"
)

func main() { os.Exit(daemon.Main(os.Args)) }
