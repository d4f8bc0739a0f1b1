package shapes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"proa/test/proatest"
)

// side is one engine with the objects of the test.
type side struct {
	name, socket string
	client       *http.Client
	exec         string
}

func newSide(name, socket string) *side {
	return &side{name: name, socket: socket, client: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// ask gives the answer's body; kind is the content type of what is sent.
func (s *side) ask(t *testing.T, method, path, body, kind string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://d"+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	if body != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Errorf("%s: %s %s: %v", s.name, method, path, err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s: %s %s: %v", s.name, method, path, err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

func (s *side) must(t *testing.T, method, path, body string) string {
	t.Helper()
	status, text := s.ask(t, method, path, body, "application/json")
	if status >= 300 {
		t.Fatalf("%s: %s %s: %d %s", s.name, method, path, status, text)
	}
	return text
}

// fill makes the objects: images with all and with nothing of a configuration
// and one without a name; containers that run, have ended and were never
// started; a volume; an exec.
func (s *side) fill(t *testing.T, root string) {
	t.Helper()
	load := func(repo string, changes ...string) {
		q := url.Values{"fromSrc": {"-"}, "changes": changes}
		if repo != "" {
			q.Set("repo", repo)
			q.Set("tag", "1")
		}
		status, text := s.ask(t, "POST", "/v1.41/images/create?"+q.Encode(), root, "application/x-tar")
		if status != 200 || strings.Contains(text, `"error"`) {
			t.Fatalf("%s: import: %d %s", s.name, status, text)
		}
	}
	load("full", `CMD ["sleep","1000"]`, "ENV PATH=/bin", "LABEL a=b", "EXPOSE 80/tcp", "VOLUME /data", "USER 0", "WORKDIR /tmp",
		`HEALTHCHECK --interval=1h CMD true`, "ONBUILD RUN true")
	load("bare", "ENV A=<&>")
	load("", `CMD ["true"]`)
	s.must(t, "POST", "/v1.41/volumes/create", `{"Name":"v1","Labels":{"a":"b"}}`)
	s.must(t, "POST", "/v1.41/containers/create?name=running", `{"Image":"full:1","Labels":{"x":"y"},"HostConfig":{"Binds":["v1:/v"],"PortBindings":{"80/tcp":[{"HostPort":""}]}}}`)
	s.must(t, "POST", "/v1.41/containers/create?name=ended", `{"Image":"bare:1","Cmd":["/bin/true"],"HostConfig":{"NetworkMode":"none"}}`)
	s.must(t, "POST", "/v1.41/containers/create?name=made", `{"Image":"bare:1","Cmd":["/bin/true"]}`)
	for _, name := range []string{"running", "ended"} {
		s.must(t, "POST", "/v1.41/containers/"+name+"/start", "")
	}
	s.must(t, "POST", "/v1.41/containers/ended/wait", "")
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(s.must(t, "POST", "/v1.41/containers/running/exec", `{"Cmd":["true"]}`)), &made); err != nil {
		t.Fatal(err)
	}
	s.exec = made.ID
}

// routes are asked in this order; EXEC is the exec, NOW the time, {N} a number
// that differs from version to version. The last ones change something.
var routes = []struct{ method, path, body string }{
	{"GET", "/version", ""},
	{"GET", "/info", ""},
	{"GET", "/containers/json?all=1", ""},
	{"GET", "/containers/json?all=1&size=1", ""},
	{"GET", "/containers/running/json", ""},
	{"GET", "/containers/running/json?size=1", ""},
	{"GET", "/containers/ended/json", ""},
	{"GET", "/containers/made/json", ""},
	{"GET", "/containers/running/top", ""},
	{"GET", "/containers/running/changes", ""},
	{"GET", "/containers/made/changes", ""},
	{"GET", "/containers/running/stats?stream=0", ""},
	{"GET", "/containers/made/stats?stream=0", ""},
	{"GET", "/exec/EXEC/json", ""},
	{"GET", "/images/json", ""},
	{"GET", "/images/json?all=1&digests=1", ""},
	{"GET", "/images/full:1/json", ""},
	{"GET", "/images/bare:1/json", ""},
	{"GET", "/images/full:1/history", ""},
	{"GET", "/volumes", ""},
	{"GET", "/volumes/v1", ""},
	{"GET", "/networks", ""},
	{"GET", "/networks/bridge", ""},
	{"GET", "/networks/host", ""},
	{"GET", "/networks/none", ""},
	{"GET", "/plugins", ""},
	{"GET", "/system/df", ""},
	{"GET", "/events?since=1&until=NOW", ""},
	{"GET", "/containers/nosuch/json", ""},

	{"POST", "/containers/running/update", `{"CpuShares":512}`},
	{"POST", "/containers/running/exec", `{"Cmd":["true"]}`},
	{"POST", "/containers/create?name=n-{N}", `{"Image":"bare:1","Cmd":["true"]}`},
	{"POST", "/containers/n-{N}/wait", ""},
	{"POST", "/commit?container=ended&repo=committed&tag={N}", ""},
	{"GET", "/images/committed:{N}/json", ""},
	{"GET", "/images/committed:{N}/history", ""},
	{"POST", "/images/committed:{N}/tag?repo=other&tag={N}", ""},
	{"DELETE", "/images/other:{N}", ""},
	{"DELETE", "/images/committed:{N}", ""},
	{"POST", "/volumes/create", `{}`},
	{"POST", "/volumes/create", `{"Name":"o","Driver":"local","DriverOpts":{"type":"tmpfs","device":"tmpfs"}}`},
	{"DELETE", "/containers/n-{N}", ""},
	{"POST", "/volumes/prune", ""},
	{"POST", "/networks/prune", ""},
}

// TestShapesOfDocker20 compares with dockerd 20.10.24, which serves 1.12 to 1.41.
func TestShapesOfDocker20(t *testing.T) {
	e, d := proatest.New(t), proatest.NewDocker(t)
	root := string(proatest.Tar(t, proatest.BusyboxRoot(t)...))
	ours, theirs := newSide("proa", e.Socket), newSide("dockerd", d.Socket)
	ours.fill(t, root)
	theirs.fill(t, root)
	used := map[reason]bool{}
	for _, minor := range []int{24, 30, 40, 41} {
		for _, r := range routes {
			if minor < 25 && strings.HasSuffix(r.path, "/prune") {
				continue
			}
			if strings.HasSuffix(r.path, "/wait") {
				for _, s := range []*side{ours, theirs} {
					s.must(t, "POST", fmt.Sprintf("/v1.41/containers/n-%d/start", minor), "")
				}
			}
			route := r.method + " " + r.path
			both := make(chan shape)
			go func() { both <- theirs.shape(t, minor, r.method, r.path, r.body) }()
			a := ours.shape(t, minor, r.method, r.path, r.body)
			b := <-both
			if diff := differences(route, a, b, onPurpose, used); len(diff) > 0 {
				t.Errorf("1.%d %s:\n\t%s", minor, route, strings.Join(diff, "\n\t"))
			}
		}
	}
	for _, r := range onPurpose {
		t.Logf("on purpose (met: %v): %s %s: %s", used[r], r.route, r.path, r.why)
	}
}

// shape asks and reads the keys and types of the answer, and its status as a key.
func (s *side) shape(t *testing.T, minor int, method, path, body string) shape {
	t.Helper()
	path = strings.NewReplacer("EXEC", s.exec, "NOW", fmt.Sprint(time.Now().Unix()), "{N}", fmt.Sprint(minor)).Replace(path)
	status, text := s.ask(t, method, fmt.Sprintf("/v1.%d%s", minor, path), body, "application/json")
	out, err := shapeOf(text)
	if err != nil {
		t.Errorf("%s: %s %s: %v", s.name, method, path, err)
		return shape{}
	}
	out["HTTP status"] = map[string]bool{fmt.Sprint(status): true}
	return out
}
