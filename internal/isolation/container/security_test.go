package container_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/container"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Masked and write-protected paths are covered by what is ours
// (CVE-2025-31133: a bind of something that only looks like /dev/null).
func TestProtectedPaths(t *testing.T) {
	root := busybox(t)
	// An image with things of its own where the driver works.
	must(t, os.MkdirAll(filepath.Join(root, "dev"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "dev/null"), []byte("not the null device"), 0o666))
	out := shell(t, root, `for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do test -e $f && test "$(wc -c < $f)" != 0 && echo READABLE $f; done
		ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | grep -v '^$'
		for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/mm/ksm/run; do test -e $f && (echo x > $f) 2>/dev/null && echo WRITABLE $f; done
		(mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x) 2>/dev/null && echo CGROUP # CVE-2022-0492
		umount /proc/kcore 2>/dev/null && echo UNMOUNTED; umount /proc/sys 2>/dev/null && echo UNMOUNTED
		mount -o remount,rw /proc/sys 2>/dev/null && echo REMOUNTED; mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED
		wc -c < /dev/null; true`, nil)
	if out != "0\n" {
		t.Error(out)
	}
}

// What a process is born with: its three descriptors (CVE-2024-21626,
// CVE-2016-9962), no inheritable or ambient capabilities (CVE-2022-24769), and
// just the groups of its user (CVE-2022-36109), for the main and exec'd ones.
func TestBornWith(t *testing.T) {
	script := "for n in $(seq 0 99); do test -L /proc/$$/fd/$n && echo $n; done; grep -E '^(CapInh|CapAmb|Groups)' /proc/$$/status; tr '\\0' '\\n' < /proc/$$/environ | grep -v ^PATH="
	want := "0\n1\n2\nGroups:\t0 \nCapInh:\t0000000000000000\nCapAmb:\t0000000000000000\nHOME=/root\n"
	root := busybox(t)
	for _, user := range []bool{true, false} {
		set := func(s *isolation.Spec) { s.Namespaces.User = user }
		if out := shell(t, root, script, set); out != want {
			t.Errorf("main process, user namespace %v: %q", user, out)
		}
		i := sleeper(t, root, set)
		var out output
		r, err := i.Exec(context20(t), command("sh", "-c", script), isolation.Stdio{Stdout: &out})
		must(t, err)
		_, err = r.Wait(context20(t))
		must(t, err)
		if out.String() != want {
			t.Errorf("exec'd process, user namespace %v: %q", user, out.String())
		}
	}
}

// Only hierarchies in which the container has a group of its own are shown: in
// another one its view would begin at the host's root, with the ids of all.
func TestForeignControlGroups(t *testing.T) {
	list := "cd /sys/fs/cgroup && for c in *; do test -d $c && find $c -mindepth 1 -type d; done; echo *"
	for _, limited := range []bool{false, true} {
		out := shell(t, busybox(t), list, func(s *isolation.Spec) {
			if limited {
				s.Resources.CPUQuota, s.Resources.CPUPeriod, s.Resources.CpusetCpus = 50000, 100000, "0"
			}
		})
		if strings.Contains(out, "/") {
			t.Errorf("limited %v: groups of others are seen:\n%s", limited, out)
		}
		if h, err := cgroup.Detect(); err == nil && h.Mode != cgroup.V2 && !(strings.Contains(out, "memory") && strings.Contains(out, "pids")) {
			t.Errorf("limited %v: its own groups are missing: %q", limited, out)
		} else if err == nil && h.Mode != cgroup.V2 && limited && !(strings.Contains(out, "cpu ") && strings.Contains(out, "cpuset")) {
			t.Errorf("its limits are not seen: %q", out)
		}
	}
}

// An image cannot lead the driver's own mounts elsewhere by symbolic links
// (CVE-2019-19921, CVE-2023-27561), nor mount targets out of the root.
func TestHostileImages(t *testing.T) {
	outside := t.TempDir()
	for _, name := range []string{"proc", "sys", "dev"} {
		root := busybox(t)
		must(t, os.Symlink(outside, filepath.Join(root, name)))
		s := newSpec(t, root, "true")
		if _, err := (&container.Driver{}).Create(context20(t), s); err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v", name, err)
		}
	}
	root := busybox(t)
	must(t, os.Symlink(outside, filepath.Join(root, "absolute")))
	must(t, os.Symlink("../../../../../.."+outside, filepath.Join(root, "dots")))
	must(t, os.Symlink("loop", filepath.Join(root, "loop")))
	out := shell(t, root, "ls "+outside, func(s *isolation.Spec) {
		for _, target := range []string{"/absolute/one", "/dots/two"} {
			bind(t, s, outside, target, nil)
		}
		s.Process.Cwd = "/absolute/three"
	})
	if out != "one\nthree\ntwo\n" {
		t.Errorf("%q", out)
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("made outside: %v", left)
	}
	s := newSpec(t, root, "true")
	bind(t, s, outside, "/loop/x", nil)
	if _, err := (&container.Driver{}).Create(context20(t), s); err == nil {
		t.Error("a loop of links was accepted")
	}
}

