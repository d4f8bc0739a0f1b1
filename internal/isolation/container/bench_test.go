package container_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/container"
	"proa/internal/sys"
)

// BenchmarkRun is a container from Create to the exit of /bin/true and its
// Delete, phase by phase, in medians.
func BenchmarkRun(b *testing.B) {
	root := busybox(b)
	for _, name := range []string{"proc", "sys", "dev"} { // as images have them; making one costs a copy-up
		must(b, os.Mkdir(filepath.Join(root, name), 0o755))
	}
	phases := map[string][]time.Duration{}
	d := &container.Driver{}
	for b.Loop() {
		b.StopTimer()
		s := newSpec(b, root, "/bin/true")
		b.StartTimer()
		t0 := time.Now()
		i, err := d.Create(context.Background(), s)
		must(b, err)
		t1 := time.Now()
		r, err := i.Start(context.Background(), isolation.Stdio{Stdout: io.Discard, Stderr: io.Discard})
		must(b, err)
		t2 := time.Now()
		exit, err := r.Wait(context.Background())
		must(b, err)
		if exit.Code != 0 {
			b.Fatal(exit)
		}
		t3 := time.Now()
		must(b, i.Delete(context.Background()))
		t4 := time.Now()
		for name, d := range map[string]time.Duration{"create": t1.Sub(t0), "start": t2.Sub(t1), "wait": t3.Sub(t2), "delete": t4.Sub(t3), "create-to-exit": t3.Sub(t0)} {
			phases[name] = append(phases[name], d)
		}
	}
	for name, list := range phases {
		sort.Slice(list, func(i, j int) bool { return list[i] < list[j] })
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-ms")
	}
}

// BenchmarkExec is one more process, /bin/true, from Exec to its exit.
func BenchmarkExec(b *testing.B) {
	i := create(b, newSpec(b, busybox(b), "sleep", "1000"))
	_, err := i.Start(context.Background(), isolation.Stdio{})
	must(b, err)
	for b.Loop() {
		r, err := i.Exec(context.Background(), &isolation.Process{Args: []string{"/bin/true"}, Cwd: "/", Capabilities: defaults}, isolation.Stdio{})
		must(b, err)
		_, err = r.Wait(context.Background())
		must(b, err)
	}
}

// BenchmarkCrun is the same root by crun run, with an overlay made beforehand,
// for comparison.
func BenchmarkCrun(b *testing.B) {
	crun, err := exec.LookPath("crun")
	if err != nil {
		b.Skip("crun is missing")
	}
	dir := b.TempDir()
	root := busybox(b)
	must(b, os.WriteFile(filepath.Join(dir, "config.json"), []byte(fmt.Sprintf(`{"ociVersion":"1.0.0","process":{"user":{"uid":0,"gid":0},"args":["/bin/true"],"env":["PATH=/bin"],"cwd":"/"},
"root":{"path":%q},"hostname":"box","mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]},
{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["newinstance"]},{"destination":"/dev/shm","type":"tmpfs","source":"shm"},{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue"},
{"destination":"/sys","type":"sysfs","source":"sysfs","options":["ro"]}],
"linux":{"namespaces":[{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"}],"maskedPaths":["/proc/kcore","/proc/keys","/proc/timer_list","/sys/firmware"],"readonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys"]}}`, root)), 0o600))
	n := 0
	err = sys.OnThread(func(*sys.Thread) error { return nil })
	must(b, err)
	for b.Loop() {
		n++
		// crun refuses a hybrid cgroup layout; a private mount namespace without the version 2 tree has none.
		cmd := exec.Command("unshare", "-m", "sh", "-c", fmt.Sprintf("umount /sys/fs/cgroup/unified 2>/dev/null; exec %s run -b %s proa-bench-%d-%d", crun, dir, os.Getpid(), n))
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Skipf("crun does not run here: %v: %s", err, out)
		}
	}
}
