package faults

import (
	"testing"

	"proa/test/proatest"
)

// C2, C7, C22: forms of `docker cp` beside dockerd 20.10.24, with the same CLI:
// the same exit codes and the same files. The long test has all of them.
func TestFaultC2CopyForms(t *testing.T) {
	e := proatest.New(t)
	d := proatest.NewDocker(t)
	all := proatest.Copies(true)
	for i, state := range []proatest.CopyState{{State: "created"}, {State: "running", ReadOnly: true}} {
		proatest.SameCopies(t, d, e.Copier(false, false), state, proatest.Few(all, 149, i*31))
	}
}
