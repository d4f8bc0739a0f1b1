package test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

var (
	record     = flag.Bool("record", false, "TestGoldenBuilds writes what docker's BuildKit makes as what is expected")
	accept     = flag.Bool("accept", false, "TestGoldenBuilds writes what `proa build` makes as what is expected, beside what docker's BuildKit made; read the difference")
	allClients = flag.Bool("all-clients", false, "TestGoldenBuilds goes through every client for every folder, not through one besides `proa build`")
)

// golden is a folder of testdata/builds:
//
//	Dockerfile   lies in the context, beside the files of context/
//	context/     the build's context; all its times are contextTime
//	prepare      a script that makes in the context what git does not keep
//	flags        of the build, one argument a line; $CONTEXT and $HTTP are replaced
//	nopeer       why docker's BuildKit of the distribution cannot build it: tree and config are then written by hand
//	tree         the files in which the image differs from its base: kind, mode, owner, size, time, name, contents
//	config       what the image's configuration says, history included
//	tree.docker, config.docker   the same of docker's BuildKit of the distribution (0.8), where it is known to differ
//	differs      why it does
//	noclassic    why it is not built through the API's old route
//
// tree and config of all others are what docker's BuildKit made of them, and
// each run of the test asks it again.
type golden struct {
	index          int
	name, dir      string
	nopeer         string
	context, stdin string
	flags          []string
}

var contextTime = time.Date(2020, 2, 3, 4, 5, 6, 789000000, time.UTC)

// httpAddr is where each engine finds the files of goldenServer: it is
// loopback of its own network namespace.
const httpAddr = "127.0.0.1:8099"

// loadGolden reads the folder and makes its context.
func loadGolden(t *testing.T, index int, dir string) *golden {
	t.Helper()
	g := &golden{index: index, name: filepath.Base(dir), dir: dir}
	top := t.TempDir()
	g.context = filepath.Join(top, "context")
	if b, err := os.ReadFile(filepath.Join(dir, "nopeer")); err == nil {
		g.nopeer = strings.TrimSpace(string(b))
	}
	if err := os.Mkdir(g.context, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "context")); err == nil {
		if out, err := exec.Command("cp", "-rP", filepath.Join(dir, "context")+"/.", g.context).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	dockerfile, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.context, "Dockerfile"), dockerfile, 0o644); err != nil {
		t.Fatal(err)
	}
	// A checkout's modes depend on the umask; only a script's differ from these.
	err = filepath.WalkDir(g.context, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink != 0 {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() {
			mode = 0o755
		}
		return os.Chmod(p, mode)
	})
	if err != nil {
		t.Fatal(err)
	}
	// What the script dates itself is not of this hour.
	begin := time.Now().Add(-time.Hour)
	if script, err := os.ReadFile(filepath.Join(dir, "prepare")); err == nil {
		cmd := exec.Command("sh", "-euc", "umask 022\n"+string(script))
		cmd.Dir = g.context
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("prepare: %v\n%s", err, out)
		}
	}
	var names []string
	err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		names = append(names, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(names)
	for _, p := range names {
		st, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		if st.ModTime().Before(begin) || st.ModTime().After(time.Now()) {
			continue
		}
		if out, err := exec.Command("touch", "-h", "-d", contextTime.Format("2006-01-02T15:04:05.999999999Z"), "--", p).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "flags")); err == nil {
		for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			g.flags = append(g.flags, strings.NewReplacer("$CONTEXT", g.context, "$HTTP", "http://"+httpAddr).Replace(l))
			if l == "-" {
				g.stdin = string(dockerfile)
			}
		}
	}
	if slices.Contains(g.flags, "--ssh") {
		writeSSHKey(t, filepath.Join(top, "key"))
	}
	return g
}

// writeSSHKey makes a key for the agent that --ssh offers.
func writeSSHKey(t *testing.T, file string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// goldenServer serves what ADD fetches, in a network namespace.
func goldenServer(t *testing.T, netns string) {
	t.Helper()
	files := map[string][]byte{
		"/file.txt":    []byte("hello world\n"),
		"/archive.tar": proatest.Tar(t, proatest.Entry{Name: "inside", Body: "of an archive\n", UID: 31, GID: 32, Time: time.Unix(1500000000, 0)}),
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1400000000, 0), bytes.NewReader(b))
	})}
	l := proatest.ListenIn(t, netns, httpAddr)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
}

