package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"proa/test/proatest"
)

// The docker CLI's commands for images, volumes and the engine as a whole.
func TestDockerCLI(t *testing.T) {
	e := proatest.New(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "root.tar")
	if err := os.WriteFile(root, proatest.Tar(t, proatest.BusyboxRoot(t)...), 0o600); err != nil {
		t.Fatal(err)
	}
	holds := func(text string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(text, p) {
				t.Errorf("%q does not hold %q", text, p)
			}
		}
	}

	id := e.MustDocker("import", "-c", "ENV PATH=/bin", "-c", `CMD ["echo", "from the image"]`, "-c", "LABEL kind=test", root, "repo/bb:1")
	holds(id, "sha256:")
	if got := e.MustDocker("run", "--rm", "repo/bb:1"); got != "from the image" {
		t.Errorf("the image's command said %q", got)
	}
	e.MustDocker("tag", "repo/bb:1", "other:2")
	holds(e.MustDocker("images"), "repo/bb", "other")
	holds(e.MustDocker("images", "--filter", "label=kind=test", "--format", "{{.Repository}}:{{.Tag}}"), "other:2", "repo/bb:1")
	holds(e.MustDocker("image", "inspect", "-f", "{{json .Config.Cmd}} {{.Architecture}} {{len .RootFS.Layers}}", "other:2"), `["echo","from the image"] amd64 1`)
	holds(e.MustDocker("history", "other:2"), "Imported from -")
	holds(e.MustDocker("inspect", "-f", "{{.Id}}", "other:2"), strings.TrimSpace(id))

	saved := filepath.Join(dir, "saved.tar")
	e.MustDocker("save", "-o", saved, "repo/bb:1", "other:2")
	holds(e.MustDocker("rmi", "other:2"), "Untagged: other:2")
	holds(e.MustDocker("rmi", "repo/bb:1"), "Untagged: repo/bb:1", "Deleted: sha256:")
	if got := e.MustDocker("images", "-q"); got != "" {
		t.Errorf("images after rmi: %q", got)
	}
	holds(e.MustDocker("load", "-i", saved), "Loaded image: repo/bb:1", "Loaded image: other:2")
	if got := e.MustDocker("images", "-q", "--no-trunc", "repo/bb"); got != strings.TrimSpace(id) {
		t.Errorf("the id after save and load is %s, was %s", got, id)
	}

	// An image that is held is not removed without force.
	e.MustDocker("create", "--name", "holder", "other:2")
	e.MustDocker("rmi", "repo/bb:1")
	r := e.Docker("rmi", "other:2")
	if r.Code == 0 {
		t.Error("an image was removed under a container")
	}
	holds(r.Stderr, "container")
	e.MustDocker("rm", "holder")

	e.MustDocker("volume", "create", "--label", "a=b", "vol")
	holds(e.MustDocker("volume", "ls"), "vol")
	holds(e.MustDocker("volume", "inspect", "-f", "{{.Driver}} {{.Labels.a}}", "vol"), "local b")
	e.MustDocker("run", "--rm", "-v", "vol:/v", "other:2", "sh", "-c", "echo kept >/v/f")
	if got := e.MustDocker("run", "--rm", "-v", "vol:/v:ro", "other:2", "sh", "-c", "cat /v/f; touch /v/g 2>/dev/null || echo read-only"); got != "kept\nread-only" {
		t.Errorf("the volume gave %q", got)
	}
	// A new volume begins with what the image has at its place.
	if got := e.MustDocker("run", "--rm", "-v", "fresh:/home", "other:2", "stat", "-c", "%u %n", "/home/app"); got != "1000 /home/app" {
		t.Errorf("copy-up gave %q", got)
	}
	e.MustDocker("run", "-d", "--name", "user", "-v", "vol:/v", "other:2", "sleep", "1000")
	if e.Docker("volume", "rm", "vol").Code == 0 {
		t.Error("a volume was removed under a container")
	}
	holds(e.MustDocker("system", "df"), "Images", "Containers", "Local Volumes")
	holds(e.MustDocker("system", "df", "-v"), "vol", "user")
	holds(e.MustDocker("network", "ls"), "bridge", "host", "none")
	holds(e.MustDocker("network", "inspect", "bridge"), "user")
	holds(e.MustDocker("version"), "API version", "Proa")
	holds(e.MustDocker("info"), "Runtimes: ", "Default Runtime: container", "Storage Driver: proa")
	holds(e.MustDocker("info", "-f", "{{range $name, $_ := .Runtimes}}{{$name}} {{end}}"), "container vm")
	e.MustDocker("rm", "-f", "user")
	holds(e.MustDocker("volume", "rm", "vol", "fresh"), "vol", "fresh")
	holds(e.MustDocker("container", "prune", "-f"), "Total reclaimed space")
	holds(e.MustDocker("image", "prune", "-a", "-f"), "untagged: other:2")
	if got := e.MustDocker("images", "-aq"); got != "" {
		t.Errorf("images after prune: %q", got)
	}
	// What does not exist yet says so.
	for _, args := range [][]string{{"pull", "alpine"}, {"push", "alpine"}, {"build", "-"}, {"network", "create", "n"}} {
		if r := e.Docker(args...); r.Code == 0 || r.Stderr == "" {
			t.Errorf("docker %v: code %d, %q", args, r.Code, r.Stderr)
		}
	}
}
