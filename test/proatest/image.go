package proatest

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Entry is one entry of a tar that a test makes.
type Entry struct {
	Name     string
	Type     byte // 0: regular, or directory when Name ends in /
	Mode     int64
	UID, GID int
	Body     string
	Link     string
	Xattrs   map[string]string
	Time     time.Time
}

// Tar makes a tar of entries.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.Name, Typeflag: e.Type, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Size: int64(len(e.Body)), Linkname: e.Link,
			ModTime: e.Time, Format: tar.FormatPAX,
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		for k, v := range e.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.Body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// BusyboxRoot is a small root file system around the host's static busybox.
func BusyboxRoot(t testing.TB) []Entry {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("no busybox: run `make setup`")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries := []Entry{
		{Name: "bin/"}, {Name: "etc/"}, {Name: "home/"}, {Name: "home/app/", UID: 1000, GID: 1000}, {Name: "root/", Mode: 0o700},
		{Name: "tmp/", Mode: 0o1777}, {Name: "usr/"}, {Name: "dev/"}, {Name: "proc/"}, {Name: "sys/"}, {Name: "var/"}, {Name: "var/lib/"},
		{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\n"},
		{Name: "etc/group", Body: "root:x:0:\nnobody:x:65534:\napp:x:1000:\nextra:x:2000:app\n"},
		{Name: "etc/hosts"}, {Name: "etc/resolv.conf"}, {Name: "etc/hostname"},
		{Name: "bin/busybox", Mode: 0o755, Body: string(b)},
		{Name: "notexec", Mode: 0o644, Body: "not a program\n"},
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			entries = append(entries, Entry{Name: "bin/" + a, Type: tar.TypeSymlink, Link: "busybox", Mode: 0o777})
		}
	}
	return entries
}

// ImportBusybox makes the image name of BusyboxRoot and more entries.
func (e *Engine) ImportBusybox(name string, more ...Entry) {
	e.t.Helper()
	e.Import(name, append(BusyboxRoot(e.t), more...), "CMD [\"sh\"]", "ENV PATH=/bin")
}

// Import makes the image name of entries.
func (e *Engine) Import(name string, entries []Entry, changes ...string) {
	e.t.Helper()
	file := filepath.Join(e.Dir, "import.tar")
	if err := os.WriteFile(file, Tar(e.t, entries...), 0o600); err != nil {
		e.t.Fatal(err)
	}
	args := []string{"import"}
	for _, c := range changes {
		args = append(args, "-c", c)
	}
	e.MustProa(append(args, file, name)...)
	if err := os.Remove(file); err != nil {
		e.t.Fatal(err)
	}
}
