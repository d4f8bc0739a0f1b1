package proatest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Copy is one call of `docker cp`: of one form of the source to one form of the
// destination. "{c}" in either is the container with the directory of the case in
// it, "{v}" and its like the same directory in a mount, "{h}" a directory of the host.
type Copy struct {
	Name     string
	From, To string
	Flags    []string
}

// in reports whether the copy is into a container.
func (c Copy) in() bool { return strings.HasPrefix(c.From, "{h}") || c.From == "-" }

// Copier is an engine, and a client whose `cp` is tried.
type Copier struct {
	Name   string
	Dir    string // for files of the test
	Manage func(args ...string) Result
	Copy   func(stdin string, args ...string) Result
	VM     bool     // without volumes and binds
	Create []string // more flags of create
}

// Copier is the engine with a client's `cp`: docker's or proa's.
func (e *Engine) Copier(proa, vm bool) Copier {
	c := Copier{Name: "Proa by docker", Dir: e.Dir, Manage: e.Proa, VM: vm}
	program := DockerCLI(e.t)
	if proa {
		c.Name, program = "Proa by proa", filepath.Join(e.bin, "proa")
	}
	if vm {
		c.Name, c.Create = c.Name+" (VM)", []string{"--vm", "--memory", "128m"}
	}
	c.Copy = func(stdin string, args ...string) Result {
		return e.Exec(stdin, program, append([]string{"-H", e.Host, "cp"}, args...)...)
	}
	return c
}

// Copier is dockerd with the docker CLI that the engine is tried with.
func (d *Docker) Copier() Copier {
	cli := DockerCLI(d.t)
	return Copier{Name: "dockerd", Dir: d.Dir, Manage: d.Docker, Copy: func(stdin string, args ...string) Result {
		return run(d.env(), stdin, cli, append([]string{"-H", d.Host(), "cp"}, args...)...)
	}}
}

// Copies are all forms of `docker cp` that its documentation has, in every
// combination of source, destination and flags. With mounts some destinations
// and sources lie in volumes and binds, writable and read-only.
func Copies(mounts bool) []Copy {
	var out []Copy
	add := func(from, to, flags []string) {
		for _, f := range from {
			for _, t := range to {
				for _, l := range flags {
					c := Copy{From: f, To: t, Flags: strings.Fields(l)}
					c.Name = strings.TrimSpace(l+" "+f) + " " + t
					out = append(out, c)
				}
			}
		}
	}
	flags := []string{"", "-a", "-L", "-aL"}
	from := []string{"file", "file/", "file/.", "tool", "dir", "dir/", "dir/.", "dir/sub/..", "lnfile", "lnfile/", "lndir", "lndir/", "lndir/.", "lnabs", "lnout",
		"lnbroken", "lnloop", "empty", "empty/.", "fifo", "nope", "nope/", "odd", ".", "lnmid/deep"}
	for i := range from {
		from[i] = "{c}/" + from[i]
	}
	if mounts {
		from = append(from, "{v}/dir", "{b}/dir/.", "{rob}/file", "{c}/lnv", "{c}/lnv/.", "{v}/lnroot", "{v}/lnroot/.", "{v}")
	}
	to := []string{"{h}/new", "{h}/new/", "{h}/new/.", "{h}/file", "{h}/file/", "{h}/dir", "{h}/dir/", "{h}/dir/.", "{h}/lndir", "{h}/lndir/", "{h}/lnfile", "{h}/lnbroken",
		"{h}/no/such", "{h}/taken", "-"}
	add(from, to, flags)
	from = []string{"file", "file/", "file/.", "dir", "dir/", "dir/.", "lnfile", "lnfile/", "lndir", "lndir/", "lndir/.", "lnbroken", "nope", "empty", "odd"}
	for i := range from {
		from[i] = "{h}/" + from[i]
	}
	from = append(from, "-")
	to = []string{"new", "new/", "new/.", "file", "file/", "dir", "dir/", "dir/.", "lnfile", "lndir", "lndir/", "lnabs", "lnout", "lnbroken", "lnloop", "no/such", "no/such/", "taken", "lnmid/new"}
	for i := range to {
		to[i] = "{c}/" + to[i]
	}
	if mounts {
		to = append(to, "{v}/dir", "{v}/new", "{b}/dir", "{b}/new", "{rov}/dir", "{rov}/new", "{rob}/dir", "{rob}/new", "{c}/lnv", "{c}/lnv/new", "{c}/lnrov", "{c}/lnrov/new",
			"{v}/lnroot", "{v}/lnroot/new", "{v}/lnrov")
	}
	add(from, to, []string{"", "-a", "-L"})
	return out
}

