package faults

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"proa/test/proatest"
)

// D29: a build failed on names that are not UTF-8. dockerd 20.10.24 keeps them
// in its classic builder; docker's clients send them with BuildKit as well.
func TestFaultD29NamesThatAreNotUTF8InAContext(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb", proatest.Entry{Name: "of image/"}, proatest.Entry{Name: "of image/g\xe9", Body: "image\n"})
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Dockerfile", "FROM bb\nCOPY d /d\nFROM bb\nCOPY --from=0 /d /d\nCOPY --from=bb [\"/of image\", \"/i\"]\nCMD [\"sh\", \"-c\", \"cd /d; for f in */* *; do test ! -f $f || { printf %s $f | od -An -tx1; cat $f; }; done; cat /i/*\"]\n")
	if err := os.MkdirAll(filepath.Join(dir, "d/e\xff"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("g\xe9", filepath.Join(dir, "d/l\xe8")); err != nil {
		t.Fatal(err)
	}
	for i, c := range proatest.ContextClients(t) {
		for _, text := range []string{"first\n", "second\n", "second\n"} { // the last one changes nothing
			write("d/g\xe9", c.Name+" "+text)
			write("d/e\xff/\xfe", text)
			if r := c.Build(e, dir, "named", i%2 == 1); r.Code != 0 {
				t.Errorf("%s: exit code %d\n%s%s", c.Name, r.Code, r.Stdout, r.Stderr)
				break
			}
			want := " 65 ff 2f fe\n" + text + " 67 e9\n" + c.Name + " " + text + " 6c e8\n" + c.Name + " " + text + "image\n"
			if got := e.MustDocker("run", "--rm", "named"); got+"\n" != want {
				t.Errorf("%s: the image has\n%s\nwant\n%s", c.Name, got, want)
			}
		}
	}
}

// D29: a path that is not UTF-8 was not found in a VM. In an URL such bytes are
// escaped and Docker takes them as they are.
func TestFaultD29NamesThatAreNotUTF8InACopy(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb", proatest.Entry{Name: "d/"}, proatest.Entry{Name: "d/g\xe9", Body: "latin\n"})
	for _, isolation := range isolations {
		id := e.MustDocker("create", "--runtime", isolation, "bb", "true")
		dir := t.TempDir()
		for _, cli := range []func(...string) proatest.Result{e.Docker, e.Proa} {
			if r := cli("cp", id+":/d/g\xe9", dir+"/got"); r.Code != 0 {
				t.Errorf("%s: cp from the container: %s", isolation, r.Stderr)
			}
			if text, err := os.ReadFile(dir + "/got"); err != nil || string(text) != "latin\n" {
				t.Errorf("%s: the copy is %q, %v", isolation, text, err)
			}
			_ = os.Remove(dir + "/got")
		}
		if err := os.WriteFile(dir+"/n\xf1", []byte("new\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, target := range []string{"/d", "/d/m\xfc"} {
			if r := e.Docker("cp", dir+"/n\xf1", id+":"+target); r.Code != 0 {
				t.Errorf("%s: cp to %q: %s", isolation, target, r.Stderr)
			}
		}
		for _, name := range []string{"/d/n\xf1", "/d/m\xfc"} {
			head := e.Request(http.MethodGet, "/containers/"+id+"/archive?path="+url.QueryEscape(name))
			if !strings.HasPrefix(head, "HTTP/1.0 200") || !strings.Contains(head, "new\n") {
				t.Errorf("%s: %q: %.200q", isolation, name, head)
			}
		}
		e.MustDocker("rm", id)
	}
}
