package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// engineFiles are the only files of an instance that need not be the image's:
// the engine makes or covers them.
var engineFiles = []string{"/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/.dockerenv", "/etc/mtab"}

// netBind is the file capability cap_net_bind_service=ep (revision 2).
const netBind = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

var goldenTime = time.Unix(1600000000, 123456789)

func file(name, body string) *tar.Header {
	// The body travels in a field that tar writers ignore until goldenTar.
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: goldenTime, Size: int64(len(body)), PAXRecords: map[string]string{"body": body}}
}

func dir(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: goldenTime.Add(time.Nanosecond)}
}

func link(kind byte, name, target string) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, ModTime: goldenTime.Add(2 * time.Nanosecond)}
}

func node(kind byte, name string, major, minor int64) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Mode: 0o660, Devmajor: major, Devminor: minor, ModTime: goldenTime}
}

func with(h *tar.Header, change func(*tar.Header)) *tar.Header { change(h); return h }

func mode(m int64, h *tar.Header) *tar.Header {
	return with(h, func(h *tar.Header) { h.Mode = m })
}

func owner(uid, gid int, h *tar.Header) *tar.Header {
	return with(h, func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
}

func at(sec, nsec int64, h *tar.Header) *tar.Header {
	return with(h, func(h *tar.Header) { h.ModTime = time.Unix(sec, nsec) })
}

func xattr(name, value string, h *tar.Header) *tar.Header {
	return with(h, func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	})
}

// goldenLayers is every kind of file and every way in which layers meet. Each
// layer names the directories that it changes, as builders do, so that their
// times are said by the layers.
func goldenLayers(lister string) [][]*tar.Header {
	base := []*tar.Header{
		mode(0o755, dir(".")), mode(0o755, file("lister", lister)), dir("etc"), dir("dev"), dir("proc"), dir("sys"),
		file("etc/hosts", ""), file("etc/hostname", ""), file("etc/resolv.conf", ""), file("etc/passwd", "root:x:0:0::/:/lister\n"),
	}
	kinds := []*tar.Header{
		dir("kinds"), file("kinds/empty", ""), file("kinds/one", "1"), file("kinds/block", strings.Repeat("b", 4096)),
		file("kinds/large", strings.Repeat("0123456789abcdef", 1<<16)+"tail"),
		file("kinds/zeros", strings.Repeat("\x00", 1<<20)), node(tar.TypeFifo, "kinds/fifo", 0, 0), node(tar.TypeChar, "kinds/null", 1, 3),
		node(tar.TypeBlock, "kinds/high", 0xfff, 0xfffff), link(tar.TypeLink, "kinds/null2", "kinds/null"),
		link(tar.TypeSymlink, "kinds/to", "one"), link(tar.TypeSymlink, "kinds/away", "/no/such"), link(tar.TypeSymlink, "kinds/weird", "\xff\n"),
		mode(0o4755, file("kinds/setuid", "x")), mode(0o2755, owner(5, 6, file("kinds/setgid", "x"))), mode(0o1777, dir("kinds/sticky")), mode(0o2775, dir("kinds/setgid-dir")),
		mode(0, file("kinds/none", "secret")), owner(1000, 60000, file("kinds/owned", "x")), owner(4000000, 4000001, file("kinds/far", "x")),
		at(1, 1, file("kinds/first-ns", "")), at(-1, 500000000, file("kinds/before-1970", "")), at(6000000000, 999999999, file("kinds/after-2106", "")),
		at(99, 9, link(tar.TypeSymlink, "kinds/old-link", "x")), at(98, 8, dir("kinds/old-dir")), file("kinds/old-dir/new", ""),
		dir("übung"), file("übung/日本語", "x"), file("latin1-\xe4\xf6\xfc", "x"), file("new\nline", "x"), file(strings.Repeat("n", 255), "x"), file("..x", "x"), file("\xff", "x"),
		dir("attrs"), xattr("security.capability", netBind, mode(0o755, owner(7, 7, file("attrs/ping", "x")))), link(tar.TypeLink, "attrs/ping2", "attrs/ping"),
		xattr("user.big", strings.Repeat("v", 3000), xattr("user.empty", "", file("attrs/user", "x"))), xattr("trusted.t", "\x00\x01", file("attrs/trusted", "x")),
		xattr("user.dir", "d", dir("attrs/dir")), xattr("trusted.s", "s", link(tar.TypeSymlink, "attrs/sym", "x")), xattr("trusted.d", "d", node(tar.TypeChar, "attrs/dev", 1, 5)),
	}
	lower := []*tar.Header{
		dir("opaque"), file("opaque/old", "1"), file("opaque/.old", "1"), dir("opaque/sub"), file("opaque/sub/x", "1"),
		dir("changes"), file("changes/x", "1"), dir("twice"), file("twice/old", "1"), file("again", "1"), dir("gone"), file("gone/x", "1"),
		dir("links"), file("links/a", "1"), link(tar.TypeLink, "links/b", "links/a"), link(tar.TypeLink, "links/c", "links/b"), file("links/z", "z"),
	}
	middle := []*tar.Header{
		mode(0o755, dir(".")), mode(0o700, dir("opaque")), file("opaque/!", "2"), file("opaque/.bashrc", "2"), dir("opaque/.ssh"), file("opaque/.ssh/key", "2"), file("opaque/.wh..wh..opq", ""), file("opaque/zz", "2"),
		link(tar.TypeSymlink, "changes", "kinds"),
		file("again", "2"), file(".wh.again", ""), file(".wh.twice", ""), dir("twice"), file("twice/new", "2"), file(".wh.gone", ""),
		dir("links"), link(tar.TypeLink, "links/across", "links/b"), file("links/z", "replaced"), link(tar.TypeLink, "links/z2", "links/z"),
	}
	upper := []*tar.Header{
		mode(0o751, dir(".")), file("changes", "now a file"), dir("links"), file("links/.wh.a", ""), file("links/c", "no link any more"),
		dir("gone"), file("gone/back", "3"), mode(0o711, dir("opaque")),
	}
	return [][]*tar.Header{append(base, append(kinds, lower...)...), middle, upper}
}