// What waits for Start can be neither traced nor followed from inside, and
// neither can a process that is just entering (CVE-2016-9962, CVE-2019-5736).
func TestEnteringProcessIsClosed(t *testing.T) {
	root := busybox(t)
	for _, user := range []bool{true, false} {
		var out output
		s := newSpec(t, root, "sh", "-c", `echo ready; while :; do for p in /proc/[0-9]*; do
			case $p in /proc/1|/proc/$$) ;; *) e=$(readlink $p/exe 2>/dev/null); case "$e" in *.test|*proa*) echo SEEN $e;; esac
			ls $p/fd/3 2>/dev/null && echo FD;; esac; done; done`)
		s.Namespaces.User = user
		i := create(t, s)
		r, err := i.Start(context20(t), isolation.Stdio{Stdout: &out})
		must(t, err)
		out.await(t, "ready")
		for range 100 {
			p := command("true")
			x, err := i.Exec(context20(t), p, isolation.Stdio{})
			must(t, err)
			_, err = x.Wait(context20(t))
			must(t, err)
		}
		must(t, r.Signal(context20(t), int(syscall.SIGKILL)))
		_, err = r.Wait(context20(t))
		must(t, err)
		if out.String() != "ready\n" {
			t.Errorf("user namespace %v: %q", user, out.String())
		}
	}
}

// A working directory or program behind a descriptor that leaked, or a magic
// link (CVE-2024-21626, CVE-2019-5736).
func TestMagicLinks(t *testing.T) {
	i := sleeper(t, busybox(t), nil)
	for fd := 3; fd < 70; fd++ {
		p := command("pwd")
		p.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
		if _, err := i.Exec(context20(t), p, isolation.Stdio{}); err == nil {
			t.Errorf("%s was entered", p.Cwd)
		}
	}
	if _, err := i.Exec(context20(t), command("/proc/self/exe"), isolation.Stdio{}); err == nil {
		t.Error("/proc/self/exe was executed")
	}
}

// A device node that an image brings does not work in a user namespace.
func TestDevices(t *testing.T) {
	root := busybox(t)
	if err := syscall.Mknod(filepath.Join(root, "zero"), syscall.S_IFCHR|0o666, 1<<8|5); err != nil {
		t.Skip("device nodes cannot be made here: ", err)
	}
	must(t, os.Chmod(filepath.Join(root, "zero"), 0o666))
	out := shell(t, root, "head -c1 /zero 2>&1 | cat -v; ls -l /dev/snd/mine | cut -c1-10,56-; mknod /tmp/x c 1 3 2>/dev/null && echo MADE; true", func(s *isolation.Spec) {
		s.Devices = []isolation.Device{{Path: "/dev/snd/mine", Type: "c", Major: 1, Minor: 5, Mode: 0o640, Allow: "rw"}}
	})
	if !strings.Contains(out, "Permission denied") || !strings.Contains(out, "crw-r-----") || strings.Contains(out, "MADE") {
		t.Errorf("%q", out)
	}
}

// lists are what must not change: mounts where a driver in the wrong mount
// namespace would make them, control groups, processes of ours.
func lists(t *testing.T) (mounts, groups []string, children int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == "/" || strings.Contains(f[4], "TestNothingIsLeft") ||
			slices.Contains([]string{"proc", "sys", "dev", "etc"}, strings.Split(f[4], "/")[1])) {
			mounts = append(mounts, line)
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "proa-test-leftovers") {
			groups = append(groups, p)
		}
		return nil
	})
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	must(t, err)
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		children += len(strings.Fields(string(b)))
	}
	return mounts, groups, children
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(d)
}

