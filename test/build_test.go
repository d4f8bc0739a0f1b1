package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"proa/test/proatest"
)

// context makes a directory of name, content pairs.
func buildContext(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		p := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// builderOf finds the builder of an engine: its child called proa-build.
func builderOf(t *testing.T, e *proatest.Engine) int {
	t.Helper()
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(e.Pid()), "-x", "proa-build").Output()
	if err != nil {
		t.Fatalf("no builder runs: %v", err)
	}
	pid, err := strconv.Atoi(strings.Fields(string(out))[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// started is a build that runs in the background.
type started struct {
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan error
}

type lockedBuffer struct {
	mu chan struct{}
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu <- struct{}{}
	defer func() { <-l.mu }()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu <- struct{}{}
	defer func() { <-l.mu }()
	return l.b.String()
}

// begin starts a command and waits until its output has the words.
func begin(t *testing.T, e *proatest.Engine, words, name string, args ...string) *started {
	t.Helper()
	s := &started{cmd: exec.Command(name, args...), out: &lockedBuffer{mu: make(chan struct{}, 1)}, done: make(chan error, 1)}
	s.cmd.Env = append(os.Environ(), "PROA_HOST="+e.Host, "DOCKER_HOST="+e.Host, "DOCKER_CONFIG="+e.Dir, "DOCKER_BUILDKIT=0")
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	for end := time.Now().Add(60 * time.Second); !strings.Contains(s.out.String(), words); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q in\n%s\n%s", words, s.out, e.Log())
		}
	}
	return s
}

// end waits for the command and gives its exit code.
func (s *started) end(t *testing.T) int {
	t.Helper()
	select {
	case <-s.done:
	case <-time.After(60 * time.Second):
		t.Fatalf("it goes on:\n%s", s.out)
	}
	return s.cmd.ProcessState.ExitCode()
}

const waits = "FROM bb\nRUN echo it-be\"\"gan; sleep 300\n"

// A builder that crashes ends the builds in it with words that say so, and
// nothing else: a container runs on, the next build works.
func TestBuilderCrash(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	long := buildContext(t, "Dockerfile", waits)
	short := buildContext(t, "Dockerfile", "FROM bb\nRUN echo done > /f\n")
	e.MustProa("build", "-q", "-t", "before", short)
	e.MustProa("run", "-d", "--name", "stays", "bb", "sleep", "1000")
	for _, c := range []struct {
		name string
		sig  syscall.Signal
		said string
		cmd  []string
	}{
		{"abort in proa build", syscall.SIGABRT, "SIGABRT", []string{filepath.Join(e.Bin(), "proa"), "build", "--progress", "plain", long}},
		{"kill in proa build", syscall.SIGKILL, "signal: killed", []string{filepath.Join(e.Bin(), "proa"), "build", "--progress", "plain", long}},
		{"segmentation fault in the classic build", syscall.SIGSEGV, "SIGSEGV", []string{proatest.DockerCLI(t), "build", long}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := begin(t, e, "it-began", c.cmd[0], c.cmd[1:]...)
			if err := syscall.Kill(builderOf(t, e), c.sig); err != nil {
				t.Fatal(err)
			}
			if code := b.end(t); code != 1 {
				t.Errorf("exit code %d", code)
			}
			for _, want := range []string{"the builder ended unexpectedly", c.said, "build.log"} {
				if !strings.Contains(b.out.String(), want) {
					t.Errorf("no %q in\n%s", want, b.out)
				}
			}
			if got := strings.TrimSpace(e.MustProa("ps", "-q", "--filter", "name=stays")); got == "" {
				t.Error("the container is gone")
			}
			e.MustProa("build", "-q", "-t", "after", "--no-cache", short)
			e.MustProa("run", "--rm", "after", "test", "-f", "/f")
		})
	}
	e.MustProa("rm", "-f", "stays")
}

// ctrl-C ends the step and the build, and leaves the builder for the next one.
func TestBuildIsCancelled(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", waits)
	b := begin(t, e, "it-began", filepath.Join(e.Bin(), "proa"), "build", "--progress", "plain", dir)
	pid := builderOf(t, e)
	if err := b.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := b.end(t); code != 130 || !strings.Contains(b.out.String(), "the build was cancelled") {
		t.Errorf("exit code %d:\n%s", code, b.out)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if e.InNetns("pgrep", "-f", "^sleep 300$").Code != 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the step goes on")
		}
	}
	if builderOf(t, e) != pid {
		t.Error("another builder")
	}
}