// sixtyLayers is an image whose every layer adds, replaces, links and deletes.
func sixtyLayers(lister string) (layers [][]*tar.Header) {
	layers = [][]*tar.Header{{
		dir("."), mode(0o755, file("lister", lister)), dir("etc"), dir("dev"), dir("proc"), dir("sys"), file("etc/hosts", ""), file("etc/hostname", ""), file("etc/resolv.conf", ""),
	}}
	for i := 1; i < 60; i++ {
		l := []*tar.Header{at(int64(i), 60-int64(i), dir(".")), at(int64(i), int64(i), dir("d")), file(fmt.Sprintf("d/%d", i), strings.Repeat(fmt.Sprint(i), i*101)), file("d/last", fmt.Sprint(i)), link(tar.TypeLink, fmt.Sprintf("d/link%d", i), "d/last")}
		if i > 2 {
			l = append(l, file(fmt.Sprintf("d/.wh.%d", i-2), ""))
		}
		layers = append(layers, l)
	}
	return layers
}

// goldenTar writes headers as one layer.
func goldenTar(t *testing.T, layer []*tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range layer {
		h := *h
		records := map[string]string{}
		for k, v := range h.PAXRecords {
			if k != "body" {
				records[k] = v
			}
		}
		body := h.PAXRecords["body"]
		h.PAXRecords, h.Format = records, tar.FormatPAX
		if !isText(h.Name) || !isText(h.Linkname) {
			// PAX records are UTF-8; GNU's format takes any byte, and no fractions.
			h.Format, h.ModTime = tar.FormatGNU, h.ModTime.Truncate(time.Second)
			h.PAXRecords = nil
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func isText(s string) bool { return strings.ToValidUTF8(s, "") == s }

// sparseLayer is a layer that GNU tar makes of a sparse file.
func sparseLayer(t *testing.T) []byte {
	t.Helper()
	d := t.TempDir()
	f, err := os.Create(filepath.Join(d, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1 << 20, 1<<20 + 70000, 3<<20 + 5} {
		if _, err := f.WriteAt([]byte(fmt.Sprint("data at ", off)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(4<<20 + 1); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(f.Name(), goldenTime, goldenTime); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("tar", "-cS", "--format=pax", "--numeric-owner", "-C", d, "sparse").Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// oracle extracts layers over each other with GNU tar, in order. Whiteouts are
// applied before, by what the OCI image specification says of them: they hide
// files of lower layers, never of their own.
func oracle(t *testing.T, layers [][]byte) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "oracle")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		for r := tar.NewReader(bytes.NewReader(l)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			p := filepath.Join(root, h.Name)
			st, statErr := os.Lstat(p)
			switch base := path.Base(h.Name); {
			case base == ".wh..wh..opq":
				kids, err := os.ReadDir(filepath.Dir(p))
				if err != nil {
					t.Fatal(err)
				}
				for _, k := range kids {
					err = os.RemoveAll(filepath.Join(filepath.Dir(p), k.Name()))
				}
				if err != nil {
					t.Fatal(err)
				}
			case strings.HasPrefix(base, ".wh."):
				if err := os.RemoveAll(filepath.Join(filepath.Dir(p), base[len(".wh."):])); err != nil {
					t.Fatal(err)
				}
			case statErr == nil && st.IsDir() && h.Typeflag != tar.TypeDir:
				// GNU tar does not put a file in the place of a full directory.
				if err := os.RemoveAll(p); err != nil {
					t.Fatal(err)
				}
			}
		}
		cmd := exec.Command("tar", "-x", "-p", "--same-owner", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore", "--exclude=.wh.*", "-C", root)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		cmd.Stdin = bytes.NewReader(l)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar of layer %d: %v\n%s", i, err, out)
		}
	}
	return root
}

var links = regexp.MustCompile(` links=\d+`)

// lines are the lister's, by path.
func lines(t *testing.T, text string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
		p, rest, ok := strings.Cut(l, " mode=")
		if !ok {
			t.Fatalf("no line of the lister: %q", l)
		}
		out[p] = "mode=" + rest
	}
	return out
}

// mergedDirectories hold the image's files and the engine's. An overlay says
// that they have one link (ovl_getattr); all else of them is compared.
var mergedDirectories = []string{"/", "/etc"}

func sameFiles(t *testing.T, got, want map[string]string) {
	t.Helper()
	got, want = maps.Clone(got), maps.Clone(want)
	for _, p := range mergedDirectories {
		p = strconv.Quote(p)
		got[p], want[p] = links.ReplaceAllString(got[p], ""), links.ReplaceAllString(want[p], "")
	}
	var all []string
	for p := range want {
		all = append(all, p)
	}
	for p := range got {
		if want[p] == "" {
			all = append(all, p)
		}
	}
	sort.Strings(all)
	for _, p := range all {
		if got[p] != want[p] {
			t.Errorf("%s\n   is %.400s\nwanted %.400s", p, got[p], want[p])
		}
	}
}

// throughUserNamespace is how an unprivileged container sees the lines: trusted
// attributes are the host administrator's. Owners above 65535 are as they are.
func throughUserNamespace(files map[string]string) map[string]string {
	trusted := regexp.MustCompile(` trusted\.\S+="(\\.|[^"\\])*"`)
	out := map[string]string{}
	for p, l := range files {
		out[p] = trusted.ReplaceAllString(l, "")
	}
	return out
}

// Behind each wall, and under each way to mount an image, every file is what
// GNU tar makes of the layers: path, type, mode, owner, time in nanoseconds,
// size, link count, device number, extended attributes and content.
func TestImagesAreWhatTarSays(t *testing.T) {
	proatest.NeedRoot(t)
	bin := filepath.Join(t.TempDir(), "lister")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "proa/test/lister")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("not compared, since the engine makes them: %s", strings.Join(engineFiles, " "))
	t.Logf("compared but for their link count, which is one in an overlay: %s", strings.Join(mergedDirectories, " "))
	archives, wants := map[string]string{}, map[string]map[string]string{}
	for name, headers := range map[string][][]*tar.Header{"golden": goldenLayers(string(b)), "sixty": sixtyLayers(string(b))} {
		var layers [][]byte
		for _, h := range headers {
			layers = append(layers, goldenTar(t, h))
		}
		if name == "golden" {
			// Below the others, so that their root directory is the last said.
			layers = append([][]byte{sparseLayer(t)}, layers...)
		}
		archives[name] = filepath.Join(t.TempDir(), name+".tar")
		if err := os.WriteFile(archives[name], proatest.Archive(t, name+":latest", map[string]any{"Cmd": []string{"/lister", "/"}}, layers...), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, append([]string{oracle(t, layers)}, engineFiles...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		wants[name] = lines(t, string(out))
	}
	if n := len(wants["golden"]); n < 60 {
		t.Fatalf("the oracle of the golden image has only %d files", n)
	}
	for _, strategy := range []string{"file", "loop", "extract"} {
		t.Run(strategy, func(t *testing.T) {
			proatest.NeedStrategy(t, strategy)
			e := proatest.New(t, proatest.Args("--storage-strategy", strategy))
			for name, archive := range archives {
				e.MustDocker("load", "-i", archive)
				want := wants[name]
				for _, c := range []struct {
					name string
					args []string
					want map[string]string
				}{
					{"privileged container", []string{"--privileged"}, want},
					{"container", nil, throughUserNamespace(want)},
					{"vm", []string{"--runtime", "vm", "--cap-add", "SYS_ADMIN"}, want}, // the capability shows trusted.*
				} {
					t.Run(name+" in a "+c.name, func(t *testing.T) {
						args := append([]string{"run", "--rm", "--network", "none"}, c.args...)
						r := e.Docker(append(append(args, name, "/lister", "/"), engineFiles...)...)
						if r.Code != 0 {
							t.Fatalf("exit code %d\n%s%s", r.Code, r.Stdout, r.Stderr)
						}
						sameFiles(t, lines(t, r.Stdout), c.want)
					})
				}
			}
		})
	}
}
