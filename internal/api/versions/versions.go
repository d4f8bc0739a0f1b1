// Package versions is what each version of Docker's API from 1.24 on had
// besides the newest: a table of rows, and the two functions that apply it.
// Handlers take and make the newest shapes only. An answer is changed to the
// shape of the client's version when it is encoded, a request to the newest
// shape before it is decoded. The package knows JSON and nothing of containers.
//
// To add a row:
//  1. Of is a route of the API ("GET /containers/json"), or a shape of shapes
//     where one object occurs in several answers.
//  2. Path leads to a field: names with dots between them; "*" stands for every
//     element of a list and every value of an object.
//  3. Since and Until bound the versions that differ from the newest: Since <=
//     version < Until. A field that came with 1.52 is {Until: 52, Do: Drop}; one
//     that went with 1.52 is {Until: 52, Do: Add, Value: "..."}. Request rows
//     without an Until are for all versions.
//  4. A value that the newest shape does not hold comes from the handler, which
//     answers With{Newest: v, Old: map[string]any{"name": value}}; the row
//     says From: "@name".
//  5. Source is the line of Docker's changelog or code that says so. The test
//     of test/shapes compares the whole with the published descriptions.
package versions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Versions of the API that the table covers, as minor versions: 1.24 to 1.56.
const (
	Oldest = 24
	Newest = 56
)

// Op is what a row does to the field that its path leads to.
type Op int

const (
	// Drop removes the field.
	Drop Op = iota
	// Add sets the field to From or Value where it is missing or null.
	Add
	// Set sets the field to From or Value, whatever it is.
	Set
	// Fill sets the field to From or Value where it is missing, null, "", 0,
	// false, or an empty list or object.
	Fill
	// List makes a string a list of that one string.
	List
	// Trim removes the field where it is null, "", 0, false, or an empty list or
	// object.
	Trim
)

// Row is one difference from the newest version.
type Row struct {
	Of, Path     string
	Since, Until int
	Do           Op
	// Value is JSON. From is a path of plain names from the object that holds the
	// field, or "@name" for a value of With; where it leads nowhere, Value counts.
	Value, From string
	// When bounds the row to objects of which a field has one of some values:
	// "Type=container,image". A list of one string counts as that, what is empty
	// as "".
	When   string
	Source string
}

// With is an answer of the newest shape with values that only old ones show.
type With struct {
	Newest any
	Old    map[string]any
}

// rule is a row made ready.
type rule struct {
	*Row
	path []string
	from []string
}

// index holds the rules of each route by version, answers and requests apart.
var answers, requests = index(Answers), index(Requests)

func index(rows []Row) map[string]*[Newest + 1][]rule {
	out := map[string]*[Newest + 1][]rule{}
	for i := range rows {
		r := &rows[i]
		places := shapes[r.Of]
		if places == nil {
			places = []place{{route: r.Of}}
		}
		if r.Value != "" && !json.Valid([]byte(r.Value)) {
			panic(fmt.Sprintf("versions: row %s %s: value %s is no JSON", r.Of, r.Path, r.Value))
		}
		until := r.Until
		if until == 0 {
			until = Newest + 1
		}
		for _, p := range places {
			at := out[p.route]
			if at == nil {
				at = new([Newest + 1][]rule)
				out[p.route] = at
			}
			path := r.Path
			if p.path != "" {
				path = p.path + "." + r.Path
			}
			ru := rule{Row: r, path: strings.Split(path, ".")}
			if r.From != "" {
				ru.from = strings.Split(r.From, ".")
			}
			for v := max(r.Since, Oldest, p.since); v < until; v++ {
				at[v] = append(at[v], ru)
			}
		}
	}
	return out
}

func rulesOf(in map[string]*[Newest + 1][]rule, route string, version int) []rule {
	at := in[route]
	if at == nil || version < Oldest || version > Newest {
		return nil
	}
	return at[version]
}

