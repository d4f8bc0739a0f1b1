package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// withProgram puts a program of the host and the libraries that it needs into a
// build context. A step runs it as `/ctx/ld.so --library-path /ctx /ctx/NAME`.
func withProgram(t *testing.T, dir, name string) {
	t.Helper()
	script := `program=$(command -v "$1"); cp "$program" "$2"
ldd "$program" | grep -o '/[^ ]*' | while read -r lib; do cp -L "$lib" "$2"; done; mv "$2"/ld-linux* "$2/ld.so"`
	cmd := exec.Command("sh", "-euc", script, "sh", name, dir)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot take %s of the host: %v\n%s", name, err, out)
	}
}

// A capability that a RUN gives a program is one that a user without any gets
// by running it, whichever wall the step was behind and whichever the run is
// behind; and no-new-privileges takes it away.
func TestCapabilityOfAStepIsEffective(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := buildContext(t, "Dockerfile", `FROM bb
RUN cp /bin/busybox /chown && touch /file
RUN --mount=target=/ctx /ctx/ld.so --library-path /ctx /ctx/setcap cap_chown=ep /chown
USER app
RUN /chown 5:6 /file
`)
	withProgram(t, dir, "setcap")
	for _, builder := range walls {
		image := "capable-" + builder.name
		e.MustProa("build", "-q", "--isolation", builder.name, "-t", image, dir)
		for _, w := range walls {
			t.Run("built in a "+builder.name+", run in a "+w.name, func(t *testing.T) {
				run := func(args ...string) proatest.Result {
					return e.Docker(append(append([]string{"run", "--rm", "--network", "none"}, w.args...), args...)...)
				}
				r := run(image, "sh", "-c", "stat -c %u:%g /file; /chown 7:8 /file && stat -c %u:%g /file; chown 9:9 /file")
				if r.Code != 1 || r.Stdout != "5:6\n7:8\n" || !strings.Contains(r.Stderr, "chown: /file: Operation not permitted") {
					t.Errorf("exit code %d, %q, %q", r.Code, r.Stdout, r.Stderr)
				}
				for _, without := range [][]string{{"--security-opt", "no-new-privileges"}, {"--cap-drop", "CHOWN"}} {
					if r := run(append(without, image, "/chown", "7:8", "/file")...); r.Code == 0 || !strings.Contains(r.Stderr, "ermitted") {
						t.Errorf("%v: exit code %d, %q", without, r.Code, r.Stderr)
					}
				}
			})
		}
	}
}

// sshAgent starts OpenSSH's agent with a key, and gives its socket and the
// key's fingerprint.
func sshAgent(t *testing.T) (socket, fingerprint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "sock")
	agent := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Process.Kill()
		_ = agent.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("ssh-agent makes no socket")
		}
	}
	command := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	key := filepath.Join(dir, "key")
	command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of a test", "-f", key)
	command("ssh-add", "-q", key)
	fingerprint = regexp.MustCompile(`SHA256:\S+`).FindString(command("ssh-keygen", "-l", "-f", key))
	if fingerprint == "" {
		t.Fatal("ssh-keygen says no fingerprint")
	}
	return socket, fingerprint
}

// A step speaks to the agent of the user who builds: it sees his key and has
// something signed with it. Neither key nor socket is in the image; the next
// step has none.
func TestStepSpeaksToAnSSHAgent(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	socket, fingerprint := sshAgent(t)
	proa, cli := filepath.Join(e.Bin(), "proa"), proatest.DockerCLI(t)
	dir := buildContext(t, "Dockerfile", `FROM bb
ENV run="/ctx/ld.so --library-path /ctx"
RUN --mount=target=/ctx --mount=type=ssh,required $run /ctx/ssh-add -l >/keys && $run /ctx/ssh-add -L >/public && $run /ctx/ssh-add -T /public
RUN --mount=target=/ctx --mount=type=ssh,mode=0666,target=/agent.sock chmod 755 / && su -s /bin/sh app -c "SSH_AUTH_SOCK=/agent.sock $run /ctx/ssh-add -l" >/keys.user
RUN test -z "$SSH_AUTH_SOCK" && test ! -e /agent.sock && test ! -e /run
`)
	withProgram(t, dir, "ssh-add")
	for client, args := range map[string][]string{
		"proa":   {proa, "-H", e.Host, "build", "--no-cache", "--progress", "plain", "-t", "by-proa", "--ssh", "default", dir},
		"buildx": {cli, "-H", e.Host, "buildx", "build", "--no-cache", "--progress", "plain", "-t", "by-buildx", "--ssh", "default", dir},
		"named":  {proa, "-H", e.Host, "build", "--no-cache", "--progress", "plain", "-t", "by-named", "--ssh", "default=" + socket, dir},
	} {
		env := []string{"SSH_AUTH_SOCK=" + socket}
		if client == "named" {
			env = []string{"-u", "SSH_AUTH_SOCK"}
		}
		r := e.Exec("", "env", append(env, args...)...)
		if r.Code != 0 {
			t.Errorf("%s: exit code %d\n%s%s", client, r.Code, r.Stdout, r.Stderr)
			continue
		}
		if strings.Contains(r.Stdout+r.Stderr, fingerprint) {
			t.Errorf("%s: the steps' output was not kept in files, so this test tests less than it says", client)
		}
		for _, file := range []string{"/keys", "/keys.user"} {
			want := "256 " + fingerprint + " of a test (ED25519)"
			if got := e.MustProa("run", "--rm", "--network", "none", "by-"+client, "cat", file); got != want {
				t.Errorf("%s: %s has %q, want %q", client, file, got, want)
			}
		}
	}

	says := func(r proatest.Result, parts ...string) {
		t.Helper()
		if r.Code != 1 {
			t.Errorf("exit code %d: %s%s", r.Code, r.Stdout, r.Stderr)
		}
		for _, p := range parts {
			if !strings.Contains(r.Stderr, p) {
				t.Errorf("%q does not hold %q", r.Stderr, p)
			}
		}
	}
	without := func(args ...string) proatest.Result {
		return e.Exec("", "env", append([]string{"-u", "SSH_AUTH_SOCK", proa, "-H", e.Host, "build", "--no-cache"}, args...)...)
	}
	says(without(dir), "hint: the step needs an SSH agent: --ssh default")
	says(without("--ssh", "default", dir), "cannot forward --ssh: ", "hint: an agent needs $SSH_AUTH_SOCK; a key is given as --ssh default=FILE")
	says(without("--ssh", "default="+filepath.Join(dir, "nosuch"), dir), "nosuch", "hint: ")
	says(without("--isolation", "vm", "--ssh", "default="+socket, dir), "a guest reaches no socket of the host", "--isolation container")
}
