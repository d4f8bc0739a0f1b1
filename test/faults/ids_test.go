package faults

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"proa/test/proatest"
)

// far are files of an image with owners that clouds and companies use, and the
// last one that a tar can hold: (uid_t)-2. dockerd 20.10.24, which uses no user
// namespace, shows and keeps all of them; its -u ends at 2^31-1.
var far = []struct {
	name     string
	uid, gid int
}{
	{"plain", 1000, 1000},
	{"above", 100001, 100002},
	{"openshift", 1000680000, 0},
	{"directory", 1999999999, 2000200000},
	{"nobody", 4294967294, 4294967294},
}

func importFar(t *testing.T, e *proatest.Engine, name string) {
	more := []proatest.Entry{{Name: "far/", Mode: 0o755}}
	for _, f := range far {
		more = append(more, proatest.Entry{Name: "far/" + f.name, UID: f.uid, GID: f.gid, Body: f.name})
	}
	e.Import(name, append(proatest.BusyboxRoot(t), append(more, proatest.Entry{Name: "etc/passwd", Body: "root:x:0:0::/root:/bin/sh\nfarapp:x:70000:70001::/:/bin/sh\n"})...))
}

// farList is what `stat` says of them.
func farList(dir string) string {
	var b strings.Builder
	for _, f := range far {
		fmt.Fprintf(&b, "%d:%d %s/%s\n", f.uid, f.gid, dir, f.name)
	}
	return strings.TrimRight(b.String(), "\n")
}

// stat is a shell command that prints farList.
func farStat(dir string) string {
	var names []string
	for _, f := range far {
		names = append(names, dir+"/"+f.name)
	}
	return "stat -c '%u:%g %n' " + strings.Join(names, " ")
}

// tarOwners are the owners in a tar stream, by name.
func tarOwners(t *testing.T, stream string) map[string][2]int {
	t.Helper()
	out := map[string][2]int{}
	for r := tar.NewReader(strings.NewReader(stream)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out[strings.Trim(h.Name, "./")] = [2]int{h.Uid, h.Gid}
	}
}

// keepsFar says which owners of far a tar with the files below dir lost.
func keepsFar(t *testing.T, what, stream, dir string) {
	t.Helper()
	owners := tarOwners(t, stream)
	for _, f := range far {
		if got := owners[strings.Trim(dir+"/"+f.name, "/")]; got != [2]int{f.uid, f.gid} {
			t.Errorf("%s: %s belongs to %v, want %d:%d", what, f.name, got, f.uid, f.gid)
		}
	}
}

// Ids above 65535 in -u, --group-add, exec -u, files of an image, chown, cp,
// export and commit, behind both isolations. Docker 20.10.24 has all of them.
func TestFaultB5IDsAbove65535(t *testing.T) {
	e := proatest.New(t)
	importFar(t, e, "far")
	for _, isolation := range isolations {
		c := e.MustDocker("run", "-d", "--runtime", isolation, "-u", "1000680000:70001", "--group-add", "80000", "far", "sleep", "1000")
		if out := e.MustDocker("exec", c, "id"); !strings.Contains(out, "uid=1000680000 gid=70001 groups=70001,80000") {
			t.Errorf("%s: -u and --group-add: %s", isolation, out)
		}
		if out := e.MustDocker("exec", "-u", "2147483647:2147483646", c, "sh", "-c", "id -u; id -g; touch /tmp/mine && stat -c %u:%g /tmp/mine"); out != "2147483647\n2147483646\n2147483647:2147483646" {
			t.Errorf("%s: exec -u: %s", isolation, out)
		}
		if out := e.MustDocker("exec", "-u", "farapp", c, "id", "-u"); out != "70000" {
			t.Errorf("%s: exec -u NAME: %s", isolation, out)
		}
		script := farStat("/far") + " && cp -a /far /copy && " + farStat("/copy") + ` && touch /far/above && chown 200000:300000 /far/above && stat -c %u:%g /far/above &&
			chown 100001:100002 /far/above && mv /far/openshift /far/o && mv /far/o /far/openshift && rm /copy/nobody`
		want := farList("/far") + "\n" + farList("/copy") + "\n200000:300000"
		if r := e.Docker("exec", "-u", "0", c, "sh", "-c", script); r.Out() != want {
			t.Errorf("%s: inside:\n%s\n%s\nwant\n%s", isolation, r.Out(), r.Stderr, want)
		}
		keepsFar(t, isolation+": cp", e.MustDocker("cp", "-a", c+":/far", "-"), "far")
		keepsFar(t, isolation+": export", e.MustDocker("export", c), "far")
		if r := e.Exec(string(proatest.Tar(t, proatest.Entry{Name: "given", UID: 1999000000, GID: 4294967294})), proatest.DockerCLI(t), "-H", e.Host, "cp", "-", c+":/"); r.Code != 0 {
			t.Errorf("%s: cp into it: %s", isolation, r.Stderr)
		}
		if out := e.MustDocker("exec", c, "stat", "-c", "%u:%g", "/given"); out != "1999000000:4294967294" {
			t.Errorf("%s: what was copied into it belongs to %s", isolation, out)
		}
		e.MustDocker("commit", c, "far2-"+isolation)
		e.MustDocker("rm", "-f", c)
		if out := e.MustDocker("run", "--rm", "far2-"+isolation, "sh", "-c", farStat("/far")+"; stat -c %u:%g /given"); out != farList("/far")+"\n1999000000:4294967294" {
			t.Errorf("%s: a committed image has\n%s", isolation, out)
		}
	}
}

