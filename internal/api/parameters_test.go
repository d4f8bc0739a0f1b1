package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const variants = "an image is kept for one platform; read where its other variants are kept"

// unread are the query parameters of Docker's API that no handler reads, and
// why nothing is lost by that. Any other has to be honoured or refused.
var unread = map[string]string{
	"POST /containers/{id}/start detachKeys": "a start attaches nothing, and Docker's daemon does not read it either",
	"GET /images/json digests":               "digests are always shown, as in Docker",
	"GET /images/json shared-size":           "the shared size is always there",
	// Which variants of an image are meant.
	"GET /images/json manifests":          variants,
	"GET /images/json identity":           variants,
	"GET /images/{name}/json manifests":   variants,
	"GET /images/{name}/json platform":    variants,
	"GET /images/{name}/history platform": variants,
	"GET /images/{name}/get platform":     variants,
	"GET /images/get platform":            variants,
	"POST /images/load platform":          variants,
	"DELETE /images/{name} platforms":     variants,
	"POST /build rm":                      "no container is left of a step",
	"POST /build forcerm":                 "no container is left of a step",
}

// Row D26: each query parameter of each served route of Docker's published API
// description (moby/api docs, 1.24 is of another form; 1.25 to 1.56) is read by
// its handler.
func TestFaultD26QueryParameters(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	pages, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(out)), "docs", "v1.*.yaml"))
	if len(pages) < 30 {
		t.Fatalf("%d API descriptions beside %s", len(pages), out)
	}
	funcs := sources(t)
	handlers := handlersOf(t)
	s := New(Rooms{})
	seen := map[string]bool{}
	for _, page := range pages {
		for _, p := range described(t, page) {
			key := p.method + " " + p.path + " " + p.name
			if seen[key] {
				continue
			}
			seen[key] = true
			probe := strings.NewReplacer("{id}", "x", "{name}", "x").Replace(p.path)
			var route *entry
			for i := range s.table {
				e := &s.table[i]
				if route == nil && e.method == p.method && e.pattern.match(probe, func(string, string) {}) {
					route = e
				}
			}
			if route == nil {
				t.Errorf("%s %s of %s is no route: neither served nor said to be absent", p.method, p.path, filepath.Base(page))
				continue
			}
			handler := handlers[route.method+" "+route.path]
			if slices.Contains([]string{"notServed", "experimental", "noManager", "noSwarm", "noPlugin", "volumeUpdate"}, handler) {
				continue
			}
			if read(funcs, handler, p.name, map[string]bool{}) {
				continue
			}
			if _, ok := unread[key]; !ok {
				t.Errorf("%s (%s) is read by nobody: honour it or refuse it", key, handler)
			}
		}
	}
	for key := range unread {
		if !seen[key] {
			t.Errorf("%s is in no description: take it out of unread", key)
		}
	}
}

type parameter struct{ method, path, name string }

var yamlLine = regexp.MustCompile(`^( *)(- )?([^:#]+):\s*"?([^"]*)"?\s*$`)

// described are the query parameters of an API description. Its form is fixed:
// paths stand at two spaces, methods at four.
func described(t *testing.T, page string) []parameter {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out []parameter
	var at parameter
	in := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if line == "paths:" {
			in = true
			continue
		}
		m := yamlLine.FindStringSubmatch(line)
		if !in || m == nil {
			continue
		}
		switch indent, key, value := len(m[1]), strings.Trim(m[3], `" `), m[4]; {
		case indent == 2 && strings.HasPrefix(key, "/"):
			at = parameter{path: key}
		case indent == 4:
			at.method = strings.ToUpper(key)
		case m[2] != "" && key == "name" && indent <= 8:
			at.name = value
		case key == "in" && value == "query" && at.name != "":
			out = append(out, at)
		}
	}
	if len(out) < 50 {
		t.Fatalf("only %d query parameters in %s", len(out), page)
	}
	return out
}

// function is what a function of the engine's side reads of a query, and whom it calls.
type function struct{ words, calls []string }

// sources are the functions that answer requests, by name.
func sources(t *testing.T) map[string]function {
	t.Helper()
	out := map[string]function{}
	for _, dir := range []string{".", "../builder", "../build", "../filters"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Body == nil {
					continue
				}
				have := out[fn.Name.Name]
				ast.Inspect(fn.Body, func(n ast.Node) bool {
					switch n := n.(type) {
					case *ast.BasicLit:
						if s, err := strconv.Unquote(n.Value); err == nil && n.Kind == token.STRING {
							have.words = append(have.words, s)
						}
					case *ast.SelectorExpr:
						have.calls = append(have.calls, n.Sel.Name)
					case *ast.Ident:
						have.calls = append(have.calls, n.Name)
					}
					return true
				})
				out[fn.Name.Name] = have
			}
		}
	}
	return out
}

// read reports whether a function, or one that it calls, names a parameter.
func read(funcs map[string]function, name, parameter string, seen map[string]bool) bool {
	f, ok := funcs[name]
	if !ok || seen[name] {
		return false
	}
	seen[name] = true
	if slices.Contains(f.words, parameter) {
		return true
	}
	return slices.ContainsFunc(f.calls, func(c string) bool { return read(funcs, c, parameter, seen) })
}

// handlersOf reads the names of the handlers from the table of routes.
func handlersOf(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("routes.go")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, m := range regexp.MustCompile(`\{"([A-Z]+)", "([^"]+)", (?:\w+\()?s\.(\w+)`).FindAllStringSubmatch(string(text), -1) {
		out[m[1]+" "+m[2]] = m[3]
	}
	if len(out) != len((&Server{}).routes()) {
		t.Fatalf("%d handlers of %d routes", len(out), len((&Server{}).routes()))
	}
	return out
}
