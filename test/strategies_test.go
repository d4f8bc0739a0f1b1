package test

import (
	"strings"
	"testing"

	"proa/test/proatest"
)

// Every behaviour of a container holds under each of the three ways to mount
// an image, and `info` says which one is used.
func TestForcedMountStrategies(t *testing.T) {
	for _, strategy := range []string{"file", "loop", "extract"} {
		t.Run(strategy, func(t *testing.T) {
			proatest.NeedStrategy(t, strategy)
			e := proatest.New(t, proatest.Args("--storage-strategy", strategy))
			if got := e.MustDocker("info", "-f", "{{json .DriverStatus}}"); !strings.Contains(got, `"`+strategy+`"`) {
				t.Errorf("info says %s", got)
			}
			e.ImportBusybox("bb")
			t.Run("all", func(t *testing.T) {
				for _, b := range behaviours {
					t.Run(b.name, func(t *testing.T) {
						t.Parallel()
						b.do(&place{T: t, Engine: e, wall: walls[0]})
					})
				}
			})
		})
	}
}
