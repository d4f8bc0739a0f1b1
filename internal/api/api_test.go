package api

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func bare(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(New(Rooms{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}))
	t.Cleanup(srv.Close)
	return srv
}

func TestVersionsAndUnknownRoutes(t *testing.T) {
	srv := bare(t)
	for _, c := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"GET", "/_ping", 200, "OK"},
		{"GET", "/v1.24/_ping", 200, "OK"},
		{"GET", "/v1.56/_ping", 200, "OK"},
		{"GET", "/v1.57/_ping", 400, "client version 1.57 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v1.23/_ping", 400, "too old"},
		{"GET", "/nowhere", 404, "page not found"},
		{"GET", "/v1.50/nowhere", 404, "page not found"},
		{"POST", "/v1.50/swarm/init", 501, "not implemented by this engine"},
		{"POST", "/_ping", 404, "page not found"},
		{"GET", "/v1.99/nowhere", 404, "page not found"},
		{"GET", "/v2.0/info", 400, "client version 2.0 is too new. Maximum supported API version is 1.56"},
		{"GET", "/v1/info", 400, "client version 1 is too old"},
		{"GET", "/v1.24/secrets", 400, "requires minimum API version 1.25"},
	} {
		req, err := http.NewRequest(c.method, srv.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.status || !strings.Contains(string(b), c.says) {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, resp.StatusCode, b, c.status, c.says)
		}
		if c.status >= 400 {
			var m struct{ Message string }
			if json.Unmarshal(b, &m) != nil || m.Message == "" {
				t.Errorf("%s %s: error without a message: %q", c.method, c.path, b)
			}
		}
		if resp.Header.Get("Api-Version") != MaxVersion || resp.Header.Get("Ostype") == "" {
			t.Errorf("%s %s: headers %v", c.method, c.path, resp.Header)
		}
	}
}

func TestBodiesThatAreNotARequest(t *testing.T) {
	srv := bare(t)
	for name, body := range map[string]string{
		"no JSON":            "{",
		"a list":             "[]",
		"wrong type":         `{"Image": 5}`,
		"two documents":      `{"Image":"x"} {"Image":"y"}`,
		"200,000 deep":       `{"Labels":` + strings.Repeat(`{"a":`, 200_000) + strings.Repeat("}", 200_001),
		"a list 200,000":     strings.Repeat("[", 200_000),
		"over four megabyte": `{"Image":"` + strings.Repeat("x", 5<<20) + `"}`,
		"empty":              "",
	} {
		resp, err := http.Post(srv.URL+"/containers/create", "application/json", strings.NewReader(body))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !bytes.Contains(b, []byte("cannot")) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, b)
		}
	}
	resp, err := http.Post(srv.URL+"/containers/create", "text/plain", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("text/plain: %d", resp.StatusCode)
	}
}

func TestMultiplexedFrames(t *testing.T) {
	var buf bytes.Buffer
	out, errw := multiplex(&buf)
	if n, err := out.Write([]byte("hello")); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := errw.Write([]byte("no")); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	want := "\x01\x00\x00\x00\x00\x00\x00\x05hello\x02\x00\x00\x00\x00\x00\x00\x02no"
	if buf.String() != want {
		t.Errorf("%q, want %q", buf.String(), want)
	}
}

func TestTimestamps(t *testing.T) {
	for s, want := range map[string]time.Time{
		"":                     {},
		"1700000000":           time.Unix(1700000000, 0),
		"1700000000.25":        time.Unix(1700000000, 250000000),
		"1700000000.000000001": time.Unix(1700000000, 1),
		"2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	} {
		got, err := timestamp(s)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v, want %v", s, got, err, want)
		}
	}
	if _, err := timestamp("yesterday"); err == nil {
		t.Error("yesterday was taken for a time")
	}
}
