package vm

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

// consoleKept bounds what is kept of a console: its end is what explains a
// guest that did not come up.
const consoleKept = 16 << 10

// console keeps the end of what the VMM, the firmware and the guest's kernel
// print. The guest can print anything, so it is bounded, and Last makes it
// harmless for a terminal.
type console struct {
	mu   sync.Mutex // guards kept
	kept []byte
	done chan struct{}
}

// watchConsole reads r until its end.
func watchConsole(r io.ReadCloser) *console {
	c := &console{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer r.Close()
		buffer := make([]byte, 1024)
		for {
			n, err := r.Read(buffer)
			c.mu.Lock()
			c.kept = append(c.kept, buffer[:n]...)
			if over := len(c.kept) - consoleKept; over > 0 {
				c.kept = append(c.kept[:0], c.kept[over:]...)
			}
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return c
}

// Last returns up to n last lines that are not empty, one after the other,
// without anything that a terminal would act on.
func (c *console) Last(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(c.kept) {
		clean := strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\uFFFD' {
				return -1
			}
			return r
		}, string(line))
		if clean = strings.TrimSpace(clean); clean != "" {
			lines = append(lines, clean)
		}
	}
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