// Volumes, bind mounts and builds with ids above 65535.
func TestFaultB5IDsOfVolumesAndBuilds(t *testing.T) {
	e := proatest.New(t)
	importFar(t, e, "far")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e.MustDocker("run", "--rm", "-v", "vol:/v", "-v", dir+":/b", "far", "sh", "-c", "touch /v/f /b/f && chown 1000680000:200001 /v/f /b/f")
	if out := e.MustDocker("run", "--rm", "-u", "1000680000", "-v", "vol:/v", "-v", dir+":/b", "far", "sh", "-c", "echo x >/v/f && echo x >/b/f && stat -c %u:%g /v/f /b/f"); out != "1000680000:200001\n1000680000:200001" {
		t.Errorf("volume and bind mount: %s", out)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, "f"), &st); err != nil || st.Uid != 1000680000 || st.Gid != 200001 {
		t.Errorf("on the host: %d:%d, %v", st.Uid, st.Gid, err)
	}

	ctx := t.TempDir()
	for name, text := range map[string]string{"f": "f", "Dockerfile": `FROM far
COPY --chown=100001:100002 f /f
RUN stat -c %u:%g /f | grep -qx 100001:100002 && touch /made && chown 1000680000:1999999999 /made
USER 70000:70001
RUN id -u | grep -qx 70000 && touch /tmp/own
`} {
		if err := os.WriteFile(filepath.Join(ctx, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, isolation := range isolations {
		tag := "built-" + isolation
		e.MustProa("build", "-q", "--no-cache", "--isolation", isolation, "-t", tag, ctx)
		want := "70000\n100001:100002\n1000680000:1999999999\n70000:70001"
		if out := e.MustDocker("run", "--rm", tag, "sh", "-c", "id -u; stat -c %u:%g /f /made /tmp/own"); out != want {
			t.Errorf("%s: the image has\n%s\nwant\n%s", isolation, out, want)
		}
	}
}

// What lies outside the map is named with the way out, and an owner that the map
// lacks is kept by what reads files. The configuration's key is userns-size; a
// container goes on with the map that it was started with.
func TestFaultD23IDsOutsideTheMap(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "proad.json")
	write := func(size string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(`{"userns-size": `+size+`}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("65536")
	e := proatest.New(t, proatest.Args("--config-file", config))
	importFar(t, e, "far")
	const way = "lies outside the ids of the container's user namespace (0-65535): use --userns host or --runtime vm, or start proad with a larger --userns-size"
	for _, how := range [][]string{
		{"-u", "70000"}, {"-u", "7:70000"}, {"-u", "farapp"}, {"--group-add", "70000"}, {"--tmpfs", "/x:uid=70000"},
	} {
		r := e.Docker(append(append([]string{"run", "--rm"}, how...), "far", "true")...)
		if r.Code == 0 || !strings.Contains(r.Stderr, way) || !strings.Contains(r.Stderr, " id 70000 ") && !strings.Contains(r.Stderr, " id 70001 ") {
			t.Errorf("%v: exit code %d, %s", how, r.Code, r.Stderr)
		}
	}
	if out := e.MustDocker("run", "--rm", "--userns", "host", "-u", "70000", "far", "sh", "-c", "id -u;"+farStat("/far")); out != "70000\n"+farList("/far") {
		t.Errorf("--userns host: %s", out)
	}
	r := e.Docker("run", "-d", "--name", "old", "far", "sleep", "1000")
	if !strings.Contains(r.Stderr, "/far/above of the image belongs to id 100001, which lies outside") {
		t.Errorf("no warning of the image's owners: %d %s", r.Code, r.Stderr)
	}
	if r := e.Docker("exec", "-u", "70000", "old", "true"); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, way) {
		t.Errorf("exec -u: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	put := func(uid int) proatest.Result {
		return e.Exec(string(proatest.Tar(t, proatest.Entry{Name: "given", UID: uid})), proatest.DockerCLI(t), "-H", e.Host, "cp", "-a", "-", "old:/")
	}
	if r := put(70000); r.Code == 0 || !strings.Contains(r.Stderr, way) {
		t.Errorf("cp of an owner that it lacks: exit code %d, %s", r.Code, r.Stderr)
	}
	reads := func(when string) {
		keepsFar(t, when+": cp", e.MustDocker("cp", "-a", "old:/far", "-"), "far")
		keepsFar(t, when+": cp of one", e.MustDocker("cp", "-a", "old:/far/.", "-"), "")
		keepsFar(t, when+": export", e.MustDocker("export", "old"), "far")
	}
	reads("running")
	write("2147483648")
	e.Stop()
	e.Start()
	reads("after a restart of the engine")
	if r := e.Docker("exec", "-u", "70000", "old", "true"); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, way) {
		t.Errorf("exec -u in an older container: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if out := e.MustDocker("run", "--rm", "--network", "container:old", "far", "cat", "/proc/self/uid_map"); strings.Count(out, "\n") != 0 {
		t.Errorf("a container that joins the older one has the map %q", out)
	}
	e.MustDocker("stop", "-t", "0", "old")
	reads("stopped")
	if r := put(3000000000); r.Code != 0 {
		t.Errorf("cp into a stopped one: %s", r.Stderr)
	}
	if got := tarOwners(t, e.MustDocker("cp", "-a", "old:/given", "-"))["given"]; got[0] != 3000000000 {
		t.Errorf("what was copied into a stopped container belongs to %v", got)
	}
	e.MustDocker("start", "old")
	if out := e.MustDocker("exec", "-u", "70000", "old", "sh", "-c", "id -u;"+farStat("/far")); out != "70000\n"+farList("/far") {
		t.Errorf("started again: %s", out)
	}
	if got := tarOwners(t, e.MustDocker("cp", "-a", "old:/given", "-"))["given"]; got[0] != 3000000000 {
		t.Errorf("what lies outside the largest map belongs to %v", got)
	}
}
