package test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// killedDuring runs a command of proa and kills the engine after a while.
func killedDuring(t *testing.T, e *proatest.Engine, after time.Duration, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(proatest.Bin(t), "proa"), append([]string{"-H", e.Host}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	e.Kill()
	_ = cmd.Wait()
	e.Start()
}

// An engine that is killed while it commits leaves the image whole or not at
// all, no file of it, and a container that goes on; the same command succeeds.
func TestKilledWhileCommitting(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	base := e.StoreFiles()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	for _, w := range walls {
		e.MustDocker(append(append([]string{"run", "-d", "--network", "none", "--name", w.name}, w.args...),
			"bb", "sh", "-c", "dd if=/dev/urandom of=/noise bs=1M count=24 2>/dev/null; sync; echo ready; while :; do echo x >/beat; sleep 0.1; done")...)
		for end := time.Now().Add(time.Minute); e.Docker("logs", w.name).Stdout != "ready\n"; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s does not get ready", w.name)
			}
		}
		begin := time.Now()
		e.MustDocker("commit", w.name, "made")
		whole := time.Since(begin)
		e.MustDocker("rmi", "made")
		t.Logf("%s: a commit of 24 MiB takes %v", w.name, whole)
		seen := map[bool]int{}
		for range 20 {
			killedDuring(t, e, time.Duration(rng.Int64N(2*int64(whole))), "commit", w.name, "made")
			names := e.VerifyStore()
			made := slices.Contains(names, "made:latest")
			seen[made]++
			if !made {
				if got := e.StoreFiles(); !slices.Equal(got, base) {
					t.Fatalf("%s: a commit that did not happen left files:\n%s", w.name, strings.Join(got, "\n"))
				}
			}
			// The container goes on: nobody paused it.
			if got := e.MustDocker("inspect", "-f", "{{.State.Status}}", w.name); got != "running" {
				t.Fatalf("%s is %s", w.name, got)
			}
			if r := e.Docker("exec", w.name, "sh", "-c", "rm -f /beat; while ! test -e /beat; do sleep 0.05; done"); r.Code != 0 {
				t.Fatalf("%s does not go on: %s", w.name, r.Stderr)
			}
			if made {
				e.MustDocker("rmi", "made")
			}
		}
		t.Logf("%s: found whole %d times, not at all %d times", w.name, seen[true], seen[false])
		e.MustDocker("commit", w.name, "made")
		if got := e.MustDocker("run", "--rm", "--network", "none", "made", "sh", "-c", "wc -c </noise"); got != "25165824" {
			t.Errorf("%s: the image holds %s bytes of noise", w.name, got)
		}
		e.MustDocker("rmi", "made")
		e.MustDocker("rm", "-f", w.name)
	}
	if got := e.StoreFiles(); !slices.Equal(got, base) {
		t.Errorf("at the end there are files:\n%s", strings.Join(got, "\n"))
	}
}

// Neither killed nor finished copies leave mounts, guests or half a file.
func TestCopiesLeaveNothing(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	before := e.Traces()
	dir := t.TempDir()
	for _, w := range walls {
		for _, state := range []string{"running", "stopped"} {
			name := w.name + "-" + state
			e.MustDocker(append(append([]string{"run", "-d", "--network", "none", "--name", name}, w.args...), "bb", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; sync; echo ready; sleep 1000")...)
			for end := time.Now().Add(time.Minute); e.Docker("logs", name).Stdout != "ready\n"; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s does not get ready", name)
				}
			}
			if state == "stopped" {
				e.MustDocker("kill", name)
				e.MustDocker("wait", name)
			}
			file := filepath.Join(dir, name)
			for _, after := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, time.Second} {
				killedDuring(t, e, after, "export", "-o", file, name)
				if _, err := os.Lstat(file + ".partial"); err == nil {
					t.Errorf("%s: half an export is left", name)
				}
			}
			e.MustProa("cp", name+":/big", dir)
			e.MustProa("diff", name)
			e.MustDocker("rm", "-f", name)
		}
	}
	e.SameTraces(t, before)
}

