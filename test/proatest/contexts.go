package proatest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ContextClient is one way in which a build context reaches an engine.
type ContextClient struct {
	Name  string
	Build func(e *Engine, dir, tag string, nocache bool) Result
}

// ContextClients are the clients and ways that people build with: directories
// by proa, buildx and docker's two builders, archives on standard input, and
// the API with a tar in its body.
func ContextClients(t testing.TB) []ContextClient {
	cli := DockerCLI(t)
	command := func(name string, program func(*Engine) []string, archive bool) ContextClient {
		return ContextClient{name, func(e *Engine, dir, tag string, nocache bool) Result {
			line := append(program(e), "-t", tag)
			if nocache {
				line = append(line, "--no-cache")
			}
			if archive {
				return e.Exec(string(TarOf(t, dir)), line[0], append(line[1:], "-")...)
			}
			return e.Exec("", line[0], append(line[1:], dir)...)
		}}
	}
	proa := func(e *Engine) []string { return []string{filepath.Join(e.Bin(), "proa"), "-H", e.Host, "build", "-q"} }
	docker := func(e *Engine) []string { return []string{cli, "-H", e.Host, "build", "-q"} }
	buildx := func(e *Engine) []string { return []string{cli, "-H", e.Host, "buildx", "build", "-q", "--load"} }
	old := func(e *Engine) []string {
		return []string{"env", "DOCKER_BUILDKIT=0", cli, "-H", e.Host, "build", "-q"}
	}
	return []ContextClient{
		command("proa build", proa, false), command("docker build", docker, false), command("docker buildx build", buildx, false),
		command("DOCKER_BUILDKIT=0 docker build", old, false), command("proa build -", proa, true), command("docker build -", docker, true),
		command("DOCKER_BUILDKIT=0 docker build -", old, true), {"POST /build", postBuild},
	}
}

// postBuild sends the directory as the body of POST /build.
func postBuild(e *Engine, dir, tag string, nocache bool) Result {
	query := "?q=1&t=" + tag
	if nocache {
		query += "&nocache=1"
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", e.Socket)
	}}}
	resp, err := c.Post("http://proa/build"+query, "application/x-tar", bytes.NewReader(TarOf(e.t, dir)))
	if err != nil {
		return Result{Code: -1, Stderr: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || bytes.Contains(b, []byte(`"errorDetail"`)) {
		return Result{Code: 1, Stdout: string(b), Stderr: fmt.Sprint(resp.Status, err)}
	}
	return Result{Stdout: string(b)}
}

// TarOf is a directory as a tar with its files' times in whole seconds, as
// tar, docker-py and docker's classic builder write it.
func TarOf(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		link := ""
		if e.Type() == fs.ModeSymlink {
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(st, link)
		if err != nil {
			return err
		}
		h.Name, h.ModTime = strings.TrimPrefix(p, dir+"/"), st.ModTime().Truncate(time.Second)
		if e.IsDir() {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// BuildTwins makes n builds of contexts that differ in nothing but the bytes of
// their files: names, sizes and times are the same. States, clients, one or
// two directories, cached or not, come in random order. It fails for each build
// whose image has a file of another context, and returns how many there were.
func (e *Engine) BuildTwins(t *testing.T, states, n int, seed int64) (stale int) {
	t.Helper()
	clients, rnd := ContextClients(t), rand.New(rand.NewSource(seed))
	top := t.TempDir()
	when := time.Unix(1_700_000_000, 0)
	for i := range n {
		client, state := clients[rnd.Intn(len(clients))], fmt.Sprintf("%03d", rnd.Intn(states))
		dir, nocache := filepath.Join(top, fmt.Sprint("context", rnd.Intn(2))), rnd.Intn(4) == 0
		tag := fmt.Sprintf("twin%d", i)
		for name, text := range map[string]string{
			"Dockerfile": "FROM scratch\nCOPY version /\nADD sub /sub\nLABEL state=" + state + "\n", "version": "1.0." + state + "\n",
			"sub/deep/data": strings.Repeat(state, 100), "sub/other": "o" + state,
		} {
			p := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(p, when, when); err != nil {
				t.Fatal(err)
			}
		}
		if r := client.Build(e, dir, tag, nocache); r.Code != 0 {
			t.Fatalf("build %d by %s: exit code %d\n%s%s", i, client.Name, r.Code, r.Stdout, r.Stderr)
		}
		id := e.MustProa("create", tag, "nothing")
		got := e.MustProa("inspect", "-f", "{{.Config.Labels.state}}", id)
		for _, name := range []string{"version", "sub/deep/data", "sub/other"} {
			out := filepath.Join(top, "out")
			e.MustProa("cp", id+":/"+name, out)
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, want) {
				got += fmt.Sprintf(" %s=%.20q", name, b)
			}
		}
		e.MustProa("rm", id)
		e.MustProa("rmi", "-f", tag)
		if got != state {
			stale++
			t.Errorf("build %d by %s (no cache: %v) of state %s in %s has %s", i, client.Name, nocache, state, filepath.Base(dir), got)
		}
	}
	return stale
}
