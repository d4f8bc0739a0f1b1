package faults

import (
	"testing"

	"proa/test/proatest"
)

// C1: a build took the file of another build where name, size and time agreed.
// Docker's classic builder compares contents (20.10.24). The long test makes
// 500 builds of the same kind.
func TestFaultC1BuildTakesItsOwnFiles(t *testing.T) {
	e := proatest.New(t)
	e.BuildTwins(t, 4, 24, 1)
}
