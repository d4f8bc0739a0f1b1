package api

import (
	"net/http"
	"testing"
)

// The media type of GET /events (moby, API 1.52: JSON lines unless the client
// names another; RFC 7464 for sequences).
func TestEventType(t *testing.T) {
	for _, c := range []struct {
		version int
		accept  string
		want    string
	}{
		{51, "", "application/json"}, {52, "", jsonLines}, {56, "*/*", jsonLines}, {41, "text/plain", "application/json"},
		{56, "application/json", "application/json"}, {41, "application/json-seq", jsonSequence}, {56, "text/html, application/x-ndjson;q=0.9", "application/x-ndjson"},
	} {
		r := &http.Request{Header: http.Header{}}
		if c.accept != "" {
			r.Header.Set("Accept", c.accept)
		}
		if got := (&call{Request: r, version: c.version}).eventType(); got != c.want {
			t.Errorf("1.%d, Accept %q: %s, want %s", c.version, c.accept, got, c.want)
		}
	}
}
