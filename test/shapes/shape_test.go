package shapes

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// shape is which types a document has where: "HostConfig.Binds" -> null, list.
// Elements of lists and of the maps below stand for each other, as "*".
type shape map[string]map[string]bool

// freeKeys are objects whose keys are a user's, or an address.
var freeKeys = []string{
	"Labels", "Options", "DriverOpts", "Annotations", "Networks", "Containers", "Ports", "PortBindings", "ExposedPorts", "Volumes",
	"Runtimes", "Attributes", "Details", "IndexConfigs", "Tmpfs", "Sysctls", "StorageOpt", "networks", "stats", "Data", "Config.Config",
}

// shapeOf reads the documents of an answer, one after the other.
func shapeOf(body string) (shape, error) {
	s := shape{}
	dec := json.NewDecoder(strings.NewReader(body))
	for dec.More() {
		var v any
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("%s: %w", body, err)
		}
		s.add("", "", v)
	}
	return s, nil
}

func (s shape) add(at, key string, v any) {
	kind := map[bool]string{true: "null"}[v == nil]
	switch v := v.(type) {
	case string:
		kind = "string"
	case bool:
		kind = "bool"
	case float64:
		kind = "number"
	case []any:
		kind = "list"
		for _, e := range v {
			s.add(join(at, "*"), "*", e)
		}
	case map[string]any:
		kind = "object"
		for k, e := range v {
			if slices.Contains(freeKeys, key) {
				k = "*"
			}
			s.add(join(at, k), k, e)
		}
	}
	if s[at] == nil {
		s[at] = map[string]bool{}
	}
	s[at][kind] = true
}

func join(at, k string) string {
	if at == "" {
		return k
	}
	return at + "." + k
}

func (s shape) kinds(at string) string { return strings.Join(slices.Sorted(maps.Keys(s[at])), "|") }

// inside reports whether what at lies in is there on both sides: of a whole
// object that is missing only the object is a difference.
func inside(a, b shape, at string) bool {
	i := strings.LastIndexByte(at, '.')
	if i < 0 {
		return true
	}
	return a[at[:i]] != nil && b[at[:i]] != nil && a.kinds(at[:i]) != "null" && b.kinds(at[:i]) != "null"
}

// reason is a difference that is on purpose.
type reason struct{ route, path, why string }

// differences lists where ours is not theirs and no reason says why; used
// collects the reasons that were needed.
func differences(route string, ours, theirs shape, reasons []reason, used map[reason]bool) []string {
	var out []string
	all := maps.Clone(ours)
	maps.Copy(all, theirs)
next:
	for _, at := range slices.Sorted(maps.Keys(all)) {
		if ours.kinds(at) == theirs.kinds(at) || !inside(ours, theirs, at) {
			continue
		}
		for _, r := range reasons {
			if fits(r.route, route) && fits(r.path, at) {
				used[r] = true
				continue next
			}
		}
		out = append(out, fmt.Sprintf("%s: %q, Docker %q", at, ours.kinds(at), theirs.kinds(at)))
	}
	return out
}

// fits: "" is every route, "x..." everything that begins with x.
func fits(pattern, s string) bool {
	begin, open := strings.CutSuffix(pattern, "...")
	return pattern == "" || pattern == s || open && strings.HasPrefix(s, begin)
}
