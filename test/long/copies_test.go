//go:build long

package long

import (
	"fmt"
	"testing"

	"proa/test/proatest"
)

// All forms of `docker cp`, in all states of a container, and those without
// mounts behind the VM wall, do what they do with dockerd 20.10.24: the same exit
// code, the same files.
func TestCopyForms(t *testing.T) {
	e := proatest.New(t)
	d := proatest.NewDocker(t)
	all := proatest.Copies(true)
	states := []proatest.CopyState{
		{State: "created"}, {State: "running"}, {State: "paused"}, {State: "exited"},
		{State: "created", ReadOnly: true}, {State: "running", ReadOnly: true}, {State: "exited", ReadOnly: true},
	}
	for i, state := range states {
		t.Run(fmt.Sprint(state), func(t *testing.T) {
			// Each form is met in one of the states.
			proatest.SameCopies(t, d, e.Copier(false, false), state, proatest.Few(all, len(states), i))
		})
	}
	bare := proatest.Copies(false)
	for i, state := range []proatest.CopyState{{State: "created"}, {State: "running"}, {State: "exited", ReadOnly: true}} {
		t.Run("VM "+fmt.Sprint(state), func(t *testing.T) {
			proatest.SameCopies(t, d, e.Copier(false, true), state, proatest.Few(bare, 53, i*17))
		})
	}
}
