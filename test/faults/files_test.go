package faults

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// isolations are the runtimes that a behaviour of files is tried behind.
var isolations = []string{"container", "vm"}

// names are the names of the entries of an archive, as they are written.
func names(t *testing.T, archive []byte) (out []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("cannot read the archive: %v", err)
		}
		out = append(out, h.Name)
	}
}

// archiveOf asks for a path of a container and gives the names of the entries,
// or the status of a refusal.
func archiveOf(t *testing.T, e *proatest.Engine, id, path string) ([]string, string) {
	t.Helper()
	head, body, _ := strings.Cut(e.Request("GET", "/v1.41/containers/"+id+"/archive?path="+url.QueryEscape(path)), "\r\n\r\n")
	status, _, _ := strings.Cut(head, "\r\n")
	status = strings.TrimPrefix(status, "HTTP/1.0 ")
	if !strings.HasPrefix(status, "200") {
		return nil, status + " " + body
	}
	return names(t, []byte(body)), status
}

// C2: the archive of "/." named its entries from the root on, so that a client
// that renames the first entry wrote a container's root over its own
// directory. dockerd 20.10.24 names them "./" wherever the path ends in a dot.
func TestFaultC2ArchiveOfADot(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, isolation := range isolations {
		id := e.MustDocker("create", "--runtime", isolation, "bb", "true")
		for path, want := range map[string][2]string{
			"/.": {"./", "./bin/busybox"}, ".": {"./", "./bin/busybox"}, "./": {"./", "./bin/busybox"}, "/./": {"./", "./bin/busybox"},
			"/": {"/", "/bin/busybox"}, "/etc/.": {"./", "./passwd"}, "/etc/./": {"./", "./passwd"}, "etc/.": {"./", "./passwd"},
			"/etc": {"etc/", "etc/passwd"}, "/etc/": {"etc/", "etc/passwd"},
		} {
			got, status := archiveOf(t, e, id, path)
			if len(got) == 0 || got[0] != want[0] || !slices.Contains(got, want[1]) {
				t.Errorf("%s: the archive of %q begins with %.3q (%s), want %q and then %q", isolation, path, got, status, want[0], want[1])
			}
		}
		for _, cli := range []func(...string) proatest.Result{e.Docker, e.Proa} {
			dir := filepath.Join(t.TempDir(), "d")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if r := cli("cp", id+":/.", filepath.Join(dir, "new")); r.Code != 0 {
				t.Errorf("%s: cp of /. failed: %s", isolation, r.Stderr)
			}
			if list, _ := os.ReadDir(dir); len(list) != 1 || list[0].Name() != "new" {
				t.Errorf("%s: cp of /. made %v beside the directory that was named", isolation, list)
			}
			if _, err := os.Stat(filepath.Join(dir, "new", "etc", "passwd")); err != nil {
				t.Errorf("%s: cp of /. did not make the directory: %v", isolation, err)
			}
		}
		e.MustDocker("rm", id)
	}
}

