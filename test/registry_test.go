package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

const boxAddr, distributionAddr = "127.0.0.1:5000", "127.0.0.1:5001"

// sharedImage is an archive of an image of three layers, one of them empty and
// one a megabyte.
func sharedImage(t *testing.T, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "shared.tar")
	archive := proatest.Archive(t, name, map[string]any{"Cmd": []string{"cat", "/word"}, "Env": []string{"PATH=/bin"}},
		proatest.Tar(t, proatest.BusyboxRoot(t)...),
		proatest.Tar(t),
		proatest.Tar(t, proatest.Entry{Name: "word", Body: "shared\n"}, proatest.Entry{Name: "zeros", Body: strings.Repeat("\x00", 1<<20)}))
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// crane, skopeo and docker push to the registry in the box, copy inside it and
// between it and distribution's, and pull from it: every digest stays.
func TestRegistryInTheBoxAndItsClients(t *testing.T) {
	d := proatest.NewDocker(t)
	proatest.Box(t, d.Netns, boxAddr, filepath.Join(t.TempDir(), "box"))
	proatest.Distribution(t, d.Netns, distributionAddr, t.TempDir())
	crane := func(args ...string) string {
		t.Helper()
		return proatest.MustIn(t, d.Netns, proatest.Tool(t, "crane"), args...)
	}
	skopeo := func(args ...string) string {
		t.Helper()
		return proatest.MustIn(t, d.Netns, "skopeo", args...)
	}
	box, other := boxAddr+"/", distributionAddr+"/"
	archive := sharedImage(t, "shared:latest")
	same := func(name, want string) {
		t.Helper()
		if got := crane("digest", name); got != want {
			t.Errorf("the digest of %s is %s, want %s", name, got, want)
		}
		crane("validate", "--remote", name)
	}

	crane("push", archive, box+"from/crane:1")
	one := crane("digest", box+"from/crane:1")
	same(box+"from/crane:1", one)
	// Inside the registry the layers are mounted, between registries copied.
	crane("copy", box+"from/crane:1", box+"mounted/deep/er:2")
	same(box+"mounted/deep/er:2", one)
	crane("copy", box+"from/crane:1", other+"there:1")
	same(other+"there:1", one)
	crane("copy", other+"there:1", box+"and/back:1")
	same(box+"and/back:1", one)
	crane("tag", box+"and/back:1", "latest")
	same(box+"and/back", one)
	layout := filepath.Join(t.TempDir(), "layout")
	crane("pull", "--format", "oci", box+"from/crane:1", layout)
	crane("push", layout, box+"from/layout:1")
	same(box+"from/layout:1", one)

	// An index of two images, both ways.
	crane("append", "-b", box+"from/crane:1", "-f", archive, "-t", box+"from/crane:more")
	crane("index", "append", "--docker-empty-base", "-m", box+"from/crane:1", "-m", box+"from/crane:more", "-t", box+"from/crane:index")
	index := crane("digest", box+"from/crane:index")
	crane("copy", box+"from/crane:index", other+"there:index")
	same(other+"there:index", index)
	crane("copy", other+"there:index", box+"again:index")
	same(box+"again:index", index)

	files := "dir:" + filepath.Join(t.TempDir(), "files")
	skopeo("copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://"+box+"from/crane:index", files)
	skopeo("copy", "-q", "--all", "--preserve-digests", "--dest-tls-verify=false", files, "docker://"+box+"from/files:index")
	same(box+"from/files:index", index)
	skopeo("copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+box+"from/crane:index", "docker://"+box+"from/skopeo:index")
	same(box+"from/skopeo:index", index)
	skopeo("copy", "-q", "--format", "oci", "--dest-tls-verify=false", "docker-archive:"+archive, "docker://"+box+"from/skopeo:oci")
	oci := crane("digest", box+"from/skopeo:oci")
	skopeo("copy", "-q", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+box+"from/skopeo:oci", "docker://"+other+"from/skopeo:oci")
	same(other+"from/skopeo:oci", oci)
	if got := skopeo("inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+box+"from/skopeo:oci"); got != oci {
		t.Errorf("skopeo sees %s, crane %s", got, oci)
	}
	if got := strings.Fields(crane("ls", box+"from/skopeo")); !slices.Equal(got, []string{"index", "oci"}) {
		t.Errorf("tags %v", got)
	}
	if got := strings.Fields(crane("catalog", strings.TrimSuffix(box, "/"))); !slices.Contains(got, "mounted/deep/er") || len(got) != 7 {
		t.Errorf("catalog %v", got)
	}

	// docker's own engine, of six years before.
	if got := d.MustDocker("pull", "-q", box+"from/crane:1"); got != box+"from/crane:1" {
		t.Errorf("pull -q said %q", got)
	}
	if got := d.MustDocker("inspect", "-f", "{{index .RepoDigests 0}}", box+"from/crane:1"); got != box+"from/crane@"+one {
		t.Errorf("docker has %s, want the digest %s", got, one)
	}
	if got := d.MustDocker("run", "--rm", "--network", "none", box+"from/crane:1"); got != "shared" {
		t.Errorf("the image said %q", got)
	}
	d.MustDocker("tag", box+"from/crane:1", box+"from/docker:1")
	pushed := d.MustDocker("push", box+"from/docker:1")
	docker := crane("digest", box+"from/docker:1")
	if !strings.Contains(pushed, docker) {
		t.Errorf("docker pushed %q, the registry has %s", pushed, docker)
	}
	crane("copy", box+"from/docker:1", other+"from/docker:1")
	same(other+"from/docker:1", docker)
	d.MustDocker("rmi", "-f", box+"from/docker:1", box+"from/crane:1")
	d.MustDocker("pull", "-q", box+"from/docker@"+docker)

	// What is off stays off, and says what to do.
	r := proatest.In(t, d.Netns, proatest.Tool(t, "crane"), "delete", box+"from/crane@"+one)
	if r.Code == 0 || !strings.Contains(r.Stderr, "allow-delete") {
		t.Errorf("delete: exit code %d, %q does not name --allow-delete", r.Code, r.Stderr)
	}
	r = proatest.In(t, d.Netns, proatest.Tool(t, "crane"), "digest", box+"from/crane:none")
	if r.Code == 0 || !strings.Contains(fmt.Sprint(r.Stderr), "MANIFEST_UNKNOWN") {
		t.Errorf("an unknown tag: exit code %d, %q", r.Code, r.Stderr)
	}
}
