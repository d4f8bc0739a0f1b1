package test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// tarNames are the names in a tar stream, sorted.
func tarNames(t *testing.T, stream string) (out []string) {
	t.Helper()
	for tr := tar.NewReader(strings.NewReader(stream)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

// fileBehaviours are cp, diff, export, commit and history, with docker's CLI and
// with proa, of what runs and of what has ended.
var fileBehaviours = []struct {
	name string
	do   func(p *place)
}{
	{"cp from and to, running and stopped", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "mkdir -p /d/sub; echo one >/d/one; echo two >/d/sub/two; ln -s one /d/link; chown -R app /d; echo ready >/ready; sleep 1000")
		p.eventually("files", func() bool { return p.Docker("exec", c, "cat", "/ready").Code == 0 })
		dir := p.TempDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		if err := os.WriteFile(in("given"), []byte("given\n"), 0o640); err != nil {
			p.Fatal(err)
		}
		read := func(name string) string {
			b, err := os.ReadFile(in(name))
			if err != nil {
				p.Error(err)
			}
			return string(b)
		}
		clis := map[string]func(args ...string) proatest.Result{"docker": p.Docker, "proa": p.Proa}
		round := func(when string) {
			for cli, run := range clis {
				tag := when + "-" + cli
				p.code(run("cp", c+":/d", in(tag)), 0)
				p.want(read(tag+"/one")+read(tag+"/sub/two"), "one\ntwo\n")
				if target, err := os.Readlink(in(tag + "/link")); err != nil || target != "one" {
					p.Errorf("%s: the link leads to %q, %v", tag, target, err)
				}
				p.code(run("cp", c+":/d/.", in(tag)), 0)
				p.code(run("cp", c+":/d/one", in(tag+"-renamed")), 0)
				p.want(read(tag+"-renamed"), "one\n")
				p.code(run("cp", "-L", c+":/d/link", in(tag+"-followed")), 0)
				p.want(read(tag+"-followed"), "one\n")
				r := run("cp", c+":/d", "-")
				p.code(r, 0)
				p.want(strings.Join(tarNames(p.T, r.Stdout), " "), "d/ d/link d/one d/sub/ d/sub/two")

				p.code(run("cp", in("given"), c+":/tmp/file-"+tag), 0)
				p.code(run("cp", in("given"), c+":/root"), 0)
				p.code(run("cp", in(tag), c+":/tmp"), 0)
				p.code(run("cp", in(tag)+"/.", c+":/tmp/new-"+tag), 0)
				r = run("cp", c+":/tmp/new-"+tag+"/sub/two", "-")
				p.code(r, 0)
				p.want(strings.Join(tarNames(p.T, r.Stdout), " "), "two")

				r = run("cp", c+":/nope", dir)
				p.code(r, 1)
				p.holds(r.Stderr, "Could not find the file /nope in container "+c)
				r = run("cp", in("nope"), c+":/tmp")
				p.code(r, 1)
				p.holds(r.Stderr, "no such file")
				r = run("cp", in(tag), c+":/d/one")
				p.code(r, 1)
				r = run("cp", in("given"), c+":/no/such/dir/")
				p.code(r, 1)
			}
		}
		round("running")
		p.want(p.Docker("exec", c, "sh", "-c", "cat /tmp/file-running-docker /tmp/running-proa/one /root/given; stat -c %u:%g:%a /root/given").Stdout, "given\none\ngiven\n0:0:640\n")
		p.code(p.Exec(p.Proa("cp", c+":/d", "-").Stdout, filepath.Join(proatest.Bin(p.T), "proa"), "-H", p.Host, "cp", "-", c+":/tmp"), 0)
		p.want(p.Docker("exec", c, "cat", "/tmp/d/one").Stdout, "one\n")
		p.MustDocker("kill", c)
		p.MustDocker("wait", c)
		round("stopped")
		p.MustDocker("start", c)
		p.want(p.Docker("exec", c, "sh", "-c", "cat /tmp/file-stopped-docker /tmp/stopped-proa/sub/two").Stdout, "given\ntwo\n")
	}},
	{"cp into what was never started, and read-only roots", func(p *place) {
		name := p.name()
		p.MustDocker(append(append([]string{"create", "--name", name, "--network", "none"}, p.args...), "bb", "cat", "/root/given")...)
		p.Cleanup(func() { p.Docker("rm", "-f", name) })
		file := filepath.Join(p.TempDir(), "given")
		if err := os.WriteFile(file, []byte("early\n"), 0o600); err != nil {
			p.Fatal(err)
		}
		p.code(p.Docker("cp", file, name+":/root"), 0)
		p.want(p.Docker("start", "-a", name).Stdout, "early\n")
		c := p.start("--network", "none", "--read-only", "bb", "sleep", "1000")
		r := p.Docker("cp", file, c+":/root")
		p.code(r, 1)
		p.holds(r.Stderr, "container rootfs is marked read-only")
		p.code(p.Docker("cp", c+":/etc/passwd", "-"), 0)
	}},
	{"a FIFO and links that lead out", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "mkdir /x; mkfifo /x/fifo; ln -s /../../../../../etc/hostname /x/host; ln -s / /x/root; ln -s /x/loop /x/loop; echo ready >/ready; sleep 1000")
		p.eventually("files", func() bool { return p.Docker("exec", c, "cat", "/ready").Code == 0 })
		want := "x/ x/fifo x/host x/loop x/root"
		p.want(strings.Join(tarNames(p.T, p.Docker("cp", c+":/x", "-").Stdout), " "), want)
		p.want(strings.Join(tarNames(p.T, p.Docker("cp", c+":/x/root/x/root/x/.", "-").Stdout), " "), "./ ./fifo ./host ./loop ./root")
		name := p.Docker("exec", c, "cat", "/etc/hostname").Stdout
		p.holds(p.Docker("cp", "-L", c+":/x/host", "-").Stdout, name)
		p.code(p.Docker("cp", c+":/x/loop/y", "-"), 1)
	}},
	{"diff and export", func(p *place) {
		c := p.start("--network", "none", "bb", "sh", "-c", "echo x >/new; rm /etc/group; echo y >>/etc/passwd; mkdir -p /a/b; rm -r /home; sleep 1000")
		want := "A /a\nA /a/b\nC /etc\nD /etc/group\nC /etc/passwd\nD /home\nA /new"
		p.eventually("changes", func() bool { return p.Docker("diff", c).Out() == want })
		p.want(p.MustDocker("diff", c), want)
		exported := p.Docker("export", c)
		p.code(exported, 0)
		names := tarNames(p.T, exported.Stdout)
		for _, n := range []string{"new", "a/b/", "bin/busybox", "etc/passwd", "proc/", "dev/"} {
			if !slices.Contains(names, n) {
				p.Errorf("the export lacks %q", n)
			}
		}
		for _, n := range []string{"etc/group", "home/", "proc/1/", "dev/null"} {
			if slices.Contains(names, n) {
				p.Errorf("the export holds %q", n)
			}
		}
		p.MustDocker("kill", c)
		p.MustDocker("wait", c)
		p.want(p.Proa("diff", c).Out(), want)
		file := filepath.Join(p.TempDir(), "root.tar")
		p.code(p.Proa("export", "-o", file, c), 0)
		b, err := os.ReadFile(file)
		if err != nil {
			p.Fatal(err)
		}
		if got := tarNames(p.T, string(b)); !slices.Equal(got, names) {
			p.Errorf("stopped it exports %d files, running %d", len(got), len(names))
		}
		p.MustDocker("import", file, "flat-"+p.wall.name)
		p.want(p.Docker("run", "--rm", "--network", "none", "flat-"+p.wall.name, "/bin/cat", "/new").Stdout, "x\n")
	}},
	{"commit, history", func(p *place) {
		c := p.start("--network", "none", "-e", "A=1", "bb", "sh", "-c", "echo installed >/opt-tool; chown app /opt-tool; chmod 4755 /opt-tool; rm /etc/group; echo ready; sleep 1000")
		p.eventually("ready", func() bool { return p.Docker("logs", c).Stdout == "ready\n" })
		image := "committed-" + p.wall.name
		id := p.MustDocker("commit", "-a", "Ada", "-m", "a tool", "-c", "ENV B=$A/2", "-c", `CMD ["cat", "/opt-tool"]`, "-c", "LABEL k=v", c, image)
		p.want(p.MustDocker("image", "inspect", "-f", "{{.Id}} {{.Author}} {{.Comment}} {{.Config.Labels.k}} {{len .RootFS.Layers}}", image), id+" Ada a tool v 2")
		p.want(p.MustDocker("inspect", "-f", "{{.State.Status}}", c), "running")
		history := p.MustDocker("history", "--no-trunc", "--format", "{{.Comment}}|{{.CreatedBy}}", image)
		p.holds(history, "a tool|sh -c echo installed")
		p.want(p.MustProa("history", "--no-trunc", "--format", "{{.Comment}}|{{.CreatedBy}}", image), history)
		// What was made behind one wall runs behind both.
		for _, w := range walls {
			r := p.Docker(append(append([]string{"run", "--rm", "--network", "none"}, w.args...), image)...)
			p.want(r.Stdout, "installed\n")
			r = p.Docker(append(append([]string{"run", "--rm", "--network", "none"}, w.args...), image, "sh", "-c", "stat -c %u:%a /opt-tool; ls /etc/group 2>/dev/null; grep -q localhost /etc/hosts && echo hosts; echo $B")...)
			p.want(r.Stdout, "1000:4755\nhosts\n1/2\n")
		}
		// Stopped, and upon what was committed.
		p.MustDocker("kill", c)
		p.MustDocker("wait", c)
		again := p.MustProa("commit", "--pause=false", "-c", "ENTRYPOINT echo entry", c)
		p.want(p.Docker("run", "--rm", "--network", "none", again).Stdout, "entry\n")
		r := p.Docker("commit", "-c", "RUN x", c)
		p.code(r, 1)
		p.holds(r.Stderr, "RUN")
		p.code(p.Docker("commit", "nosuchcontainer"), 1)
	}},
}

func TestFilesBehindBothWalls(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, w := range walls {
		t.Run(w.name, func(t *testing.T) {
			for _, b := range fileBehaviours {
				t.Run(b.name, func(t *testing.T) {
					t.Parallel()
					b.do(&place{T: t, Engine: e, wall: w})
				})
			}
		})
	}
}
