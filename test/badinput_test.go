package test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// Each wrong request has its exit code and an error that says what and why,
// and leaves nothing.
func TestBadRuns(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	e.MustDocker("run", "-d", "--network", "none", "--name", "taken", "-p", "127.0.0.1:8080:80", "bb", "sleep", "1000")
	e.Docker("rm", "-f", "taken")
	e.MustDocker("run", "-d", "--name", "taken", "-p", "8080:80", "bb", "sleep", "1000")
	before := e.Traces()
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"unknown image", []string{"127.0.0.1:1/nosuch"}, 125, []string{"Unable to find image '127.0.0.1:1/nosuch:latest' locally", "nothing listens there"}},
		{"unknown command", []string{"bb", "nosuch"}, 127, []string{"executable file not found in $PATH"}},
		{"unknown path", []string{"bb", "/no/such"}, 127, []string{"no such file or directory"}},
		{"not executable", []string{"bb", "/notexec"}, 126, []string{"permission denied"}},
		{"a directory", []string{"bb", "/etc"}, 126, []string{"/etc"}},
		{"name taken", []string{"--name", "taken", "bb"}, 125, []string{"taken", "already in use"}},
		{"port taken", []string{"-p", "8080:80", "bb", "true"}, 125, []string{"8080", "already"}},
		{"bad name", []string{"--name", "no/slash", "bb"}, 125, []string{"no/slash"}},
		{"unknown runtime", []string{"--runtime", "nosuch", "bb"}, 125, []string{"nosuch"}},
		{"two walls", []string{"--runtime", "container", "--isolation", "vm", "bb"}, 125, []string{"isolation"}},
		{"unknown user", []string{"-u", "nosuch", "bb", "true"}, 125, []string{"unable to find user nosuch"}},
		{"missing bind source", []string{"--mount", "type=bind,source=/no/such/dir,target=/x", "bb", "true"}, 125, []string{"/no/such/dir"}},
		{"relative working directory", []string{"-w", "rel", "bb", "true"}, 125, []string{"rel"}},
		{"memory too small", []string{"-m", "1m", "bb", "true"}, 125, []string{"memory"}},
		{"more cpus than there are", []string{"--cpus", "4096", "bb", "true"}, 125, []string{"CPUs"}},
		{"unknown capability", []string{"--cap-add", "NOSUCH", "bb", "true"}, 125, []string{"NOSUCH"}},
		{"unknown seccomp action", []string{"--security-opt", "nonsense=1", "bb", "true"}, 125, []string{"nonsense"}},
		{"sysctl of the host", []string{"--sysctl", "vm.swappiness=1", "bb", "true"}, 125, []string{"vm.swappiness"}},
		{"unknown network", []string{"--network", "nosuch", "bb", "true"}, 125, []string{"nosuch"}},
		{"bind mount behind the VM wall", []string{"--runtime", "vm", "-v", "/tmp:/x", "bb", "true"}, 125, []string{"/x"}},
		{"host network behind the VM wall", []string{"--runtime", "vm", "--network", "host", "bb", "true"}, 125, []string{"network"}},
		{"unknown command behind the VM wall", []string{"--runtime", "vm", "bb", "nosuch"}, 127, []string{"executable file not found in $PATH"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := append([]string{"run", "--rm"}, c.args...)
			for _, cli := range []string{"docker", "proa"} {
				r := e.Docker(args...)
				if cli == "proa" {
					r = e.Proa(args...)
				}
				if r.Code != c.code {
					t.Errorf("%s: exit code %d, want %d: %s", cli, r.Code, c.code, r.Stderr)
				}
				for _, s := range c.says {
					if !strings.Contains(r.Stderr, s) {
						t.Errorf("%s: %q does not say %q", cli, r.Stderr, s)
					}
				}
			}
		})
	}
	e.SameTraces(t, before)
}

// An engine without QEMU or without a guest kernel says so by name, and runs
// containers all the same.
func TestNoMachine(t *testing.T) {
	for _, c := range []struct {
		name, says string
		option     proatest.Option
	}{
		{"no QEMU", "qemu", proatest.Args("--qemu", "/no/such/qemu")},
		{"no guest kernel", "kernel", proatest.GuestKernel("/no/such/kernel")},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := proatest.New(t, c.option)
			e.ImportBusybox("bb")
			r := e.Docker("run", "--rm", "--runtime", "vm", "--network", "none", "bb", "true")
			if r.Code != 125 || !strings.Contains(strings.ToLower(r.Stderr), c.says) || !strings.Contains(r.Stderr, "/no/such") {
				t.Errorf("code %d: %s", r.Code, r.Stderr)
			}
			e.MustDocker("run", "--rm", "--network", "none", "bb", "true")
		})
	}
}

