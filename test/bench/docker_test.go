package bench

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"proa/test/proatest"
)

// dockerd is the distribution's engine in namespaces of its own. Its command
// line is docker's newest, as Proa's users have it, so that a race is between
// engines; builds are started by the distribution's own.
type dockerd struct {
	*proatest.Docker
	cli string
}

func (d *dockerd) docker(args ...string) error {
	return command(d.cli, append([]string{"-H", d.Host()}, args...)...)()
}

// build is `docker build` by the engine's BuildKit.
func (d *dockerd) build(args ...string) error {
	if r := d.Build("", args...); r.Code != 0 {
		return errors.New(r.Stdout + r.Stderr)
	}
	return nil
}

// startDocker starts dockerd with the image bb, the busybox root.
func startDocker(b *testing.B) *dockerd {
	b.Helper()
	d := &dockerd{proatest.NewDocker(b), proatest.DockerCLI(b)}
	tar := filepath.Join(d.Dir, "root.tar")
	if err := os.WriteFile(tar, proatest.Tar(b, proatest.BusyboxRoot(b)...), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := d.docker("import", "-c", "ENV PATH=/bin", tar, "bb"); err != nil {
		b.Fatal(err)
	}
	return d
}
