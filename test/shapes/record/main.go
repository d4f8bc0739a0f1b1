// Command record writes test/shapes/testdata/published.txt: which keys, with
// which types, Docker's published descriptions of its API have in the answers
// of which versions.
//
//	go run ./test/shapes/record DIR >test/shapes/testdata/published.txt
//
// DIR is docs of the module github.com/moby/moby/api. A line is a route, a path
// ("*" for elements and free keys), a type, and the versions that have it.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

var versions = []int{43, 44, 47, 48, 50, 51, 52, 56}

var routes = []string{
	"/version", "/info", "/containers/json", "/containers/{id}/json", "/containers/{id}/top", "/containers/{id}/changes", "/exec/{id}/json",
	"/images/json", "/images/{name}/json", "/images/{name}/history", "/volumes", "/volumes/{name}", "/networks", "/networks/{id}", "/system/df", "/events",
}

type node = map[string]any

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: record DIR")
	}
	have := map[string][]string{}
	for _, v := range versions {
		raw, err := os.ReadFile(filepath.Join(os.Args[1], fmt.Sprintf("v1.%d.yaml", v)))
		if err != nil {
			log.Fatal(err)
		}
		var doc node
		if err := yaml.Unmarshal(raw, &doc); err != nil {
			log.Fatal(err)
		}
		for _, r := range routes {
			seen := map[string]bool{}
			schema := get(doc, "paths", r, "get", "responses", "200", "schema")
			walk(doc, schema, "", 0, func(path, kind string) { seen[r+"\t"+path+"\t"+kind] = true })
			for line := range seen {
				have[line] = append(have[line], fmt.Sprint(v))
			}
		}
	}
	var lines []string
	for line, in := range have {
		all := strings.Join(in, ",")
		if len(in) == len(versions) {
			all = "all"
		}
		lines = append(lines, line+"\t"+all)
	}
	slices.Sort(lines)
	fmt.Println(strings.Join(lines, "\n"))
}

func get(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(node)
		if n, ok := m[k]; ok {
			v = n
			continue
		}
		i := slices.IndexFunc(keysOf(v), func(have string) bool { return fmt.Sprint(have) == k })
		if i < 0 {
			return nil
		}
		v = v.(map[any]any)[200]
	}
	return v
}

func keysOf(v any) []string {
	m, _ := v.(map[any]any)
	var out []string
	for k := range m {
		out = append(out, fmt.Sprint(k))
	}
	return out
}

// walk tells of the keys of a schema. Schemas of images hold schemas without end.
func walk(doc node, schema any, at string, depth int, tell func(path, kind string)) {
	s, _ := schema.(node)
	if s == nil || depth > 12 {
		return
	}
	if ref, ok := s["$ref"].(string); ok {
		walk(doc, get(doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...), at, depth+1, tell)
		return
	}
	parts, _ := s["allOf"].([]any)
	for _, p := range parts {
		walk(doc, p, at, depth+1, tell)
	}
	kind, _ := s["type"].(string)
	switch kind {
	case "integer":
		kind = "number"
	case "boolean":
		kind = "bool"
	case "array":
		kind = "list"
		walk(doc, s["items"], join(at, "*"), depth+1, tell)
	case "":
		kind = "object"
	}
	tell(at, kind)
	if props, ok := s["properties"].(node); !ok && s["additionalProperties"] == nil && kind == "object" {
		tell(join(at, "..."), "any")
	} else if ok {
		walkAll(doc, props, at, depth, tell)
	}
	walk(doc, s["additionalProperties"], join(at, "*"), depth+1, tell)
}

func walkAll(doc, props node, at string, depth int, tell func(path, kind string)) {
	for k, p := range props {
		walk(doc, p, join(at, k), depth+1, tell)
	}
}

func join(at, k string) string {
	if at == "" {
		return k
	}
	return at + "." + k
}
