package faults

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"proa/test/proatest"
)

// C22 and its neighbours: a volume was filled at the first start of whatever
// container had it, and again after it had been emptied. Docker fills it once, at
// create (20.10.24; moby, daemon/create_unix.go, populateVolumes).
func TestFaultC22VolumesAreFilledAtCreate(t *testing.T) {
	e := proatest.New(t)
	image := func(name, text string) {
		e.Import(name, append(proatest.BusyboxRoot(t), proatest.Entry{Name: "foo/", UID: 1000, Mode: 0o750}, proatest.Entry{Name: "foo/bar", Body: text},
			proatest.Entry{Name: "file", Body: "x"}, proatest.Entry{Name: "lnk", Type: '2', Link: "foo"}), "ENV PATH=/bin")
	}
	image("one", "one")
	image("two", "two")
	e.MustDocker("create", "--name", "vc", "-v", "full:/foo", "-v", "nocopy:/home:nocopy", "--mount", "type=volume,source=new,target=/new/inner", "one", "sleep", "1000")
	e.MustDocker("rm", e.MustDocker("create", "-v", "link:/lnk:ro", "one", "true"))
	if got := read(t, e, "vc:/foo/bar"); got != "one" {
		t.Errorf("the volume of a created container has %q, want one", got)
	}
	for volume, want := range map[string]string{"full": "one", "link": "one", "nocopy": "two", "new": "two"} {
		// Of what is filled another image has no say any more.
		if got := e.MustDocker("run", "--rm", "-v", volume+":/foo", "two", "sh", "-c", "stat -c '%a %u' /foo; ls /foo; cat /foo/bar"); got != "750 1000\nbar\n"+want {
			t.Errorf("volume %s has %q, want the files of %s", volume, got, want)
		}
	}
	// What was removed does not come back.
	e.MustDocker("run", "--rm", "-v", "full:/x", "two", "rm", "/x/bar")
	e.MustDocker("start", "vc")
	if got := e.MustDocker("exec", "vc", "ls", "/foo"); got != "" {
		t.Errorf("after a start the volume has %q, want nothing", got)
	}
	r := e.Docker("create", "-v", "/file", "one", "true")
	if r.Code != 1 || !strings.Contains(r.Stderr, "cannot mount volume over existing file") {
		t.Errorf("a volume over a file: exit code %d %s", r.Code, r.Stderr)
	}
	if got := e.MustDocker("ps", "-aq"); len(strings.Fields(got)) != 1 {
		t.Errorf("a refused create left a container: %q", got)
	}
}

// read is a file of a stopped container.
func read(t *testing.T, e *proatest.Engine, from string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f")
	if r := e.Docker("cp", from, file); r.Code != 0 {
		return strings.TrimSpace(r.Stderr)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
