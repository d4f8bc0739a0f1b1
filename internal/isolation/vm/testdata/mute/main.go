// Mute is the first process of a guest that never greets its host: it writes one
// line to the console, so that a test can tell it from a guest that did not boot.
package main

import (
	"fmt"
	"time"
)

func main() {
	fmt.Println("I say nothing to the host")
	for {
		time.Sleep(time.Hour)
	}
}
