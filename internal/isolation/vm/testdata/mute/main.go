// Mute is the first process of a guest that never greets its host.
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
