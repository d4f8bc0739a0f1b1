// Package filters owns Docker's filters: the encodings of the parameter
// `filters`, the table of keys and values of each list and prune, the errors
// for what is not in the table, and how a value is compared. Lists ask it and
// never read a filter themselves. It knows no object: callers hand it names,
// labels and times.
//
// The reference is moby (daemon/internal/filters and the callers of Validate),
// API 1.56.
package filters

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Args are the filters of one request: a set of values for each key. A value
// that is present and false is one that a client sent as such.
type Args map[string]map[string]bool

// Error says that a filter or its value is not valid. It is an
// errdefs.ErrInvalidArgument whose message is Docker's.
type Error struct{ message string }

func (e *Error) Error() string { return e.message }

// Unwrap gives the kind.
func (e *Error) Unwrap() error { return errdefs.ErrInvalidArgument }

func invalid(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Parse reads the parameter in both of Docker's encodings:
// {"key":{"value":true}} and, of clients before API 1.22, {"key":["value"]}.
func Parse(raw string) (Args, error) {
	a := Args{}
	if raw == "" {
		return a, nil
	}
	if err := json.Unmarshal([]byte(raw), &a); err == nil {
		return orEmpty(a), nil
	}
	var old map[string][]string
	if err := json.Unmarshal([]byte(raw), &old); err != nil {
		return nil, invalid("invalid filter")
	}
	return Of(old), nil
}

func orEmpty(a Args) Args {
	if a == nil { // the JSON document "null"
		return Args{}
	}
	return a
}

// Of makes filters of lists of values.
func Of(values map[string][]string) Args {
	a := Args{}
	for k, vs := range values {
		a[k] = make(map[string]bool, len(vs))
		for _, v := range vs {
			a[k][v] = true
		}
	}
	return a
}

// Add adds a value to a key.
func (a Args) Add(key, value string) {
	if a[key] == nil {
		a[key] = map[string]bool{}
	}
	a[key][value] = true
}

// Has tells whether a key was given, with or without values.
func (a Args) Has(key string) bool {
	_, ok := a[key]
	return ok
}

// Values are those of a key, sorted.
func (a Args) Values(key string) []string { return slices.Sorted(maps.Keys(a[key])) }

// Exact tells whether v is one of the values; true where the key has none.
func (a Args) Exact(key, v string) bool { return len(a[key]) == 0 || a[key][v] }

// Prefix tells whether v is one of the values or begins with one; true where
// the key has none.
func (a Args) Prefix(key, v string) bool {
	if a.Exact(key, v) {
		return true
	}
	for p := range a[key] {
		if strings.HasPrefix(v, p) {
			return true
		}
	}
	return false
}

// Pattern tells whether v is one of the values or holds a match of one, read
// as a regular expression; true where the key has none. A value that is no
// expression matches nothing, as in Docker.
func (a Args) Pattern(key, v string) bool {
	if a.Exact(key, v) {
		return true
	}
	for p := range a[key] {
		if ok, err := regexp.MatchString(p, v); err == nil && ok {
			return true
		}
	}
	return false
}

// Pairs tells whether the map has every "key" and "key=value" of the values.
func (a Args) Pairs(key string, m map[string]string) bool {
	for want := range a[key] {
		if !HasPair(m, want) {
			return false
		}
	}
	return true
}

// HasPair tells whether a map has a pair given as "key" or "key=value".
func HasPair(m map[string]string, want string) bool {
	k, v, exact := strings.Cut(want, "=")
	got, ok := m[k]
	return ok && (!exact || got == v)
}

// Labels tells whether labels have all of "label" and not all of "label!".
func (a Args) Labels(labels map[string]string) bool {
	return a.Pairs("label", labels) && (len(a["label!"]) == 0 || !a.Pairs("label!", labels))
}

// Bool reads a key that is true ("1", "true") or false ("0", "false"), and
// gives otherwise where it is missing.
func (a Args) Bool(key string, otherwise bool) (bool, error) {
	if !a.Has(key) {
		return otherwise, nil
	}
	if len(a[key]) == 0 {
		return otherwise, invalid("invalid filter '%s'", key)
	}
	no, yes := a[key]["0"] || a[key]["false"], a[key]["1"] || a[key]["true"]
	if no == yes { // neither, or both
		return otherwise, invalid("invalid filter '%s=%s'", key, a.Values(key))
	}
	return yes, nil
}

// Flags makes filters of a command line's KEY=VALUE arguments for a list.
// Errors name what the list knows, so that a person need not ask the engine.
func (l *List) Flags(args []string) (Args, error) {
	a := Args{}
	for _, arg := range args {
		k, v, ok := strings.Cut(arg, "=")
		if !ok {
			return nil, invalid("bad format of filter %q (expected name=value)", arg)
		}
		a.Add(strings.ToLower(strings.TrimSpace(k)), strings.TrimSpace(v))
	}
	for k := range a {
		if l.key(k) == nil && !l.Open {
			return nil, invalid("invalid filter '%s': %s can be filtered by %s", k, l.What, strings.Join(l.names(), ", "))
		}
	}
	return a, l.Check(a)
}