// An engine that is killed in the middle of a build takes the builder with it;
// the store holds nothing half-made, and the build works the next time.
func TestEngineKilledInABuild(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", "FROM bb\nCOPY big /big\nRUN cp /big /copy\nRUN echo it-be\"\"gan; [ -f /go ] || sleep 1; cp /big /three\n", "big", strings.Repeat("0123456789", 300_000))
	for i := range 3 {
		b := begin(t, e, "it-began", filepath.Join(e.Bin(), "proa"), "build", "--no-cache", "--progress", "plain", "-t", "half", dir)
		pid := builderOf(t, e)
		e.Kill()
		b.end(t)
		for end := time.Now().Add(10 * time.Second); syscall.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the builder outlives its engine")
			}
		}
		e.Start()
		if got := e.Proa("inspect", "half"); got.Code == 0 && i == 0 {
			t.Error("a half-built image has a name")
		}
		e.VerifyStore()
		e.MustProa("build", "-q", "-t", "half", dir)
		e.MustProa("run", "--rm", "half", "cmp", "/big", "/three")
		e.MustProa("rmi", "-f", "half")
	}
}

// An idle builder ends and gives its memory back; what it knew is on disk.
func TestIdleBuilderEnds(t *testing.T) {
	e := proatest.New(t, proatest.Args("--build-idle", "1s"))
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", "FROM bb\nRUN date > /d\n")
	e.MustProa("build", "-q", dir)
	first := builderOf(t, e)
	for end := time.Now().Add(30 * time.Second); syscall.Kill(first, 0) == nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it goes on")
		}
	}
	if r := e.Proa("build", dir); r.Code != 0 || !strings.Contains(r.Stderr, "CACHED") {
		t.Errorf("not cached by the next builder:\n%s", r.Stderr)
	}
}

// Docker's clients, unmodified.
func TestDockerBuild(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", "FROM bb\nARG X=0\nRUN echo $X > /x\nCMD [\"cat\",\"/x\"]\n")
	iid := filepath.Join(t.TempDir(), "iid")
	for _, c := range []struct {
		name string
		env  string
		args []string
	}{
		{"classic", "DOCKER_BUILDKIT=0", []string{"build", "--build-arg", "X=1", "-t", "one", dir}},
		{"buildkit", "DOCKER_BUILDKIT=1", []string{"build", "--build-arg", "X=1", "-t", "one", "--iidfile", iid, dir}},
		{"buildx", "X=1", []string{"buildx", "build", "--build-arg", "X=1", "-t", "one", "--iidfile", iid, "--load", dir}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.Proa("rmi", "-f", "one")
			r := e.Exec("", "env", append([]string{c.env, proatest.DockerCLI(t), "-H", e.Host}, c.args...)...)
			if r.Code != 0 {
				t.Fatalf("%s\n%s", r.Stdout, r.Stderr)
			}
			if got := e.MustDocker("run", "--rm", "one"); strings.TrimSpace(got) != "1" {
				t.Errorf("it says %q", got)
			}
			if strings.Contains(strings.Join(c.args, " "), "iidfile") {
				id, err := os.ReadFile(iid)
				if err != nil {
					t.Fatal(err)
				}
				if got := e.MustDocker("run", "--rm", string(id)); strings.TrimSpace(got) != "1" {
					t.Errorf("by its id it says %q", got)
				}
			}
		})
	}
	if out := e.MustDocker("builder", "prune", "-af"); !strings.Contains(out, "Total") {
		t.Errorf("prune says %q", out)
	}
	if out := e.MustDocker("system", "df", "--format", "{{.Type}}"); !strings.Contains(out, "Build Cache") {
		t.Errorf("df says %q", out)
	}
	// A failed build has the code and the words that the client is used to.
	bad := buildContext(t, "Dockerfile", "FROM bb\nRUN exit 9\n")
	for _, env := range []string{"DOCKER_BUILDKIT=0", "DOCKER_BUILDKIT=1"} {
		r := e.Exec("", "env", env, proatest.DockerCLI(t), "-H", e.Host, "build", bad)
		if r.Code != 1 || !strings.Contains(r.Stdout+r.Stderr, "exit code: 9") {
			t.Errorf("%s: code %d\n%s%s", env, r.Code, r.Stdout, r.Stderr)
		}
	}
}

