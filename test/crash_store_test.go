package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// killedDuringBuild kills the engine 20 times at random moments of a build, and
// lets a new one come up each time. Then the store verifies, the image is there
// whole or not at all, the same build succeeds, and no file is left that a
// prune does not remove.
func killedDuringBuild(t *testing.T, e *proatest.Engine, name string, check func(*proatest.Saved) error, args ...string) {
	t.Helper()
	const kills = 20
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	kept := e.VerifyStore()

	whole := func() error {
		file := filepath.Join(e.Dir, "whole.tar")
		defer os.Remove(file)
		if r := e.Docker("save", "-o", file, name); r.Code != 0 {
			return fmt.Errorf("save: %s", r.Stderr)
		}
		return check(proatest.ReadSaved(t, file))
	}
	// forget removes the image and all that the builder knows: its cache, and its
	// records of builds, which are blobs of their own.
	forget := func() {
		t.Helper()
		e.MustDocker("rmi", "-f", name)
		e.MustDocker("buildx", "history", "rm", "--all")
		e.MustDocker("builder", "prune", "-af")
		e.MustDocker("image", "prune", "-f")
	}
	// As long as it takes where nothing is cached and no builder runs: so it is after each kill.
	r := e.Proa(args...)
	if r.Code != 0 {
		t.Fatalf("%v: %s%s", args, r.Stdout, r.Stderr)
	}
	if err := whole(); err != nil {
		t.Fatal(err)
	}
	forget()
	before := e.StoreFiles()
	seen := map[string]int{}
	for i := range kills {
		done := make(chan proatest.Result, 1)
		go func() { done <- e.Proa(args...) }()
		time.Sleep(time.Duration(random.Int64N(int64(r.Took * 11 / 10))))
		e.Kill()
		first := <-done
		e.Start()
		names := e.VerifyStore()
		switch got := slices.Contains(names, name); {
		case got:
			seen["whole"]++
			if err := whole(); err != nil {
				t.Errorf("kill %d: the image is there, but not whole: %v", i, err)
			}
		case first.Code == 0:
			t.Errorf("kill %d: the command had succeeded, and its image is gone", i)
		default:
			seen["absent"]++
		}
		for _, n := range names {
			if n != name && !slices.Contains(kept, n) && !strings.Contains(n, "<none>") {
				t.Errorf("kill %d: image %s came from nowhere", i, n)
			}
		}
		if again := e.Proa(args...); again.Code != 0 {
			t.Fatalf("kill %d: the repeated command: exit code %d\n%s%s", i, again.Code, again.Stdout, again.Stderr)
		}
		if err := whole(); err != nil {
			t.Errorf("kill %d: after the repeated command: %v", i, err)
		}
		forget()
		// What the builder gives up is removed in the background.
		var after []string
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if after = e.StoreFiles(); slices.Equal(after, before) {
				break
			}
		}
		if !slices.Equal(after, before) {
			t.Errorf("kill %d: %d files of the store after everything was removed, %d before:\n%s", i, len(after), len(before), strings.Join(after[:min(len(after), 20)], "\n"))
		}
	}
	t.Logf("found after a kill: %v", seen)
	t.Logf("a build takes %v", r.Took)
	if seen["absent"] == 0 {
		t.Errorf("no kill hit the command: %v", seen)
	}
}

// An engine that is killed in the middle of a build leaves a whole image or
// none, and no file that a prune does not remove. When the builder has been idle
// for its time and the bridge unused for its, the host is as it was before the
// first build: no process, mount, link, rule or control group of any step.
func TestKilledWhileBuilding(t *testing.T) {
	e := proatest.New(t, proatest.Args("--build-idle", "1s"))
	e.ImportBusybox("bb")
	before := e.Traces()
	dir := t.TempDir()
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(strings.Repeat(fmt.Sprint(i), 2000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM bb\nRUN head -c 4000000 /dev/zero >/zero\nCOPY . /src\nRUN cat /src/* >/all && sleep 0.1\nRUN rm -r /src && echo end >/end\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	killedDuringBuild(t, e, "built:latest", func(s *proatest.Saved) error {
		if s.Files["/end"] == nil || s.Files["/src"] != nil || s.Files["/zero"] == nil || s.Files["/zero"].Size != 4000000 || len(s.DiffIDs) != 5 {
			return fmt.Errorf("the image is not what the Dockerfile says: %d layers", len(s.DiffIDs))
		}
		return nil
	}, "build", "-q", "-t", "built", dir)
	e.SameTraces(t, before)
}