// goldenBases are the images that the Dockerfiles begin from.
func goldenBases(t *testing.T) map[string][]byte {
	t.Helper()
	base := proatest.Tar(t, proatest.BusyboxRoot(t)...)
	attrs := proatest.Tar(t,
		proatest.Entry{Name: "attrs/"},
		proatest.Entry{Name: "attrs/ping", Mode: 0o755, Body: "x", Xattrs: map[string]string{"security.capability": netBind}},
		proatest.Entry{Name: "attrs/note", Body: "x", Xattrs: map[string]string{"user.note": "hello"}},
		proatest.Entry{Name: "attrs/suid", Mode: 0o4711, UID: 5, Body: "x"},
	)
	config := map[string]any{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}
	rich := map[string]any{
		"Cmd": []string{"inherited"}, "Entrypoint": []string{"/bin/echo"}, "Env": []string{"PATH=/bin", "INHERITED=yes"}, "User": "app", "WorkingDir": "/home/app",
		"Labels": map[string]string{"from": "the base"}, "ExposedPorts": map[string]any{"80/tcp": map[string]any{}}, "Volumes": map[string]any{"/vol": map[string]any{}}, "StopSignal": "SIGINT",
	}
	return map[string][]byte{
		"base:latest":       proatest.Archive(t, "base:latest", config, base),
		"attrs:latest":      proatest.Archive(t, "attrs:latest", config, base, attrs),
		"configured:latest": proatest.Archive(t, "configured:latest", rich, base),
	}
}

// describe says what a configuration says, a line each.
func describe(t *testing.T, s *proatest.Saved) string {
	t.Helper()
	var image struct {
		Architecture, OS, Author string
		Config                   map[string]any
		History                  []struct {
			CreatedBy  string `json:"created_by"`
			Author     string
			EmptyLayer bool `json:"empty_layer"`
		}
	}
	if err := json.Unmarshal(s.Config, &image); err != nil {
		t.Fatal(err)
	}
	out := []string{"platform " + image.OS + "/" + image.Architecture}
	if image.Author != "" {
		out = append(out, "author "+image.Author)
	}
	for _, k := range []string{"User", "WorkingDir", "Env", "Entrypoint", "Cmd", "Shell", "ExposedPorts", "Volumes", "Labels", "StopSignal", "Healthcheck", "OnBuild"} {
		v := image.Config[k]
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		switch string(b) {
		case "null", `""`, "[]", "{}":
			continue // how a writer says nothing is its own affair
		}
		if k == "Env" {
			for _, e := range v.([]any) {
				out = append(out, fmt.Sprintf("Env %q", e))
			}
			continue
		}
		out = append(out, k+" "+string(b))
	}
	for _, h := range image.History {
		line := "step "
		if h.EmptyLayer {
			line = "note "
		}
		if h.Author != "" {
			line += "(" + h.Author + ") "
		}
		out = append(out, fmt.Sprintf("%s%q", line, h.CreatedBy))
	}
	return strings.Join(append(out, fmt.Sprintf("layers %d", len(s.DiffIDs))), "\n")
}

// sameText fails with the lines that differ.
func sameText(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	count := map[string]int{}
	for _, l := range strings.Split(want, "\n") {
		count[l]--
	}
	for _, l := range strings.Split(got, "\n") {
		count[l]++
	}
	var diff []string
	for _, l := range strings.Split(want, "\n") {
		if count[l] < 0 {
			diff = append(diff, "- "+l)
			count[l]++
		}
	}
	for _, l := range strings.Split(got, "\n") {
		if count[l] > 0 {
			diff = append(diff, "+ "+l)
			count[l]--
		}
	}
	if len(diff) == 0 {
		diff = []string{"the same lines in another order:", got}
	}
	t.Errorf("%s is not what is expected (-):\n%s", what, strings.Join(diff, "\n"))
}

// maker is one way to make an image of a context.
type maker struct {
	name  string
	tag   string                                             // of its images
	build func(stdin string, args ...string) proatest.Result // the arguments after `build`
	save  func(file, image string) proatest.Result
}

// make builds, saves and reads the image.
func (m maker) make(t *testing.T, g *golden) *proatest.Saved {
	t.Helper()
	name := "golden/" + m.tag + ":" + g.name
	r := m.build(g.stdin, append(append([]string{"-t", name}, g.flags...), g.context)...)
	if r.Code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", m.name, r.Code, r.Stdout, r.Stderr)
	}
	file := filepath.Join(t.TempDir(), "saved.tar")
	if r := m.save(file, name); r.Code != 0 {
		t.Fatalf("%s: save: %s", m.name, r.Stderr)
	}
	return proatest.ReadSaved(t, file)
}

// made says what was made, as it stands in the folder: the files in which the
// image differs from its base, and its configuration.
func (g *golden) made(t *testing.T, s, base *proatest.Saved, since time.Time) map[string]string {
	t.Helper()
	below := proatest.Tree(nil)
	if len(s.DiffIDs) > 0 && s.DiffIDs[0] == base.DiffIDs[0] {
		below = base.Files
	}
	return map[string]string{"tree": s.Files.List(below, since), "config": describe(t, s)}
}