// Archives that are damaged or hostile are refused with a reason, and the
// store is as it was.
func TestBadArchives(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	good := filepath.Join(t.TempDir(), "good.tar")
	e.MustProa("save", "-o", good, "bb")
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	e.MustProa("rmi", "bb") // blobs that are here already would not be read again
	usage := func() string { return e.MustProa("images", "-q", "--no-trunc") + e.MustProa("system", "df") }
	before := usage()
	for name, b := range map[string][]byte{
		"empty":           {},
		"noise":           bytes.Repeat([]byte("noise"), 1000),
		"truncated":       whole[:len(whole)*2/3],
		"cut in a header": whole[:700],
		"foreign":         proatest.Tar(t, proatest.Entry{Name: "just/a/file", Body: "x"}),
		"flipped":         flip(whole),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bad.tar")
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, cli := range []func(...string) proatest.Result{e.Proa, e.Docker} {
				if r := cli("load", "-i", file); r.Code == 0 || len(strings.TrimSpace(r.Stderr+r.Stdout)) < 20 {
					t.Errorf("code %d: %s%s", r.Code, r.Stdout, r.Stderr)
				}
			}
			if now := usage(); now != before {
				t.Errorf("the store changed:\n%s\n%s", before, now)
			}
		})
	}
	for name, entries := range map[string][]proatest.Entry{
		"parent directory":     {{Name: "../escape", Body: "x"}},
		"parent in the middle": {{Name: "a/../../escape", Body: "x"}},
		"hard link outside":    {{Name: "l", Type: '1', Link: "../../etc/passwd"}},
		"hard link to nothing": {{Name: "l", Type: '1', Link: "missing"}},
		"overlay xattr":        {{Name: "d/", Xattrs: map[string]string{"trusted.overlay.opaque": "y"}}},
		"whiteout device":      {{Name: "w", Type: '3', Mode: 0o600}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "root.tar")
			if err := os.WriteFile(file, proatest.Tar(t, entries...), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := e.Proa("import", file, "bad"); r.Code == 0 {
				t.Errorf("it was imported: %s", r.Stdout)
			} else if !strings.Contains(r.Stderr, strings.TrimSuffix(entries[0].Name, "/")) {
				t.Errorf("the error does not name the entry: %s", r.Stderr)
			}
			if now := usage(); now != before {
				t.Errorf("the store changed:\n%s\n%s", before, now)
			}
		})
	}
	t.Run("through a symlink", func(t *testing.T) {
		// Lands inside the image, wherever the link points.
		e.Import("link", append(proatest.BusyboxRoot(t),
			proatest.Entry{Name: "out", Type: '2', Link: "/tmp/../../../tmp", Mode: 0o777},
			proatest.Entry{Name: "out/proa-escape", Body: "x"}))
		if _, err := os.Lstat("/tmp/proa-escape"); err == nil {
			t.Error("a file was written outside")
		}
		e.MustProa("rmi", "link")
	})
}

// flip changes one byte in the middle of a layer.
func flip(b []byte) []byte {
	out := bytes.Clone(b)
	out[len(out)/2] ^= 0xff
	return out
}

// A full data root is an error that says so; after room is made it goes on.
func TestFullDataRoot(t *testing.T) {
	proatest.NeedRoot(t)
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"truncate", "-s", "48M", img}, {"mkfs.ext4", "-q", img}, {"mount", "-o", "loop", img, mnt},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", mnt).Run() })
	e := proatest.New(t, proatest.DataRoot(filepath.Join(mnt, "data")))
	e.ImportBusybox("bb")
	before := e.MustProa("images", "-q")
	file := filepath.Join(dir, "big.tar")
	noise := make([]byte, 64<<20)
	for i := range noise {
		noise[i] = byte(i*i>>7 ^ i>>3)
	}
	if err := os.WriteFile(file, proatest.Tar(t, proatest.Entry{Name: "big", Body: string(noise)}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := e.Proa("import", file, "big")
	if r.Code == 0 || !strings.Contains(r.Stderr, "no space left") {
		t.Errorf("code %d: %s", r.Code, r.Stderr)
	}
	if now := e.MustProa("images", "-q"); now != before {
		t.Errorf("images: %q, were %q", now, before)
	}
	e.MustProa("run", "--rm", "--network", "none", "bb", "true")
}

// A connection that sends half a request is dropped within 15 seconds.
func TestHalfOpenConnections(t *testing.T) {
	e := proatest.New(t)
	for name, send := range map[string]string{
		"nothing":       "",
		"half a line":   "GET /_pi",
		"half a header": "GET /_ping HTTP/1.1\r\nHost: x\r\n",
		"half a body":   "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"Image\":",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("unix", e.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := fmt.Fprint(conn, send); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			_ = conn.SetReadDeadline(begin.Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
			if d := time.Since(begin); d > 17*time.Second {
				t.Errorf("dropped after %v", d)
			}
		})
	}
}
