package test

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// Everything that containers and VMs make on the host is gone after the last
// rm: mounts, links, rules, cgroups, processes, files.
func TestNothingIsLeftBehind(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := t.TempDir()
	before := e.Traces()
	for _, w := range walls {
		args := append([]string{"run", "-d", "--name", w.name, "-p", "127.0.0.1::80", "-m", "256m", "--cpus", "1"}, w.args...)
		if w.name == "container" {
			args = append(args, "-v", dir+":/bound", "-v", "/anonymous", "--tmpfs", "/t", "--init")
		}
		e.MustDocker(append(args, "bb", "sleep", "1000")...)
		e.MustDocker("exec", w.name, "sh", "-c", "echo x >/written")
	}
	e.MustDocker("run", "--rm", "bb", "true")
	e.Docker("run", "--rm", "bb", "nosuchcommand")
	e.Docker("run", "--rm", "-u", "nosuch", "bb", "true")
	e.MustDocker("rm", "-f", "-v", "container", "vm")
	e.SameTraces(t, before)
}

// A SIGKILL of the engine at any moment of create, start and rm leaves
// nothing that the next engine does not find or remove.
func TestKilledEngineLeavesNothing(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	before := e.Traces()
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	for i := range 24 {
		name := fmt.Sprintf("k%d", i)
		cmd := exec.Command(filepath.Join(proatest.Bin(t), "proa"), "-H", e.Host, "run", "--rm", "-p", "127.0.0.1::80", "--name", name, "bb", "true")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
		e.Kill()
		_ = cmd.Wait()
		e.Start()
		// It exists whole, or not at all; what exists can be removed.
		for _, id := range strings.Fields(e.MustProa("ps", "-aq", "--no-trunc")) {
			if r := e.Proa("rm", "-f", "-v", id); r.Code != 0 && !strings.Contains(r.Stderr, "No such container") {
				t.Errorf("round %d: %s", i, r.Stderr)
			}
		}
	}
	e.SameTraces(t, before)
	e.MustDocker("run", "--rm", "bb", "true")
}
