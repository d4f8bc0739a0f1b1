package engine

import (
	"os"
	"testing"
)

// What is tried works where containers do, and leaves nothing. That it says no
// where they do not is tested with a whole engine (daemon).
func TestTryRoots(t *testing.T) {
	w := newWorld(t)
	for _, shifted := range []bool{true, false} {
		if err := w.tryRoots(shifted); err != nil {
			t.Errorf("shifted %v: %v", shifted, err)
		}
	}
	if err := w.TryRoots(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(w.containersDir()); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
