package faults

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// layout builds an OCI layout: blobs, and what index.json names.
type layout struct {
	t     *testing.T
	blobs map[string][]byte
	top   []map[string]any
}

func newLayout(t *testing.T) *layout { return &layout{t: t, blobs: map[string][]byte{}} }

// put stores a blob and describes it.
func (l *layout) put(mediaType string, raw []byte) map[string]any {
	sum := fmt.Sprintf("%x", sha256.Sum256(raw))
	l.blobs[sum] = raw
	return map[string]any{"mediaType": mediaType, "digest": "sha256:" + sum, "size": len(raw)}
}

func (l *layout) json(mediaType string, v any) map[string]any {
	raw, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.put(mediaType, raw)
}

const (
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

// image is one manifest of layers for a platform "os/arch[/variant]", either
// part of which may be empty.
func (l *layout) image(platform string, config map[string]any, layers ...[]byte) map[string]any {
	parts := append(strings.Split(platform, "/"), "", "")
	c := map[string]any{"architecture": parts[1], "config": config}
	if parts[0] != "" {
		c["os"] = parts[0]
	}
	if parts[2] != "" {
		c["variant"] = parts[2]
	}
	var descs []any
	var ids []string
	for _, raw := range layers {
		d := l.put("application/vnd.oci.image.layer.v1.tar", raw)
		descs, ids = append(descs, d), append(ids, d["digest"].(string))
	}
	c["rootfs"] = map[string]any{"type": "layers", "diff_ids": ids}
	d := l.json(ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": l.json("application/vnd.oci.image.config.v1+json", c), "layers": descs})
	plf := map[string]any{"os": parts[0], "architecture": parts[1]}
	if parts[2] != "" {
		plf["variant"] = parts[2]
	}
	d["platform"] = plf
	return d
}

// index is an image index of manifests.
func (l *layout) index(of ...map[string]any) map[string]any {
	return l.json(ociIndex, map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": of})
}

// name puts a descriptor into index.json.
func (l *layout) name(name string, d map[string]any) {
	named := map[string]any{"annotations": map[string]string{"io.containerd.image.name": "docker.io/library/" + name}}
	if strings.Contains(name, "/") {
		named["annotations"] = map[string]string{"io.containerd.image.name": name}
	}
	for k, v := range d {
		if k != "platform" {
			named[k] = v
		}
	}
	l.top = append(l.top, named)
}

// file writes the layout as a tar.
func (l *layout) file() string {
	idx, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": l.top})
	if err != nil {
		l.t.Fatal(err)
	}
	entries := []proatest.Entry{{Name: "oci-layout", Body: `{"imageLayoutVersion":"1.0.0"}`}, {Name: "index.json", Body: string(idx)}}
	for sum, raw := range l.blobs {
		entries = append(entries, proatest.Entry{Name: "blobs/sha256/" + sum, Body: string(raw)})
	}
	name := filepath.Join(l.t.TempDir(), "layout.tar")
	if err := os.WriteFile(name, proatest.Tar(l.t, entries...), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return name
}

// ask sends a request without a body and returns the status and the answer.
func ask(e *proatest.Engine, method, path string) (int, string) {
	head, body, _ := strings.Cut(e.Request(method, path), "\r\n\r\n")
	var status int
	_, _ = fmt.Sscanf(head, "HTTP/1.0 %d", &status)
	if status == 0 {
		_, _ = fmt.Sscanf(head, "HTTP/1.1 %d", &status)
	}
	return status, body
}

func plf(s string) string {
	parts := append(strings.Split(s, "/"), "")
	return url.QueryEscape(fmt.Sprintf(`{"os":%q,"architecture":%q,"variant":%q}`, parts[0], parts[1], parts[2]))
}

func ids(t *testing.T, e *proatest.Engine, ref, platform string) (id, arch string) {
	t.Helper()
	path := "/images/" + ref + "/json"
	if platform != "" {
		path += "?platform=" + plf(platform)
	}
	status, body := ask(e, "GET", path)
	var out struct{ ID, Architecture string }
	if err := json.Unmarshal([]byte(body), &out); status != 200 || err != nil {
		t.Fatalf("GET %s: %d %s", path, status, body)
	}
	return out.ID, out.Architecture
}

// One engine for the rows about platforms. What is right comes from dockerd
// 20.10.24 (load, import, build, run) and moby's API 1.48 to 1.50 (platforms).
func TestFaultPlatforms(t *testing.T) {
	e := proatest.New(t)
	root := proatest.Tar(t, proatest.BusyboxRoot(t)...)
	run := map[string]any{"Cmd": []string{"sh"}, "Env": []string{"PATH=/bin"}}
	small := proatest.Tar(t, proatest.Entry{Name: "hello", Body: "hello\n"})

	l := newLayout(t)
	for name, platform := range map[string]string{"arm:1": "linux/arm64", "old:1": "linux/386", "x86:1": "linux/x86_64", "noos:1": "/amd64", "v2:1": "linux/amd64/v2", "far:1": "linux/riscv64", "win:1": "windows/amd64"} {
		layer := root
		if name == "arm:1" || name == "far:1" || name == "win:1" {
			layer = small
		}
		l.name(name, l.image(platform, run, layer))
	}
	t.Run("TestFaultC13Load", func(t *testing.T) {
		e.MustDocker("load", "-i", l.file())
		for _, name := range []string{"arm:1", "far:1", "win:1"} {
			r := e.Docker("run", "--rm", name, "/hello")
			if r.Code == 0 || !strings.Contains(r.Stderr, "cannot run image "+name+": it is for ") {
				t.Errorf("run %s: %d %s", name, r.Code, r.Stderr)
			}
			// A container of it can be made and read, as docker create and cp do.
			id := e.MustDocker("create", name, "/hello")
			if out := e.MustDocker("cp", id+":/hello", "-"); !strings.Contains(out, "hello\n") {
				t.Errorf("cp from %s: %q", name, out)
			}
			e.MustDocker("rm", id)
		}
		if r := e.Docker("create", "arm:1", "/hello"); !strings.Contains(r.Stderr, "The requested image's platform (linux/arm64) does not match the detected host platform") {
			t.Errorf("create without a platform warns %q", r.Stderr)
		} else {
			e.MustDocker("rm", r.Out())
		}
	})
	t.Run("TestFaultB3Variant", func(t *testing.T) {
		if got := e.MustDocker("run", "--rm", "v2:1", "echo", "ran"); got != "ran" {
			t.Errorf("amd64/v2: %q", got)
		}
	})
	t.Run("TestFaultB4Run386", func(t *testing.T) {
		for _, args := range [][]string{{"old:1"}, {"--platform", "linux/386", "old:1"}, {"x86:1"}, {"--platform", "linux/amd64", "x86:1"}, {"noos:1"}} {
			if r := e.Docker(append(append([]string{"run", "--rm"}, args...), "echo", "ran")...); r.Out() != "ran" || strings.Contains(r.Stderr, "WARNING") {
				t.Errorf("run %v: %q %q", args, r.Stdout, r.Stderr)
			}
		}
	})
	t.Run("TestFaultC13Import", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "f.tar")
		if err := os.WriteFile(file, small, 0o600); err != nil {
			t.Fatal(err)
		}
		e.MustDocker("import", "--platform", "linux/arm64", file, "imp:1")
		if _, arch := ids(t, e, "imp:1", ""); arch != "arm64" {
			t.Errorf("imported for %q", arch)
		}
		if r := e.Docker("import", "--platform", "windows/amd64", file, "imp:2"); r.Code == 0 || !strings.Contains(r.Stderr, "operating system is not supported") {
			t.Errorf("import for windows: %d %s", r.Code, r.Stderr)
		}
	})
	t.Run("TestFaultB2Build", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for i, platform := range []string{"linux/arm64", "linux/arm/v7", "linux/riscv64", "linux/amd64/v3", "windows/amd64"} {
			for how, args := range map[string][]string{
				"classic": {"env", "DOCKER_BUILDKIT=0", proatest.DockerCLI(t), "-H", "unix://" + e.Socket},
				"buildx":  {proatest.DockerCLI(t), "-H", "unix://" + e.Socket, "buildx"},
				"proa":    {filepath.Join(e.Bin(), "proa"), "-H", "unix://" + e.Socket},
			} {
				name := fmt.Sprintf("built%d:%s", i, how)
				args = append(args, "build", "--platform", platform, "-t", name, dir)
				if r := e.Exec("", args[0], args[1:]...); r.Code != 0 {
					t.Errorf("%s for %s: %d\n%s%s", how, platform, r.Code, r.Stdout, r.Stderr)
					continue
				}
				if _, arch := ids(t, e, name, ""); arch != strings.Split(platform, "/")[1] {
					t.Errorf("%s for %s is for %s", how, platform, arch)
				}
			}
		}
	})
}

// C9, D04: the platform parameters (moby's API 1.46 to 1.52), on an index of
// four platforms and what describes one of them; D30: what is saved of a part.
func TestFaultPlatformParameters(t *testing.T) {
	e := proatest.New(t)
	l := newLayout(t)
	var of []map[string]any
	for _, p := range []string{"linux/arm64", "linux/amd64", "linux/arm/v7", "linux/s390x"} {
		of = append(of, l.image(p, nil, proatest.Tar(t, proatest.Entry{Name: "platform", Body: p})))
	}
	att := l.json(ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": l.put("application/vnd.oci.image.config.v1+json", []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`)), "layers": []any{}})
	att["platform"] = map[string]any{"os": "unknown", "architecture": "unknown"}
	att["annotations"] = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": of[1]["digest"].(string)}
	idx := l.index(append(of, att)...)
	l.name("many:1", idx)
	e.MustDocker("load", "-i", l.file())

	t.Run("TestFaultC9Parameters", func(t *testing.T) {
		for _, p := range []string{"linux/arm64", "linux/amd64", "linux/arm/v7", "linux/s390x"} {
			if _, arch := ids(t, e, "many:1", p); arch != strings.Split(p, "/")[1] {
				t.Errorf("inspect for %s is for %s", p, arch)
			}
			if status, body := ask(e, "GET", "/images/many:1/history?platform="+plf(p)); status != 200 {
				t.Errorf("history for %s: %d %s", p, status, body)
			}
		}
		for _, c := range [][2]string{
			{"GET", "/images/many:1/json?platform="}, {"GET", "/images/many:1/history?platform="}, {"GET", "/images/many:1/get?platform="},
			{"GET", "/images/get?names=many:1&platform="}, {"DELETE", "/images/many:1?force=1&platforms="}, {"DELETE", "/images/many:1?platforms="},
		} {
			status, body := ask(e, c[0], c[1]+plf("linux/riscv64"))
			if status != 404 || !strings.Contains(body, "linux/riscv64") {
				t.Errorf("%s %s riscv64: %d %.200s", c[0], c[1], status, body)
			}
		}
		for path, want := range map[string]int{
			"/images/many:1/json?platform=nonsense": 400, "/images/many:1/json?platform=" + url.QueryEscape(`{"os":"linux"}`): 400, "/v1.48/images/many:1/json?platform=" + plf("linux/riscv64"): 200,
			"/images/many:1/json?manifests=1&platform=" + plf("linux/amd64"): 400, "/v1.51/images/get?names=many:1&platform=" + plf("linux/amd64") + "&platform=" + plf("linux/arm64"): 400,
		} {
			if status, body := ask(e, "GET", path); status != want {
				t.Errorf("GET %s: %d, want %d: %.200s", path, status, want, body)
			}
		}
		if status, _ := ask(e, "DELETE", "/v1.49/images/many:1?platforms="+plf("linux/amd64")); status != 400 {
			t.Errorf("DELETE of a platform at 1.49: %d; it would remove all", status)
		}
	})
	manifests := func(ref string) (available, all []string) {
		_, body := ask(e, "GET", "/images/"+ref+"/json?manifests=1")
		var out struct {
			Manifests []struct {
				ID, Kind  string
				Available bool
			}
		}
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			t.Fatal(err, body)
		}
		for _, m := range out.Manifests {
			all = append(all, m.Kind)
			if m.Available {
				available = append(available, m.ID)
			}
		}
		return available, all
	}
	t.Run("TestFaultD04Manifests", func(t *testing.T) {
		if here, all := manifests("many:1"); len(here) != 5 || strings.Join(all, " ") != "image image image image attestation" {
			t.Errorf("manifests %v, %d of them available", all, len(here))
		}
		if _, body := ask(e, "GET", "/images/json?manifests=1"); !strings.Contains(body, of[3]["digest"].(string)) {
			t.Errorf("list with manifests: %.300s", body)
		}
	})
	t.Run("TestFaultD37PlatformFlags", func(t *testing.T) {
		if out := e.MustProa("images", "--tree"); !strings.Contains(out, "linux/arm/v7") || !strings.Contains(out, "many:1") {
			t.Errorf("images --tree: %s", out)
		}
		if out := e.MustProa("image", "inspect", "--platform", "linux/s390x", "-f", "{{.Architecture}}", "many:1"); out != "s390x" {
			t.Errorf("image inspect --platform: %q", out)
		}
		file := filepath.Join(t.TempDir(), "s390x.tar")
		e.MustProa("save", "--platform", "linux/s390x", "-o", file, "many:1")
		for _, args := range [][]string{{"history", "many:1"}, {"save", "-o", file + "2", "many:1"}, {"load", "-i", file}, {"rmi", "many:1"}, {"image", "inspect", "many:1"}} {
			at := 1
			if args[0] == "image" {
				at = 2
			}
			args = slices.Insert(args, at, "--platform", "linux/riscv64")
			if r := e.Proa(args...); r.Code == 0 || !strings.Contains(r.Stderr, "linux/riscv64") {
				t.Errorf("%v: %d %s", args, r.Code, r.Stderr)
			}
		}
	})
	t.Run("TestFaultRoundTrip", func(t *testing.T) {
		proatest.Box(t, e.Netns, "127.0.0.1:5000", t.TempDir())
		e.MustDocker("tag", "many:1", "127.0.0.1:5000/many:1")
		e.MustDocker("push", "127.0.0.1:5000/many:1")
		o := proatest.New(t)
		file := filepath.Join(t.TempDir(), "saved.tar")
		e.MustDocker("save", "-o", file, "many:1")
		o.MustDocker("load", "-i", file)
		id, _ := ids(t, e, "many:1", "linux/arm64")
		if got, _ := ids(t, o, "many:1", "linux/arm64"); got != id {
			t.Errorf("saved and loaded arm64 is %s, was %s", got, id)
		}
		_, body := ask(o, "GET", "/images/many:1/json")
		if !strings.Contains(body, idx["digest"].(string)) {
			t.Errorf("the index has another digest: %.300s", body)
		}
		e.MustDocker("rmi", "127.0.0.1:5000/many:1")
		e.MustDocker("pull", "--platform", "linux/s390x", "127.0.0.1:5000/many:1")
		if _, body := ask(e, "GET", "/images/127.0.0.1:5000/many:1/json"); !strings.Contains(body, idx["digest"].(string)) {
			t.Errorf("what was pushed has another digest: %.300s", body)
		}
		e.MustDocker("rmi", "127.0.0.1:5000/many:1")
	})
	t.Run("TestFaultD04Remove", func(t *testing.T) {
		status, body := ask(e, "DELETE", "/images/many:1?force=1&platforms="+plf("linux/amd64"))
		if want := `[{"Deleted":"` + of[1]["digest"].(string) + `"}]`; status != 200 || strings.TrimSpace(body) != want {
			t.Errorf("rm of amd64: %d %s, want %s", status, body, want)
		}
		here, _ := manifests("many:1")
		if slices.Contains(here, of[1]["digest"].(string)) || !slices.Contains(here, of[0]["digest"].(string)) {
			t.Errorf("left are %v", here)
		}
		if _, arch := ids(t, e, "many:1", ""); arch == "amd64" {
			t.Errorf("the name still leads to %s", arch)
		}
	})
	t.Run("TestFaultD30Closed", func(t *testing.T) {
		_, archive := ask(e, "GET", "/images/many:1/get")
		closed(t, []byte(archive), 3)
		_, archive = ask(e, "GET", "/images/many:1/get?platform="+plf("linux/s390x"))
		closed(t, []byte(archive), 1)
	})
}

// closed checks that an archive holds all that its documents name, and how many images that is.
func closed(t *testing.T, archive []byte, want int) {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(r)
		files[h.Name] = b.Bytes()
	}
	images := 0
	var visit func(raw []byte)
	visit = func(raw []byte) {
		var doc struct {
			Manifests, Layers []struct{ Digest string }
			Config            struct{ Digest string }
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		for _, d := range append(doc.Manifests, doc.Layers...) {
			if _, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]; !ok {
				t.Errorf("the archive names %s and does not hold it", d.Digest)
			}
		}
		if doc.Config.Digest != "" {
			images++
		}
		for _, d := range doc.Manifests {
			visit(files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")])
		}
	}
	visit(files["index.json"])
	if images != want {
		t.Errorf("the archive holds %d images, want %d", images, want)
	}
}

// Foreign things in archives and layers; dockerd 20.10.24 loads them all.
func TestFaultForeignThings(t *testing.T) {
	e := proatest.New(t)
	root := proatest.BusyboxRoot(t)
	run := map[string]any{"Env": []string{"PATH=/bin"}}
	load := func(t *testing.T, name string, layers ...[]proatest.Entry) {
		t.Helper()
		l := newLayout(t)
		tars := [][]byte{proatest.Tar(t, root...)}
		for _, entries := range layers {
			tars = append(tars, proatest.Tar(t, entries...))
		}
		l.name(name, l.image("linux/amd64", run, tars...))
		e.MustDocker("load", "-i", l.file())
	}
	t.Run("TestFaultB6DotDot", func(t *testing.T) {
		load(t, "dots:1", []proatest.Entry{{Name: "a/../b", Body: "b"}, {Name: "t", Body: "t"}, {Name: "link", Type: tar.TypeLink, Link: "d/../t"}})
		if got := e.MustDocker("run", "--rm", "dots:1", "cat", "/b", "/link"); got != "bt" {
			t.Errorf("read %q", got)
		}
	})
	t.Run("TestFaultB7Device", func(t *testing.T) {
		load(t, "dev:1", []proatest.Entry{{Name: "etc/passwd", Type: tar.TypeChar, Mode: 0o644}})
		if r := e.Docker("run", "--rm", "dev:1", "ls", "/etc"); r.Code != 0 || strings.Contains(r.Stdout, "passwd") || !strings.Contains(r.Stdout, "group") {
			t.Errorf("ls: %d %q %s", r.Code, r.Stdout, r.Stderr)
		}
	})
	t.Run("TestFaultB8Plnk", func(t *testing.T) {
		load(t, "plnk:1", []proatest.Entry{{Name: ".wh..wh.plnk/"}, {Name: ".wh..wh.plnk/77.1", Body: "shared"}, {Name: "one", Type: tar.TypeLink, Link: ".wh..wh.plnk/77.1"}, {Name: "two", Type: tar.TypeLink, Link: "/.wh..wh.plnk/77.1"}})
		if got := e.MustDocker("run", "--rm", "plnk:1", "sh", "-c", "cat /one /two; test /one -ef /two && ls -A / | grep wh || echo same"); got != "sharedsharedsame" {
			t.Errorf("read %q", got)
		}
	})
	t.Run("TestFaultD31OverlayAttributes", func(t *testing.T) {
		load(t, "attr:1", []proatest.Entry{
			{Name: "home/", Xattrs: map[string]string{"trusted.overlay.opaque": "y"}}, {Name: "home/new", Body: "n"},
			{Name: "tmp/f", Body: "f", Xattrs: map[string]string{"user.overlay.metacopy": "", "trusted.overlay.redirect": "/etc", "user.kept": "k"}},
		})
		if got := e.MustDocker("run", "--rm", "attr:1", "sh", "-c", "ls /home; cat /tmp/f"); got != "new\nf" {
			t.Errorf("read %q", got)
		}
	})
	t.Run("TestFaultD32UnknownEntry", func(t *testing.T) {
		l := newLayout(t)
		l.name("plain:1", l.image("linux/amd64", run, proatest.Tar(t, root...)))
		l.top = append(l.top, map[string]any{"mediaType": "application/vnd.example.thing.v1+json", "digest": "sha256:" + strings.Repeat("0", 64), "size": 5})
		l.name("chart:1", l.json(ociManifest, map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": l.put("application/vnd.cncf.helm.config.v1+json", []byte("{}")), "layers": []any{}}))
		e.MustDocker("load", "-i", l.file())
		if got := e.MustDocker("run", "--rm", "plain:1", "echo", "ran"); got != "ran" {
			t.Errorf("ran %q", got)
		}
	})
	t.Run("TestFaultD24ExposedPorts", func(t *testing.T) {
		l := newLayout(t)
		l.name("ports:1", l.image("linux/amd64", map[string]any{"Env": []string{"PATH=/bin"}, "ExposedPorts": map[string]any{"7000-7002/tcp": map[string]any{}, "nonsense": map[string]any{}, "53/udp": map[string]any{}}}, proatest.Tar(t, root...)))
		e.MustDocker("load", "-i", l.file())
		id := e.MustDocker("create", "--expose", "9000-9001", "ports:1", "true")
		got := e.MustDocker("inspect", "-f", "{{json .Config.ExposedPorts}}", id)
		for _, p := range []string{"7000/tcp", "7001/tcp", "7002/tcp", "53/udp", "9000/tcp", "9001/tcp"} {
			if !strings.Contains(got, p) {
				t.Errorf("%s is not in %s", p, got)
			}
		}
		w := proatest.NewWire(t, e.Socket)
		w.Ask("POST", "/v1.41/containers/create", `{"Image":"ports:1","Cmd":["true"],"ExposedPorts":{"8000-8001/tcp":{}}}`)
		if status, _, behind := w.Head(); status != 201 {
			t.Errorf("create with a range: %d %s", status, behind)
		}
	})
}

// Names of images and registries.
func TestFaultImageNames(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	t.Run("TestFaultC14SaveRepository", func(t *testing.T) {
		e.MustDocker("tag", "bb:1", "sv:a")
		e.MustDocker("tag", "bb:1", "sv:b")
		_, body := ask(e, "GET", "/images/sv/get")
		for _, tag := range []string{"sv:a", "sv:b"} {
			if !strings.Contains(body, `"`+tag+`"`) {
				t.Errorf("%s is not in the archive", tag)
			}
		}
		if status, _ := ask(e, "GET", "/images/sv:c/get"); status != 404 {
			t.Errorf("a tag that is not there: %d", status)
		}
	})
	t.Run("TestFaultD21AmbiguousTag", func(t *testing.T) {
		if status, body := ask(e, "POST", "/images/bb:1/tag?repo=sha256&tag=abc"); status != 400 || !strings.Contains(body, "refusing to create an ambiguous tag using digest algorithm as name") {
			t.Errorf("tag sha256:abc: %d %s", status, body)
		}
	})
	status := 0
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/denied/"):
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://127.0.0.1:5001/token",service="s"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		case strings.HasSuffix(r.URL.Path, "/tags/list") && strings.HasPrefix(r.URL.Path, "/v2/loop/"):
			status++
			w.Header().Set("Link", `</v2/loop/x/tags/list?n=1000>; rel="next"`)
			fmt.Fprint(w, `{"name":"loop/x","tags":["a","b"]}`)
		default:
			http.Error(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`, http.StatusNotFound)
		}
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token":"anonymous"}`) })
	file := proatest.Tar(t, proatest.BusyboxRoot(t)...)
	mux.HandleFunc("/root.tar", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(file) })
	mux.Handle("/moved.tar", http.RedirectHandler("/root.tar", http.StatusFound))
	srv := &http.Server{Handler: mux}
	lst := proatest.ListenIn(t, e.Netns, "127.0.0.1:5001")
	go func() { _ = srv.Serve(lst) }()
	t.Cleanup(func() { srv.Close() })
	t.Run("TestFaultA6Unknown", func(t *testing.T) {
		for _, name := range []string{"denied/nosuch", "nosuch/x"} {
			if status, body := ask(e, "POST", "/images/create?fromImage=127.0.0.1:5001/"+name+"&tag=latest"); status != 404 || !strings.Contains(body, "repository does not exist") {
				t.Errorf("pull of %s: %d %s", name, status, body)
			}
		}
	})
	t.Run("TestFaultD40Loop", func(t *testing.T) {
		_, body := ask(e, "POST", "/images/create?fromImage=127.0.0.1:5001/loop/x&tag=c")
		if status != 1 && status != 2 || strings.Count(body, " a ") > 1 {
			t.Errorf("%d pages were read: %s", status, body)
		}
	})
	t.Run("TestFaultD22Headers", func(t *testing.T) {
		for _, header := range []string{"!!!", "bm9qc29u"} {
			w := proatest.NewWire(t, e.Socket)
			w.Ask("POST", "/images/create?fromImage=127.0.0.1:5001/nosuch/x&tag=latest", "", "X-Registry-Auth", header)
			if status, _, _ := w.Head(); status != 404 {
				t.Errorf("%s: %d, want the registry's 404", header, status)
			}
		}
	})
	t.Run("TestFaultC16ImportURL", func(t *testing.T) {
		for _, src := range []string{"http://127.0.0.1:5001/root.tar", "127.0.0.1:5001/moved.tar"} {
			if status, body := ask(e, "POST", "/images/create?repo=url&tag=1&fromSrc="+url.QueryEscape(src)); status != 200 {
				t.Errorf("import of %s: %d %s", src, status, body)
			}
		}
		if got := e.MustDocker("run", "--rm", "url:1", "/bin/echo", "ran"); got != "ran" {
			t.Errorf("ran %q", got)
		}
		for src, want := range map[string]int{"http://127.0.0.1:5001/nosuch": 404, "ftp://127.0.0.1/x": 400, "file:///etc/passwd": 400} {
			if status, body := ask(e, "POST", "/images/create?repo=url&tag=2&fromSrc="+url.QueryEscape(src)); status != want {
				t.Errorf("import of %s: %d, want %d: %s", src, status, want, body)
			}
		}
	})
	t.Run("TestFaultD39Digest", func(t *testing.T) {
		proatest.Box(t, e.Netns, "127.0.0.1:5002", t.TempDir())
		e.MustDocker("tag", "bb:1", "127.0.0.1:5002/r:t")
		e.MustDocker("push", "127.0.0.1:5002/r:t")
		at := e.MustDocker("inspect", "-f", "{{index .RepoDigests 0}}", "127.0.0.1:5002/r:t")
		at = "127.0.0.1:5002/r@" + at[strings.Index(at, "sha256:"):]
		e.MustDocker("pull", at)
		out := e.MustDocker("rmi", at)
		if !strings.Contains(out, "Untagged: 127.0.0.1:5002/r:t") || !strings.Contains(out, "Untagged: "+at) {
			t.Errorf("rmi by digest says %q", out)
		}
		if status, _ := ask(e, "GET", "/images/bb:1/json"); status != 200 {
			t.Errorf("the other repository's name is gone: %d", status)
		}
	})
}
