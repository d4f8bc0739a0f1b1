package test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// Each wrong request has its exit code and an error that says what and why,
// and leaves nothing.
func TestBadRuns(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	e.MustDocker("run", "-d", "--network", "none", "--name", "taken", "-p", "127.0.0.1:8080:80", "bb", "sleep", "1000")
	e.Docker("rm", "-f", "taken")
	e.MustDocker("run", "-d", "--name", "taken", "-p", "8080:80", "bb", "sleep", "1000")
	before := e.Traces()
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"unknown image", []string{"127.0.0.1:1/nosuch"}, 125, []string{"Unable to find image '127.0.0.1:1/nosuch:latest' locally", "nothing listens there"}},
		{"unknown command", []string{"bb", "nosuch"}, 127, []string{"executable file not found in $PATH"}},
		{"unknown path", []string{"bb", "/no/such"}, 127, []string{"no such file or directory"}},
		{"not executable", []string{"bb", "/notexec"}, 126, []string{"permission denied"}},
		{"a directory", []string{"bb", "/etc"}, 126, []string{"/etc"}},
		{"name taken", []string{"--name", "taken", "bb"}, 125, []string{"taken", "already in use"}},
		{"port taken", []string{"-p", "8080:80", "bb", "true"}, 125, []string{"8080", "already"}},
		{"bad name", []string{"--name", "no/slash", "bb"}, 125, []string{"no/slash"}},
		{"unknown runtime", []string{"--runtime", "nosuch", "bb"}, 125, []string{"nosuch"}},
		{"two walls", []string{"--runtime", "container", "--isolation", "vm", "bb"}, 125, []string{"isolation"}},
		{"unknown user", []string{"-u", "nosuch", "bb", "true"}, 125, []string{"unable to find user nosuch"}},
		{"missing bind source", []string{"--mount", "type=bind,source=/no/such/dir,target=/x", "bb", "true"}, 125, []string{"/no/such/dir"}},
		{"relative working directory", []string{"-w", "rel", "bb", "true"}, 125, []string{"rel"}},
		{"memory too small", []string{"-m", "1m", "bb", "true"}, 125, []string{"memory"}},
		{"more cpus than there are", []string{"--cpus", "4096", "bb", "true"}, 125, []string{"CPUs"}},
		{"unknown capability", []string{"--cap-add", "NOSUCH", "bb", "true"}, 125, []string{"NOSUCH"}},
		{"unknown seccomp action", []string{"--security-opt", "nonsense=1", "bb", "true"}, 125, []string{"nonsense"}},
		{"sysctl of the host", []string{"--sysctl", "vm.swappiness=1", "bb", "true"}, 125, []string{"vm.swappiness"}},
		{"unknown network", []string{"--network", "nosuch", "bb", "true"}, 125, []string{"nosuch"}},
		{"bind mount behind the VM wall", []string{"--runtime", "vm", "-v", "/tmp:/x", "bb", "true"}, 125, []string{"/x"}},
		{"host network behind the VM wall", []string{"--runtime", "vm", "--network", "host", "bb", "true"}, 125, []string{"network"}},
		{"unknown command behind the VM wall", []string{"--runtime", "vm", "bb", "nosuch"}, 127, []string{"executable file not found in $PATH"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "--rm"}, c.args...)
			for _, cli := range []string{"docker", "proa"} {
				r := e.Docker(args...)
				if cli == "proa" {
					r = e.Proa(args...)
				}
				if r.Code != c.code {
					t.Errorf("%s: exit code %d, want %d: %s", cli, r.Code, c.code, r.Stderr)
				}
				for _, s := range c.says {
					if !strings.Contains(r.Stderr, s) {
						t.Errorf("%s: %q does not say %q", cli, r.Stderr, s)
					}
				}
			}
		})
	}
	e.SameTraces(t, before)
}