// want reads what is expected: of docker's BuildKit what it is known to make
// otherwise, if there is such a file.
func (g *golden) want(t *testing.T, name string, peer bool) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if other, err := os.ReadFile(filepath.Join(g.dir, name+".docker")); err == nil {
		if bytes.Equal(b, other) {
			t.Errorf("%s.docker is %s: it can go", name, name)
		}
		if _, err := os.Stat(filepath.Join(g.dir, "differs")); err != nil {
			t.Errorf("%s.docker has no reason beside it: %v", name, err)
		}
		if peer {
			b = other
		}
	}
	return strings.TrimSuffix(string(b), "\n")
}

// write records what is expected of docker's BuildKit.
func (g *golden) write(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(g.dir, name)
	if _, err := os.Stat(file + ".docker"); err == nil {
		file += ".docker"
	}
	if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// accept takes what Proa makes as expected, and keeps what docker's BuildKit
// makes beside it.
func (g *golden) accept(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(g.dir, name)
	old, err := os.ReadFile(file)
	if err != nil || string(old) == text+"\n" {
		return
	}
	if _, err := os.Stat(file + ".docker"); err != nil && g.nopeer == "" {
		if err := os.WriteFile(file+".docker", old, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// clients are the ways in which an engine of ours is asked to build. The first
// is asked for every folder.
func clients(t *testing.T, e *proatest.Engine) []maker {
	cli := proatest.DockerCLI(t)
	save := func(file, image string) proatest.Result { return e.Docker("save", "-o", file, image) }
	env := func(set string) func(stdin string, args ...string) proatest.Result {
		return func(stdin string, args ...string) proatest.Result {
			return e.Exec(stdin, "env", append([]string{set, cli, "-H", e.Host, "build", "--no-cache"}, args...)...)
		}
	}
	return []maker{
		{"proa build", "proa", func(stdin string, args ...string) proatest.Result {
			return e.Exec(stdin, filepath.Join(e.Bin(), "proa"), append([]string{"-H", e.Host, "build"}, args...)...)
		}, save},
		{"docker build by buildx", "buildx", env("DOCKER_BUILDKIT=1"), save},
		{"docker build without BuildKit", "classic", env("DOCKER_BUILDKIT=0"), save},
	}
}

// classic tells whether the API's old route can carry what the folder asks for:
// it has no session, so no secrets, no agent and no second context.
func (g *golden) classic() bool {
	if _, err := os.Stat(filepath.Join(g.dir, "noclassic")); err == nil {
		return false
	}
	for _, f := range []string{"--secret", "--ssh", "--build-context"} {
		if slices.Contains(g.flags, f) {
			return false
		}
	}
	return true
}

// timeless takes the times of directories out of a tree. BuildKit takes up what
// it has of the same context from an earlier build, and writing into its
// directories gives them new times, so only the first build of a context keeps
// all of them.
func timeless(tree string) string {
	return regexp.MustCompile(`(?m)^(dir  \S+ \S+ \d+) \S+`).ReplaceAllString(tree, "$1 -")
}

// Each folder of testdata/builds, through docker's BuildKit and through Proa,
// is the files and the configuration that lie in the folder.
func TestGoldenBuilds(t *testing.T) {
	proatest.NeedRoot(t)
	since := time.Now().Add(-2 * time.Second)
	archives := map[string]string{}
	for name, b := range goldenBases(t) {
		archives[name] = filepath.Join(t.TempDir(), strings.TrimSuffix(name, ":latest")+".tar")
		if err := os.WriteFile(archives[name], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := proatest.ReadSaved(t, archives["base:latest"])

	d, e := proatest.NewDocker(t), proatest.New(t)
	goldenServer(t, d.Netns)
	goldenServer(t, e.Netns)
	for _, a := range archives {
		d.MustDocker("load", "-i", a)
		e.MustDocker("load", "-i", a)
	}
	peer := maker{"docker's BuildKit", "docker", d.Build, func(file, image string) proatest.Result { return d.Docker("save", "-o", file, image) }}
	ours := clients(t, e)

	dirs, err := filepath.Glob("testdata/builds/*/Dockerfile")
	if err != nil || len(dirs) < 40 {
		t.Fatalf("%d golden builds (%v)", len(dirs), err)
	}
	for i, p := range dirs {
		t.Run(filepath.Base(filepath.Dir(p)), func(t *testing.T) {
			t.Parallel()
			g := loadGolden(t, i, filepath.Dir(p))
			check := func(m maker, isPeer bool) {
				for name, got := range g.made(t, m.make(t, g), base, since) {
					if isPeer && *record {
						g.write(t, name, got)
					}
					if m.tag == "proa" && *accept {
						g.accept(t, name, got)
					}
					want := g.want(t, name, isPeer)
					if !isPeer && m.tag != "proa" && name == "tree" {
						got, want = timeless(got), timeless(want)
					}
					sameText(t, "the "+name+" by "+m.name, got, want)
				}
			}
			if g.nopeer == "" {
				check(peer, true)
			}
			check(ours[0], false)
			for j, m := range ours[1:] {
				if m.tag == "classic" && !g.classic() || !*allClients && i%(len(ours)-1) != j {
					continue
				}
				check(m, false)
			}
		})
	}
}
