package agent

import (
	"bufio"
	"errors"
	"io"
	"syscall"
	"time"

	"bytes"
	"github.com/containerd/errdefs"
	"os"
	"strings"
	"sync"
	"testing"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
)

func setupOf(d *disks) *wire.Setup {
	return &wire.Setup{
		RootDevice: d.image, RWDevice: d.rw, Hostname: "guest1", Domain: "example.org",
		ResolvConf: "nameserver 10.99.0.1\n", Hosts: "127.0.0.1 localhost\n10.99.0.2 guest1\n", HostnameFile: "guest1\n",
		NICs:          []isolation.NIC{{Name: "eth0", MAC: testMAC, MTU: 1400, Address: []string{"10.99.0.2/16", "fd00:99::2/64"}, Gateway: []string{"10.99.0.1", "fd00:99::1"}}},
		Mounts:        []isolation.Mount{{Type: isolation.MountTmpfs, Target: "/scratch/deep", Size: 1 << 20, Mode: 0o700, Options: "noexec,nosuid,uid=1000"}},
		Sysctls:       map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"},
		MaskedPaths:   []string{"/proc/interrupts", "/proc/irq", "/no/such"},
		ReadonlyPaths: []string{"/proc/sys"},
	}
}

// allCaps is every capability; the kernel ignores what it does not know.
const allCaps = 1<<41 - 1

func sleeper() *isolation.Process {
	return &isolation.Process{Args: []string{"sleep", "1000"}, Cwd: "/", Capabilities: allCaps}
}

