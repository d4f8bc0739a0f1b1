package api

import (
	"net/http"
	"path"
	"strings"
)

// A path of the table holds wildcards: {name} is one segment, {name...} is any
// text, slashes and nothing included. The API's names are names of images and
// of what users type in their place, so a wildcard of the second kind may stand
// in the middle: /images/{name...}/json. Docker's own routes are written with
// the same two kinds, and the first route of the table that fits is taken.

// pattern is a path of the table, split at its wildcards: literal text and
// wildcards alternate, beginning with literal text.
type pattern []part

// part is literal text, or a wildcard with a name.
type part struct {
	text string
	name string // "" for literal text
	deep bool   // the wildcard may hold slashes or be empty; only one literal may follow it
}

func parsePattern(s string) pattern {
	var p pattern
	for s != "" {
		lit, rest, ok := strings.Cut(s, "{")
		if lit != "" {
			p = append(p, part{text: lit})
		}
		if !ok {
			break
		}
		name, tail, _ := strings.Cut(rest, "}")
		name, deep := strings.CutSuffix(name, "...")
		p = append(p, part{name: name, deep: deep})
		s = tail
	}
	return p
}

// match reports whether path fits, and hands out what the wildcards stand for.
// Nothing is handed out unless the whole path fits.
func (p pattern) match(path string, set func(name, value string)) bool {
	if len(p) == 0 {
		return path == ""
	}
	first, rest := p[0], p[1:]
	if first.name == "" {
		tail, ok := strings.CutPrefix(path, first.text)
		return ok && rest.match(tail, set)
	}
	value := path
	switch {
	case first.deep && len(rest) > 0:
		var ok bool
		if value, ok = strings.CutSuffix(path, rest[0].text); !ok {
			return false
		}
	case !first.deep:
		if i := strings.IndexByte(path, '/'); i >= 0 {
			value = path[:i]
		}
		if value == "" {
			return false
		}
	}
	if !rest.match(path[len(value):], set) {
		return false
	}
	set(first.name, value)
	return true
}

// entry is a route that is ready to be asked.
type entry struct {
	route
	pattern pattern
	serve   http.HandlerFunc
}

// find is the first route of the table for a method and a path without its
// version, and r with the values of its wildcards; nil if there is none.
func (s *Server) find(r *http.Request, path string) *entry {
	for i := range s.table {
		e := &s.table[i]
		if e.method == r.Method && e.pattern.match(path, r.SetPathValue) {
			return e
		}
	}
	return nil
}

// clean is a path without empty segments and dots. As in Docker, whose router
// sends a client of another spelling to this one, a slash at the end stays.
func clean(p string) string {
	if p == "" {
		return "/"
	}
	if p[0] != '/' {
		p = "/" + p
	}
	c := path.Clean(p)
	if p[len(p)-1] == '/' && c != "/" {
		c += "/"
	}
	return c
}

// cutVersion splits "/v1.41/info" into "1.41" and "/info". A path without a
// version is its own rest.
func cutVersion(path string) (version, rest string) {
	tail, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return "", path
	}
	i := strings.IndexByte(tail, '/')
	if i <= 0 || strings.Trim(tail[:i], "0123456789.") != "" {
		return "", path
	}
	return tail[:i], tail[i:]
}
