// Package house holds the order of the house: who may import whom, that each
// room says what it owns, and which doors are the only ones. It has no code.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// rank is the floor of a room: a room may import rooms of lower floors and
// rooms inside itself. The longest matching prefix counts.
var rank = map[string]int{
	"internal/version": 0, "internal/failure": 0, "internal/pace": 0, "internal/xz": 0, "internal/interrupt": 0, "internal/filters": 0,
	"internal/sys": 1, "internal/platform": 2, "internal/event": 1, "internal/state": 1, "internal/isolation": 1,
	"internal/isolation/userdb": 2,
	"internal/sys/cgroup":       2, "internal/rootfs": 2,
	"internal/image": 3, "internal/volume": 3, "internal/network": 3, "internal/logs": 3,
	"internal/image/erofs": 1, "internal/image/flat": 2, "internal/image/remote": 2, "internal/image/remote/pick": 3,
	"internal/builder/store": 4, "internal/build/store": 2,
	"internal/isolation/container": 4, "internal/isolation/vm": 4,
	"internal/isolation/container/seccomp": 3,
	"internal/isolation/vm/wire":           3, "internal/isolation/vm/agent": 4, "internal/isolation/vm/machine": 4,
	"internal/shim": 5, "internal/shim/wire": 4,
	"internal/registry": 3, "internal/registry/store": 2,
	"internal/engine":  6,
	"internal/builder": 7,
	"internal/api":     8, "internal/api/versions": 7,
	"internal/daemon": 9,
	"internal/client": 1,
	"internal/build":  5, "internal/build/wire": 1, "internal/build/words": 4, "internal/build/command": 6,
	"internal/compare": 2,
	"internal/cli":     9,
	"internal/house":   10,
	"test":             10,
	"cmd":              10,
}

func floor(path string) (int, bool) {
	path = strings.TrimPrefix(path, "proa/")
	best, at, ok := 0, -1, false
	for prefix, r := range rank {
		if (path == prefix || strings.HasPrefix(path, prefix+"/")) && len(prefix) > at {
			best, at, ok = r, len(prefix), true
		}
	}
	return best, ok
}

type pkg struct {
	ImportPath, Dir, Name      string
	Imports, TestImports, Deps []string
	GoFiles                    []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Name,Imports,TestImports,Deps,GoFiles"}, args...)...)
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportsRunOneWay(t *testing.T) {
	for _, p := range list(t, "./...") {
		mine, ok := floor(p.ImportPath)
		if !ok {
			t.Errorf("%s has no floor: say in internal/house where it belongs", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, "proa/") {
				continue
			}
			theirs, _ := floor(imp)
			inside := strings.HasPrefix(imp, p.ImportPath+"/") || strings.HasPrefix(p.ImportPath, imp+"/")
			if theirs > mine || theirs == mine && !inside {
				t.Errorf("%s (floor %d) imports %s (floor %d)", p.ImportPath, mine, imp, theirs)
			}
		}
	}
}

// The client side talks to the API and links nothing of the engine.
func TestClientSideLinksNoEngine(t *testing.T) {
	allowed := []string{"proa/internal/cli", "proa/internal/client", "proa/internal/compare", "proa/internal/failure", "proa/internal/filters", "proa/internal/interrupt", "proa/internal/version", "proa/cmd/proa"}
	for _, p := range list(t, "-deps", "./cmd/proa") {
		if strings.HasPrefix(p.ImportPath, "proa/") {
			ok := false
			for _, a := range allowed {
				ok = ok || p.ImportPath == a || strings.HasPrefix(p.ImportPath, a+"/")
			}
			if !ok {
				t.Errorf("proa links %s", p.ImportPath)
			}
		}
		for _, heavy := range []string{"containerd/v2", "vishvananda/netlink", "google/nftables", "bbolt", "moby/buildkit"} {
			if strings.Contains(p.ImportPath, heavy) {
				t.Errorf("proa links %s", p.ImportPath)
			}
		}
	}
}

// The shim lives as long as its instance, once for each: it stays small.
func TestShimAndAgentStaySmall(t *testing.T) {
	for _, prog := range []string{"./cmd/proa-shim", "./cmd/proa-agent"} {
		for _, p := range list(t, "-deps", prog) {
			for _, heavy := range []string{"net/http", "vishvananda/netlink", "google/nftables", "elastic/go-seccomp-bpf", "moby/profiles", "bbolt", "containerd/v2", "crypto/tls"} {
				if p.ImportPath == heavy || strings.Contains(p.ImportPath, heavy+"/") || strings.HasSuffix(p.ImportPath, heavy) {
					t.Errorf("%s links %s", prog, p.ImportPath)
				}
			}
		}
	}
}

// A panic of a goroutine of BuildKit ends the process that it is in, and its
// memory stays with it: neither is the engine's.
func TestEngineLinksNoBuildKit(t *testing.T) {
	for _, p := range list(t, "-deps", "./cmd/proad") {
		if strings.Contains(p.ImportPath, "moby/buildkit") || strings.HasPrefix(p.ImportPath, "proa/internal/build/") && !strings.HasSuffix(p.ImportPath, "/wire") {
			t.Errorf("proad links %s", p.ImportPath)
		}
	}
}

// The registry in the box is beside the engine and not above it.
func TestRegistryLinksNoEngine(t *testing.T) {
	allowed := []string{"proa/cmd/proa-registry", "proa/internal/failure", "proa/internal/registry", "proa/internal/state", "proa/internal/sys", "proa/internal/version"}
	for _, p := range list(t, "-deps", "./cmd/proa-registry") {
		ours := strings.HasPrefix(p.ImportPath, "proa/")
		for _, a := range allowed {
			ours = ours && p.ImportPath != a && !strings.HasPrefix(p.ImportPath, a+"/")
		}
		if ours || strings.Contains(p.ImportPath, "containerd/v2") || strings.Contains(p.ImportPath, "buildkit") {
			t.Errorf("proa-registry links %s", p.ImportPath)
		}
	}
}

func TestOnlySysOpensTheDoorToLinux(t *testing.T) {
	for _, p := range list(t, "./...") {
		if strings.HasPrefix(p.ImportPath, "proa/internal/sys") {
			continue
		}
		for _, imp := range p.Imports {
			if imp == "golang.org/x/sys/unix" {
				t.Errorf("%s imports golang.org/x/sys/unix; ask proa/internal/sys", p.ImportPath)
			}
		}
	}
}

func TestEachRoomSaysWhatItOwns(t *testing.T) {
	// The guests that tests boot are programs too, and no pattern finds them.
	for _, p := range list(t, "./...", "./internal/isolation/vm/testdata/...") {
		switch p.Name {
		case "util", "utils", "common", "helper", "helpers", "misc", "base", "shared":
			t.Errorf("%s: a room has a noun for a name", p.ImportPath)
		}
		said := ""
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if f.Doc != nil {
				said += f.Doc.Text()
			}
		}
		if len(p.GoFiles) > 0 && len(new(doc.Package).Synopsis(said)) < 20 {
			t.Errorf("%s has no package comment that says what it owns", p.ImportPath)
		}
	}
}

// The mains only hand over.
func TestMainsAreShort(t *testing.T) {
	mains, err := filepath.Glob("../../cmd/*/main.go")
	if err != nil || len(mains) < 5 {
		t.Fatalf("programs: %v %v", mains, err)
	}
	for _, m := range mains {
		b, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(b, []byte("\n")); n > 30 {
			t.Errorf("%s has %d lines", m, n)
		}
	}
}