// Few takes one in n of the copies, beginning with the one of that number. A
// prime n meets each source and each destination.
func Few(all []Copy, n, first int) []Copy {
	var out []Copy
	for i := first; i < len(all); i += n {
		out = append(out, all[i])
	}
	return out
}

// copyFiles is what lies in the directory of the case n, which will be at seen.
func copyFiles(at, seen, n string) []Entry {
	f := func(name, body string) Entry { return Entry{Name: at + "/" + name, Body: body} }
	l := func(name, to string) Entry {
		return Entry{Name: at + "/" + name, Type: tar.TypeSymlink, Link: to, Mode: 0o777}
	}
	return []Entry{
		{Name: at + "/"},
		{Name: at + "/file", Body: "file\n", Mode: 0o640, UID: 1000, GID: 1000}, {Name: at + "/tool", Body: "tool\n", Mode: 0o4755},
		{Name: at + "/dir/", Mode: 0o750, UID: 1000, GID: 2000}, f("dir/inner", "inner\n"), {Name: at + "/dir/sub/", Mode: 0o1777}, f("dir/sub/deep", "deep\n"), l("dir/ln", "inner"),
		l("dir/abs", "/etc/passwd"), {Name: at + "/dir/hard", Type: tar.TypeLink, Link: at + "/dir/inner"},
		{Name: at + "/empty/", Mode: 0o700}, {Name: at + "/fifo", Type: tar.TypeFifo}, f("odd", "odd\n"), {Name: at + "/sp ace/"}, f("sp ace/new\nline", "x"), f("sp ace/g\xe9", "latin\n"),
		{Name: at + "/taken/"}, {Name: at + "/taken/file/"}, f("taken/file/keep", "keep\n"), f("taken/dir", "no directory\n"), {Name: at + "/taken/lnfile/"},
		l("lnfile", "file"), l("lndir", "dir"), l("lnabs", seen+"/dir"), l("lnout", "../../../../../../.."+seen+"/dir"), l("lnbroken", "nowhere/at/all"), l("lnloop", "lnloop"), l("lnmid", "dir/sub"),
		l("lnv", "/v/"+n+"/dir"), l("lnrov", "/rov/"+n+"/dir"), l("lnroot", "/c/"+n+"/dir"),
	}
}

// write makes entries below a directory of the host.
func write(dir string, entries []Entry) error {
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	when := time.Unix(1700000000, 0)
	for _, e := range entries {
		p := filepath.Join(dir, e.Name)
		mode := uint32(e.Mode)
		switch {
		case strings.HasSuffix(e.Name, "/"):
			do(os.MkdirAll(p, 0o755))
			mode = max(mode, 0o100)
			if e.Mode == 0 {
				mode = 0o755
			}
		case e.Type == tar.TypeSymlink:
			do(os.Symlink(e.Link, p))
			continue
		case e.Type == tar.TypeLink:
			do(os.Link(filepath.Join(dir, e.Link), p))
			continue
		case e.Type == tar.TypeFifo:
			do(syscall.Mkfifo(p, 0o644))
			mode = 0o644
		default:
			do(os.WriteFile(p, []byte(e.Body), 0o600))
			if e.Mode == 0 {
				mode = 0o644
			}
		}
		do(os.Chown(p, e.UID, e.GID))
		do(syscall.Chmod(p, mode))
	}
	for _, e := range slices.Backward(entries) {
		if e.Type != tar.TypeSymlink {
			do(os.Chtimes(filepath.Join(dir, e.Name), when, when))
		}
	}
	return errors.Join(errs...)
}

// CopyState is a state of the container that is copied from and to.
type CopyState struct {
	State    string // created, running, paused, exited
	ReadOnly bool   // its root
}

