package shapes

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// published is what the command record read from Docker's descriptions.
//
//go:embed testdata/published.txt
var published string

// described are the routes of published, with what is asked of each here.
var described = map[string][]string{
	"/version":                 {"/version"},
	"/info":                    {"/info"},
	"/containers/json":         {"/containers/json?all=1&size=1"},
	"/containers/{id}/json":    {"/containers/running/json?size=1", "/containers/ended/json", "/containers/made/json"},
	"/containers/{id}/top":     {"/containers/running/top"},
	"/containers/{id}/changes": {"/containers/running/changes"},
	"/exec/{id}/json":          {"/exec/EXEC/json"},
	"/images/json":             {"/images/json?all=1"},
	"/images/{name}/json":      {"/images/full:1/json", "/images/bare:1/json"},
	"/images/{name}/history":   {"/images/full:1/history"},
	"/volumes":                 {"/volumes"},
	"/volumes/{name}":          {"/volumes/v1"},
	"/networks":                {"/networks"},
	"/networks/{id}":           {"/networks/bridge", "/networks/none"},
	"/system/df":               {"/system/df?verbose=1"}, // which 1.52 brought: without it the old form is there too
	"/events":                  {"/events?since=1&until=NOW"},
}

// key is one line of published.
type key struct{ route, path, kind, versions string }

func (k key) at(minor int) bool {
	return k.versions == "all" || slices.Contains(strings.Split(k.versions, ","), fmt.Sprint(minor))
}

// covers reports whether a path of an answer is this one.
func (k key) covers(path string) bool {
	want, have := strings.Split(k.path, "."), strings.Split(path, ".")
	if begin, open := strings.CutSuffix(k.path, "..."); open {
		return begin == "" || strings.HasPrefix(path, begin)
	}
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if want[i] != have[i] && want[i] != "*" && have[i] != "*" {
			return false
		}
	}
	return true
}

// TestShapesThatArePublished holds the answers of newer versions to Docker's
// descriptions of them: no key that the version does not know, none of another
// type, and none missing that went with a later version.
func TestShapesThatArePublished(t *testing.T) {
	var keys []key
	for _, line := range strings.Split(strings.TrimSpace(published), "\n") {
		f := strings.Split(line, "\t")
		keys = append(keys, key{f[0], f[1], f[2], f[3]})
	}
	e := proatest.New(t)
	s := newSide("proa", e.Socket)
	s.fill(t, string(proatest.Tar(t, proatest.BusyboxRoot(t)...)))
	for _, minor := range []int{43, 44, 47, 48, 50, 51, 52, 56} {
		for route, paths := range described {
			ours := shape{}
			for _, p := range paths {
				for at, kinds := range s.shape(t, minor, "GET", p, "") {
					if ours[at] == nil {
						ours[at] = map[string]bool{}
					}
					for k := range kinds {
						ours[at][k] = true
					}
				}
			}
			delete(ours, "HTTP status")
			for _, d := range unpublished(route, minor, ours, keys) {
				t.Errorf("1.%d %s %s", minor, route, d)
			}
		}
	}
}

func unpublished(route string, minor int, ours shape, keys []key) []string {
	var out []string
	excused := func(at string) bool {
		return slices.ContainsFunc(notPublished, func(r reason) bool { return fits(r.route, route) && fits(r.path, at) })
	}
	for at := range ours {
		kinds := map[string]bool{}
		for _, k := range keys {
			if k.route == route && k.at(minor) && k.covers(at) {
				kinds[k.kind] = true
			}
		}
		for kind := range ours[at] {
			if kind != "null" && !kinds[kind] && !kinds["any"] && inside(ours, ours, at) && !excused(at) {
				out = append(out, fmt.Sprintf("%s: %s is not in the description, which has %v", at, kind, kinds))
			}
		}
	}
	for _, k := range keys {
		gone := k.route == route && k.at(minor) && !k.at(56) && !strings.HasSuffix(k.path, "...")
		if gone && ours[k.path] == nil && inside(ours, ours, k.path) && !excused(k.path) {
			out = append(out, k.path+" is missing, which went with a later version")
		}
	}
	slices.Sort(out)
	return out
}
