package test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"proa/test/proatest"
)

// inVMs are the golden builds whose RUN steps say something about the wall that
// they are behind: kinds of files, owners, whiteouts, mounts, users, names.
var inVMs = []string{
	"heredoc-run", "mount-bind", "mount-cache", "mount-secret", "mount-tmpfs", "names", "network", "run-environment", "run-hardlinks", "run-kinds",
	"run-metadata", "run-opaque", "run-rename", "run-replace", "run-setcap", "run-user", "stage-kinds",
}

// A build whose RUN steps are behind the VM wall makes the files and the
// configuration that it makes behind the other: those of the folder.
func TestGoldenBuildsInVMs(t *testing.T) {
	proatest.NeedRoot(t)
	since := time.Now().Add(-2 * time.Second)
	archive := filepath.Join(t.TempDir(), "base.tar")
	if err := os.WriteFile(archive, goldenBases(t)["base:latest"], 0o600); err != nil {
		t.Fatal(err)
	}
	base := proatest.ReadSaved(t, archive)
	e := proatest.New(t)
	e.MustProa("load", "-i", archive)
	m := maker{
		name: "proa build --isolation vm", tag: "vm",
		build: func(stdin string, args ...string) proatest.Result {
			return e.Exec(stdin, filepath.Join(e.Bin(), "proa"), append([]string{"-H", e.Host, "build", "--isolation", "vm"}, args...)...)
		},
		save: func(file, image string) proatest.Result { return e.Proa("save", "-o", file, image) },
	}
	for i, name := range inVMs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := loadGolden(t, 900+i, filepath.Join("testdata/builds", name))
			for name, got := range g.made(t, m.make(t, g), base, since) {
				sameText(t, "the "+name+" in VMs", got, g.want(t, name, false))
			}
		})
	}
}
