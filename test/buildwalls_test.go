package test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"proa/test/proatest"
)

// A build whose RUN steps are behind the VM wall makes the files that it makes
// behind the container wall: owners, modes, whiteouts, caches that later steps
// read.
func TestBuildBehindBothWalls(t *testing.T) {
	proatest.NeedRoot(t)
	since := time.Now().Add(-2 * time.Second)
	archive := filepath.Join(t.TempDir(), "base.tar")
	if err := os.WriteFile(archive, goldenBases(t)["base:latest"], 0o600); err != nil {
		t.Fatal(err)
	}
	base := proatest.ReadSaved(t, archive)
	e := proatest.New(t)
	e.MustProa("load", "-i", archive)
	for i, name := range []string{"mount-cache", "run-kinds", "run-opaque"} {
		g := loadGolden(t, 900+i, filepath.Join("testdata/builds", name))
		made := map[string]string{}
		for _, wall := range []string{"container", "vm"} {
			m := maker{
				name: wall, tag: wall,
				build: func(stdin string, args ...string) proatest.Result {
					return e.Exec(stdin, filepath.Join(e.Bin(), "proa"), append([]string{"-H", e.Host, "build", "--progress", "plain", "--isolation", wall}, args...)...)
				},
				save: func(file, image string) proatest.Result { return e.Proa("save", "-o", file, image) },
			}
			made[wall] = m.make(t, g).Files.List(base.Files, since)
		}
		if made["container"] == "" {
			t.Errorf("%s made nothing", name)
		}
		sameText(t, name+" in VMs", made["vm"], made["container"])
	}
}
