package test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// clientContext is a context with a RUN step, a file and a stage that is not needed.
func clientContext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM bb AS base\nRUN echo ran >/ran\nFROM base\nCOPY file /file\nENV word=said\nCMD echo $word $(cat /ran /file)\n",
		"file":       "copied\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// archiveNames are the names in a tar, cleaned.
func archiveNames(t *testing.T, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, filepath.Clean("/"+h.Name))
	}
}

// Every way in which docker's own clients build: with BuildKit through buildx,
// without it, and each kind of output.
func TestDockerClientsBuild(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir, out := clientContext(t), t.TempDir()
	cli := proatest.DockerCLI(t)
	runs := func(image string) {
		t.Helper()
		if got := e.MustDocker("run", "--rm", "--network", "none", image); got != "said ran copied" {
			t.Errorf("%s said %q", image, got)
		}
	}
	for tag, set := range map[string]string{"with": "DOCKER_BUILDKIT=1", "without": "DOCKER_BUILDKIT=0"} {
		iid := filepath.Join(out, tag)
		r := e.Exec("", "env", set, cli, "-H", e.Host, "build", "-t", "by/"+tag, "--iidfile", iid, "--label", "by="+tag, dir)
		if r.Code != 0 {
			t.Fatalf("docker build %s BuildKit: exit code %d\n%s%s", tag, r.Code, r.Stdout, r.Stderr)
		}
		runs("by/" + tag)
		id, err := os.ReadFile(iid)
		if err != nil {
			t.Fatal(err)
		}
		// Where the engine says that it keeps manifests, buildx writes the manifest's digest; either is a name of the image.
		if got := e.MustDocker("image", "inspect", "-f", "{{.Config.Labels.by}} {{.RepoTags}}", strings.TrimSpace(string(id))); got != tag+" [by/"+tag+":latest]" {
			t.Errorf("%s: --iidfile says %s, and that is %s", tag, id, got)
		}
		if got := e.MustDocker("history", "--format", "{{.CreatedBy}}", "by/"+tag); !strings.Contains(got, "RUN /bin/sh -c echo ran >/ran") {
			t.Errorf("%s: history %q", tag, got)
		}
	}
	// The same context as a tar on standard input, and a Dockerfile alone.
	tarball := e.Exec("", "tar", "-C", dir, "-c", ".")
	for _, set := range []string{"DOCKER_BUILDKIT=1", "DOCKER_BUILDKIT=0"} {
		if r := e.Exec(tarball.Stdout, "env", set, cli, "-H", e.Host, "build", "-t", "by/tar", "-"); r.Code != 0 {
			t.Errorf("%s: a tar as context: %s%s", set, r.Stdout, r.Stderr)
		}
		runs("by/tar")
		if r := e.Exec("FROM bb\nRUN echo alone\n", "env", set, cli, "-H", e.Host, "build", "-q", "-"); r.Code != 0 || !strings.HasPrefix(r.Stdout, "sha256:") {
			t.Errorf("%s: a Dockerfile as context: %d %q %q", set, r.Code, r.Stdout, r.Stderr)
		}
		r := e.Exec("FROM bb\nRUN echo last words; exit 3\n", "env", set, cli, "-H", e.Host, "build", "-")
		if r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "last words") || !strings.Contains(r.Stderr, "3") {
			t.Errorf("%s: a step that fails: %d %q %q", set, r.Code, r.Stdout, r.Stderr)
		}
		r = e.Exec("FROM bb\nCOPPY a b\n", "env", set, cli, "-H", e.Host, "build", "-")
		if r.Code == 0 || !strings.Contains(r.Stderr, "line 2") {
			t.Errorf("%s: a syntax error: %d %q", set, r.Code, r.Stderr)
		}
	}

	buildx := func(args ...string) string {
		t.Helper()
		return e.MustDocker(append([]string{"buildx", "build", "--progress", "plain"}, append(args, dir)...)...)
	}
	metadata := filepath.Join(out, "metadata.json")
	buildx("--load", "-t", "by/load", "--metadata-file", metadata)
	runs("by/load")
	text, err := os.ReadFile(metadata)
	if err != nil {
		t.Fatal(err)
	}
	var said struct {
		Digest string `json:"containerimage.digest"`
		Name   string `json:"image.name"`
	}
	if err := json.Unmarshal(text, &said); err != nil || !strings.HasSuffix(said.Name, "by/load:latest") || said.Digest == "" {
		t.Errorf("metadata %s (%v)", text, err)
	}
	if got := e.MustDocker("image", "inspect", "-f", "{{.RepoTags}}", said.Digest); !strings.Contains(got, "by/load:latest") {
		t.Errorf("--metadata-file says %s, and that is %s", said.Digest, got)
	}
	buildx("--output", "type=tar,dest="+filepath.Join(out, "root.tar"))
	if names := archiveNames(t, filepath.Join(out, "root.tar")); !slices.Contains(names, "/file") || !slices.Contains(names, "/bin/busybox") {
		t.Errorf("the tar holds %d files, not the image's", len(names))
	}
	buildx("--output", "type=oci,dest="+filepath.Join(out, "oci.tar"))
	if names := archiveNames(t, filepath.Join(out, "oci.tar")); !slices.Contains(names, "/index.json") || !slices.Contains(names, "/oci-layout") {
		t.Errorf("the OCI archive holds %v", names)
	}
	buildx("--output", "type=docker,name=by/archive,dest="+filepath.Join(out, "docker.tar"))
	e.MustDocker("load", "-i", filepath.Join(out, "docker.tar"))
	runs("by/archive")
	buildx("--output", "type=local,dest="+filepath.Join(out, "local"))
	if b, err := os.ReadFile(filepath.Join(out, "local", "ran")); string(b) != "ran\n" {
		t.Errorf("the local output has %q (%v)", b, err)
	}

	// The builder's cache and what buildx shows of it.
	if got := e.MustDocker("buildx", "du"); !strings.Contains(got, "Total") {
		t.Errorf("buildx du: %q", got)
	}
	if got := e.MustDocker("buildx", "inspect"); !strings.Contains(got, "running") || !strings.Contains(got, "linux/") {
		t.Errorf("buildx inspect: %q", got)
	}
	if got := e.MustDocker("builder", "prune", "-af"); !strings.Contains(got, "Total") {
		t.Errorf("builder prune: %q", got)
	}
}