// RunCopies carries out copies with a container in a state. It gives for each
// copy its exit code and what it made where: a line each file. Each copy has its
// own directory, so that they can run beside each other.
func (c Copier) RunCopies(t testing.TB, state CopyState, copies []Copy) map[string]string {
	t.Helper()
	must := func(args ...string) {
		t.Helper()
		if r := c.Manage(args...); r.Code != 0 {
			t.Fatalf("%s: %s: exit code %d\n%s%s", c.Name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
		}
	}
	dir, err := os.MkdirTemp(c.Dir, "copies-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	name := strings.ReplaceAll(filepath.Base(dir), "-", "")
	create := []string{"create", "--name", name}
	root := BusyboxRoot(t)
	places := []string{"c"}
	create = append(create, c.Create...)
	if !c.VM {
		places = append(places, "v", "rov")
		create = append(create, "-v", name+"v:/v", "-v", name+"rov:/rov:ro", "-v", dir+"/b:/b", "-v", dir+"/rob:/rob:ro")
	}
	for _, p := range places {
		root = append(root, Entry{Name: p + "/"})
	}
	for i := range copies {
		n := fmt.Sprint(i)
		for _, p := range places {
			root = append(root, copyFiles(p+"/"+n, "/"+p+"/"+n, n)...)
		}
		if !c.VM {
			for _, p := range []string{"b", "rob"} {
				if err := errors.Join(os.MkdirAll(dir+"/"+p, 0o755), write(dir, copyFiles(p+"/"+n, "/"+p+"/"+n, n))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := os.WriteFile(dir+"/root.tar", Tar(t, root...), 0o600); err != nil {
		t.Fatal(err)
	}
	must("import", "-c", "CMD [\"sleep\",\"1000000\"]", "-c", "ENV PATH=/bin", dir+"/root.tar", name)
	if state.ReadOnly {
		create = append(create, "--read-only")
	}
	must(append(create, name)...)
	defer func() {
		must("rm", "-f", "-v", name)
		must("rmi", name)
		if !c.VM {
			must("volume", "rm", "-f", name+"v", name+"rov")
		}
	}()
	if state.State != "created" {
		must("start", name)
	}
	switch state.State {
	case "exited":
		must("kill", name)
		must("wait", name)
	case "paused":
		must("pause", name)
		defer must("unpause", name)
	}
	begin := time.Now().Add(-time.Hour)
	out := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	gate := make(chan struct{}, 4)
	for i, one := range copies {
		wg.Add(1)
		go func() {
			defer wg.Done()
			gate <- struct{}{}
			defer func() { <-gate }()
			text := c.one(t, one, name, dir, fmt.Sprint(i), begin)
			mu.Lock()
			defer mu.Unlock()
			out[one.Name] = text
		}()
	}
	wg.Wait()
	c.inside(t, copies, name, places, begin, out)
	return out
}

// one carries out one copy.
func (c Copier) one(t testing.TB, one Copy, name, dir, n string, begin time.Time) string {
	host := filepath.Join(dir, "h", n)
	if err := errors.Join(os.MkdirAll(filepath.Dir(host), 0o755), write(filepath.Dir(host), copyFiles(n, host, n))); err != nil {
		t.Error(err)
	}
	fill := strings.NewReplacer("{c}", name+":/c/"+n, "{v}", name+":/v/"+n, "{rov}", name+":/rov/"+n, "{b}", name+":/b/"+n, "{rob}", name+":/rob/"+n, "{h}", host)
	stdin := ""
	if one.From == "-" {
		stdin = string(Tar(t, Entry{Name: "t/", UID: 1000, GID: 1000}, Entry{Name: "t/f", Body: "f\n", UID: 1000, GID: 1000}))
	}
	r := c.Copy(stdin, append(slices.Clone(one.Flags), fill.Replace(one.From), fill.Replace(one.To))...)
	text := fmt.Sprintf("exit code %d\n", r.Code)
	switch {
	case one.in():
		return text
	case one.To == "-":
		text += listTar(r.Stdout, begin)
	default:
		text += listDir(host, begin)
	}
	if strings.Contains(one.From, "v}") || strings.Contains(one.From, "lnv") {
		text = untimed(text)
	}
	return text
}

// untimed takes the times of directories away: Docker fills a volume without them.
func untimed(text string) string {
	lines := strings.Split(directoryTime.ReplaceAllString(text, "$1 - "), "\n")
	slices.Sort(lines[1:]) // the first one is the exit code
	return strings.Join(lines, "\n")
}

var directoryTime = regexp.MustCompile(`(?m)^((?:5|40000) [0-7]{4} \d+:\d+) (?:now|[-0-9]+ [0-9:]+) `)

// inside adds to the outcomes what is in the container and its volumes now
// that was not there before, and what is gone.
func (c Copier) inside(t testing.TB, copies []Copy, name string, places []string, begin time.Time, out map[string]string) {
	t.Helper()
	if !c.VM {
		places = append(places, "b", "rob")
	}
	for _, p := range places {
		var was []Entry
		for i := range copies {
			was = append(was, copyFiles(fmt.Sprintf("%s/%d", p, i), fmt.Sprintf("/%s/%d", p, i), fmt.Sprint(i))...)
		}
		before := c.lines(string(Tar(t, was...)), p, begin)
		r := c.Copy("", name+":/"+p, "-")
		if r.Code != 0 {
			t.Fatalf("%s: cp of /%s: exit code %d\n%s", c.Name, p, r.Code, r.Stderr)
		}
		after := c.lines(r.Stdout, p, begin)
		for i, one := range copies {
			for _, l := range after[i] {
				if !slices.Contains(before[i], l) {
					out[one.Name] += "made " + l + "\n"
				}
			}
			for _, l := range before[i] {
				if !slices.Contains(after[i], l) {
					out[one.Name] += "gone " + l + "\n"
				}
			}
		}
	}
}

// lines are the lines of a tar of a place, for each copy.
func (c Copier) lines(text, place string, begin time.Time) map[int][]string {
	out := map[int][]string{}
	for _, l := range strings.Split(listTar(text, begin), "\n") {
		_, rest, _ := strings.Cut(l, " "+place+"/")
		n, _, _ := strings.Cut(rest, "/")
		i, err := strconv.Atoi(n)
		if err != nil {
			continue
		}
		if place == "v" || place == "rov" {
			l = untimed(l)
		}
		out[i] = append(out[i], l)
	}
	return out
}

// listTar says each entry of a tar, sorted.
func listTar(text string, begin time.Time) string {
	var lines []string
	for r := tar.NewReader(strings.NewReader(text)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			lines = append(lines, "broken: "+err.Error())
			break
		}
		b, _ := io.ReadAll(r)
		lines = append(lines, fileLine(string(h.Typeflag), h.Mode&0o7777, h.Uid, h.Gid, h.ModTime, begin, h.Name, h.Linkname, string(b)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// listDir says each file below a directory, sorted.
func listDir(dir string, begin time.Time) string {
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		link, body := "", ""
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFLNK:
			link, _ = os.Readlink(p)
			link = strings.ReplaceAll(link, filepath.Dir(dir), "DIR")
		case syscall.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			body = string(b)
			if st.Nlink > 1 {
				body += fmt.Sprintf(" (%d links)", st.Nlink)
			}
		}
		rel, _ := filepath.Rel(dir, p)
		lines = append(lines, fileLine(fmt.Sprintf("%o", st.Mode&syscall.S_IFMT), int64(st.Mode&0o7777), int(st.Uid), int(st.Gid), time.Unix(st.Mtim.Unix()), begin, rel, link, body))
		return nil
	})
	if err != nil {
		lines = append(lines, err.Error())
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func fileLine(kind string, mode int64, uid, gid int, when, begin time.Time, name, link, body string) string {
	at := "now"
	if when.Before(begin) {
		at = when.UTC().Format(time.DateTime)
	}
	return fmt.Sprintf("%s %04o %d:%d %s %s -> %q %q", kind, mode, uid, gid, at, strings.ReplaceAll(name, "\n", `\n`), link, body)
}

// SameCopies makes copies with dockerd and with another engine, in containers of
// one state, and fails the test for each that ends in another way.
func SameCopies(t testing.TB, d *Docker, c Copier, state CopyState, copies []Copy) {
	t.Helper()
	beside := d.Copier()
	beside.VM = c.VM
	want := beside.RunCopies(t, state, copies)
	got := c.RunCopies(t, state, copies)
	for name, w := range want {
		if got[name] != w {
			t.Errorf("%+v: docker cp %s, %s (+) beside dockerd (-):\n%s", state, name, c.Name, lineDiff(w, got[name]))
		}
	}
}

// lineDiff is the lines that one of two texts has and the other has not.
func lineDiff(a, b string) string {
	var out []string
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, l := range x {
		if !slices.Contains(y, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range y {
		if !slices.Contains(x, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}
