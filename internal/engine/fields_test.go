package engine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
)

// untouched are the fields of requests that nothing here reads, and why
// nothing is lost by that. Any other is honoured or refused by its name.
var untouched = map[string]string{
	"Config.AttachStdin":          "shown again: attach says what is attached, as in Docker",
	"Config.AttachStdout":         "shown again: attach says what is attached, as in Docker",
	"Config.AttachStderr":         "shown again: attach says what is attached, as in Docker",
	"Config.ArgsEscaped":          "of Windows",
	"Config.OnBuild":              "of images; commit keeps it",
	"EndpointSettings.DNSNames":   "filled in by the engine's answers",
	"EndpointSettings.GwPriority": "a container has one network",
	"EndpointSettings.NetworkID":  "filled in by the engine's answers",
	"Mount.Consistency":           "of other systems, without an effect on Linux in Docker too",
	"ImageOptions.Subpath":        "the mount is refused by its type",
}

// Row D26: every field of what a client may send is read somewhere, refused in
// the tables, or listed with a reason.
func TestFaultD26FieldsOfRequests(t *testing.T) {
	selectors := map[string]bool{}
	for _, dir := range []string{".", "../api", "../volume"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*.go"))
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					selectors[s.Sel.Name] = true
				}
				return true
			})
		}
	}
	used := map[string]bool{}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[container.Config](), reflect.TypeFor[container.HealthConfig](), reflect.TypeFor[container.UpdateConfig](),
		reflect.TypeFor[container.ExecCreateRequest](), reflect.TypeFor[container.ExecStartRequest](),
		reflect.TypeFor[network.EndpointSettings](), reflect.TypeFor[network.EndpointIPAMConfig](),
		reflect.TypeFor[mount.Mount](), reflect.TypeFor[mount.BindOptions](), reflect.TypeFor[mount.VolumeOptions](), reflect.TypeFor[mount.TmpfsOptions](),
		reflect.TypeFor[mount.ImageOptions](), reflect.TypeFor[mount.Driver](), reflect.TypeFor[volume.CreateRequest](),
	} {
		for _, f := range reflect.VisibleFields(typ) {
			key := typ.Name() + "." + f.Name
			if f.Anonymous || len(f.Index) > 1 {
				continue // of Resources, which knobs treats
			}
			_, ok := untouched[key]
			used[key] = true
			if !ok && !selectors[f.Name] {
				t.Errorf("%s is read by nobody: honour it or refuse it", key)
			}
		}
	}
	for key := range untouched {
		if !used[key] {
			t.Errorf("untouched names %s, which no request has", key)
		}
	}
}