// fetchedSteps are steps whose layer came from a cache while they were looked
// at: plain progress shows how it is fetched and does not call them cached.
var fetchedSteps = regexp.MustCompile(`(?m)^#\d+ \[[^\]]*\] (?:RUN|COPY) .*\n#\d+ sha256:`)

// cachedSteps counts the steps that came from a cache in plain progress.
func cachedSteps(progress string) int {
	return strings.Count(progress, " CACHED\n") + len(fetchedSteps.FindAllString(progress, -1))
}

// A cache that one engine wrote is used by another, through each way to carry it.
func TestBuildCacheIsCarried(t *testing.T) {
	registry, store := "127.0.0.1:5000", t.TempDir()
	writer, reader := proatest.New(t), proatest.New(t)
	dir, local := clientContext(t), filepath.Join(t.TempDir(), "cache")
	archive := sharedImage(t, "bb:latest") // the same image for both: its digest is part of the cache's key
	for _, e := range []*proatest.Engine{writer, reader} {
		e.MustDocker("load", "-i", archive)
		proatest.Distribution(t, e.Netns, registry, store)
	}
	for name, way := range map[string]struct{ to, from []string }{
		"local":    {[]string{"--cache-to", "type=local,mode=max,dest=" + local}, []string{"--cache-from", "type=local,src=" + local}},
		"registry": {[]string{"--cache-to", "type=registry,mode=max,ref=" + registry + "/cache:1"}, []string{"--cache-from", "type=registry,ref=" + registry + "/cache:1"}},
		"inline":   {[]string{"--cache-to", "type=inline", "-t", registry + "/inline:1", "--push"}, []string{"--cache-from", "type=registry,ref=" + registry + "/inline:1"}},
	} {
		for client, build := range map[string]func(e *proatest.Engine, args ...string) proatest.Result{
			"proa": func(e *proatest.Engine, args ...string) proatest.Result {
				return e.Proa(append([]string{"build"}, args...)...)
			},
			"buildx": func(e *proatest.Engine, args ...string) proatest.Result {
				return e.Docker(append([]string{"buildx", "build"}, args...)...)
			},
		} {
			if r := build(writer, append(append([]string{"--progress", "plain"}, way.to...), dir)...); r.Code != 0 {
				t.Errorf("%s, %s: writing: exit code %d\n%s%s", name, client, r.Code, r.Stdout, r.Stderr)
				continue
			}
			reader.MustDocker("builder", "prune", "-af")
			r := build(reader, append(append([]string{"--progress", "plain", "-t", "carried"}, way.from...), dir)...)
			if n := cachedSteps(r.Stdout + r.Stderr); r.Code != 0 || n < 2 {
				t.Errorf("%s, %s: reading: exit code %d, %d steps cached, want RUN and COPY\n%s%s", name, client, r.Code, n, r.Stdout, r.Stderr)
			}
			if got := reader.Docker("run", "--rm", "--network", "none", "carried"); got.Out() != "said ran copied" {
				t.Errorf("%s, %s: the image said %q %q", name, client, got.Stdout, got.Stderr)
			}
		}
	}
}