// Answer is v, of the newest shape, as JSON of a version, with a line feed
// behind it. An answer that no row is about is encoded as it is.
func Answer(route string, version int, v any) ([]byte, error) {
	var old map[string]any
	if w, ok := v.(With); ok {
		v, old = w.Newest, w.Old
	}
	b, err := encode(v)
	rules := rulesOf(answers, route, version)
	if err != nil || len(rules) == 0 {
		return b, err
	}
	doc, err := parse(b)
	if err != nil {
		return nil, err
	}
	for i := range rules {
		rules[i].apply(doc, rules[i].path, old)
	}
	return encode(doc)
}

// Request is the body of a request of a version in the newest shape. A body
// that is no JSON stays as it is: who decodes it says so.
func Request(route string, version int, body []byte) []byte {
	rules := rulesOf(requests, route, version)
	if len(rules) == 0 {
		return body
	}
	doc, err := parse(body)
	if err != nil {
		return body
	}
	for i := range rules {
		rules[i].apply(doc, rules[i].path, nil)
	}
	out, err := encode(doc)
	if err != nil {
		return body
	}
	return out
}

// Rewrites reports whether Request changes anything at that route and version.
func Rewrites(route string, version int) bool { return len(rulesOf(requests, route, version)) > 0 }

// encode is v as JSON. As in Docker &, < and > stay what they are.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return buf.Bytes(), err
}

// parse keeps numbers as they are written. Nothing may follow the document.
func parse(b []byte) (any, error) {
	var doc any
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := dec.Decode(&doc); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the document")
	}
	return doc, nil
}

// apply walks to the field and changes it.
func (r *rule) apply(doc any, path []string, old map[string]any) {
	if path[0] == "*" {
		r.each(doc, path[1:], old)
		return
	}
	m, ok := doc.(map[string]any)
	if !ok {
		return
	}
	key := keyOf(m, path[0])
	if len(path) > 1 {
		r.apply(m[key], path[1:], old)
		return
	}
	if r.When != "" {
		name, values, _ := strings.Cut(r.When, "=")
		is := m[name]
		if l, ok := is.([]any); ok && len(l) == 1 {
			is = l[0]
		}
		text, ok := is.(string)
		if !ok && !empty(is) || !slices.Contains(strings.Split(values, ","), text) {
			return
		}
	}
	now, has := m[key]
	switch r.Do {
	case Drop:
		delete(m, key)
	case Add:
		if now == nil {
			m[key] = r.source(m, old)
		}
	case Set:
		m[key] = r.source(m, old)
	case Fill:
		if empty(now) {
			m[key] = r.source(m, old)
		}
	case List:
		if s, ok := now.(string); ok {
			m[key] = []any{s}
		}
	case Trim:
		if has && empty(now) {
			delete(m, key)
		}
	}
}

func (r *rule) each(doc any, path []string, old map[string]any) {
	switch d := doc.(type) {
	case []any:
		for _, e := range d {
			r.apply(e, path, old)
		}
	case map[string]any:
		for _, e := range d {
			r.apply(e, path, old)
		}
	}
}

// source is the value that a field gets.
func (r *rule) source(m map[string]any, old map[string]any) any {
	if v := r.found(m, old); v != nil || r.Value == "" {
		return v
	}
	v, _ := parse([]byte(r.Value)) // afresh: rows below may change it
	return v
}

func (r *rule) found(m map[string]any, old map[string]any) any {
	if len(r.from) == 0 {
		return nil
	}
	var v any = m
	path := r.from
	if name, ok := strings.CutPrefix(path[0], "@"); ok {
		v, path = old[name], path[1:]
	}
	for _, name := range path {
		in, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = in[name]
	}
	return v
}

// keyOf is the name of a field in m: as encoding/json has it, case does not
// count where no key fits exactly.
func keyOf(m map[string]any, name string) string {
	if _, ok := m[name]; ok {
		return name
	}
	for k := range m {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	return name
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == ""
	case json.Number:
		return v == "0"
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
