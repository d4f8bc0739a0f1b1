package daemon

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

// A web page reaches loopback, by address or by a name that it rebound
// (DNS rebinding): it is refused on
// TCP. Clients are not, and unix sockets take any name.
func TestBrowsersAreKeptOut(t *testing.T) {
	handler := keepBrowsersOut(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	tcp := httptest.NewServer(handler)
	defer tcp.Close()
	ask := func(c *http.Client, url, host string, header ...string) int {
		t.Helper()
		r, err := http.NewRequest("POST", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			r.Host = host
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer.StatusCode
	}
	for _, host := range []string{"", "localhost", "LOCALHOST:2375", "127.0.0.1:2375", "127.9.9.9", "[::1]:2375", "[::1]"} {
		if got := ask(tcp.Client(), tcp.URL, host); got != 200 {
			t.Errorf("Host %q: %d", host, got)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:2375", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1:2375", "0.0.0.0:2375", "docker"} {
		if got := ask(tcp.Client(), tcp.URL, host); got != 403 {
			t.Errorf("Host %q: %d", host, got)
		}
	}
	for _, h := range [][]string{{"Origin", "http://evil.example"}, {"Origin", "null"}, {"Origin", "http://localhost:8080"}, {"Sec-Fetch-Site", "cross-site"}} {
		if got := ask(tcp.Client(), tcp.URL, "", h...); got != 403 {
			t.Errorf("%v: %d", h, got)
		}
	}

	dir, err := os.MkdirTemp("/tmp", "proa-") // a socket's path is short, $TMPDIR may not be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	unix := &http.Server{Handler: handler}
	go unix.Serve(l)
	defer unix.Close()
	c := &http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	if got := ask(c, "http://api.moby.localhost/", "docker"); got != 200 {
		t.Errorf("unix: %d", got)
	}
}
