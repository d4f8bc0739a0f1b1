package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// The faults of requests are looked at on one engine with a dockerd of 20.10.24
// beside it, which is asked the same.
type sides struct {
	proa   *proatest.Engine
	docker *proatest.Docker
	cli20  string // docker's command line of 20.10.24
}

// answer is what an API said.
type answer struct {
	status int
	body   string
	header http.Header
}

// message is the text of an error.
func (a answer) message() string {
	var m struct{ Message string }
	if json.Unmarshal([]byte(a.body), &m) != nil {
		return a.body
	}
	return m.Message
}

func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
}

// request asks the API behind a socket. A path is sent as it is written, and no
// redirect is followed. The body is JSON unless header says something else.
func request(t *testing.T, socket, method, path, body string, header ...string) answer {
	t.Helper()
	raw, query, _ := strings.Cut(path, "?")
	u := &url.URL{Scheme: "http", Host: "docker", Opaque: "//docker" + raw, RawQuery: query}
	req, err := http.NewRequest(method, "http://docker/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL = u
	if body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Del(header[i])
		if header[i+1] != "" {
			req.Header.Set(header[i], header[i+1])
		}
	}
	client := &http.Client{
		Timeout:       2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp.StatusCode, strings.TrimSpace(string(b)), resp.Header}
}

// both asks the two engines the same.
func (s *sides) both(t *testing.T, method, path, body string, header ...string) (proa, docker answer) {
	t.Helper()
	return request(t, s.proa.Socket, method, path, body, header...), request(t, s.docker.Socket, method, path, body, header...)
}

// old runs the command line of 20.10.24 against Proa.
func (s *sides) old(args ...string) proatest.Result {
	return s.proa.Exec("", s.cli20, append([]string{"-H", s.proa.Host}, args...)...)
}

// load gives both engines the same image.
func (s *sides) load(t *testing.T, name string, root []byte, changes ...string) {
	t.Helper()
	repo, tag, _ := strings.Cut(name, ":")
	q := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": changes}
	p, d := s.both(t, "POST", "/images/create?"+q.Encode(), string(root), "Content-Type", "application/x-tar")
	if p.status != 200 || d.status != 200 || strings.Contains(p.body+d.body, `"error"`) {
		t.Fatalf("cannot import %s: %d %s; dockerd: %d %s", name, p.status, p.body, d.status, d.body)
	}
}

// TestFaultsOfRequests holds the rows about routes, create, inspect, update,
// stats and top. Docker is 20.10.24 beside it, unless a test names a version.
func TestFaultsOfRequests(t *testing.T) {
	s := &sides{proa: proatest.New(t), docker: proatest.NewDocker(t)}
	s.cli20 = filepath.Join(filepath.Dir(proatest.Tool(t, "dockerd")), "..", "bin", "docker")
	if out, err := exec.Command(s.cli20, "--version").Output(); err != nil || !bytes.Contains(out, []byte("20.10.")) {
		t.Fatalf("%s is not docker 20.10: %s %v", s.cli20, out, err)
	}
	s.load(t, "bb:1", proatest.Tar(t, proatest.BusyboxRoot(t)...), `CMD ["sh"]`, "ENV PATH=/bin")
	for _, row := range []struct {
		name string
		test func(*testing.T, *sides)
	}{
		{"A5", testSwarmThatIsOff},
		{"A15", testPlugins},
		{"A19", testWrongMethods},
		{"C3", testNamesWithSlashes},
		{"D01", testCLIProbes},
		{"D05", testSystemPrune},
		{"D26 info", testInfo},
		{"C4", testNotFoundAtCreate},
		{"A18", testRefusedAtCreate},
		{"A19.3", testCreateMessages},
		{"A19.4", testExtraHostsOfABuild},
		{"C28", testCPUsThatAreNotThere},
		{"C29", testTakenAtCreate},
		{"C29 HOME", testEmptyHome},
		{"C29 Content-Type", testContentTypes},
		{"D07", testNameWithASlash},
		{"D21", testNamelessPolicy},
		{"C20", testInspect},
		{"C20.7", testPidsLimit},
		{"D27", testInspectOfCreated},
		{"D26 top", testTop},
		{"D28", testStats},
		{"C32", testSharedMemory},
		{"C33", testLimitsInside},
	} {
		t.Run(row.name, func(t *testing.T) { row.test(t, s) })
	}
}

// clis are docker's command lines of 20.10.24 and 29, each against Proa.
func (s *sides) clis() map[string]func(...string) proatest.Result {
	return map[string]func(...string) proatest.Result{"docker 20.10": s.old, "docker 29": s.proa.Docker}
}

func escape(s string) string { return url.QueryEscape(s) }