// The cache travels through a registry, by itself and inside an image.
func TestBuildCacheInARegistry(t *testing.T) {
	reg := proatest.NewRegistry(t)
	e := proatest.New(t)
	reg.In(e.Netns)
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", "FROM bb AS one\nRUN date +%N > /d\nFROM bb\nCOPY --from=one /d /d\nRUN date +%N >> /d\n")
	for _, c := range []struct{ name, to, from string }{
		{"alone", "type=registry,ref=" + reg.Addr + "/cache:1,mode=max", "type=registry,ref=" + reg.Addr + "/cache:1"},
		{"inline", "type=inline", reg.Addr + "/image:1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e.MustProa("builder", "prune", "-af")
			e.MustProa("build", "--push", "-t", reg.Addr+"/image:1", "--cache-to", c.to, dir)
			want := e.MustProa("run", "--rm", reg.Addr+"/image:1", "cat", "/d")
			e.MustProa("rmi", "-f", reg.Addr+"/image:1")
			e.MustProa("builder", "prune", "-af")
			r := e.Proa("build", "-t", "again", "--cache-from", c.from, dir)
			if r.Code != 0 {
				t.Fatal(r.Stderr)
			}
			if got := e.MustProa("run", "--rm", "again", "cat", "/d"); got != want {
				t.Errorf("steps ran again: %q, %q\n%s", want, got, r.Stderr)
			}
		})
	}
}

// Two builds on two data roots give one digest when the time is fixed.
func TestReproducibleBuild(t *testing.T) {
	dir := buildContext(t, "Dockerfile", "FROM bb\nCOPY f /d/f\nRUN mkdir /e && cp /d/f /e/g\nRUN --mount=type=cache,target=/c touch /c/x /h\n", "f", "content")
	var digests []string
	for i := range 2 {
		e := proatest.New(t)
		e.Import("bb", proatest.BusyboxRoot(t))
		if i == 0 {
			e.MustProa("save", "-o", filepath.Join(dir, "../bb.tar"), "bb")
		} else {
			e.MustProa("rmi", "-f", "bb")
			e.MustProa("load", "-i", filepath.Join(dir, "../bb.tar"))
		}
		iid := filepath.Join(t.TempDir(), "meta")
		e.MustProa("build", "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1600000000", "--metadata-file", iid, "-t", fmt.Sprint("r", 1), dir)
		raw, err := os.ReadFile(iid)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(raw), `"containerimage.digest": "`)
		digests = append(digests, rest[:71])
		time.Sleep(1100 * time.Millisecond)
	}
	if digests[0] != digests[1] {
		t.Errorf("%v", digests)
	}
}

// RUN steps behind the VM wall see the guest's kernel, those behind the other
// the host's; what they write is in the image either way.
func TestBuildBehindTheVMWall(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", "FROM bb\nCOPY f /f\nRUN cat /f > /k && uname -v >> /k && mkdir /d && ln /k /d/k\n", "f", "from the context\n")
	host := strings.TrimSpace(e.Exec("", "uname", "-v").Stdout)
	for _, wall := range []string{"container", "vm"} {
		e.MustProa("build", "-q", "--isolation", wall, "-t", "k-"+wall, dir)
		got := e.MustProa("run", "--rm", "k-"+wall, "cat", "/d/k")
		if !strings.HasPrefix(got, "from the context\n") {
			t.Errorf("%s: %q", wall, got)
		}
		if same := strings.Contains(got, host); same != (wall == "container") {
			t.Errorf("%s: kernel %q, that of the host is %q", wall, got, host)
		}
	}
	if r := e.Exec("", "env", "DOCKER_BUILDKIT=0", proatest.DockerCLI(t), "-H", e.Host, "build", "--isolation", "hyperv", dir); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "container and vm are known") {
		t.Errorf("hyperv: %d %s%s", r.Code, r.Stdout, r.Stderr)
	}
}
