package api

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
)

// A wildcard holds what a name of an image may hold, and literal text behind it
// is found from the end (Docker's routes: {name:.*}).
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          map[string]string // nil: no match
	}{
		{"/info", "/info", map[string]string{}},
		{"/info", "/info/", nil},
		{"/info", "/infos", nil},
		{"/images/{name...}/json", "/images/localhost:5000/a/b:1/json", map[string]string{"name": "localhost:5000/a/b:1"}},
		{"/images/{name...}/json", "/images/json/json", map[string]string{"name": "json"}},
		{"/images/{name...}/json", "/images/json", nil},
		{"/images/{name...}/json", "/images/x/json/history", nil},
		{"/images/{name...}", "/images/", map[string]string{"name": ""}},
		{"/images/{name...}", "/images", nil},
		{"/images/{name...}", "/images/a/b/", map[string]string{"name": "a/b/"}},
		{"/nodes/{id}", "/nodes/x", map[string]string{"id": "x"}},
		{"/nodes/{id}", "/nodes/", nil},
		{"/nodes/{id}", "/nodes/x/y", nil},
		{"/services/{id}/logs", "/services/x/logs", map[string]string{"id": "x"}},
		{"/services/{id}/logs", "/services/x/y/logs", nil},
		{"/containers/{id}/checkpoints/{checkpoint}", "/containers/x/checkpoints/y", map[string]string{"id": "x", "checkpoint": "y"}},
		{"/{any...}", "/a/b", map[string]string{"any": "a/b"}},
	} {
		got := map[string]string{}
		ok := parsePattern(c.pattern).match(c.path, func(k, v string) { got[k] = v })
		if ok != (c.want != nil) || ok && !reflect.DeepEqual(got, c.want) || !ok && len(got) > 0 {
			t.Errorf("%s against %s: %v %v, want %v", c.path, c.pattern, ok, got, c.want)
		}
	}
}

// No line of the table is hidden by one before it.
func TestEveryRouteIsReached(t *testing.T) {
	s := New(Rooms{})
	seen := map[string]bool{}
	for i := range s.table {
		e := &s.table[i]
		if seen[e.method+e.path] {
			t.Errorf("%s %s stands in the table twice", e.method, e.path)
		}
		seen[e.method+e.path] = true
		path := strings.NewReplacer("{id...}", "x", "{id}", "x", "{name...}", "x/y:1", "{checkpoint}", "y", "{any...}", "any").Replace(e.path)
		r := httptest.NewRequest(e.method, path, nil)
		if got := s.find(r, path); got != e {
			t.Errorf("%s %s is answered by %v", e.method, path, got)
		}
	}
}

// Docker's router (gorilla/mux; asked of 20.10.24 as well) sends a client of an
// unclean path to the clean one, version and query kept.
func TestUncleanPathsAreSentOn(t *testing.T) {
	srv := bare(t)
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for path, to := range map[string]string{
		"/v1.41//containers/json?all=1": "/v1.41/containers/json?all=1",
		"//containers/json":             "/containers/json",
		"//host.example/x":              "/host.example/x",
		"/containers//json":             "/containers/json",
		"/./_ping":                      "/_ping",
		"/containers/../_ping":          "/_ping",
		"/networks//":                   "/networks/",
	} {
		resp, err := client.Do(&http.Request{Method: "GET", URL: mustURL(t, srv.URL, path)})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusMovedPermanently || got != to {
			t.Errorf("%s: %d to %q, want %q", path, resp.StatusCode, got, to)
		}
	}
}

func mustURL(t *testing.T, server, path string) *url.URL {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	path, u.RawQuery, _ = strings.Cut(path, "?")
	u.Path = path
	return u
}
