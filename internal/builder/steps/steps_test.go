package steps_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"

	"proa/internal/engine"
	"proa/internal/isolation"
	"proa/internal/network"
)

// What a RUN may expect: arguments, environment, user, directory, host name.
func TestMeta(t *testing.T) {
	s := newSite(t)
	root := s.layer()
	m := sh("id; pwd; hostname; echo $WORD $HOME; ulimit -n; cat /etc/hosts; cat /proc/$$/environ | tr '\\0' ' '")
	m.Env = append(m.Env, "WORD=word")
	m.User, m.Cwd = "app", "/made/here"
	m.ExtraHosts = []executor.HostIP{{Host: "four", IP: net.IPv4(10, 1, 2, 3)}, {Host: "six", IP: net.ParseIP("fd00::1")}}
	m.Ulimit = []*pb.Ulimit{{Name: "nofile", Soft: 111, Hard: 222}}
	out := s.mustRun(root, m)
	for _, want := range []string{
		"uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)\n", "/made/here\nbuildkitsandbox\nword /home\n111\n", "10.1.2.3\tfour\n", "fd00::1\tsix\n",
		"PATH=/bin:/usr/bin WORD=word HOME=/home",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	m = sh("id -u; hostname")
	m.Hostname, m.User = "other", "7:8"
	if out := s.mustRun(root, m); out != "7\nother\n" {
		t.Errorf("%q", out)
	}
	if root.held != 0 {
		t.Errorf("the root is still held %d times", root.held)
	}
	m.User = "stranger"
	if out, err := s.run(root, m); err == nil || !strings.Contains(err.Error(), "stranger") {
		t.Errorf("%v %s", err, out)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// How a step ends, in BuildKit's words.
func TestEnds(t *testing.T) {
	s := newSite(t)
	root := s.layer()
	for _, c := range []struct {
		args  []string
		valid []int
		code  uint32 // 0: no error
		out   string
	}{
		{[]string{"true"}, nil, 0, ""},
		{[]string{"sh", "-c", "exit 3"}, nil, 3, ""},
		{[]string{"sh", "-c", "exit 3"}, []int{0, 3}, 0, ""},
		{[]string{"true"}, []int{3}, 1 << 31, ""},
		{[]string{"sh", "-c", "sleep 100 & kill -9 $!; wait $!"}, nil, 137, "Killed\n"},
		{[]string{"no-such"}, nil, 127, "exec: \"no-such\": executable file not found in $PATH\n"},
		{[]string{"/no/such"}, nil, 127, "exec: \"/no/such\": no such file or directory\n"},
		{[]string{"/etc/passwd"}, nil, 126, "exec: \"/etc/passwd\": permission denied\n"},
	} {
		m := sh("")
		m.Args, m.ValidExitCodes = c.args, c.valid
		out, err := s.run(root, m)
		var exit *gateway.ExitError
		switch {
		case c.code == 0 && err != nil:
			t.Errorf("%q: %v", c.args, err)
		case c.code == 1<<31: // 0 was not valid
			if !errors.As(err, &exit) || exit.ExitCode != 0 {
				t.Errorf("%q: %v", c.args, err)
			}
		case c.code != 0 && (!errors.As(err, &exit) || exit.ExitCode != c.code):
			t.Errorf("%q: %v", c.args, err)
		}
		if out != c.out {
			t.Errorf("%q wrote %q, not %q", c.args, out, c.out)
		}
	}
}

// A step that takes more memory than it may says so.
func TestOutOfMemory(t *testing.T) {
	s := newSite(t)
	m := sh("head -c 200m /dev/zero | tail >/dev/null")
	m.LinuxResources = &pb.LinuxResources{Memory: 32 << 20, MemorySwap: 32 << 20}
	_, err := s.run(s.layer(), m)
	var exit *gateway.ExitError
	if !errors.As(err, &exit) || exit.ExitCode == 0 || !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("%v", err)
	}
}

// Output comes whole and in order; a slow reader slows the step down.
func TestOutput(t *testing.T) {
	s := newSite(t)
	out := s.mustRun(s.layer(), sh("i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; seq 200000"))
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 200600 || lines[len(lines)-1] != "200000" {
		t.Fatalf("%d lines, the last one %q", len(lines), lines[len(lines)-1])
	}
	nextOut, nextErr := 0, 0
	for _, l := range lines[:600] {
		switch l {
		case fmt.Sprint("out ", nextOut):
			nextOut++
		case fmt.Sprint("err ", nextErr):
			nextErr++
		default:
			t.Fatalf("%q after out %d, err %d", l, nextOut-1, nextErr-1)
		}
	}
	// Nobody reads: the step stands still, and goes on when somebody does.
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	root := s.layer()
	go func() {
		_, err := s.Run(t.Context(), "slow", executor.Mount{Src: root}, nil, executor.ProcessInfo{Meta: sh("head -c 5000000 /dev/zero; touch /through"), Stdout: pw}, nil)
		pw.Close()
		done <- err
	}()
	if _, err := io.ReadFull(pr, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(filepath.Join(root.upper, "through")); err == nil {
		t.Error("5 MB went through although nobody read them")
	}
	if n, err := io.Copy(io.Discard, pr); err != nil || n != 5000000-1000 {
		t.Errorf("%d %v", n, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Input, terminal, signals, sizes and a second process.
func TestInteractive(t *testing.T) {
	s := newSite(t)
	in, keys := io.Pipe()
	out := new(lines)
	size, sig := make(chan executor.WinSize), make(chan syscall.Signal)
	started, done := make(chan struct{}), make(chan error, 1)
	m := sh("trap 'echo hup' HUP; echo ready; read a; stty size; echo got $a; until read b; do :; done; echo got $b; exit 5")
	m.Tty = true
	go func() {
		_, err := s.Run(t.Context(), "inter", executor.Mount{Src: s.layer()}, nil, executor.ProcessInfo{Meta: m, Stdin: in, Stdout: out, Resize: size, Signal: sig}, started)
		done <- err
	}()
	<-started
	out.waitFor(t, "ready")
	size <- executor.WinSize{Rows: 33, Cols: 99}
	time.Sleep(100 * time.Millisecond)
	if _, err := keys.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	out.waitFor(t, "33 99")
	out.waitFor(t, "got word")
	var said lines
	x := sh("hostname; cat; exit 6")
	x.Cwd, x.Env = "", nil
	err := s.Exec(t.Context(), "inter", executor.ProcessInfo{Meta: x, Stdin: io.NopCloser(strings.NewReader(strings.Repeat("input\n", 20000))), Stdout: &said, Stderr: &said})
	var exit *gateway.ExitError
	if !errors.As(err, &exit) || exit.ExitCode != 6 || said.String() != "buildkitsandbox\n"+strings.Repeat("input\n", 20000) {
		t.Errorf("exec: %v, %d bytes", err, len(said.String()))
	}
	sig <- syscall.SIGHUP
	out.waitFor(t, "hup")
	if _, err := keys.Write([]byte("more\n")); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.As(err, &exit) || exit.ExitCode != 5 {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(out.String(), "hup") || !strings.Contains(out.String(), "got more") {
		t.Errorf("%q", out)
	}
	if err := s.Exec(t.Context(), "inter", executor.ProcessInfo{Meta: x}); err == nil {
		t.Error("exec in a step that has ended")
	}
}

// A cancelled build ends its step at once, whatever it does, and nothing of it
// is left when Run returns.
func TestCancel(t *testing.T) {
	s := newSite(t)
	for _, script := range []string{"trap '' TERM HUP INT; echo up; while :; do sleep 1000; done", "echo up; yes"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		out := new(lines)
		done := make(chan error, 1)
		root := s.layer()
		m := sh(script)
		m.NetMode = pb.NetMode_UNSET
		go func() {
			_, err := s.Run(ctx, "", executor.Mount{Src: root}, nil, executor.ProcessInfo{Meta: m, Stdout: out, Stderr: out}, nil)
			done <- err
		}()
		out.waitFor(t, "up")
		cancel(errors.New("enough"))
		select {
		case err := <-done:
			var exit *gateway.ExitError
			if !errors.As(err, &exit) || !strings.Contains(err.Error(), "enough") {
				t.Errorf("%v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the step goes on")
		}
		if left := s.left(); len(left) > 0 || root.held != 0 {
			t.Errorf("left behind: %q, the root held %d times", left, root.held)
		}
	}
}

// A builder that dies takes its steps with it.
func TestBuilderDies(t *testing.T) {
	s := newSite(t)
	out := new(lines)
	done := make(chan error, 1)
	go func() {
		_, err := s.Run(t.Context(), "", executor.Mount{Src: s.layer()}, nil, executor.ProcessInfo{Meta: sh("echo up; sleep 1000"), Stdout: out}, nil)
		done <- err
	}()
	out.waitFor(t, "up")
	s.conn.Close()
	if err := <-done; err == nil {
		t.Error("no error from a connection that broke")
	}
	for end := time.Now().Add(20 * time.Second); len(s.left()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left behind: %q", s.left())
		}
	}
	s.dial() // and the next builder works
	if got := s.mustRun(s.layer(), sh("echo again")); got != "again\n" {
		t.Errorf("%q", got)
	}
}

// Every kind of mount that a RUN can have.
func TestMounts(t *testing.T) {
	s := newSite(t)
	src := filepath.Join(s.dir, "src")
	must(t, os.MkdirAll(filepath.Join(src, "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(src, "sub/file"), []byte("context\n"), 0o640))
	must(t, os.Chown(filepath.Join(src, "sub/file"), 0, 1001))
	must(t, os.Symlink("/etc/passwd", filepath.Join(src, "leak")))
	cache := filepath.Join(s.dir, "cache")
	must(t, os.Mkdir(cache, 0o755))

	// A secret, as BuildKit makes it: one file of a tmpfs.
	secrets := filepath.Join(s.dir, "secrets")
	must(t, os.Mkdir(secrets, 0o711))
	must(t, (&mount.Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"nodev", "nosuid", "noexec"}}).Mount(secrets))
	t.Cleanup(func() { _ = mount.Unmount(secrets, 0) })
	secret := filepath.Join(secrets, "x")
	must(t, os.WriteFile(secret, []byte("hidden"), 0o400))
	must(t, os.Chown(secret, 1000, 1001))

	// An agent of keys.
	agent, err := net.Listen("unix", filepath.Join(s.dir, "agent"))
	must(t, err)
	must(t, os.Chmod(filepath.Join(s.dir, "agent"), 0o600))
	defer agent.Close()
	go func() {
		for {
			c, err := agent.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "key")
			c.Close()
		}
	}()

	stage := s.layer() // a writable view of another stage
	root := s.layer()
	out := s.mustRun(root, sh(`set -e
		cat /context/sub/file /file; stat -c '%u:%g %a' /context/sub/file
		! touch /context/x 2>/dev/null
		cat /stage/srv/seed; echo changed >/stage/srv/seed; ! touch /part/x 2>/dev/null; ls /part
		echo cached >/cache/item; touch /memory/x; stat -c %a /memory; cp /bin/busybox /memory/true; /memory/true true
		stat -c '%u:%g %a' /run/secrets/key; cat /run/secrets/key; echo
		nc local:/agent.sock </dev/null 2>/dev/null || true; ls -l /agent.sock | cut -c1-10
		df -k /memory2 | tail -n1 | tr -s ' ' | cut -d' ' -f2`),
		executor.Mount{Src: bind(src, "ro"), Dest: "/context", Readonly: true},
		executor.Mount{Src: bind(src, "ro"), Selector: "sub/file", Dest: "/file", Readonly: true},
		executor.Mount{Src: stage, Dest: "/stage"},
		executor.Mount{Src: s.layer(), Selector: "/srv", Dest: "/part", Readonly: true},
		executor.Mount{Src: bind(cache, "rw"), Dest: "/cache"},
		executor.Mount{Src: &files{mounts: []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid"}}}}, Dest: "/memory"},
		executor.Mount{Src: &files{mounts: []mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=1048576"}}}}, Dest: "/memory2"},
		executor.Mount{Src: bind(secret, "ro", "nodev", "nosuid", "noexec"), Dest: "/run/secrets/key", Readonly: true},
		executor.Mount{Src: bind(filepath.Join(s.dir, "agent")), Dest: "/agent.sock"},
	)
	want := "context\ncontext\n0:1001 640\nfrom the image\nseed\n1777\n1000:1001 400\nhidden\nsrw-------\n1024\n"
	if out != want {
		t.Errorf("%q, not %q", out, want)
	}
	if b, err := os.ReadFile(filepath.Join(cache, "item")); err != nil || string(b) != "cached\n" {
		t.Errorf("cache: %q %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(stage.upper, "srv/seed")); err != nil || string(b) != "changed\n" {
		t.Errorf("stage: %q %v", b, err)
	}
	// Nothing of it is in the layer; the directories that were made on the way are.
	var found []string
	must(t, filepath.WalkDir(root.upper, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(root.upper, p); rel != "." {
			found = append(found, rel)
		}
		return err
	}))
	if got := strings.Join(found, " "); got != "dev etc proc run run/secrets sys" {
		t.Errorf("the layer holds %q", got)
	}

	// What was written to a snapshot is in a read-only view of it, whiteouts included.
	other := s.layer()
	s.mustRun(other, sh("echo theirs >/srv/new; rm /srv/seed"))
	if out := s.mustRun(s.layer(), sh("ls /v; cat /one; ! touch /v/x 2>/dev/null"), executor.Mount{Src: other, Selector: "srv", Dest: "/v", Readonly: true}, executor.Mount{Src: other, Selector: "/srv/new", Dest: "/one", Readonly: true}); out != "new\ntheirs\n" {
		t.Errorf("%q", out)
	}
	for _, c := range []struct {
		mount executor.Mount
		want  string
	}{
		{executor.Mount{Src: bind(src), Selector: "no/such", Dest: "/x"}, "no/such"},
		{executor.Mount{Src: bind(filepath.Join(s.dir, "absent")), Dest: "/x"}, "no such file"},
		{executor.Mount{Src: bind(src), Dest: "/proc/sys"}, "/proc"},
		{executor.Mount{Src: &files{mounts: []mount.Mount{{Type: "nfs", Source: "a:/b"}}}, Dest: "/x"}, "nfs"},
		{executor.Mount{Src: &files{}, Dest: "/x"}, "0 mounts"},
	} {
		if out, err := s.run(s.layer(), sh("true"), c.mount); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v %s", c.want, err, out)
		}
	}
	// A link of the source is resolved inside it, not on the host.
	if out, err := s.run(s.layer(), sh("cat /x"), executor.Mount{Src: bind(src), Selector: "leak", Dest: "/x"}); err == nil {
		t.Errorf("a link led out of the context: %q", out)
	}
}

// Steps that run at the same time see the same files of a shared cache, also
// where that lies over another stage.
func TestSharedOverlay(t *testing.T) {
	s := newSite(t)
	shared := s.layer()
	began, done := new(lines), make(chan error, 1)
	first, second := s.layer(), s.layer()
	go func() {
		_, err := s.Run(t.Context(), "", executor.Mount{Src: first}, []executor.Mount{{Src: shared, Dest: "/cache"}},
			executor.ProcessInfo{Meta: sh("echo one >/cache/one; echo up; while ! test -e /cache/two; do sleep 0.02; done; cat /cache/two"), Stdout: began}, nil)
		done <- err
	}()
	began.waitFor(t, "up")
	if out := s.mustRun(second, sh("cat /cache/one; echo two >/cache/two.new; mv /cache/two.new /cache/two"), executor.Mount{Src: shared, Dest: "/cache"}); out != "one\n" {
		t.Errorf("%q", out)
	}
	if err := <-done; err != nil || !strings.Contains(began.String(), "two") {
		t.Errorf("%v %q", err, began)
	}
	if left := s.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A root without a parent is written in place.
func TestScratch(t *testing.T) {
	s := newSite(t)
	upper := filepath.Join(s.dir, "scratch")
	must(t, os.MkdirAll(filepath.Join(upper, "bin"), 0o755))
	box, err := os.ReadFile("/bin/busybox")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(upper, "bin/sh"), box, 0o755))
	out := s.mustRun(bind(upper, "rw"), sh("echo $$; echo x >/made; echo /*"))
	if out != "1\n/bin /dev /etc /made /proc /sys\n" {
		t.Errorf("%q", out)
	}
	if fi, err := os.Stat(filepath.Join(upper, "made")); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("%v %v", fi, err)
	}
	for _, gone := range []string{"etc/hosts", "etc/resolv.conf"} {
		if _, err := os.Lstat(filepath.Join(upper, gone)); err == nil {
			t.Errorf("%s is in the layer", gone)
		}
	}
}

// Files lie on disk with the owners, modes, times and attributes of inside.
func TestFilesOnDisk(t *testing.T) {
	s := newSite(t)
	root := s.layer()
	s.mustRun(root, sh(`set -e
		mkdir /d; touch -d '2001-02-03 04:05:06' /d/old; chown 1000:1001 /d/old; chmod 4711 /d/old
		rm /srv/seed; ln /d/old /d/same; ln -s nowhere /d/link; mkfifo /d/fifo; chmod 1777 /d; chown 65534:65534 /d/fifo`))
	var st syscall.Stat_t
	must(t, syscall.Lstat(filepath.Join(root.upper, "d/old"), &st))
	if st.Uid != 1000 || st.Gid != 1001 || st.Mode&0o7777 != 0o4711 || st.Nlink != 2 || st.Mtim.Sec != 981173106 {
		t.Errorf("old: %+v", st)
	}
	must(t, syscall.Lstat(filepath.Join(root.upper, "d/fifo"), &st))
	if st.Uid != 65534 || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		t.Errorf("fifo: %+v", st)
	}
	must(t, syscall.Lstat(filepath.Join(root.upper, "srv/seed"), &st))
	if st.Mode&syscall.S_IFMT != syscall.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: %+v", st)
	}
}

// What a step must not be able to do, by default and where it was allowed more.
func TestWalls(t *testing.T) {
	s := newSite(t)
	probe := `grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status
		cat /proc/self/uid_map | tr -s ' '; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null
		mount -t tmpfs x /tmp 2>/dev/null && echo mounted; unshare -r true 2>/dev/null && echo unshared
		ls -d ` + s.dir + ` 2>/dev/null && echo sees the engine; ls /run/docker.sock /var/lib/proa 2>/dev/null
		echo x >/proc/sys/kernel/hostname 2>/dev/null && echo wrote; dmesg >/dev/null 2>&1 && echo dmesg; true`
	out := s.mustRun(s.layer(), sh(probe))
	ids := fmt.Sprintf(" 0 %d 65536\n", s.engine.IDs().Root())
	for _, want := range []string{"CapEff:\t00000000800405fb", "CapBnd:\t00000000800405fb", "Seccomp:\t2", ids, "4096\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	for _, bad := range []string{"mounted", "unshared", "sees", "wrote", "dmesg", "docker.sock"} {
		if strings.Contains(out, bad) {
			t.Errorf("%q: %s", bad, out)
		}
	}
	// security.insecure: as --privileged, and in the host's user namespace.
	m := sh(probe)
	m.SecurityMode = pb.SecurityMode_INSECURE
	out = s.mustRun(s.layer(), m)
	for _, want := range []string{"warning: this step runs in the host's user namespace because of --privileged", "Seccomp:\t0", " 0 0 4294967295\n", "mounted"} {
		if !strings.Contains(out, want) {
			t.Errorf("insecure: %q is missing in\n%s", want, out)
		}
	}
	m = sh("ls -1 /sys/class/net; touch /x")
	m.NetMode = pb.NetMode_HOST
	m.ReadonlyRootFS = true
	out, err := s.run(s.layer(), m)
	if err == nil || !strings.Contains(out, "Read-only file system") || !strings.Contains(out, "because of --network host") {
		t.Errorf("%v %s", err, out)
	}
}

func TestUserNSStrict(t *testing.T) {
	s := newSite(t, func(c *engine.Config) { c.UserNS = "strict" })
	m := sh("true")
	m.NetMode = pb.NetMode_HOST
	if _, err := s.run(s.layer(), m); err == nil || !strings.Contains(err.Error(), "userns=strict") {
		t.Errorf("%v", err)
	}
}

// The default network reaches the bridge, and the resolver's file is there.
func TestBridge(t *testing.T) {
	s := newSite(t)
	m := sh("ip -o -4 addr show eth0; ip route; wc -l </etc/resolv.conf")
	m.NetMode = pb.NetMode_UNSET
	out := s.mustRun(s.layer(), m)
	for _, want := range []string{"eth0", "default via 10."} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

// A step costs what its process costs: that is told to whoever recorded it.
func TestRecorder(t *testing.T) {
	s := newSite(t)
	rec, err := s.Run(t.Context(), "", executor.Mount{Src: s.layer()}, nil, executor.ProcessInfo{Meta: sh("i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done")}, nil)
	must(t, err)
	if rec == nil {
		t.Fatal("nothing was recorded")
	}
	samples, err := rec.Samples()
	must(t, err)
	if n := *samples.Samples[0].CPUStat.UsageNanos; n < 1e6 {
		t.Errorf("%d ns of CPU time", n)
	}
}

// BenchmarkStep is what a RUN costs beyond its command.
func BenchmarkStep(b *testing.B) {
	for _, mode := range []pb.NetMode{pb.NetMode_NONE, pb.NetMode_UNSET} {
		b.Run(mode.String(), func(b *testing.B) {
			s := newSite(b)
			root := s.layer()
			m := sh("")
			m.Args, m.NetMode = []string{"true"}, mode
			// In the middle of a build the bridge is there.
			other := strings.Repeat("e", 64)
			_, err := s.nets.Reserve(b.Context(), other, network.Request{Kind: isolation.NetworkBridge, Hostname: "other"})
			must(b, err)
			b.Cleanup(func() { _ = s.nets.Release(context.Background(), other) })
			for b.Loop() {
				_, err := s.Run(context.Background(), "", executor.Mount{Src: root}, nil, executor.ProcessInfo{Meta: m}, nil)
				must(b, err)
			}
		})
	}
}