// After runs that work and runs that fail at any step, nothing is left.
func TestNothingIsLeft(t *testing.T) {
	root := busybox(t)
	one := func(t *testing.T, change func(*isolation.Spec)) {
		s := newSpec(t, root, "sh", "-c", "sleep 1000 & exit 0")
		s.Resources.CgroupParent = "proa-test-leftovers"
		change(s)
		i, err := (&container.Driver{}).Create(context20(t), s)
		if err == nil {
			var r isolation.Running
			if r, err = i.Start(context20(t), isolation.Stdio{Stdout: &output{}}); err == nil {
				_, err = r.Wait(context20(t))
				must(t, err)
			}
			must(t, i.Delete(context20(t)))
		}
	}
	changes := []func(*isolation.Spec){
		func(s *isolation.Spec) {},
		func(s *isolation.Spec) { s.Namespaces.User = false },
		func(s *isolation.Spec) { s.Namespaces.PID = false; s.Namespaces.User = false },
		func(s *isolation.Spec) { s.Init = true },
		func(s *isolation.Spec) { s.Process.Terminal = true },
		func(s *isolation.Spec) { s.Process.Args = []string{"nothing"} },
		func(s *isolation.Spec) { s.Process.User = "nobody-here" },
		func(s *isolation.Spec) { s.Process.Cwd = "/etc/passwd" },
		func(s *isolation.Spec) { s.Root.Upper = "/proc/nothing" },
		func(s *isolation.Spec) { s.Root.Image = 9999 },
		func(s *isolation.Spec) { s.Namespaces.UIDs[0].Host = 4294967295 },
		func(s *isolation.Spec) { s.Namespaces.GIDs[0].Size = 4294967295 },
		func(s *isolation.Spec) { s.Sysctls["net.ipv4.nothing"] = "1" },
		func(s *isolation.Spec) { s.Process.Seccomp = []byte{1, 2, 3, 4, 5, 6, 7, 8} },
		func(s *isolation.Spec) { s.Resources.CpusetCpus = "9999" },
		func(s *isolation.Spec) { s.Mounts[0].Options = "nothing=1" },
		func(s *isolation.Spec) { s.Mounts[0].Target = "/etc/passwd/x" },
		func(s *isolation.Spec) { s.Namespaces.Join = map[string]isolation.File{"net": 9999} },
		func(s *isolation.Spec) { s.Namespaces.Join = map[string]isolation.File{"pid": 9999} },
		func(s *isolation.Spec) { s.Namespaces.Join = map[string]isolation.File{"user": 9999} },
		func(s *isolation.Spec) { s.Process.Args = []string{"a\x00b"} },
	}
	t.Run("first", func(t *testing.T) { one(t, changes[0]) }) // what is opened once for all
	time.Sleep(20 * time.Millisecond)
	mounts, groups, children := lists(t)
	files := openFiles(t)
	for k, change := range changes {
		t.Run(fmt.Sprint(k), func(t *testing.T) { one(t, change) })
		time.Sleep(5 * time.Millisecond) // threads that end close what was theirs
		m, g, c := lists(t)
		if !slices.Equal(m, mounts) || !slices.Equal(g, groups) || c != children {
			t.Fatalf("change %d left %d mounts, groups %v, %d children", k, len(m)-len(mounts), g, c-children)
		}
		if n := openFiles(t); n != files {
			t.Fatalf("change %d left %d open files", k, n-files)
		}
	}
	if len(groups) != 0 {
		t.Error(groups)
	}
}

// The shim killed: so is the container, at once (parent-death signal).
func TestDiesWithItsParent(t *testing.T) {
	if dir := os.Getenv("PROA_TEST_PARENT"); dir != "" {
		beParent(t, dir)
	}
	root := busybox(t)
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestDiesWithItsParent$")
	cmd.Env = append(os.Environ(), "PROA_TEST_PARENT="+root, "TMPDIR="+t.TempDir()) // what it cannot remove itself
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var pid, execed int
	if _, err := fmt.Fscanf(out, "pids %d %d\n", &pid, &execed); err != nil {
		t.Fatal(err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	for _, p := range []int{pid, execed} {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := sys.ReadProcess(p); err != nil {
				break
			}
			if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p)); strings.Contains(string(b), ") Z ") {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("process %d outlived the shim", p)
			}
		}
	}
	// The group stays for the engine, which removes it with the record.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		left, _ := filepath.Glob("/sys/fs/cgroup/*/proa-test-parent/*")
		v2, _ := filepath.Glob("/sys/fs/cgroup/proa-test-parent/*")
		for _, d := range append(left, v2...) {
			_ = os.Remove(d)
			_ = os.Remove(filepath.Dir(d))
		}
		if len(left)+len(v2) == 0 {
			break
		}
	}
}

// beParent is the side of TestDiesWithItsParent that gets killed: it starts a
// container, says which processes it has, and waits.
func beParent(t *testing.T, root string) {
	t.Helper()
	s := newSpec(t, root, "sleep", "1000")
	s.Resources.CgroupParent = "proa-test-parent"
	s.Process.User = "app" // a change of ids undoes an earlier parent-death signal
	i, err := (&container.Driver{}).Create(context.Background(), s)
	must(t, err)
	_, err = i.Start(context.Background(), isolation.Stdio{})
	must(t, err)
	r, err := i.Exec(context.Background(), command("sleep", "1000"), isolation.Stdio{})
	must(t, err)
	fmt.Printf("pids %d %d\n", i.Pid(), r.Pid())
	select {}
}