// up boots a guest with a main process that only sleeps.
func up(t *testing.T) *wire.Client {
	t.Helper()
	c := boot(t)
	if err := c.Setup(deadline(t), setupOf(makeDisks(t))); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(deadline(t), sleeper(), isolation.Stdio{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// run execs a shell line and returns its output and end.
func run(t *testing.T, c *wire.Client, line string, change ...func(*isolation.Process)) (string, isolation.Exit) {
	t.Helper()
	p := &isolation.Process{Args: []string{"sh", "-c", line}, Cwd: "/", Capabilities: allCaps}
	for _, f := range change {
		f(p)
	}
	var out bytes.Buffer
	r, err := c.Exec(deadline(t), p, isolation.Stdio{Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	x, err := r.Wait(deadline(t))
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return out.String(), x
}

func TestGuest(t *testing.T) {
	c := up(t)
	for _, q := range []struct{ line, want string }{
		{"echo hi; (echo err >&2) 2>&1", "hi\nerr\n"},
		{"hostname", "guest1\n"},
		{"cat /etc/hosts", "127.0.0.1 localhost\n10.99.0.2 guest1\n"},
		{"cat /etc/resolv.conf", "nameserver 10.99.0.1\n"},
		{"cat /etc/hostname; stat -c '%a %F' /etc/hostname", "guest1\n644 regular file\n"},
		{"stat -c %a /", "751\n"},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n"},
		{"(echo 1 > /proc/sys/net/ipv4/ip_forward) 2>/dev/null || echo ro", "ro\n"},
		{"touch /sys/x 2>/dev/null || echo ro", "ro\n"},
		{"ip -4 -o addr show eth0 | grep -o '10.99.0.2/16'", "10.99.0.2/16\n"},
		{"ip -6 -o addr show eth0 | grep -o 'fd00:99::2/64'", "fd00:99::2/64\n"},
		{"ip link show eth0 | grep -o 'mtu 1400'", "mtu 1400\n"},
		{"ip -o link show lo | grep -o ',UP'", ",UP\n"},
		{"stat -c '%u %a' /scratch/deep", "1000 700\n"},
		{"mount | grep -c 'on /scratch/deep type tmpfs .*noexec'", "1\n"},
		{"touch /new && cat /new && stat -c %u /new", "0\n"},
		{"readlink /dev/stdout", "/proc/self/fd/1\n"},
		{"echo over > /dev/stdout", "over\n"},
		{"mount | grep -c 'on / type overlay'", "1\n"},
		{"echo $HOME $PATH", "/root " + defaultPath + "\n"},
		{"cat /proc/interrupts | wc -c", "0\n"},
		{"ls /proc/1/root/.proa 2>/dev/null | wc -l", "0\n"},
		{"ip route | grep -o 'default via 10.99.0.1'", "default via 10.99.0.1\n"},
	} {
		if got, x := run(t, c, q.line); got != q.want {
			t.Errorf("%s: got %q (exit %d), want %q", q.line, got, x.Code, q.want)
		}
	}
	if out, _ := run(t, c, "ps"); !strings.Contains(out, "sleep 1000") {
		t.Errorf("ps shows no main process:\n%s", out)
	}
}

// Nothing that a user can send ends the first process.
func TestSignalsToTheAgent(t *testing.T) {
	c := up(t)
	if out, _ := run(t, c, "for s in HUP INT QUIT ILL ABRT FPE KILL SEGV PIPE ALRM TERM USR1 STOP TSTP TTIN BUS PROF URG 34 64; do kill -$s 1; done; echo sent"); out != "sent\n" {
		t.Errorf("%q", out)
	}
	if out, _ := run(t, c, "echo alive"); out != "alive\n" {
		t.Errorf("%q", out)
	}
	// A signal that the agent catches is not one that its children ignore.
	out, _ := run(t, c, "", func(p *isolation.Process) {
		p.Args = []string{"grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"} // a shell would change them
	})
	if out != "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n" {
		t.Errorf("%q", out)
	}
}

func TestStartErrors(t *testing.T) {
	c := up(t)
	for _, q := range []struct {
		args []string
		cwd  string
		user string
		kind isolation.StartKind
		why  string
	}{
		{args: []string{"nosuch"}, kind: isolation.StartNotFound, why: `exec: "nosuch": executable file not found in $PATH`},
		{args: []string{"/no/such"}, kind: isolation.StartNotFound, why: `exec: "/no/such": stat /no/such: no such file or directory`},
		{args: []string{"/etc/noexec"}, kind: isolation.StartNotAllowed, why: `exec: "/etc/noexec": permission denied`},
		{args: []string{"/etc"}, kind: isolation.StartNotAllowed, why: `exec: "/etc": is a directory`},
		{args: []string{"badformat"}, kind: isolation.StartNotAllowed, why: "exec /bin/badformat: exec format error"},
		{args: []string{"badinterp"}, kind: isolation.StartNotFound, why: "exec /bin/badinterp: no such file or directory"},
		{args: []string{"true"}, user: "ghost", kind: isolation.StartFailed, why: "unable to find user ghost: no matching entries in passwd file"},
		{args: []string{"true"}, cwd: "/no/dir", kind: isolation.StartNotFound, why: `chdir to cwd ("/no/dir") set in config.json failed: no such file or directory`},
		{args: []string{""}, kind: isolation.StartNotFound, why: `exec: "": executable file not found in $PATH`},
		{args: nil, kind: isolation.StartFailed, why: "no command specified"},
	} {
		cwd := q.cwd
		if cwd == "" {
			cwd = "/"
		}
		_, err := c.Exec(deadline(t), &isolation.Process{Args: q.args, Cwd: cwd, User: q.user}, isolation.Stdio{})
		var s *isolation.StartError
		if !errors.As(err, &s) || s.Kind != q.kind || s.Why != q.why {
			t.Errorf("%q: got %v, want %s %q", q.args, err, q.kind, q.why)
		}
	}
	if out, x := run(t, c, "echo still here"); out != "still here\n" || x.Code != 0 {
		t.Errorf("after the errors: %q %+v", out, x)
	}
}

// A main process that could not be started can be tried again, and its end ends everything.
func TestMainProcess(t *testing.T) {
	d := makeDisks(t)
	c := boot(t)
	if _, err := c.Start(deadline(t), sleeper(), isolation.Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("start before set-up: %v", err)
	}
	if err := c.Setup(deadline(t), setupOf(d)); err != nil {
		t.Fatal(err)
	}
	if err := c.Setup(deadline(t), setupOf(d)); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("second set-up: %v", err)
	}
	var s *isolation.StartError
	if _, err := c.Start(deadline(t), &isolation.Process{Args: []string{"nosuch"}}, isolation.Stdio{}); !errors.As(err, &s) {
		t.Fatalf("start of nothing: %v", err)
	}
	var out bytes.Buffer
	// A grandchild that holds the output for ever does not hold up the end.
	p := &isolation.Process{Args: []string{"sh", "-c", "sleep 1000 & echo started; exec sh -c 'read x; echo got $x; exit 7'"}, Cwd: "/made/by/start", Stdin: true}
	in, feed := io.Pipe()
	main, err := c.Start(deadline(t), p, isolation.Stdio{Stdin: in, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	exec, err := c.Exec(deadline(t), sleeper(), isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := run(t, c, "pwd", func(p *isolation.Process) { p.Cwd = "/made/by/start" }); got != "/made/by/start\n" {
		t.Errorf("working directory: %q", got)
	}
	begin := time.Now()
	io.WriteString(feed, "word\n")
	x, err := main.Wait(deadline(t))
	if err != nil || x.Code != 7 || x.Signal != 0 || out.String() != "started\ngot word\n" {
		t.Errorf("main: %+v %v %q", x, err, out.String())
	}
	if d := time.Since(begin); d > 900*time.Millisecond {
		t.Errorf("the end took %s: somebody waited for the grandchild", d)
	}
	if since := time.Since(x.At); since < 0 || since > time.Minute {
		t.Errorf("ended at %s", x.At)
	}
	if x, err := exec.Wait(deadline(t)); err != nil || x.Code != 137 || x.Signal != 9 || x.OOMKilled {
		t.Errorf("exec'd process after the end of main: %+v %v", x, err)
	}
	if err := main.Signal(deadline(t), 15); !errdefs.IsNotFound(err) {
		t.Errorf("signal after the end: %v", err)
	}
	if _, err := c.Exec(deadline(t), sleeper(), isolation.Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec after the end: %v", err)
	}
}

func TestExitAndSignals(t *testing.T) {
	c := up(t)
	if _, x := run(t, c, "exit 42"); x.Code != 42 || x.Signal != 0 {
		t.Errorf("exit 42: %+v", x)
	}
	if _, x := run(t, c, "kill -9 $$"); x.Code != 137 || x.Signal != 9 || x.OOMKilled {
		t.Errorf("kill -9: %+v", x)
	}
	p := &isolation.Process{Args: []string{"sh", "-c", "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done"}}
	r, w := io.Pipe()
	proc, err := c.Exec(deadline(t), p, isolation.Stdio{Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(r)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("got %q", lines.Text())
	}
	if err := proc.Signal(deadline(t), 15); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "term" {
		t.Errorf("got %q", lines.Text())
	}
	if x, err := proc.Wait(deadline(t)); err != nil || x.Code != 3 {
		t.Errorf("%+v %v", x, err)
	}
	if err := proc.Signal(deadline(t), 15); !errdefs.IsNotFound(err) {
		t.Errorf("signal after the end: %v", err)
	}
	// What a shell left behind holds the output; an exec ends after a second all the same.
	begin := time.Now()
	if out, x := run(t, c, "sleep 1000 & echo left"); out != "left\n" || x.Code != 0 {
		t.Errorf("%q %+v", out, x)
	}
	if d := time.Since(begin); d < 800*time.Millisecond || d > 5*time.Second {
		t.Errorf("a held pipe was waited for %s", d)
	}
	// An orphan is process 1's, which does not reap unless it is told to be an init.
	orphan := "(sleep 0.1 &) ; sleep 0.4; cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '"
	if out, _ := run(t, c, orphan); out != "1\n" {
		t.Errorf("zombies: %q", out)
	}
	c = boot(t)
	s := setupOf(makeDisks(t))
	s.Init = true
	if err := c.Setup(deadline(t), s); err != nil {
		t.Fatal(err)
	}
	main, err := c.Start(deadline(t), sleeper(), isolation.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, c, orphan+"; head -n 1 /proc/1/status"); out != "0\nName:\tproa-init\n" {
		t.Errorf("zombies and process 1 of an init: %q", out)
	}
	if err := main.Signal(deadline(t), 15); err != nil {
		t.Fatal(err)
	}
	if x, err := main.Wait(deadline(t)); err != nil || x.Code != 143 {
		t.Errorf("SIGTERM by way of an init: %+v %v", x, err)
	}
}

// A request longer than a frame, beside another one's stream.
func TestLongRequest(t *testing.T) {
	c := up(t)
	long := strings.Repeat("x", 100<<10)
	out, x := run(t, c, "echo ${#A} ${#B} ${#C}", func(p *isolation.Process) { p.Env = []string{"A=" + long, "B=" + long, "C=" + long} })
	if out != "102400 102400 102400\n" {
		t.Errorf("%q %+v", out, x)
	}
	// One variable beyond what the kernel takes (MAX_ARG_STRLEN) is execve's refusal, not ours.
	var s *isolation.StartError
	_, err := c.Exec(deadline(t), &isolation.Process{Args: []string{"true"}, Env: []string{"A=" + strings.Repeat("x", 200<<10)}}, isolation.Stdio{})
	if !errors.As(err, &s) || s.Kind != isolation.StartFailed || !strings.Contains(s.Why, "argument list too long") {
		t.Errorf("%v", err)
	}
}

func TestStdio(t *testing.T) {
	c := up(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB
	var out bytes.Buffer
	proc, err := c.Exec(deadline(t), &isolation.Process{Args: []string{"cat"}, Stdin: true}, isolation.Stdio{Stdin: bytes.NewReader(big), Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := proc.Wait(deadline(t)); err != nil || x.Code != 0 || !bytes.Equal(out.Bytes(), big) {
		t.Errorf("cat of %d bytes: %d came back, %+v %v", len(big), out.Len(), x, err)
	}
	// Many bytes right before the end, to both streams.
	var so, se bytes.Buffer
	proc, err = c.Exec(deadline(t), &isolation.Process{Args: []string{"sh", "-c", "seq 1 50000 >&2; seq 1 100000; exit 5"}}, isolation.Stdio{Stdout: &so, Stderr: &se})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := proc.Wait(deadline(t)); err != nil || x.Code != 5 || so.Len() != 588895 || se.Len() != 288894 {
		t.Errorf("seq: %d and %d bytes, %+v %v", so.Len(), se.Len(), x, err)
	}
	// No stdin is an empty one.
	if got, _ := run(t, c, "cat; echo end"); got != "end\n" {
		t.Errorf("no stdin: %q", got)
	}
	// A process that closes its stdin does not hurt anybody.
	proc, err = c.Exec(deadline(t), &isolation.Process{Args: []string{"sh", "-c", "exec 0<&-; sleep 0.2; echo ok"}, Stdin: true}, isolation.Stdio{Stdin: neverEnding{}, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if x, err := proc.Wait(deadline(t)); err != nil || x.Code != 0 {
		t.Errorf("closed stdin: %+v %v", x, err)
	}
	// A slow reader of an ended exec gets everything that was written.
	slow := &slowWriter{}
	proc, err = c.Exec(deadline(t), &isolation.Process{Args: []string{"seq", "1", "60000"}}, isolation.Stdio{Stdout: slow})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := proc.Wait(deadline(t)); err != nil || slow.n != 348894 {
		t.Errorf("slow reader got %d bytes, %v", slow.n, err)
	}
	// Output without a reader does not block the process.
	if _, err := c.Exec(deadline(t), &isolation.Process{Args: []string{"seq", "1", "1000000"}}, isolation.Stdio{}); err != nil {
		t.Fatal(err)
	}
}

// neverEnding is a stdin that always has more.
type neverEnding struct{}

func (neverEnding) Read(b []byte) (int, error) { return len(b), nil }

// slowWriter stalls for longer than an exec's output is waited for.
type slowWriter struct{ n int }

func (w *slowWriter) Write(b []byte) (int, error) {
	if w.n == 0 {
		time.Sleep(1500 * time.Millisecond)
	}
	w.n += len(b)
	return len(b), nil
}

func TestTerminal(t *testing.T) {
	c := up(t)
	r, w := io.Pipe()
	in, feed := io.Pipe()
	p := &isolation.Process{Args: []string{"sh", "-c", "tty; stty size; echo $TERM; stat -c %u $(tty); read x; stty size; echo bye"}, User: "app", Terminal: true, Stdin: true, Rows: 30, Cols: 100}
	proc, err := c.Exec(deadline(t), p, isolation.Stdio{Stdin: in, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(r)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || strings.TrimRight(lines.Text(), "\r") != want {
			t.Errorf("got %q, want %q", lines.Text(), want)
		}
	}
	expect("/dev/pts/0")
	expect("30 100")
	expect("xterm")
	expect("1000")
	if err := proc.Resize(deadline(t), 40, 120); err != nil {
		t.Fatal(err)
	}
	io.WriteString(feed, "go\n")
	expect("go") // the echo
	expect("40 120")
	expect("bye")
	if x, err := proc.Wait(deadline(t)); err != nil || x.Code != 0 {
		t.Errorf("%+v %v", x, err)
	}
	// Control-C reaches the foreground process.
	in, feed = io.Pipe() // the feeder of the first still reads the other
	proc, err = c.Exec(deadline(t), &isolation.Process{Args: []string{"sh", "-c", "echo up; sleep 1000"}, Terminal: true, Stdin: true}, isolation.Stdio{Stdin: in, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	expect("up")
	go io.Copy(io.Discard, r) // the echo
	feed.Write([]byte{3})
	if x, err := proc.Wait(deadline(t)); err != nil || x.Code != 130 {
		t.Errorf("after control-C: %+v %v", x, err)
	}
}

func TestUserAndLimits(t *testing.T) {
	c := up(t)
	as := func(user string, groups ...string) func(*isolation.Process) {
		return func(p *isolation.Process) { p.User, p.Groups = user, groups }
	}
	for _, q := range []struct {
		line, want string
		change     func(*isolation.Process)
	}{
		{"id", "uid=0(root) gid=0(root) groups=0(root)\n", as("")},
		{"id; echo $HOME", "uid=1000(app) gid=1000(app) groups=50(staff),1000(app)\n/home/app\n", as("app")},
		{"id", "uid=1000(app) gid=0(root) groups=0(root),7\n", as("1000:0", "7")},
		{"id -u; echo $HOME", "4242\n/\n", as("4242")},
		{"echo $HOME", "/mine\n", func(p *isolation.Process) { p.Env = []string{"HOME=/mine"} }},
		{"grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n", as("app")},
		{"grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2", "", nil},
		{"umask", "0022\n", nil},
		{"umask", "0077\n", func(p *isolation.Process) { v := uint32(0o077); p.Umask = &v }},
		{"ulimit -n; ulimit -Hn", "77\n99\n", func(p *isolation.Process) {
			p.Rlimits = []isolation.Rlimit{{Type: syscall.RLIMIT_NOFILE, Soft: 77, Hard: 99}}
		}},
		{"cat /proc/self/oom_score_adj", "300\n", func(p *isolation.Process) { p.OOMScoreAdj = 300 }},
		{"grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1\n", func(p *isolation.Process) { p.NoNewPrivileges = true }},
		{"ls /proc/self/fd", "0\n1\n2\n3\n", nil}, // 3 is the directory itself
		{"echo re > /dev/stderr", "re\n", as("app")},
	} {
		if q.want == "" {
			continue
		}
		change := q.change
		if change == nil {
			change = func(*isolation.Process) {}
		}
		if got, x := run(t, c, q.line, change); got != q.want {
			t.Errorf("%s: got %q (%d), want %q", q.line, got, x.Code, q.want)
		}
	}
	const chown, setuid = 1 << 0, 1 << 7
	got, _ := run(t, c, "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status", func(p *isolation.Process) { p.Capabilities = chown | setuid })
	want := "CapInh:\t0000000000000000\nCapPrm:\t0000000000000081\nCapEff:\t0000000000000081\nCapBnd:\t0000000000000081\nCapAmb:\t0000000000000000\n"
	if got != want {
		t.Errorf("capabilities: got\n%s", got)
	}
}

func TestSeccomp(t *testing.T) {
	c := up(t)
	// sethostname: EPERM; everything else allowed.
	prog := []byte{
		0x20, 0, 0, 0, 0, 0, 0, 0, // load the number
		0x15, 0, 0, 1, byte(syscall.SYS_SETHOSTNAME), 0, 0, 0, // is it sethostname?
		0x06, 0, 0, 0, 1, 0, 5, 0, // ERRNO | EPERM
		0x06, 0, 0, 0, 0, 0, 0xff, 0x7f, // ALLOW
	}
	for _, nnp := range []bool{false, true} {
		out, _ := run(t, c, "grep ^Seccomp: /proc/self/status; hostname other 2>/dev/null || echo refused", func(p *isolation.Process) {
			p.Seccomp, p.NoNewPrivileges = prog, nnp
		})
		if out != "Seccomp:\t2\nrefused\n" {
			t.Errorf("no_new_privs %v: %q", nnp, out)
		}
	}
	_, err := c.Exec(deadline(t), &isolation.Process{Args: []string{"true"}, Seccomp: []byte{1, 2, 3}}, isolation.Stdio{})
	if err == nil {
		t.Error("a broken filter was accepted")
	}
}

func TestStatsAndProcesses(t *testing.T) {
	c := up(t)
	s, err := c.Stats(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if s.MemoryTotal < 64<<20 || s.MemoryAvailable == 0 || s.MemoryAvailable > s.MemoryTotal || s.Pids != 1 || s.Uptime <= 0 || s.CPUUser == 0 {
		t.Errorf("%+v", s)
	}
	list, err := c.Processes(deadline(t))
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v %v", list, err)
	}
	if p := list[0]; p.Command != "sleep 1000" || p.PPID != 1 || p.UID != 0 || p.TTY != "?" || time.Since(p.Started).Abs() > time.Minute {
		t.Errorf("%+v", p)
	}
	if d, err := c.Ping(deadline(t)); err != nil || d <= 0 {
		t.Errorf("ping: %s %v", d, err)
	}
}

// What was written before Shutdown is there after it, and the disk is clean.
func TestShutdownAndSecondLife(t *testing.T) {
	d := makeDisks(t)
	live := func(line, want string) {
		t.Helper()
		c, stop := bootOnce(t)
		if err := c.Setup(deadline(t), setupOf(d)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Start(deadline(t), sleeper(), isolation.Stdio{}); err != nil {
			t.Fatal(err)
		}
		if got, _ := run(t, c, line); got != want {
			t.Errorf("%s: %q", line, got)
		}
		if err := c.Shutdown(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if state := sh(t, "dumpe2fs", "-h", d.rw); strings.Contains(state, "needs_recovery") {
			t.Error("the disk needs recovery after shutdown")
		}
		stop()
	}
	live("echo kept > /home/app/file; rm /etc/group; echo mine >> /etc/hosts; ls /etc/group 2>/dev/null", "")
	live("cat /home/app/file; ls /etc/group 2>/dev/null; cat /etc/hosts", "kept\n127.0.0.1 localhost\n10.99.0.2 guest1\n")
}

func TestReadonlyRoot(t *testing.T) {
	c := boot(t)
	s := setupOf(makeDisks(t))
	s.Readonly = true
	s.RWDevice = "" // in memory
	if err := c.Setup(deadline(t), s); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(deadline(t), sleeper(), isolation.Stdio{}); err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, c, "touch /x 2>/dev/null || echo ro; touch /scratch/deep/x /dev/shm/x && echo rw; cat /etc/hosts | head -n 1"); out != "ro\nrw\n127.0.0.1 localhost\n" {
		t.Errorf("%q", out)
	}
}

// A new greeting begins anew, also when both sides were cut off in the middle
// of a frame: streams of the old epoch are dropped, processes go on.
func TestNewEpoch(t *testing.T) {
	d := makeDisks(t)
	sock, _ := bootSocket(t)
	link := &link{sock: sock}
	go link.carry()
	c := wire.NewClient(link.connect())
	if _, err := c.Hello(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.Setup(deadline(t), setupOf(d)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(deadline(t), sleeper(), isolation.Stdio{}); err != nil {
		t.Fatal(err)
	}
	flood := &isolation.Process{Args: []string{"sh", "-c", "while :; do echo flood; done"}}
	if _, err := c.Exec(deadline(t), flood, isolation.Stdio{Stdout: io.Discard}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		next := link.connect() // what the old client had not read yet is lost, frames cut in two
		c.Close()
		half := make([]byte, 1000) // of a frame that will never be complete: a header, and less than it promises
		copy(half, wire.Header{Type: wire.TypeRequest, ID: 77, Length: 20000}.Append(nil))
		if _, err := sock.Write(half); err != nil {
			t.Fatal(err)
		}
		c = wire.NewClient(next)
		if _, err := c.Resume(deadline(t)); err != nil {
			t.Fatal(err)
		}
		if out, _ := run(t, c, "ps | grep -c '[s]h -c while'"); out != "1\n" {
			t.Errorf("%q", out)
		}
	}
	c.Close()
}

// link joins one client after another to the same byte stream.
type link struct {
	sock *os.File
	mu   sync.Mutex
	to   *io.PipeWriter
}

func (l *link) connect() io.ReadWriteCloser {
	r, w := io.Pipe()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.to != nil {
		l.to.Close()
	}
	l.to = w
	return struct {
		io.Reader
		io.Writer
		io.Closer
	}{r, l.sock, r}
}

func (l *link) carry() {
	b := make([]byte, 1000)
	for {
		n, err := l.sock.Read(b)
		if err != nil {
			return
		}
		l.mu.Lock()
		to := l.to
		l.mu.Unlock()
		_, _ = to.Write(b[:n]) // an old client's bytes are lost
	}
}

func TestRefusesOtherMounts(t *testing.T) {
	c := boot(t)
	s := setupOf(makeDisks(t))
	s.Mounts = []isolation.Mount{{Type: isolation.MountBind, Target: "/x"}}
	var e *isolation.StartError
	if err := c.Setup(deadline(t), s); !errors.As(err, &e) || e.Step != "mount bind at /x" {
		t.Errorf("%v", err)
	}
}