// C5, D08: a volume, bind mount or tmpfs above /etc hid the files that the
// engine mounts there. dockerd 20.10.24 mounts by depth, its own files among
// the rest.
func TestFaultC5D08MountsAboveTheEnginesFiles(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	show := []string{"bb", "sh", "-c", "wc -c </etc/hosts; wc -c </etc/hostname; test -s /etc/resolv.conf && grep -c localhost /etc/hosts"}
	bound := t.TempDir()
	for _, isolation := range isolations {
		for _, how := range [][]string{{"--tmpfs", "/etc"}, {"-v", "/etc"}, {"-v", "named:/etc"}, {"-v", bound + ":/etc"}, {"--mount", "type=tmpfs,target=/etc"}} {
			if isolation == "vm" && how[1] != "/etc" && how[0] != "--mount" || isolation == "vm" && how[0] == "-v" {
				continue // a VM has no volumes and binds yet
			}
			r := e.Docker(slices.Concat([]string{"run", "--rm", "--runtime", isolation}, how, show)...)
			if r.Code != 0 || strings.HasPrefix(r.Stdout, "0\n") {
				t.Errorf("%s %v: exit code %d, %q %s", isolation, how, r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	// /dev/shm is one of them.
	if r := e.Docker("run", "--rm", "-v", bound+":/dev", "bb", "sh", "-c", "grep -c ' /dev/shm ' /proc/mounts"); r.Out() != "1" {
		t.Errorf("below a bind at /dev there are %q mounts of /dev/shm\n%s", r.Out(), r.Stderr)
	}
}

// C8: the engine's files were writable below a read-only root. dockerd 20.10.24
// mounts them read-only; a bind of the user's keeps its own mode.
func TestFaultC8ReadonlyRootHasReadonlyFiles(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	own := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(own, []byte("127.0.0.1 mine\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(own, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, isolation := range isolations {
		r := e.Docker("run", "--rm", "--read-only", "--runtime", isolation, "bb", "sh", "-c", "for f in hosts hostname resolv.conf; do echo x >>/etc/$f && echo $f; done; true")
		if r.Stdout != "" || strings.Count(r.Stderr, "Read-only file system") != 3 {
			t.Errorf("%s: written below a read-only root: %q %s", isolation, r.Stdout, r.Stderr)
		}
		if r := e.Docker("run", "--rm", "--runtime", isolation, "bb", "sh", "-c", "echo x >>/etc/hosts"); r.Code != 0 {
			t.Errorf("%s: /etc/hosts of a writable root cannot be written: %s", isolation, r.Stderr)
		}
	}
	if r := e.Docker("run", "--rm", "--read-only", "-v", own+":/etc/hosts", "bb", "sh", "-c", "echo x >>/etc/hosts"); r.Code != 0 {
		t.Errorf("a bind of the user's became read-only with the root: %s", r.Stderr)
	}
}

// C7: a file could be put into a read-only root through a symbolic link in a
// volume. dockerd 20.10.24 resolves the path among the container's mounts and
// then looks which mount the result lies in.
func TestFaultC7ReadonlyRootBehindALink(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.MustDocker("run", "--rm", "-v", "vv:/v", "-v", "ww:/w", "bb", "sh", "-c", "ln -s /etc /v/root; ln -s /w /v/other; mkdir /v/d /w/sub; ln -s /v/d /w/back")
	e.MustDocker("create", "--name", "ro", "--read-only", "-v", "vv:/v", "-v", "ww:/w:ro", "-v", "xx:/w/sub", "bb", "sleep", "1000")
	try := func(state string) {
		t.Helper()
		for target, want := range map[string]string{
			"/v/root/":  "container rootfs is marked read-only",
			"/v/other/": "mounted volume is marked read-only", "/v/": "", "/v/d/": "", "/w/back/": "", "/w/sub/": "", "/etc/": "container rootfs is marked read-only",
		} {
			r := e.Docker("cp", file, "ro:"+target)
			if want == "" && r.Code != 0 || want != "" && (r.Code != 1 || !strings.Contains(r.Stderr, want)) {
				t.Errorf("%s: cp to %s: exit code %d, %s want %q", state, target, r.Code, r.Stderr, want)
			}
		}
	}
	try("created")
	e.MustDocker("start", "ro")
	try("running")
	e.MustDocker("stop", "-t", "0", "ro")
	try("stopped")
	if r := e.Docker("cp", "ro:/etc/f", "-"); r.Code == 0 {
		t.Error("the read-only root has the file")
	}
}

// D09: a tmpfs over a directory took mode 1777. dockerd 20.10.24 (runc,
// mountToRootfs) keeps the directory's mode unless mode= is given.
func TestFaultD09TmpfsKeepsTheMode(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb", proatest.Entry{Name: "private/", Mode: 0o700}, proatest.Entry{Name: "shared/", Mode: 0o2775})
	for _, isolation := range isolations {
		r := e.Docker("run", "--rm", "--runtime", isolation, "--tmpfs", "/private", "--tmpfs", "/shared", "--tmpfs", "/new", "--tmpfs", "/root:mode=711", "--tmpfs", "/home:ro",
			"--mount", "type=tmpfs,target=/var/lib", "--mount", "type=tmpfs,target=/usr,tmpfs-mode=750", "bb", "stat", "-c", "%n %a %u", "/private", "/shared", "/new", "/root", "/home", "/var/lib", "/usr")
		if want := "/private 700 0\n/shared 2775 0\n/new 1777 0\n/root 711 0\n/home 755 0\n/var/lib 755 0\n/usr 750 0"; r.Out() != want {
			t.Errorf("%s: got\n%s\n%s\nwant\n%s", isolation, r.Out(), r.Stderr, want)
		}
	}
}

// C22: a volume that came by --volumes-from was filled from the joining image.
// Docker copies nothing into it (moby: CopyData is false for volumes-from).
func TestFaultC22VolumesFromCopiesNothing(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	e.Import("data", append(proatest.BusyboxRoot(t), proatest.Entry{Name: "foo/"}, proatest.Entry{Name: "foo/bar", Body: "x"}), "ENV PATH=/bin")
	e.MustDocker("create", "--name", "vf", "-v", "/foo", "bb", "true")
	if got := e.MustDocker("run", "--rm", "--volumes-from", "vf", "data", "ls", "/foo"); got != "" {
		t.Errorf("the volume of another container was filled with %q", got)
	}
	if got := e.MustDocker("run", "--rm", "-v", "/foo", "data", "ls", "/foo"); got != "bar" {
		t.Errorf("a volume of its own was filled with %q, want bar", got)
	}
}

// C23: an anonymous volume that came by --volumes-from stayed for ever. Docker
// (20.10.24) removes it by rm -v with the last container that has it; a named
// one stays.
func TestFaultC23LastContainerTakesTheVolume(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for _, first := range []string{"parent", "child"} {
		e.MustDocker("create", "--name", "parent", "-v", "test:/foo", "-v", "/bar", "bb", "true")
		e.MustDocker("create", "--name", "child", "--volumes-from", "parent", "bb", "true")
		e.MustDocker("rm", "-fv", first)
		if got := e.MustDocker("volume", "ls", "-q"); len(strings.Fields(got)) != 2 {
			t.Errorf("after rm -v of the %s there are the volumes %q, want both", first, got)
		}
		e.MustDocker("rm", "-fv", map[string]string{"parent": "child", "child": "parent"}[first])
		if got := e.MustDocker("volume", "ls", "-q"); got != "test" {
			t.Errorf("after rm -v of both there are the volumes %q, want test", got)
		}
	}
	e.MustDocker("run", "--rm", "--name", "kept", "-v", "/bar", "bb", "true")
	if got := e.MustDocker("volume", "ls", "-q"); got != "test" {
		t.Errorf("run --rm left the volumes %q", got)
	}
}

// A12, D10, C21: a root lacked the names that Docker's init layer has
// (/.dockerenv, /etc/mtab, /dev/console, the files that are mounted over), from
// create on; a stopped container's network files were empty; a working
// directory appeared with the start. dockerd 20.10.24 and moby's
// initlayer/setup_unix.go.
func TestFaultA12D10C21PlacesOfEveryRoot(t *testing.T) {
	e := proatest.New(t)
	e.Import("bare", []proatest.Entry{{Name: "bin/"}, {Name: "bin/busybox", Mode: 0o755, Body: busybox(t)}, {Name: "bin/sh", Type: tar.TypeSymlink, Link: "busybox", Mode: 0o777}}, "ENV PATH=/bin")
	e.ImportBusybox("bb")
	for _, isolation := range isolations {
		id := e.MustDocker("create", "--runtime", isolation, "-w", "/home/foo/bar", "-h", "named", "bare", "sh", "-c",
			"test -e /.dockerenv && test -f /dev/console || test -c /dev/console; busybox readlink /etc/mtab; echo mine >>/etc/hosts; busybox cat /proc/self/mounts >/dev/null && pwd")
		look := func(state string, want map[string]string) {
			t.Helper()
			for path, begins := range want {
				got, status := archiveOf(t, e, id, path)
				if len(got) == 0 || got[0] != begins {
					t.Errorf("%s, %s: the archive of %s is %q (%s), want %q", isolation, state, path, got, status, begins)
				}
			}
		}
		always := map[string]string{
			"/.dockerenv": ".dockerenv", "/etc/mtab": "mtab", "/dev/console": "console", "/etc/hosts": "hosts", "/etc/hostname": "hostname",
			"/etc/resolv.conf": "resolv.conf", "/home/foo/bar": "bar/", "/proc": "proc/", "/sys": "sys/", "/dev/pts": "pts/", "/dev/shm": "shm/",
		}
		look("created", always)
		if got := e.MustDocker("start", "-a", id); got != "/proc/mounts\n/home/foo/bar" {
			t.Errorf("%s: the container said %q", isolation, got)
		}
		look("stopped", always)
		hosts := e.Docker("cp", id+":/etc/hosts", "-").Stdout
		if !strings.Contains(hosts, "named") || isolation == "container" && !strings.Contains(hosts, "mine") {
			t.Errorf("%s: /etc/hosts of the stopped container: %q", isolation, hosts)
		}
		if got := e.MustDocker("diff", id); strings.Contains(got, "dockerenv") || strings.Contains(got, "mtab") || strings.Contains(got, "/dev") || !strings.Contains(got, "A /home/foo/bar") {
			t.Errorf("%s: diff says\n%s", isolation, got)
		}
		// Nothing of them is in a layer: a root that is built from the commit has them from its own lowest layer.
		e.MustDocker("commit", id, "committed-"+isolation)
		e.MustDocker("rm", id)
		size := e.MustDocker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}", "committed-"+isolation)
		if first, _, _ := strings.Cut(size, "\n"); first != "0" && isolation == "vm" {
			t.Errorf("vm: the committed layer has %s bytes of files", first)
		}
	}
	// What the image has stays: the places only show where it has nothing.
	e.Import("own", append(proatest.BusyboxRoot(t), proatest.Entry{Name: "etc/mtab", Body: "mine\n"}), "ENV PATH=/bin")
	if got := e.MustDocker("run", "--rm", "own", "cat", "/etc/mtab"); got != "mine" {
		t.Errorf("/etc/mtab of the image became %q", got)
	}
}

// busybox is the host's static busybox.
func busybox(t *testing.T) string {
	t.Helper()
	for _, e := range proatest.BusyboxRoot(t) {
		if e.Name == "bin/busybox" {
			return e.Body
		}
	}
	t.Fatal("no busybox")
	return ""
}
