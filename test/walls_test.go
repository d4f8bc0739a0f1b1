// Package test proves what a user sees, against a real engine with the
// unmodified docker CLI and with proa: every behaviour behind both walls.
package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// wall is one isolation and how the docker CLI asks for it.
type wall struct {
	name string
	args []string
}

var walls = []wall{{"container", []string{"--runtime", "container"}}, {"vm", []string{"--runtime", "vm"}}}

// place is where one behaviour runs: an engine, a wall, and names of its own.
type place struct {
	*testing.T
	*proatest.Engine
	wall
	n int
}

// name makes a container name that no other behaviour uses.
func (p *place) name() string {
	p.n++
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, p.Name())
	return fmt.Sprintf("%s-%d", clean, p.n)
}

// MustDocker is Docker that ends this behaviour, and no other, on a failure.
func (p *place) MustDocker(args ...string) string {
	p.Helper()
	r := p.Docker(args...)
	if r.Code != 0 {
		p.Fatalf("docker %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Out()
}

// run is `docker run --rm` behind this wall, without a network unless asked.
func (p *place) run(args ...string) proatest.Result {
	p.Helper()
	return p.Docker(append(append([]string{"run", "--rm", "--network", "none"}, p.args...), args...)...)
}

// start is `docker run -d`; the container is removed at the end.
func (p *place) start(args ...string) string {
	p.Helper()
	name := p.name()
	p.MustDocker(append(append([]string{"run", "-d", "--name", name}, p.args...), args...)...)
	p.Cleanup(func() { p.Docker("rm", "-f", "-v", name) })
	return name
}

func (p *place) want(got, want string) {
	p.Helper()
	if got != want {
		p.Errorf("got %q, want %q", got, want)
	}
}

func (p *place) code(r proatest.Result, want int) {
	p.Helper()
	if r.Code != want {
		p.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.Code, want, r.Stdout, r.Stderr)
	}
}

func (p *place) holds(text, part string) {
	p.Helper()
	if !strings.Contains(text, part) {
		p.Errorf("%q does not hold %q", text, part)
	}
}

// eventually tries until ok or half a minute is over.
func (p *place) eventually(what string, ok func() bool) {
	p.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	p.Errorf("never happened: %s", what)
}

// behaviours is what must be the same behind both walls.
var behaviours = []struct {
	name string
	do   func(p *place)
}{
	{"exit code", func(p *place) { p.code(p.run("bb", "sh", "-c", "exit 7"), 7) }},
	{"output on two streams", func(p *place) {
		r := p.run("bb", "sh", "-c", "echo out; echo err >&2")
		p.want(r.Stdout, "out\n")
		p.want(r.Stderr, "err\n")
	}},
	{"environment, directory, host name", func(p *place) {
		r := p.run("-e", "A=b c", "-w", "/new/dir", "--hostname", "box", "bb", "sh", "-c", `echo "$A|$PWD|$(hostname)|$HOME|$HOSTNAME|$PATH"; stat -c %u:%g:%a /new/dir`)
		p.want(r.Stdout, "b c|/new/dir|box|/root|box|/bin\n0:0:755\n")
	}},
	{"users by name and number", func(p *place) {
		for user, want := range map[string]string{
			"app":      "uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)",
			"1000:0":   "uid=1000(app) gid=0(root) groups=0(root)",
			"4242":     "uid=4242 gid=0(root) groups=0(root)",
			"app:2000": "uid=1000(app) gid=2000(extra) groups=2000(extra)",
		} {
			p.want(strings.TrimSpace(p.run("-u", user, "bb", "id").Stdout), want)
		}
		r := p.run("-u", "nosuch", "bb", "id")
		p.code(r, 125)
		p.holds(r.Stderr, "unable to find user nosuch")
	}},
	{"standard input", func(p *place) {
		r := p.Exec("through\n", proatest.DockerCLI(p.T), append(append([]string{"-H", p.Host, "run", "-i", "--rm", "--network", "none"}, p.args...), "bb", "cat")...)
		p.code(r, 0)
		p.want(r.Stdout, "through\n")
	}},
	{"a megabyte through", func(p *place) {
		in := strings.Repeat("0123456789abcde\n", 1<<16)
		r := p.Exec(in, proatest.DockerCLI(p.T), append(append([]string{"-H", p.Host, "run", "-i", "--rm", "--network", "none"}, p.args...), "bb", "cat")...)
		p.code(r, 0)
		if r.Stdout != in {
			p.Errorf("%d bytes came back of %d", len(r.Stdout), len(in))
		}
	}},
	{"a terminal", func(p *place) {
		r := p.run("-t", "bb", "sh", "-c", "test -t 0 && test -t 1 && tty")
		p.code(r, 0)
		p.want(r.Stdout, "/dev/pts/0\r\n")
	}},
	{"commands that cannot be run", func(p *place) {
		r := p.run("bb", "nosuchcommand")
		p.code(r, 127)
		p.holds(r.Stderr, "executable file not found in $PATH")
		p.code(p.run("bb", "/notexec"), 126)
		p.code(p.run("bb", "/etc"), 126)
	}},
	{"exec", func(p *place) {
		c := p.start("--network", "none", "-e", "FROM=run", "bb", "sleep", "1000")
		r := p.Docker("exec", c, "sh", "-c", "echo out; echo err >&2; exit 3")
		p.code(r, 3)
		p.want(r.Stdout+r.Stderr, "out\nerr\n")
		p.want(p.Docker("exec", "-u", "app", "-w", "/tmp", "-e", "X=y", c, "sh", "-c", "echo $(id -un) $PWD $X $FROM").Stdout, "app /tmp y run\n")
		p.want(p.Exec("in\n", proatest.DockerCLI(p.T), "-H", p.Host, "exec", "-i", c, "cat").Stdout, "in\n")
		p.code(p.Docker("exec", c, "nosuchcommand"), 127)
		p.code(p.Docker("exec", "-t", c, "sh", "-c", "test -t 0"), 0)
	}},
	{"stop by signal", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", `trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done`)
		p.eventually("output", func() bool { return p.Docker("logs", c).Stdout == "up\n" })
		p.MustDocker("stop", "-t", "20", c)
		p.want(p.MustDocker("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", c), "exited 5")
		p.want(p.MustDocker("logs", c), "up\nbye")
	}},
	{"stop becomes kill", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", `trap '' TERM; echo up; while :; do sleep 0.1; done`)
		p.eventually("output", func() bool { return p.Docker("logs", c).Stdout == "up\n" })
		p.MustDocker("stop", "-t", "1", c)
		p.want(p.MustDocker("inspect", "-f", "{{.State.ExitCode}}", c), "137")
	}},
	{"kill with a signal", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", `trap 'echo usr1' USR1; echo up; while :; do sleep 0.1; done`)
		p.eventually("output", func() bool { return p.Docker("logs", c).Stdout == "up\n" })
		p.MustDocker("kill", "-s", "USR1", c)
		p.eventually("the signal", func() bool { return p.Docker("logs", c).Stdout == "up\nusr1\n" })
		p.MustDocker("kill", c)
		p.want(p.MustDocker("wait", c), "137")
	}},
	{"what was written stays across stop and start", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "cat /kept 2>/dev/null; echo more >>/kept; sync; sleep 1000")
		p.eventually("a first write", func() bool { return p.Docker("exec", c, "cat", "/kept").Stdout == "more\n" })
		p.MustDocker("stop", "-t", "0", c)
		p.MustDocker("start", c)
		p.eventually("a second write", func() bool { return p.Docker("exec", c, "cat", "/kept").Stdout == "more\nmore\n" })
		p.want(p.MustDocker("logs", c), "more")
	}},
	{"read-only root and tmpfs", func(p *place) {
		r := p.run("--read-only", "--tmpfs", "/t:size=1m,mode=700", "bb", "sh", "-c", "touch /x 2>/dev/null && echo wrote; touch /t/y && stat -c %a /t; df -k /t | tail -1 | awk '{print $2}'")
		p.want(r.Stdout, "700\n1024\n")
	}},
	{"options of a tmpfs", func(p *place) {
		r := p.run("--tmpfs", "/a", "--tmpfs", "/b:exec,dev,suid,size=2m,ro", "--mount", "type=tmpfs,dst=/c,tmpfs-size=1048576", "bb", "sh", "-c",
			"grep -E ' /(a|b|c) ' /proc/mounts | cut -d' ' -f1-4 | sed 's/,[ui]id=.*//;s/,gid=.*//;s/,inode64//'")
		p.want(r.Stdout, "tmpfs /a tmpfs rw,nosuid,nodev,noexec,relatime\ntmpfs /b tmpfs ro,relatime,size=2048k\ntmpfs /c tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k\n")
	}},
	{"the devices of a container and no others", func(p *place) {
		r := p.run("bb", "sh", "-c", "ls /dev | tr '\n' ' '; stat -c '%n %a %t:%T' /dev/null /dev/zero /dev/tty; for l in ptmx fd core; do readlink /dev/$l; done; grep ' /dev ' /proc/mounts | grep -c 'tmpfs /dev tmpfs rw,nosuid,relatime,size=65536k,mode=755'; (mknod /n b 254 0 || mknod /dev/n b 254 0) 2>/dev/null && echo made")
		p.want(r.Stdout, "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero /dev/null 666 1:3\n/dev/zero 666 1:5\n/dev/tty 666 5:0\npts/ptmx\n/proc/self/fd\n/proc/kcore\n1\n")
	}},
	{"process 1", func(p *place) {
		// No signal without a handler reaches it from inside, and orphans become its children.
		r := p.run("bb", "sh", "-c", "echo $$; kill -TERM 1; kill -KILL 1; (sh -c 'sleep 0.3; grep PPid /proc/$$/status' &); sleep 1; echo end")
		p.want(r.Stdout, "1\nPPid:\t1\nend\n")
		c := p.start("--network", "none", "bb", "sleep", "1000")
		p.MustDocker("kill", "-s", "TERM", c)
		time.Sleep(300 * time.Millisecond)
		p.want(p.Docker("exec", c, "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; grep -c . /proc/1/status >/dev/null && echo; id -u").Stdout, "sleep 1000 \n0\n")
		p.MustDocker("kill", c)
		p.want(p.MustDocker("wait", c), "137")
	}},
	{"its own files below a read-only root", func(p *place) {
		r := p.run("--read-only", "--hostname", "box", "-w", "/new/dir", "bb", "sh", "-c",
			"grep -c . /etc/hosts >/dev/null && cat /etc/hostname; for f in /etc/hosts /etc/resolv.conf /etc/other; do touch $f 2>/dev/null || echo read-only; done; pwd")
		p.want(r.Stdout, "box\nread-only\nread-only\nread-only\n/new/dir\n")
	}},
	{"control groups and what is masked", func(p *place) {
		r := p.run("bb", "sh", "-c", "grep -v ':/$' /proc/self/cgroup; mkdir /sys/fs/cgroup/x 2>/dev/null && echo made; for f in sys bus irq; do grep -o \" /proc/$f proc ro,\" /proc/mounts; done; wc -c </proc/keys; ls /sys/firmware; (echo 1 >/proc/sys/vm/drop_caches) 2>/dev/null && echo wrote; umask")
		p.want(r.Stdout, " /proc/sys proc ro,\n /proc/bus proc ro,\n /proc/irq proc ro,\n0\n0022\n")
	}},
	{"a seccomp filter of one's own", func(p *place) {
		file := filepath.Join(p.TempDir(), "profile.json")
		if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
			p.Fatal(err)
		}
		r := p.run("--security-opt", "seccomp="+file, "bb", "sh", "-c", "mkdir /x 2>/dev/null || echo refused; grep ^Seccomp: /proc/self/status | awk '{print $2}'")
		p.want(r.Stdout, "refused\n2\n")
	}},
	{"a limit of processes changed while it runs", func(p *place) {
		c := p.start("--network", "none", "--pids-limit", "100", "bb", "sleep", "1000")
		many := []string{"exec", c, "sh", "-c", "for i in $(seq 40); do sleep 1 & done; wait; echo end"}
		p.want(p.Docker(many...).Stdout, "end\n")
		p.MustDocker("update", "--pids-limit", "20", c)
		p.holds(p.Docker(many...).Stderr, "fork")
	}},
	{"memory limit", func(p *place) {
		c := p.start("--network", "none", "-m", "128m", "bb", "sh", "-c", "sleep 1; tail /dev/zero; echo survived $?; sleep 1; exit 9")
		p.MustDocker("wait", c)
		out := p.MustDocker("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", c)
		// The kernel chooses the victim: the child, which the shell survives, or all.
		if logs := p.Docker("logs", c).Stdout; !strings.HasPrefix(out, "true") && !strings.Contains(logs, "survived 137") {
			p.Errorf("state %q, log %q: no trace of the limit", out, logs)
		}
	}},
	{"limit of processes", func(p *place) {
		r := p.run("--pids-limit", "20", "bb", "sh", "-c", "for i in $(seq 60); do sleep 3 & done; wait; echo end")
		p.holds(r.Stderr, "fork")
	}},
	{"a user executes only what he may reach", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "cp /bin/busybox /root/true; chmod 755 /root/true; echo done >/ready; sleep 1000")
		p.eventually("the program", func() bool { return p.Docker("exec", c, "cat", "/ready").Code == 0 })
		p.code(p.Docker("exec", c, "/root/true"), 0)
		r := p.Docker("exec", "-u", "app", c, "/root/true")
		p.code(r, 126)
		p.holds(r.Stdout+r.Stderr, "permission denied")
	}},
	{"capabilities", func(p *place) {
		bits := func(args ...string) string {
			return strings.TrimSpace(p.run(append(args, "bb", "sh", "-c", "grep CapEff /proc/self/status | awk '{print $2}'")...).Stdout)
		}
		p.want(bits(), "00000000800405fb")
		p.want(bits("--cap-drop", "ALL"), "0000000000000000")
		p.want(bits("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"), "0000000000000400")
		p.want(strings.TrimSpace(p.run("-u", "app", "bb", "sh", "-c", "grep CapEff /proc/self/status | awk '{print $2}'").Stdout), "0000000000000000")
	}},
	{"no new privileges, ulimits, groups", func(p *place) {
		r := p.run("--security-opt", "no-new-privileges", "--ulimit", "nofile=77:99", "--group-add", "extra", "--group-add", "3333", "bb", "sh", "-c",
			"grep NoNewPrivs /proc/self/status | awk '{print $2}'; ulimit -Sn; ulimit -Hn; id -G")
		p.want(r.Stdout, "1\n77\n99\n0 2000 3333\n")
	}},
	{"an init that reaps", func(p *place) {
		c := p.start("--network", "none", "--init", "bb", "sh", "-c", "(sleep 0.1 & exec true); sleep 1000")
		time.Sleep(500 * time.Millisecond)
		p.want(p.Docker("exec", c, "sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l").Out(), "0")
		start := time.Now()
		p.MustDocker("stop", "-t", "30", c)
		if d := time.Since(start); d > 20*time.Second {
			p.Errorf("stop took %v: the init does not pass SIGTERM on", d)
		}
	}},
	{"attach from the start and later", func(p *place) {
		c := p.start("--network", "none", "-i", "bb", "sh", "-c", "read line; echo got $line")
		r := p.Exec("hello\n", proatest.DockerCLI(p.T), "-H", p.Host, "attach", c)
		p.code(r, 0)
		p.want(r.Stdout, "got hello\n")
	}},
	{"names: rename, taken, prefix of an id", func(p *place) {
		c := p.start("--network", "none", "bb", "sleep", "1000")
		r := p.run("--name", c, "bb", "true")
		p.code(r, 125)
		p.holds(r.Stderr, "already in use")
		p.MustDocker("rename", c, c+"-new")
		p.MustDocker("rename", c+"-new", c)
		id := p.MustDocker("inspect", "-f", "{{.Id}}", c)
		p.want(p.MustDocker("inspect", "-f", "{{.Name}}", id[:12]), "/"+c)
	}},
	{"pause", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/n; sleep 0.05; done")
		p.eventually("counting", func() bool { return p.Docker("exec", c, "cat", "/n").Out() != "" })
		p.MustDocker("pause", c)
		p.want(p.MustDocker("inspect", "-f", "{{.State.Status}}", c), "paused")
		p.code(p.Docker("exec", c, "true"), 1)
		p.MustDocker("unpause", c)
		p.code(p.Docker("exec", c, "true"), 0)
	}},
	{"top and stats", func(p *place) {
		c := p.start("--network", "none", "-m", "200m", "bb", "sleep", "4321")
		p.holds(p.MustDocker("top", c), "sleep 4321")
		out := p.MustDocker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", c)
		p.holds(out, c)
		p.holds(out, "MiB")
	}},
	{"logs: tail, since, follow, times", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 1; echo last")
		r := p.Docker("logs", "-f", c)
		p.want(r.Stdout, "line 1\nline 2\nline 3\nline 4\nline 5\nlast\n")
		p.want(p.MustDocker("logs", "--tail", "2", c), "line 5\nlast")
		p.holds(p.MustDocker("logs", "-t", "--tail", "1", c), "Z last")
	}},
	{"restart policy", func(p *place) {
		c := p.start("--network", "none", "--restart", "on-failure:2", "bb", "sh", "-c", "echo run; exit 4")
		p.eventually("two restarts", func() bool {
			return p.Docker("inspect", "-f", "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", c).Out() == "2 exited 4"
		})
		p.want(p.MustDocker("logs", c), "run\nrun\nrun")
	}},
	{"published ports and the way between walls", func(p *place) {
		server := p.start("-p", "127.0.0.1::80", "-p", "0.0.0.0::80", "bb", "sh", "-c", "mkdir /w; echo page of "+p.wall.name+" >/w/index.html; exec httpd -f -p 80 -h /w")
		ports := strings.Fields(strings.ReplaceAll(p.MustDocker("port", server, "80/tcp"), "\n", " "))
		if len(ports) < 2 {
			p.Fatalf("ports: %v", ports)
		}
		page := "page of " + p.wall.name
		for _, addr := range ports {
			addr = strings.Replace(addr, "0.0.0.0", "192.0.2.2", 1)
			if strings.HasPrefix(addr, "[") {
				continue
			}
			p.eventually("a page from "+addr, func() bool {
				return p.InNetns("busybox", "wget", "-q", "-O", "-", "http://"+addr).Out() == page
			})
		}
		ip := p.MustDocker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", server)
		for _, w := range walls {
			r := p.Docker(append(append([]string{"run", "--rm"}, w.args...), "bb", "wget", "-q", "-O", "-", "http://"+ip)...)
			p.want(r.Stdout, page+"\n")
		}
	}},
	{"names in /etc/hosts and resolv.conf", func(p *place) {
		r := p.Docker(append(append([]string{"run", "--rm", "--hostname", "me", "--add-host", "db:10.9.8.7", "--dns", "192.0.2.53", "--dns-search", "example.org"}, p.args...),
			"bb", "sh", "-c", "grep -c me /etc/hosts; grep db /etc/hosts; cat /etc/resolv.conf | grep -v '^#'; cat /etc/hostname; ip -o -4 addr show eth0 | wc -l")...)
		p.code(r, 0)
		p.holds(r.Stdout, "10.9.8.7")
		p.holds(r.Stdout, "nameserver 192.0.2.53")
		p.holds(r.Stdout, "search example.org")
		p.want(r.Stdout[strings.LastIndex(strings.TrimSpace(r.Stdout), "\n")+1:], "1\n")
	}},
	{"--rm leaves nothing, wait tells the code", func(p *place) {
		name := p.name()
		p.MustDocker(append(append([]string{"run", "-d", "--rm", "--network", "none", "--name", name}, p.args...), "bb", "sh", "-c", "sleep 1; exit 6")...)
		p.want(p.MustDocker("wait", name), "6")
		p.eventually("removal", func() bool { return p.Docker("inspect", name).Code != 0 })
	}},
	{"events", func(p *place) {
		since := time.Now().Add(-time.Second)
		name := p.name()
		p.code(p.run("--name", name, "bb", "sh", "-c", "exit 2"), 2)
		out := p.MustDocker("events", "--since", fmt.Sprint(since.Unix()), "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "container="+name, "--format", "{{.Action}}")
		for _, a := range []string{"create", "attach", "start", "die", "destroy"} {
			p.holds(out, a)
		}
	}},
	{"an own kernel or the host's", func(p *place) {
		host, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			p.Fatal(err)
		}
		same := p.run("bb", "uname", "-r").Out() == strings.TrimSpace(string(host))
		if same != (p.wall.name == "container") {
			p.Errorf("uname -r is the host's: %v", same)
		}
	}},
}

func TestBothWalls(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, w := range walls {
		t.Run(w.name, func(t *testing.T) {
			for _, b := range behaviours {
				t.Run(b.name, func(t *testing.T) {
					t.Parallel()
					b.do(&place{T: t, Engine: e, wall: w})
				})
			}
		})
	}
}
