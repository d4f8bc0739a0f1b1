package container_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/isolation/container"
	"proa/internal/isolation/container/seccomp"
	"proa/internal/sys"
)

func TestInside(t *testing.T) {
	root := busybox(t)
	out := shell(t, root, `set -e
		echo uid_map $(cat /proc/self/uid_map)
		echo gid_map $(cat /proc/self/gid_map)
		echo host $(hostname) pid $$
		echo id $(id)
		echo home $HOME
		echo links $(cat /sys/class/net/lo/operstate) $(ls /sys/class/net)
		echo dev $(ls /dev)
		head -c 4 /dev/zero | wc -c
		echo x > /dev/null
		echo out > /dev/stdout
		grep CapEff /proc/self/status
		grep NoNewPrivs /proc/1/status
		cat /proc/sys/net/ipv4/ip_unprivileged_port_start
		echo cgroup $(cat /proc/self/cgroup | cut -d: -f3 | sort -u)
		`, nil)
	for _, want := range []string{
		fmt.Sprintf("uid_map 0 %d %d\n", idHost, idSize), fmt.Sprintf("gid_map 0 %d %d\n", idHost, idSize),
		"host box pid 1\n", "id uid=0(root) gid=0(root) groups=0(root)\n", "home /root\n", "links unknown lo\n",
		"dev core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n", "\n4\n", "\nout\n",
		"CapEff:\t00000000800405fb\n", "NoNewPrivs:\t0\n", "\n0\n", "cgroup /\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

// The fallback of DESIGN: the host's user namespace, and nothing else changes.
func TestHostUserNamespace(t *testing.T) {
	root := busybox(t)
	out := shell(t, root, "cat /proc/self/uid_map; id -u; cat /proc/sys/net/ipv4/ping_group_range; touch /f; ls -ln /f", func(s *isolation.Spec) { s.Namespaces.User = false })
	for _, want := range []string{"0          0 4294967295\n0\n0\t65535\n", "1 0        0 "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestUsers(t *testing.T) {
	root := busybox(t)
	for _, c := range []struct {
		user   string
		groups []string
		want   string
	}{
		{"app", nil, "uid=1000(app) gid=1000(app) groups=1000(app),1234(extra)|/home/app|0000000000000000"},
		{"1000:0", []string{"extra", "77"}, "uid=1000(app) gid=0(root) groups=0(root),77,1234(extra)|/home/app|0000000000000000"},
		{"4242", nil, "uid=4242 gid=0(root) groups=0(root)|/|0000000000000000"},
		{"", nil, "uid=0(root) gid=0(root) groups=0(root)|/root|00000000800405fb"},
	} {
		out := shell(t, root, `echo "$(id)|$HOME|$(sed -n 's/CapEff:\t//p' /proc/self/status)"; echo written > /dev/stdout; echo written > /dev/stderr`, func(s *isolation.Spec) {
			s.Process.User, s.Process.Groups = c.user, c.groups
		})
		if out != c.want+"\nwritten\n" {
			t.Errorf("user %q: %q, want %q", c.user, out, c.want)
		}
	}
	i := create(t, func() *isolation.Spec {
		s := newSpec(t, root, "true")
		s.Process.User = "nobody-here"
		return s
	}())
	if _, err := i.Start(context20(t), isolation.Stdio{}); startKind(err) != isolation.StartFailed || !strings.Contains(err.Error(), "no matching entries") {
		t.Error(err)
	}
}

func TestStartErrors(t *testing.T) {
	root := busybox(t)
	for _, c := range []struct {
		args []string
		cwd  string
		kind isolation.StartKind
		want string
	}{
		{[]string{"foo"}, "/", isolation.StartNotFound, `cannot exec "foo": executable file not found in $PATH`},
		{[]string{"/bin/foo"}, "/", isolation.StartNotFound, `cannot exec "/bin/foo": no such file or directory`},
		{[]string{"/etc/passwd"}, "/", isolation.StartNotAllowed, `permission denied`},
		{[]string{"/etc"}, "/", isolation.StartNotAllowed, `permission denied`},
		{[]string{"/bin/not-a-format"}, "/", isolation.StartNotAllowed, `exec format error`},
		{[]string{"./sh", "-c", "true"}, "/etc", isolation.StartNotFound, `no such file`},
		{[]string{"/proc/self/exe"}, "/", isolation.StartNotAllowed, `too many levels`}, // CVE-2019-5736
		{[]string{"true"}, "/proc/self/fd/3", "", ``},                                   // CVE-2024-21626
		{[]string{"true"}, "/etc/passwd", "", ``},
	} {
		s := newSpec(t, root, c.args...)
		s.Process.Cwd = c.cwd
		d := &container.Driver{}
		i, err := d.Create(context20(t), s)
		if err == nil {
			_, err = i.Start(context20(t), isolation.Stdio{})
			if e := i.Delete(context.Background()); e != nil {
				t.Error(e)
			}
		}
		if err == nil || c.want != "" && (startKind(err) != c.kind || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q in %s: %s: %v", c.args, c.cwd, startKind(err), err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	root := busybox(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 42": 42, "exec 2>/dev/null; sh -c 'kill -9 $$'; exit $?": 137} {
		if _, _, exit := run(t, newSpec(t, root, "sh", "-c", script), ""); exit.Code != want || time.Since(exit.At) > time.Minute {
			t.Errorf("%q: %+v", script, exit)
		}
	}
	i := create(t, newSpec(t, root, "sleep", "1000"))
	r, err := i.Start(context20(t), isolation.Stdio{})
	must(t, err)
	must(t, r.Signal(context20(t), int(syscall.SIGKILL)))
	exit, err := r.Wait(context20(t))
	if err != nil || exit.Code != 137 || exit.Signal != 9 {
		t.Errorf("%+v %v", exit, err)
	}
	if err := r.Signal(context20(t), int(syscall.SIGTERM)); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := i.Start(context20(t), isolation.Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func TestSignalIsHandled(t *testing.T) {
	var out output
	i := create(t, newSpec(t, busybox(t), "sh", "-c", "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done"))
	r, err := i.Start(context20(t), isolation.Stdio{Stdout: &out})
	must(t, err)
	out.await(t, "ready")
	must(t, r.Signal(context20(t), int(syscall.SIGTERM)))
	if exit, err := r.Wait(context20(t)); err != nil || exit.Code != 3 || out.String() != "ready\ngot\n" {
		t.Errorf("%+v %v %q", exit, err, out.String())
	}
}

// The reaper takes over orphans, passes signals on and ends as its child ends.
func TestInit(t *testing.T) {
	s := newSpec(t, busybox(t), "sh", "-c", `trap 'exit 5' TERM; (sh -c 'sleep 0.1; exit 0' &); sleep 0.3
		echo zombies $(ps -o stat | grep -c ^Z); echo self $$; cat /proc/1/comm; ls /proc/1/exe /proc/1/fd 2>/dev/null; readlink /proc/1/exe; echo ready; while :; do sleep 0.05; done`)
	s.Init = true
	var out output
	i := create(t, s)
	r, err := i.Start(context20(t), isolation.Stdio{Stdout: &out})
	must(t, err)
	out.await(t, "ready")
	must(t, r.Signal(context20(t), int(syscall.SIGTERM)))
	exit, err := r.Wait(context20(t))
	if err != nil || exit.Code != 5 {
		t.Errorf("%+v %v", exit, err)
	}
	// The init is a fork of the engine's program: it must not be reachable (CVE-2019-5736).
	if got := out.String(); !strings.HasPrefix(got, "zombies 0\nself 2\nproa-init\n") || strings.Contains(got, "test") {
		t.Errorf("%q", got)
	}
}

func TestMounts(t *testing.T) {
	root := busybox(t)
	host := t.TempDir()
	data := filepath.Join(host, "data")
	must(t, os.Mkdir(data, 0o755))
	must(t, os.WriteFile(filepath.Join(host, "file"), []byte("one\n"), 0o644))
	must(t, os.Symlink("/var/../../../etc/elsewhere", filepath.Join(root, "etc/dangling")))
	must(t, os.Symlink("/../var/data", filepath.Join(root, "link")))
	out := shell(t, root, `set -e
		echo hello > /data/new; mkdir /data/dir; stat -c '%u %a' /data
		touch /readonly/x 2>/dev/null && echo BAD
		cat /mnt/deep/file; cat /etc/elsewhere; ls -d /var/data/below
		mount | grep ' /tmpfs ' ; stat -c '%a %u' /tmpfs
		cat /etc/hosts; echo more >> /etc/hosts
		`, func(s *isolation.Spec) {
		bind(t, s, data, "/data", nil)
		bind(t, s, data, "/readonly", func(m *isolation.Mount) { m.Readonly = true })
		bind(t, s, filepath.Join(host, "file"), "/mnt/deep/file", nil)
		bind(t, s, filepath.Join(host, "file"), "/etc/dangling", nil)
		bind(t, s, data, "/link/below", nil)
		s.Mounts = append(s.Mounts, isolation.Mount{Type: isolation.MountTmpfs, Target: "/tmpfs", Size: 1 << 20, Mode: 0o751, Options: "uid=1000,exec"})
		s.Network.Hosts = filepath.Join(host, "hosts")
		must(t, os.WriteFile(s.Network.Hosts, []byte("127.0.0.1 localhost\n"), 0o644))
	})
	for _, want := range []string{"0 755\none\none\n/var/data/below\n", "tmpfs on /tmpfs type tmpfs (rw,nosuid,nodev,relatime,size=1024k,mode=751,uid=700001000", "751 1000\n127.0.0.1 localhost\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	for _, name := range []string{"new", "dir"} {
		st, err := os.Stat(filepath.Join(data, name))
		must(t, err)
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 0 || sys.Gid != 0 {
			t.Errorf("%s belongs to %d:%d outside, want root", name, sys.Uid, sys.Gid)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(host, "hosts")); string(b) != "127.0.0.1 localhost\nmore\n" {
		t.Errorf("hosts: %q", b)
	}
}

// The engine's own files may lie where no owner can be shifted, as on a tmpfs
// before Linux 6.3; here an overlay stands for it.
func TestFilesThatCannotBeShifted(t *testing.T) {
	root := busybox(t)
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "at"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	at := filepath.Join(dir, "at")
	must(t, syscall.Mount("overlay", at, "overlay", 0, fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)))
	t.Cleanup(func() { must(t, syscall.Unmount(at, 0)) })
	hosts := filepath.Join(at, "hosts")
	must(t, os.WriteFile(hosts, []byte("one\n"), 0o644))
	out := shell(t, root, `stat -c '%u %g' /etc/hosts; echo two >> /etc/hosts`, func(s *isolation.Spec) { s.Network.Hosts = hosts })
	if out != "0 0\n" {
		t.Errorf("owner inside: %q, want root", out)
	}
	if b, _ := os.ReadFile(hosts); string(b) != "one\ntwo\n" {
		t.Errorf("hosts: %q", b)
	}

	// A user's files are never given away.
	s := newSpec(t, root, "true")
	bind(t, s, at, "/data", nil)
	if _, err := (&container.Driver{}).Create(context20(t), s); err == nil || !strings.Contains(err.Error(), "cannot shift the owners") {
		t.Errorf("a bind mount that cannot be shifted: %v", err)
	}
	if st, err := os.Stat(hosts); err != nil || st.Sys().(*syscall.Stat_t).Uid != idHost {
		t.Errorf("hosts: %v, %v", st, err)
	}
}

func TestWritableLayer(t *testing.T) {
	root := busybox(t)
	must(t, os.Chmod(root, 0o755))
	s := newSpec(t, root, "sh", "-c", "id > /kept; chown 1000:1000 /kept; rm /etc/group; stat -c %a /")
	out, errs, exit := run(t, s, "")
	if exit.Code != 0 || out != "755\n" {
		t.Fatal(out, errs, exit)
	}
	st, err := os.Lstat(filepath.Join(s.Root.Upper, "upper/kept"))
	must(t, err)
	if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 1000 || sys.Gid != 1000 {
		t.Errorf("on disk it belongs to %d:%d", sys.Uid, sys.Gid)
	}
	// The same layer again, after a volatile mount.
	again := newSpec(t, root, "sh", "-c", "cat /kept; ls -n /kept; ls /etc")
	again.Root.Upper = s.Root.Upper
	out, errs, exit = run(t, again, "")
	if exit.Code != 0 || !strings.Contains(out, "uid=0(root)") || !strings.Contains(out, " 1000     1000 ") || strings.Contains(out, "\ngroup\n") {
		t.Error(out, errs, exit)
	}
}

func TestReadonlyRoot(t *testing.T) {
	out := shell(t, busybox(t), "touch /x 2>&1; echo ok > /tmpfs/x && cat /tmpfs/x; echo y > /dev/shm/y; touch /tmp/z 2>&1; pwd; true", func(s *isolation.Spec) {
		s.Root.Readonly = true
		s.Process.Cwd = "/made/for/me"
		s.Mounts = append(s.Mounts, isolation.Mount{Type: isolation.MountTmpfs, Target: "/tmpfs"})
	})
	if out != "touch: /x: Read-only file system\nok\ntouch: /tmp/z: Read-only file system\n/made/for/me\n" {
		t.Errorf("%q", out)
	}
}

func TestSeccompAndNoNewPrivileges(t *testing.T) {
	root := busybox(t)
	bpf, err := seccomp.Default(defaults)
	must(t, err)
	for _, user := range []string{"", "app"} {
		for _, nnp := range []bool{false, true} {
			out := shell(t, root, "grep -E '^(Seccomp|NoNewPrivs|CapPrm):' /proc/self/status; unshare -U true 2>&1; true", func(s *isolation.Spec) {
				s.Process.Seccomp, s.Process.NoNewPrivileges, s.Process.User = bpf, nnp, user
			})
			caps, no := "00000000800405fb", 0
			if user != "" {
				caps = "0000000000000000"
			}
			if nnp {
				no = 1
			}
			want := fmt.Sprintf("CapPrm:\t%s\nNoNewPrivs:\t%d\nSeccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\n", caps, no)
			if out != want {
				t.Errorf("user %q, no_new_privs %v: %q, want %q", user, nnp, out, want)
			}
		}
	}
}

func TestLimits(t *testing.T) {
	umask := uint32(0o077)
	out := shell(t, busybox(t), "ulimit -n; umask; cat /proc/self/oom_score_adj; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true", func(s *isolation.Spec) {
		s.Process.Rlimits = []isolation.Rlimit{{Type: syscall.RLIMIT_NOFILE, Soft: 99, Hard: 100}, {Type: 8 /* MEMLOCK */, Soft: 1 << 40, Hard: 1 << 41}}
		s.Process.Umask = &umask
		s.Process.OOMScoreAdj = 500
		s.Resources.Pids = 77
	})
	if out != "99\n0077\n500\n77\n" {
		t.Errorf("%q", out)
	}
}

// A limit that is lower than what the way to the exec needs.
func TestFewFiles(t *testing.T) {
	root := busybox(t)
	few := func(s *isolation.Spec) {
		s.Process.Rlimits = []isolation.Rlimit{{Type: syscall.RLIMIT_NOFILE, Soft: 4, Hard: 5}}
	}
	if out := shell(t, root, "ulimit -n; ulimit -Hn", few); out != "4\n5\n" {
		t.Errorf("%q", out)
	}
	if out, _ := execIn(t, sleeper(t, root, few), command("sh", "-c", "ulimit -n; ulimit -Hn")); out != "4\n5\n" {
		t.Errorf("exec: %q", out)
	}
}

func TestOOM(t *testing.T) {
	s := newSpec(t, busybox(t), "sh", "-c", "tail /dev/zero")
	s.Resources.MemoryBytes = 16 << 20
	if _, _, exit := run(t, s, ""); !exit.OOMKilled || exit.Code == 0 {
		t.Errorf("%+v", exit)
	}
}

func TestPause(t *testing.T) {
	i := create(t, newSpec(t, busybox(t), "sh", "-c", "while :; do echo x; sleep 0.01; done"))
	var out output
	_, err := i.Start(context20(t), isolation.Stdio{Stdout: &out})
	must(t, err)
	out.await(t, "x")
	must(t, i.Pause(context20(t)))
	time.Sleep(50 * time.Millisecond)
	n := len(out.String())
	time.Sleep(100 * time.Millisecond)
	if m := len(out.String()); m != n {
		t.Errorf("a paused container wrote %d bytes", m-n)
	}
	must(t, i.Resume(context20(t)))
	for end := time.Now().Add(5 * time.Second); len(out.String()) == n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a resumed container does nothing")
		}
	}
	must(t, i.Pause(context20(t))) // and is deleted while it is paused
	st, err := i.Stats(context20(t))
	if err != nil || st.MemoryBytes == 0 || st.Pids < 1 || st.CPUNanos == 0 {
		t.Errorf("%+v %v", st, err)
	}
	list, err := i.Processes(context20(t))
	if err != nil || len(list) < 1 || list[0].UID != 0 || !strings.Contains(list[0].Command, "while") || time.Since(list[0].Started) > time.Minute {
		t.Errorf("%+v %v", list, err)
	}
}

func TestJoin(t *testing.T) {
	root := busybox(t)
	a := create(t, newSpec(t, root, "sleep", "1000"))
	_, err := a.Start(context20(t), isolation.Stdio{})
	must(t, err)
	execIn(t, a, &isolation.Process{Args: []string{"hostname", "shared"}, Cwd: "/", Capabilities: 1 << 21})
	join := map[string]isolation.File{}
	for _, ns := range []string{"user", "net", "ipc", "pid"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", a.Pid(), ns))
		must(t, err)
		defer f.Close()
		join[ns] = isolation.File(f.Fd())
	}
	links := func(pid string) string {
		return "for n in user net ipc pid uts mnt; do readlink /proc/" + pid + "/ns/$n; done"
	}
	want, _ := execIn(t, a, &isolation.Process{Args: []string{"sh", "-c", links("self")}, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: defaults})
	theirs := strings.Fields(want)
	for _, c := range [][]string{{"user", "net"}, {"user", "pid"}, {"user", "net", "ipc", "pid"}, {"user", "ipc"}} {
		t.Log(c)
		out := shell(t, root, links("self")+"; cat /proc/self/uid_map; id -u; touch /file; ls /proc | grep -c '^[0-9]'", func(s *isolation.Spec) {
			s.Namespaces.Join = map[string]isolation.File{}
			for _, n := range c {
				s.Namespaces.Join[n] = join[n]
			}
			if s.Namespaces.Join["net"] != 0 {
				s.Sysctls = nil
			}
		})
		ours := strings.Fields(out)
		for k, n := range []string{"user", "net", "ipc", "pid", "uts", "mnt"} {
			joined := false
			for _, x := range c {
				joined = joined || x == n
			}
			if (ours[k] == theirs[k]) != joined {
				t.Errorf("joined %v: %s is %s, theirs %s", c, n, ours[k], theirs[k])
			}
		}
		if !strings.Contains(out, fmt.Sprint(idHost)) {
			t.Error(out)
		}
	}
}

func TestRefused(t *testing.T) {
	root := busybox(t)
	for name, change := range map[string]func(*isolation.Spec){
		"vm":          func(s *isolation.Spec) { s.Kind = isolation.VM },
		"no command":  func(s *isolation.Spec) { s.Process.Args = nil },
		"host root":   func(s *isolation.Spec) { s.Namespaces.UIDs[0].Host = 0 },
		"in proc":     func(s *isolation.Spec) { bind(t, s, root, "/proc/sys", nil) },
		"dir on file": func(s *isolation.Spec) { bind(t, s, root, "/etc/passwd", nil) },
	} {
		s := newSpec(t, root, "true")
		change(s)
		if _, err := (&container.Driver{}).Create(context20(t), s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := newSpec(t, root, "true")
	s.Sysctls["net.ipv4.not_there"] = "1"
	var se *isolation.StartError
	if _, err := (&container.Driver{}).Create(context20(t), s); !errors.As(err, &se) || !strings.Contains(se.Step, "net.ipv4.not_there") {
		t.Error(err)
	}
}

// The image as the engine hands it over: a detached clone of a mount of EROFS.
func TestErofsImage(t *testing.T) {
	root := busybox(t)
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		t.Skip("mkfs.erofs is missing: apt-get install erofs-utils")
	}
	file := filepath.Join(t.TempDir(), "image.erofs")
	if out, err := exec.Command(mkfs, file, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image, err := sys.NewFS("erofs", sys.MountReadonly, sys.FSConfig{Key: "source", Value: file})
	if err != nil {
		t.Skip("this kernel does not mount EROFS from a file: ", err)
	}
	defer image.Close()
	s := newSpec(t, root, "sh", "-c", "ls -ln /home | tail -1; echo x >> /etc/passwd; stat -c %u /etc/passwd; chown 5:6 /home/app")
	s.Root.Image = isolation.File(sys.RawFD(image))
	out, errs, exit := run(t, s, "")
	if exit.Code != 0 || !strings.Contains(out, " 1000     1000 ") || !strings.HasSuffix(out, "\n0\n") {
		t.Errorf("%q %q %+v", out, errs, exit)
	}
	var st syscall.Stat_t
	must(t, syscall.Stat(filepath.Join(s.Root.Upper, "upper/home/app"), &st))
	if st.Uid != 5 || st.Gid != 6 {
		t.Errorf("on disk it belongs to %d:%d", st.Uid, st.Gid)
	}
}