// A package that is installed inside a VM becomes an image, and that runs as a
// container.
func TestPackageInstalledInVM(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"pkg/DEBIAN/control":    "Package: greeter\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: greets\n",
		"pkg/usr/share/greeter": "hello from the package\n",
		"pkg/bin/greet":         "#!/bin/sh\nexec cat /usr/share/greeter\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-Zgzip", "-b", filepath.Join(dir, "pkg"), filepath.Join(dir, "greeter.deb")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	e.MustProa("run", "-d", "--vm", "--network", "none", "--name", "machine", "bb", "sleep", "1000")
	e.MustProa("cp", filepath.Join(dir, "greeter.deb"), "machine:/root")
	e.MustProa("exec", "machine", "sh", "-c", "mkdir -p /var/lib/dpkg/info && touch /var/lib/dpkg/status && busybox dpkg -i /root/greeter.deb && rm /root/greeter.deb")
	e.MustProa("commit", "-c", `CMD ["greet"]`, "machine", "greeter")
	for _, w := range walls {
		if got := e.MustDocker(append(append([]string{"run", "--rm", "--network", "none"}, w.args...), "greeter")...); got != "hello from the package" {
			t.Errorf("behind %s it says %q", w.name, got)
		}
	}
	// And elsewhere.
	file := filepath.Join(dir, "greeter.tar")
	e.MustProa("save", "-o", file, "greeter")
	other := proatest.New(t)
	other.MustProa("load", "-i", file)
	if got := other.MustProa("run", "--rm", "--network", "none", "greeter"); got != "hello from the package" {
		t.Errorf("on another engine it says %q", got)
	}
}

// What was committed behind either wall is pushed, pulled by an engine that
// never saw it, and is there the same image: files, owners, modes, capabilities,
// and what was deleted. It runs behind both walls.
func TestCommitsTravelThroughARegistry(t *testing.T) {
	reg := proatest.NewRegistry(t)
	here, there := proatest.New(t), proatest.New(t)
	reg.In(here.Netns)
	reg.In(there.Netns)
	here.ImportBusybox("bb", proatest.Entry{Name: "tool", Mode: 0o755, Body: "#!/bin/sh\nexec cat /opt/word\n", Xattrs: map[string]string{"security.capability": netBind}})
	saved := func(e *proatest.Engine, image string) *proatest.Saved {
		t.Helper()
		file := filepath.Join(e.Dir, "saved.tar")
		defer os.Remove(file)
		e.MustProa("save", "-o", file, image)
		return proatest.ReadSaved(t, file)
	}
	since := time.Now().Add(-2 * time.Second)
	lists := map[string]string{}
	for _, w := range walls {
		name, image := "made-"+w.name, reg.Addr+"/made/"+w.name+":1"
		here.MustDocker(append(append([]string{"run", "-d", "--network", "none", "--name", name}, w.args...), "bb", "sleep", "1000")...)
		here.MustDocker("exec", name, "sh", "-c", "mkdir -p /opt/d && echo kept >/opt/word && ln /opt/word /opt/d/link && chown 1000:7 /opt/word && chmod 4750 /opt/d && mv /tool /opt/tool && rm /etc/group && rm -r /home && mkdir /home")
		here.MustProa("commit", "-c", `CMD ["sh", "/opt/tool"]`, name, image)
		pushed := digestWord.FindString(here.MustProa("push", image))
		here.MustDocker("rm", "-f", name)
		if out := there.MustProa("pull", image); digestWord.FindString(out) != pushed {
			t.Errorf("pushed as %s, pulled %s", pushed, out)
		}
		const id = "{{.Id}}"
		if a, b := here.MustProa("image", "inspect", "-f", id, image), there.MustProa("image", "inspect", "-f", id, image); a != b {
			t.Errorf("behind %s: %s here, %s there", w.name, a, b)
		}
		bb := saved(here, "bb")
		pulled := saved(there, image).Files
		if pulled["/tool"] != nil {
			t.Errorf("behind %s: what was moved away is there", w.name)
		}
		mine, theirs := saved(here, image).Files.List(bb.Files, since), pulled.List(bb.Files, since)
		sameText(t, "what was pulled of "+w.name, theirs, mine)
		lists[w.name] = theirs
		for _, wall := range walls {
			if got := there.MustDocker(append(append([]string{"run", "--rm", "--network", "none"}, wall.args...), image)...); got != "kept" {
				t.Errorf("committed behind %s, run behind %s it says %q", w.name, wall.name, got)
			}
		}
	}
	sameText(t, "what was committed in a VM", lists["vm"], lists["container"])
	for _, line := range []string{"gone /etc/group", "security.capability=", "file 0644 1000:7 5 now /opt/d/link", "dir  4750 0:0 0 now /opt/d", "gone /home/app"} {
		if !strings.Contains(lists["container"], line) {
			t.Errorf("no %q in\n%s", line, lists["container"])
		}
	}
}