// An engine without QEMU or without a guest kernel says so by name, and runs
// containers all the same.
func TestNoMachine(t *testing.T) {
	for _, c := range []struct {
		name, says string
		option     proatest.Option
	}{
		{"no QEMU", "qemu", proatest.Args("--qemu", "/no/such/qemu")},
		{"no guest kernel", "kernel", proatest.GuestKernel("/no/such/kernel")},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := proatest.New(t, c.option)
			e.ImportBusybox("bb")
			r := e.Docker("run", "--rm", "--runtime", "vm", "--network", "none", "bb", "true")
			if r.Code != 125 || !strings.Contains(strings.ToLower(r.Stderr), c.says) || !strings.Contains(r.Stderr, "/no/such") {
				t.Errorf("code %d: %s", r.Code, r.Stderr)
			}
			e.MustDocker("run", "--rm", "--network", "none", "bb", "true")
		})
	}
}

// Archives that are damaged or hostile are refused with a reason, and the
// store is as it was.
func TestBadArchives(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	good := filepath.Join(t.TempDir(), "good.tar")
	e.MustProa("save", "-o", good, "bb")
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	e.MustProa("rmi", "bb") // blobs that are here already would not be read again
	usage := func() string { return e.MustProa("images", "-q", "--no-trunc") + e.MustProa("system", "df") }
	before := usage()
	for name, b := range map[string][]byte{
		"empty":           {},
		"noise":           bytes.Repeat([]byte("noise"), 1000),
		"truncated":       whole[:len(whole)*2/3],
		"cut in a header": whole[:700],
		"foreign":         proatest.Tar(t, proatest.Entry{Name: "just/a/file", Body: "x"}),
		"flipped":         flip(whole),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bad.tar")
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, cli := range []func(...string) proatest.Result{e.Proa, e.Docker} {
				if r := cli("load", "-i", file); r.Code == 0 || len(strings.TrimSpace(r.Stderr+r.Stdout)) < 20 {
					t.Errorf("code %d: %s%s", r.Code, r.Stdout, r.Stderr)
				}
			}
			if now := usage(); now != before {
				t.Errorf("the store changed:\n%s\n%s", before, now)
			}
		})
	}
	for name, entries := range map[string][]proatest.Entry{
		"parent directory":     {{Name: "../escape", Body: "x"}},
		"parent in the middle": {{Name: "a/../../escape", Body: "x"}},
		"hard link outside":    {{Name: "l", Type: '1', Link: "../../etc/passwd"}},
		"hard link to nothing": {{Name: "l", Type: '1', Link: "missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "root.tar")
			if err := os.WriteFile(file, proatest.Tar(t, entries...), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := e.Proa("import", file, "bad"); r.Code == 0 {
				t.Errorf("it was imported: %s", r.Stdout)
			} else if !strings.Contains(r.Stderr, strings.TrimSuffix(entries[0].Name, "/")) {
				t.Errorf("the error does not name the entry: %s", r.Stderr)
			}
			if now := usage(); now != before {
				t.Errorf("the store changed:\n%s\n%s", before, now)
			}
		})
	}
	t.Run("through a symlink", func(t *testing.T) {
		// Lands inside the image, wherever the link points.
		e.Import("link", append(proatest.BusyboxRoot(t),
			proatest.Entry{Name: "out", Type: '2', Link: "/tmp/../../../tmp", Mode: 0o777},
			proatest.Entry{Name: "out/proa-escape", Body: "x"}))
		if _, err := os.Lstat("/tmp/proa-escape"); err == nil {
			t.Error("a file was written outside")
		}
		e.MustProa("rmi", "link")
	})
}

// flip changes one byte in the middle of a layer.
func flip(b []byte) []byte {
	out := bytes.Clone(b)
	out[len(out)/2] ^= 0xff
	return out
}

