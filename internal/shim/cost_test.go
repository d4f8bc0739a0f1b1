package shim_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"proa/internal/isolation"
	"proa/internal/shim"
	"proa/internal/sys"
)

// realShim builds proa-shim as it is shipped.
func realShim(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("containers need root")
	}
	bin := filepath.Join(t.TempDir(), "proa-shim")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "../../cmd/proa-shim")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build proa-shim: %v\n%s", err, out)
	}
	return bin
}

// busybox makes the smallest root that a container runs on.
func busybox(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is missing: apt-get install busybox-static")
	}
	root := filepath.Join(t.TempDir(), "root")
	b, err := os.ReadFile(program)
	if err == nil {
		err = os.MkdirAll(filepath.Join(root, "bin"), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/sh"), b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// clone is the image as the engine hands it over: a detached mount of its own.
func clone(t testing.TB, root string) *os.File {
	t.Helper()
	image, err := sys.CloneTree(nil, root, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	return image
}

// containerSpec is a container as the engine asks for it, less its network.
func containerSpec(t testing.TB, n int, image isolation.File, args ...string) *isolation.Spec {
	dir := t.TempDir()
	return &isolation.Spec{
		ID: fmt.Sprintf("%064x", n+os.Getpid()<<8), Kind: isolation.Container, Hostname: "box", Dir: dir,
		Process:   isolation.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: 0xa80405fb, Stdin: true},
		Root:      isolation.Root{Image: image, Upper: filepath.Join(dir, "rw"), Volatile: true},
		Resources: isolation.Resources{CgroupParent: fmt.Sprintf("proa-test-shim-%d", os.Getpid()), Pids: 4096},
		Network:   isolation.Network{Mode: isolation.NetworkNone},
		Namespaces: isolation.Namespaces{
			User: true, UIDs: isolation.IDMap{{Host: 710_000_000, Size: 65536}}, GIDs: isolation.IDMap{{Host: 710_000_000, Size: 65536}},
			PID: true, IPC: true, UTS: true, Net: true, Cgroup: true,
		},
		Log: isolation.Log{Driver: "json-file", Path: filepath.Join(dir, "log"), MaxBytes: 20 << 20, MaxFiles: 5},
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// Ten containers run: what does each shim keep in memory, and what does it
// cost to get there? RssAnon is a promise (3 MB each).
func TestCostOfTenShims(t *testing.T) {
	starter := &shim.Starter{Binary: realShim(t), Dir: filepath.Join(t.TempDir(), "shim")}
	root := busybox(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var forked, created, started, exited, gone, floor []time.Duration
	var shims []*shim.Shim
	for n := range 10 {
		files := shim.NewFiles()
		spec := containerSpec(t, n, files.Add(clone(t, root)), "/bin/sh", "-c", "echo up; read x; exit 3")
		t0 := time.Now()
		s, err := starter.Start(ctx, spec, files)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Delete(context.Background()) })
		t1 := time.Now()
		if _, err := s.Create(ctx); err != nil {
			t.Fatal(err)
		}
		t2 := time.Now()
		st, err := s.Attach(ctx, shim.Streams{Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		t3 := time.Now()
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
		t4 := time.Now()
		if _, b, err := st.Next(); err != nil || string(b) != "up\n" {
			t.Fatalf("output %q, %v", b, err)
		}
		st.Close()
		forked, created, started = append(forked, t1.Sub(t0)), append(created, t2.Sub(t0)), append(started, t4.Sub(t3))
		shims = append(shims, s)
	}
	time.Sleep(time.Second) // a shim gives back half a second after its start what starting took
	worst := 0
	for _, s := range shims {
		anon, rss := memory(t, s.Pid())
		worst = max(worst, anon)
		if s == shims[0] {
			t.Logf("shim: RssAnon %d kB, Rss %d kB", anon, rss)
		}
	}
	if worst > 3<<10 {
		t.Errorf("a shim has %d kB of RssAnon, promised are 3072", worst)
	}
	for _, s := range shims {
		st, err := s.Attach(ctx, shim.Streams{Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		t0 := time.Now()
		if _, err := st.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		if e, err := s.Wait(ctx); err != nil || e.Code != 3 {
			t.Fatalf("exit %v, %v", e, err)
		}
		t1 := time.Now()
		if err := s.Gone(ctx); err != nil {
			t.Fatal(err)
		}
		st.Close()
		exited, gone = append(exited, t1.Sub(t0)), append(gone, time.Since(t1))
	}
	for n := range 10 { // what a shim costs without an instance: one that the driver refuses
		spec := containerSpec(t, 100+n, 0, "/bin/sh")
		t0 := time.Now()
		s, err := starter.Start(ctx, spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(ctx); err == nil {
			t.Fatal("a container without a root was created")
		}
		floor = append(floor, time.Since(t0))
		if err := s.Gone(ctx); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("medians: fork %v, to refused %v, to created %v, start %v, input to exit known %v, then gone %v",
		median(forked), median(floor), median(created), median(started), median(exited), median(gone))
}

// memory reads RssAnon and Rss of a process in kB.
func memory(t *testing.T, pid int) (anon, rss int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "RssAnon: %d kB", &anon)
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &rss)
	}
	return anon, rss
}
