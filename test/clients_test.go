package test

import (
	"path/filepath"
	"strings"
	"testing"

	"proa/test/proatest"
)

// docker push, pull, save and load, unmodified, between two engines of ours
// and both registries: every digest stays.
func TestDockerClientsShare(t *testing.T) {
	box, store := filepath.Join(t.TempDir(), "box"), t.TempDir()
	a, b := proatest.New(t), proatest.New(t)
	proatest.Box(t, a.Netns, boxAddr, box)
	proatest.Distribution(t, a.Netns, distributionAddr, store)
	crane := proatest.Tool(t, "crane")
	digest := func(name string) string { t.Helper(); return proatest.MustIn(t, a.Netns, crane, "digest", name) }
	archive := sharedImage(t, "shared:latest")
	a.MustDocker("load", "-i", archive)
	id := a.MustDocker("image", "inspect", "-f", "{{.Id}}", "shared")

	// Engine b has no way to a's loopback; what it pulls comes through its own.
	proatest.Distribution(t, b.Netns, distributionAddr, store)
	for _, registry := range []string{boxAddr, distributionAddr} {
		name := registry + "/share/x:1"
		a.MustDocker("tag", "shared", name)
		pushed := a.MustDocker("push", name)
		first := digest(name)
		if !strings.Contains(pushed, first) {
			t.Errorf("push said %q, the registry has %s", pushed, first)
		}
		// The layers lie in the archive as plain tars and stay so; crane reads only compressed ones.
		proatest.MustIn(t, a.Netns, crane, "validate", "--fast", "--remote", name)
		// Again under another name, and with --all-tags.
		a.MustDocker("tag", "shared", registry+"/share/y:1")
		a.MustDocker("tag", "shared", registry+"/share/y:2")
		a.MustDocker("push", "-q", "--all-tags", registry+"/share/y")
		for _, tag := range []string{":1", ":2"} {
			if got := digest(registry + "/share/y" + tag); got != first {
				t.Errorf("%s/share/y%s is %s, want %s", registry, tag, got, first)
			}
		}
		a.MustDocker("rmi", name, registry+"/share/y:1", registry+"/share/y:2")
		if got := a.MustDocker("pull", "-q", name); got != name {
			t.Errorf("pull -q said %q", got)
		}
		if got := a.MustDocker("image", "inspect", "-f", "{{.Id}} {{.RepoDigests}}", name); !strings.HasPrefix(got, id) || !strings.Contains(got, registry+"/share/x@"+first) {
			t.Errorf("pulled: %s, want %s %s", got, id, first)
		}
		a.MustDocker("pull", "-q", registry+"/share/y@"+first)
		a.MustDocker("rmi", name)
	}

	// What crane made and compressed goes through an engine as it is.
	proatest.MustIn(t, a.Netns, crane, "push", archive, boxAddr+"/crane/made:1")
	a.MustDocker("pull", "-q", boxAddr+"/crane/made:1")
	a.MustDocker("tag", boxAddr+"/crane/made:1", distributionAddr+"/crane/passed:1")
	a.MustDocker("push", "-q", distributionAddr+"/crane/passed:1")
	if got, want := digest(distributionAddr+"/crane/passed:1"), digest(boxAddr+"/crane/made:1"); got != want {
		t.Errorf("pull and push made %s of %s", got, want)
	}
	proatest.MustIn(t, a.Netns, crane, "validate", "--remote", distributionAddr+"/crane/passed:1")

	name := distributionAddr + "/share/x:1"
	first := digest(name)
	if got := b.MustDocker("run", "--rm", "--network", "none", "-q", name); got != "shared" {
		t.Errorf("run pulled and said %q", got)
	}
	if got := b.MustDocker("run", "--rm", "--network", "none", "--runtime", "vm", name); got != "shared" {
		t.Errorf("behind the VM wall it said %q", got)
	}
	saved := filepath.Join(t.TempDir(), "saved.tar")
	b.MustDocker("save", "-o", saved, name)
	a.MustDocker("rmi", "shared")
	a.MustDocker("load", "-i", saved)
	if got := a.MustDocker("image", "inspect", "-f", "{{.Id}}", name); got != id {
		t.Errorf("after save and load the image is %s, was %s", got, id)
	}
	a.MustDocker("tag", name, boxAddr+"/again:1")
	a.MustDocker("push", "-q", boxAddr+"/again:1")
	if got := digest(boxAddr + "/again:1"); got != first {
		t.Errorf("after push, pull, save, load and push the digest is %s, was %s", got, first)
	}

	// An index keeps its digest, too, and the platform of this machine is run.
	proatest.MustIn(t, a.Netns, crane, "index", "append", "-m", name, "-m", boxAddr+"/again:1", "-t", distributionAddr+"/share/index:1")
	index := digest(distributionAddr + "/share/index:1")
	b.MustDocker("pull", "-q", distributionAddr+"/share/index:1")
	if got := b.MustDocker("image", "inspect", "-f", "{{index .RepoDigests 0}}", distributionAddr+"/share/index:1"); got != distributionAddr+"/share/index@"+index {
		t.Errorf("the pulled index is %s, want %s", got, index)
	}

	// What goes wrong says so.
	for _, c := range []struct{ args, want string }{
		{"pull " + distributionAddr + "/share/x:none", "not found"},
		{"pull " + distributionAddr + "/never/was:1", "not found"},
		{"push " + distributionAddr + "/never/was:1", "not exist"},
		{"pull 127.0.0.1:1/x", "nothing listens there"},
	} {
		if r := b.Docker(strings.Fields(c.args)...); r.Code == 0 || !strings.Contains(strings.ToLower(r.Stderr+r.Stdout), c.want) {
			t.Errorf("docker %s: %d %q does not say %q", c.args, r.Code, r.Stderr, c.want)
		}
	}
}