// A layer of more than --max-layer-size is refused however it comes, in the same
// words, and nothing of it stays.
func TestLayerBombs(t *testing.T) {
	e := proatest.New(t, proatest.Args("--max-layer-size", "8m"))
	reg := proatest.NewRegistry(t)
	reg.In(e.Netns)
	e.ImportBusybox("bb")
	dir := t.TempDir()
	// 64 MiB of nothing, which are 64 KiB on their way.
	bomb := proatest.Tar(t, proatest.Entry{Name: "zeros", Body: strings.Repeat("\x00", 64<<20)})
	plain, packed, archive := filepath.Join(dir, "bomb.tar"), filepath.Join(dir, "bomb.tar.gz"), filepath.Join(dir, "archive.tar")
	for name, b := range map[string][]byte{plain: bomb, archive: proatest.Archive(t, "bomb", nil, bomb)} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("sh", "-c", "gzip -k "+plain).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	proatest.Must(t, proatest.Crane(t, nil, "append", "-f", packed, "-t", reg.Addr+"/bomb"))
	context := buildContext(t,
		"copy/Dockerfile", "FROM bb\nCOPY huge /\n", "add/Dockerfile", "FROM bb\nADD bomb.tar.gz /\n", "run/Dockerfile", "FROM bb\nRUN head -c 9000000 /dev/zero >/zeros\n",
		"sparse/Dockerfile", "FROM bb\nRUN truncate -s 1000000000000 /zeros\n",
		"from/Dockerfile", "FROM "+reg.Addr+"/bomb\nCOPY copy /\n")
	if err := os.Rename(packed, filepath.Join(context, "bomb.tar.gz")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(context, "huge"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(context, "huge"), 9<<20); err != nil {
		t.Fatal(err)
	}
	e.MustProa("run", "--network", "none", "--name", "large", "bb", "sh", "-c", "head -c 9000000 /dev/zero >/zeros")
	e.MustProa("run", "--network", "none", "--name", "sparse", "bb", "truncate", "-s", "1000000000000", "/zeros")
	build := func(name string, more ...string) []string {
		return append(append([]string{"build", "-t", "bomb", "-f", filepath.Join(context, name, "Dockerfile")}, more...), context)
	}
	before, images := e.StoreFiles(), e.MustProa("images", "-aq", "--no-trunc")
	for _, c := range []struct {
		name, entry string
		args        []string
	}{
		{"import", "zeros", []string{"import", plain, "bomb"}},
		{"load", "zeros", []string{"load", "-i", archive}},
		{"pull", "zeros", []string{"pull", reg.Addr + "/bomb"}},
		{"run", "zeros", []string{"run", "--rm", reg.Addr + "/bomb", "true"}},
		{"commit", "zeros", []string{"commit", "large", "bomb"}},
		{"build with COPY", "huge", build("copy")},
		{"build with ADD", "zeros", build("add")},
		{"build with RUN", "zeros", build("run")},
		{"build with RUN in a VM", "zeros", build("run", "--isolation", "vm")},
		{"build FROM", "zeros", build("from")},
		// A terabyte of nothing is refused before any of it is written.
		{"build with RUN of a sparse file", "zeros", build("sparse")},
		{"build with RUN of a sparse file in a VM", "zeros", build("sparse", "--isolation", "vm")},
		{"commit of a sparse file", "zeros", []string{"commit", "sparse", "bomb"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clis := map[string]func(...string) proatest.Result{"proa": e.Proa, "docker": e.Docker}
			if slices.Contains(c.args, "--isolation") {
				delete(clis, "docker") // buildx has no such flag
			}
			for cli, run := range clis {
				r := run(c.args...)
				want := fmt.Sprintf("entry %q: the layer holds more than 8388608 bytes, the limit that --max-layer-size of the engine sets", c.entry)
				if r.Took > time.Minute {
					t.Errorf("%s: it took %v", cli, r.Took)
				}
				if r.Code != 1 && (c.args[0] != "run" || r.Code != 125) || !strings.Contains(r.Stderr, want) {
					t.Errorf("%s: exit code %d, %q does not say %q", cli, r.Code, r.Stdout+r.Stderr, want)
				}
				if strings.Contains(r.Stderr, "reader is done") || strings.Contains(r.Stderr, "proa: cannot build: failed to") || strings.Contains(r.Stderr, "failed to commit") {
					t.Errorf("its last word is %q", r.Stderr[max(0, len(r.Stderr)-300):])
				}
			}
			if now := e.MustProa("images", "-aq", "--no-trunc"); now != images {
				t.Errorf("images: %s\nbefore: %s", now, images)
			}
		})
	}
	forgetBuilds(t, e, before)
	e.MustProa("rm", "large", "sparse")
}

// A terabyte of nothing takes no room where it comes from, a file with one hole
// or an archive of a few bytes, and is not written out here before it is refused.
func TestHugeFilesAreNotWritten(t *testing.T) {
	e := proatest.New(t, proatest.Args("--max-layer-size", "8m"))
	e.ImportBusybox("bb")
	dir := buildContext(t, "copy/Dockerfile", "FROM bb\nCOPY huge /\n", "add/Dockerfile", "FROM bb\nADD huge.tar /\n", "small/Dockerfile", "FROM bb\nCOPY fine /\n")
	huge := filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", dir, "--format=posix", "-S", "-cf", filepath.Join(dir, "huge.tar"), "huge").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := e.StoreFiles()
	// Docker's old route sends the terabyte itself, as zeros: they are not taken.
	for _, c := range []struct {
		name, file string
		build      func(args ...string) proatest.Result
	}{
		{"proa", "copy", e.Proa}, {"proa", "add", e.Proa}, {"docker", "copy", e.Docker}, {"docker", "add", e.Docker},
		{"docker without BuildKit", "add", func(args ...string) proatest.Result {
			return e.Exec("", "env", append([]string{"DOCKER_BUILDKIT=0", proatest.DockerCLI(t), "-H", e.Host}, args...)...)
		}},
	} {
		r := c.build("build", "-t", "huge", "-f", filepath.Join(dir, c.file, "Dockerfile"), dir)
		if said := r.Stdout + r.Stderr; r.Code != 1 || !strings.Contains(said, "file too large") || !strings.Contains(said, "hint: a file of a build may have 256MiB here") {
			t.Errorf("%s of a terabyte by %s: exit code %d\n%s", c.file, c.name, r.Code, said)
		}
		if r.Took > time.Minute {
			t.Errorf("%s by %s took %v", c.file, c.name, r.Took)
		}
	}
	forgetBuilds(t, e, before)
	if err := os.WriteFile(filepath.Join(dir, "fine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.MustProa("build", "-t", "fine", "-f", filepath.Join(dir, "small", "Dockerfile"), dir)
}

// A context may hold a terabyte that no instruction asks for: it is neither read
// nor sent. Docker's old route sends all that .dockerignore does not name.
func TestHugeFilesInAContext(t *testing.T) {
	e := proatest.New(t)
	dir := buildContext(t, "Dockerfile", "FROM scratch\nCOPY small /\n", "small", "x")
	huge := filepath.Join(dir, "huge")
	if err := os.WriteFile(huge, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	for _, r := range []proatest.Result{e.Proa("build", "-t", "small", dir), e.Docker("buildx", "build", "-t", "small", dir)} {
		if r.Code != 0 || r.Took > 20*time.Second {
			t.Errorf("exit code %d after %v: %s%s", r.Code, r.Took, r.Stdout, r.Stderr)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte("huge\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := e.Exec("", "env", "DOCKER_BUILDKIT=0", proatest.DockerCLI(t), "-H", e.Host, "build", "-t", "small", dir); r.Code != 0 || r.Took > 20*time.Second {
		t.Errorf("without BuildKit: exit code %d after %v: %s%s", r.Code, r.Took, r.Stdout, r.Stderr)
	}
}

// Mistakes in a Dockerfile are told by docker's clients, with BuildKit and
// without, in the words of `proa build`: what and why, and what to try next.
func TestBadBuilds(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for name, c := range map[string]struct{ dockerfile, what, next string }{
		"syntax":  {"FROM bb\nRUNN x\n", "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)", ""},
		"stage":   {"FROM bb AS build\nFROM bb\nCOPY --from=biuld /x /y\n", "biuld", "no stage is called \"biuld\"; there is \"build\""},
		"secret":  {"FROM bb\nRUN --mount=type=secret,id=token,required true\n", "secret token: not found", "the step needs a secret that was not given: --secret id=token,src=FILE"},
		"file":    {"FROM bb\nCOPY helo.txt /\n", "\"/helo.txt\": not found", "the context has no helo.txt; there is hello.txt"},
		"program": {"FROM bb\nRUN nosuch\n", "RUN in line 2: exit code: 127", "a program that this step names is not in the image"},
		"near":    {"FROM 127.0.0.1:1/x\n", "127.0.0.1:1/x: cannot reach registry 127.0.0.1:1: nothing listens there", "is the name right?"},
	} {
		dir := buildContext(t, "Dockerfile", c.dockerfile, "hello.txt", "x")
		for who, r := range map[string]proatest.Result{
			"proa":                e.Proa("build", "--progress", "plain", dir),
			"docker, BuildKit":    e.Exec("", "env", "DOCKER_BUILDKIT=1", proatest.DockerCLI(t), "-H", e.Host, "build", dir),
			"docker, no BuildKit": e.Exec("", "env", "DOCKER_BUILDKIT=0", proatest.DockerCLI(t), "-H", e.Host, "build", dir),
		} {
			want := c.what + "\n"
			if c.next != "" {
				want = c.what + "\nhint: " + c.next
			}
			if name == "stage" {
				want = "\nhint: " + c.next // what stands before it is the network's
			}
			if strings.Contains(r.Stderr, "rpc error") || !strings.Contains(r.Stderr, " | >>> ") {
				t.Errorf("%s by %s: not what people read, or without the lines of the Dockerfile: %q", name, who, r.Stderr)
			}
			if r.Code != 1 || !strings.Contains(r.Stderr, want) || strings.Contains(r.Stderr, "did not complete") || strings.Contains(r.Stderr, "cache key") {
				t.Errorf("%s by %s: code %d, %q does not say %q", name, who, r.Code, r.Stderr, want)
			}
		}
	}
}

// Registries that send nonsense are refused in words that say what and why.
func TestBadRegistries(t *testing.T) {
	e := proatest.New(t)
	const host = "127.0.0.1:5007"
	index := func(archs ...string) string {
		var list []string
		for _, a := range archs {
			list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%064d","size":7,"platform":{"os":"linux","architecture":%q}}`, len(list), a))
		}
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + strings.Join(list, ",") + `]}`
	}
	docs := map[string][2]string{
		"large":   {"application/vnd.oci.image.manifest.v1+json", `{"schemaVersion":2,"x":"` + strings.Repeat("x", 4<<20) + `"}`},
		"foreign": {"application/vnd.oci.image.index.v1+json", index("s390x", "riscv64")},
		"empty":   {"application/vnd.oci.image.index.v1+json", index()},
		"old":     {"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"name":"old","fsLayers":[]}`},
		"html":    {"text/html", "<html>please log in to the network</html>"},
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		d, ok := docs[name]
		if name == "tagged" && strings.HasSuffix(r.URL.Path, "/tags/list") {
			_, _ = io.WriteString(w, `{"name":"tagged","tags":["v1","v2"]}`)
			return
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", d[0])
		w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(d[1]))))
		_, _ = io.WriteString(w, d[1])
	})}
	l := proatest.ListenIn(t, e.Netns, host)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	before := e.StoreFiles()
	for name, says := range map[string][]string{
		"large":   {"the manifest latest of registry " + host + " is larger than the 4194304 bytes that are allowed"},
		"foreign": {"the image is for linux/riscv64 and linux/s390x and this host is linux/amd64"},
		"empty":   {"the image is for no known platform and this host is linux/amd64"},
		"old":     {"it is of Docker's schema 1, which is not supported: push the image again with a Docker of 2016 or later (1.10)"},
		"tagged":  {"manifest for " + host + "/tagged:latest not found: the repository has no such tag; it has v1 and v2"},
		"html":    {"cannot use the manifest latest of registry " + host + ": invalid character '<'"},
	} {
		t.Run(name, func(t *testing.T) {
			image := host + "/" + name
			dir := buildContext(t, "Dockerfile", "FROM "+image+"\nCOPY Dockerfile /\n")
			for what, r := range map[string]proatest.Result{
				"pull": e.Proa("pull", image), "docker pull": e.Docker("pull", image), "run": e.Proa("run", "--rm", image), "build": e.Proa("build", "-t", "bad", dir),
				"docker build": e.Docker("build", "-t", "bad", dir),
			} {
				if code := map[bool]int{true: 125, false: 1}[what == "run"]; r.Code != code {
					t.Errorf("%s: exit code %d", what, r.Code)
				}
				if strings.Contains(r.Stderr, "is the name right") && (name == "foreign" || name == "tagged") {
					t.Errorf("%s doubts the name: %q", what, r.Stderr)
				}
				for _, s := range append(says, host+"/"+name) {
					if !strings.Contains(r.Stderr, s) {
						t.Errorf("%s: %q does not say %q", what, r.Stderr, s)
					}
				}
			}
		})
	}
	forgetBuilds(t, e, before)
}

// forgetBuilds removes what builds leave for later ones; then the store's layers,
// indexes and snapshots are those of before. The documents of images stay for
// five minutes after a FROM has asked for them.
func forgetBuilds(t *testing.T, e *proatest.Engine, before []string) {
	t.Helper()
	layers := func(files []string) []string {
		return slices.DeleteFunc(slices.Clone(files), func(f string) bool { return strings.HasPrefix(f, "image/content/") })
	}
	e.MustProa("builder", "prune", "-af")
	var now []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now = layers(e.StoreFiles()); slices.Equal(now, layers(before)) {
			return
		}
	}
	t.Errorf("files of the store after all was removed:\n%s", strings.Join(now, "\n"))
}

// A full data root is an error that says so; after room is made it goes on.
func TestFullDataRoot(t *testing.T) {
	proatest.NeedRoot(t)
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"truncate", "-s", "48M", img}, {"mkfs.ext4", "-q", img}, {"mount", "-o", "loop", img, mnt},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mnt).Run() })
	e := proatest.New(t, proatest.DataRoot(filepath.Join(mnt, "data")))
	e.ImportBusybox("bb")
	before := e.MustProa("images", "-q")
	file := filepath.Join(dir, "big.tar")
	noise := make([]byte, 64<<20)
	for i := range noise {
		noise[i] = byte(i*i>>7 ^ i>>3)
	}
	if err := os.WriteFile(file, proatest.Tar(t, proatest.Entry{Name: "big", Body: string(noise)}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := e.Proa("import", file, "big")
	if r.Code == 0 || !strings.Contains(r.Stderr, "no space left") {
		t.Errorf("code %d: %s", r.Code, r.Stderr)
	}
	if now := e.MustProa("images", "-q"); now != before {
		t.Errorf("images: %q, were %q", now, before)
	}
	e.MustProa("run", "--rm", "--network", "none", "bb", "true")
}

// A connection that sends half a request is dropped within 15 seconds.
func TestHalfOpenConnections(t *testing.T) {
	e := proatest.New(t)
	for name, send := range map[string]string{
		"nothing":       "",
		"half a line":   "GET /_pi",
		"half a header": "GET /_ping HTTP/1.1\r\nHost: x\r\n",
		"half a body":   "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"Image\":",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", e.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := fmt.Fprint(conn, send); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			_ = conn.SetReadDeadline(begin.Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
			if d := time.Since(begin); d > 17*time.Second {
				t.Errorf("dropped after %v", d)
			}
		})
	}
}
