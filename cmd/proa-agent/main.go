// Command proa-agent is the first process of a VM's guest. It does nothing
// anywhere else.
package main

import (
	"fmt"
	"os"

	"proa/internal/isolation/vm/agent"
)

func main() {
	if err := agent.Main(); err != nil {
		fmt.Fprintln(os.Stderr, "proa-agent: "+err.Error())
		os.Exit(1)
	}
}
