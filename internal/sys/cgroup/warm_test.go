package cgroup

import (
	"os"
	"testing"
)

// Warm is a hint: afterwards the process is where it was.
func TestWarmMovesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: writes to cgroup.procs")
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	Warm()
	if h, err := Detect(); err == nil && h.Mode != V2 && warmed.Load() == 0 {
		t.Error("nothing was done on version 1")
	}
	after, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || string(after) != string(before) {
		t.Errorf("groups were %s and are %s (%v)", before, after, err)
	}
}
