package vm_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// status reads one field of /proc/PID/status.
func status(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatalf("no %s in the status of %d", field, pid)
	return ""
}

// The jail as the host sees it, with a guest running.
func TestJail(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/sleep", "100")
	i, err := l.create(spec)
	if err != nil {
		t.Fatal(err)
	}
	pid := i.Pid()

	id := fmt.Sprint(jailUser)
	four := strings.Join([]string{id, id, id, id}, " ")
	for field, want := range map[string]string{
		"Uid": four, "Gid": four, "Groups": "",
		"CapInh": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16), "CapEff": strings.Repeat("0", 16),
		"CapBnd": strings.Repeat("0", 16), "CapAmb": strings.Repeat("0", 16),
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got := status(t, pid, field); got != want {
			t.Errorf("%s is %q, not %q", field, got, want)
		}
	}
	// Every thread is behind the filter, the virtual processors above all.
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		if !strings.Contains(string(b), "Seccomp:\t2") {
			t.Errorf("thread %s has no seccomp filter", task.Name())
		}
	}

	for _, ns := range []string{"mnt", "pid", "ipc", "uts", "net", "user", "cgroup"} {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			t.Fatal(err)
		}
		if ours, _ := os.Readlink("/proc/self/ns/" + ns); its == ours {
			t.Errorf("the %s namespace is the host's", ns)
		}
	}

	root := fmt.Sprintf("/proc/%d/root", pid)
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if slices.Contains([]string{"proc", "sys", "etc", "home", "root", "var", "run"}, e.Name()) {
			t.Errorf("/%s is in the jail", e.Name())
		}
	}
	var files []string
	err = filepath.WalkDir(root+"/", func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, "/"+strings.TrimPrefix(strings.TrimPrefix(path, root), "/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(spec.Machine.JailPaths, f) {
			t.Errorf("%s is in the jail and in no list", f)
		}
	}
	if len(files) != len(spec.Machine.JailPaths) {
		t.Errorf("%d files in the jail, %d listed", len(files), len(spec.Machine.JailPaths))
	}
	// Nothing can be written, even by who has every right in that mount.
	for _, path := range []string{"/new", spec.Machine.Binary, spec.Machine.JailPaths[len(spec.Machine.JailPaths)-2]} {
		f, err := os.OpenFile(root+path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err == nil {
			f.Close()
			t.Errorf("%s in the jail can be written", path)
		} else if !strings.Contains(err.Error(), syscall.EROFS.Error()) && !strings.Contains(err.Error(), syscall.ETXTBSY.Error()) {
			t.Errorf("writing %s in the jail: %v", path, err)
		}
	}
	// Nothing of the jail appears in the host's mounts.
	if left, err := os.ReadDir(l.run); err != nil || len(left) != 0 {
		t.Errorf("the mount point holds %v (%v)", left, err)
	}

	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		known := target == "/dev/null" || slices.ContainsFunc([]string{"socket:", "pipe:", "anon_inode:", "/memfd:", l.home, filepath.Dir(l.image.Index)}, func(p string) bool { return strings.HasPrefix(target, p) })
		if !known {
			t.Errorf("descriptor %s is %q", fd.Name(), target)
		}
	}
	for cgroup := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))) {
		if strings.Contains(cgroup, ":memory:") && !strings.Contains(cgroup, l.id) {
			t.Errorf("the VMM's memory is counted in %q", cgroup)
		}
	}

	if err := i.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the VMM is still there: %v", err)
	}
	if err := i.Delete(context.Background()); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The jailed user, who is in no group, can open the jail's own /dev/kvm.
// Whether a guest then runs is the host's affair.
func TestKVMCanBeOpened(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip(err)
	}
	l := newLab(t, agentProgram)
	l.forceKVM()
	spec := l.spec("/bin/true")
	l.bootLimit = 3 * time.Second
	i, err := l.create(spec)
	if err != nil {
		t.Log(err)
		if strings.Contains(err.Error(), "Could not access KVM") || strings.Contains(err.Error(), "cannot start the VMM") {
			t.Error("the jail keeps QEMU from KVM")
		}
		return
	}
	t.Logf("a guest came up under KVM: %+v", i.Welcome())
}
