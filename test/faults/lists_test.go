package faults

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"proa/test/proatest"
)

// TestFaultsOfLists holds the rows about filters and lists. Docker is 20.10.24
// next to it, unless a test names a version.
func TestFaultsOfLists(t *testing.T) {
	s := &sides{proa: proatest.New(t), docker: proatest.NewDocker(t)}
	s.cli20 = filepath.Join(filepath.Dir(proatest.Tool(t, "dockerd")), "..", "bin", "docker")
	s.load(t, "bb:1", proatest.Tar(t, proatest.BusyboxRoot(t)...), `CMD ["sh"]`, "ENV PATH=/bin", "LABEL a=1 b=2")
	s.load(t, "bb:2", proatest.Tar(t, proatest.BusyboxRoot(t)...), `CMD ["sh","-c","true"]`, "ENV PATH=/bin")
	for _, row := range []struct {
		name string
		test func(*testing.T, *sides)
	}{
		{"C12", testFilterErrors},
		{"C11", testFiltersOfContainers},
		{"D06", testNetworksByFilter},
		{"D17", testNamesAreMatched},
		{"D15", testCommandIsQuoted},
		{"D16", testImageThatHasMoved},
	} {
		t.Run(row.name, func(t *testing.T) { row.test(t, s) })
	}
}

// filtered makes a path of a list with filters.
func filtered(path, filters string) string {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	return path + sep + "filters=" + escape(filters)
}

// Keys and values that no list has are 400 in every list and prune. moby's
// words (API 1.56) are in internal/filters; here, the statuses of dockerd.
func testFilterErrors(t *testing.T, s *sides) {
	lists := []string{"GET /containers/json", "GET /images/json", "GET /volumes", "GET /networks", "POST /containers/prune", "POST /images/prune", "POST /volumes/prune", "POST /networks/prune", "POST /build/prune"}
	for _, list := range lists {
		method, path, _ := strings.Cut(list, " ")
		for _, filters := range []string{`{"nosuch":["a"]}`, `{"nosuch":{"a":true}}`, `{"dangling":["invalid"]}`} {
			p, d := s.both(t, method, filtered(path, filters), "")
			if p.status != 400 || !strings.Contains(p.message(), "filter") || d.status != 400 {
				t.Errorf("%s by %s: %d %s; dockerd: %d %s", list, filters, p.status, p.body, d.status, d.body)
			}
		}
		// 20.10 gives 500 for the first two and takes the third; moby (API 1.56) 400.
		for _, filters := range []string{`[]`, `{"label":1}`, `{"dangling":["0","1"]}`} {
			if p := request(t, s.proa.Socket, method, filtered(path, filters), ""); p.status != 400 || !strings.Contains(p.message(), "filter") {
				t.Errorf("%s by %s: %d %s", list, filters, p.status, p.body)
			}
		}
	}
	for _, c := range []struct{ path, filters, want string }{
		{"/images/json", `{"dangling":["invalid"]}`, "invalid filter 'dangling=[invalid]'"},
		{"/volumes", `{"dangling":["invalid"]}`, "invalid filter 'dangling=[invalid]'"},
		{"/networks", `{"dangling":["xx"]}`, `invalid value for filter 'dangling': must be "true" (or "1"), or "false" (or "0")`},
		{"/networks", `{"type":["mine"]}`, "invalid value for filter 'type': must be 'builtin' or 'custom'"},
		{"/containers/json", `{"is-task":["maybe"]}`, "invalid filter 'is-task=[maybe]'"},
	} {
		if p := request(t, s.proa.Socket, "GET", filtered(c.path, c.filters), ""); p.status != 400 || p.message() != c.want {
			t.Errorf("%s by %s: %d %s, want %s", c.path, c.filters, p.status, p.body, c.want)
		}
	}
	for _, q := range []string{"/images/json?identity=1", "/containers/json?limit=abc"} {
		if p := request(t, s.proa.Socket, "GET", q, ""); p.status != 400 {
			t.Errorf("%s: %d %s", q, p.status, p.body)
		}
	}
	if r := s.proa.Proa("images", "--filter", "colour=red"); r.Code == 0 || !strings.Contains(r.Stderr, "invalid filter 'colour'") {
		t.Errorf("proa images: %d %s", r.Code, r.Stderr)
	}
	if r := s.proa.Docker("ps", "--filter", "colour=red"); r.Code == 0 || !strings.Contains(r.Stderr, "invalid filter 'colour'") {
		t.Errorf("docker ps: %d %s", r.Code, r.Stderr)
	}
}

// beginning is an id as docker ps and docker network ls show it.
func beginning(id string) string { return id[:min(len(id), 12)] }

// namesOf lists the names of what an API lists.
func namesOf(t *testing.T, a answer) string {
	t.Helper()
	var list []struct {
		Names    []string
		Name     string
		RepoTags []string
	}
	body := a.body
	if strings.HasPrefix(body, `{"Volumes"`) {
		var v struct{ Volumes json.RawMessage }
		a.decode(t, &v)
		body = string(v.Volumes)
	}
	if body == "null" {
		body = "[]"
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return fmt.Sprintf("%d %s", a.status, a.body)
	}
	out := []string{}
	for _, x := range list {
		out = append(out, append(append(x.Names, x.RepoTags...), x.Name)[0])
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// The container list of the API reference (ContainerList), compared with dockerd.
func testFiltersOfContainers(t *testing.T, s *sides) {
	create := func(name, body string, start bool) {
		t.Helper()
		p, d := s.both(t, "POST", "/containers/create?name="+name, body)
		if p.status != 201 || d.status != 201 {
			t.Fatalf("%s: %d %s; dockerd: %d %s", name, p.status, p.body, d.status, d.body)
		}
		if !start {
			return
		}
		if p, d := s.both(t, "POST", "/containers/"+name+"/start", ""); p.status != 204 || d.status != 204 {
			t.Fatalf("start %s: %d %s; dockerd: %d %s", name, p.status, p.body, d.status, d.body)
		}
	}
	create("old", `{"Image":"bb:1","Cmd":["sh","-c","exit 3"],"Labels":{"k":"v"}}`, true)
	s.both(t, "POST", "/containers/old/wait", "")
	create("web1", `{"Image":"bb:1","Cmd":["sleep","600"],"Labels":{"k":"w","x":""},"ExposedPorts":{"90/tcp":{}},"HostConfig":{"Annotations":{"own":"1"},"PortBindings":{"90/tcp":[{"HostPort":"18090"}]},"Binds":["vol:/data"]}}`, true)
	create("web2", `{"Image":"bb:2","Cmd":["sleep","600"],"ExposedPorts":{"70/udp":{}},"HostConfig":{"NetworkMode":"none"}}`, true)
	create("new", `{"Image":"bb:1","Cmd":["sleep","600"],"ExposedPorts":{"90/tcp":{}}}`, false)
	for _, q := range []string{"all=1", "all=true", "all=True", "all=yes", "all=0", "all=no", "all=false", "all=none", "all=", "limit=0", "limit=-1", "limit=1", "limit=2&all=0", "size=1"} {
		p, d := s.both(t, "GET", "/containers/json?"+q, "")
		if namesOf(t, p) != namesOf(t, d) {
			t.Errorf("%s: %s; dockerd: %s", q, namesOf(t, p), namesOf(t, d))
		}
	}
	for _, filters := range []string{
		`{"publish":["18090"]}`, `{"publish":["90"]}`, `{"publish":["18080-18100/tcp"]}`, `{"publish":["18090/udp"]}`, `{"expose":["90"]}`, `{"expose":["70/udp"]}`, `{"expose":["70"]}`,
		`{"publish":["1"],"expose":["90"]}`, `{"since":["old"]}`, `{"before":["new"]}`, `{"before":["web2"]}`, `{"since":["web1"],"before":["new"]}`,
		`{"name":["web"]}`, `{"name":["^web1$"]}`, `{"name":["^/web1$"]}`, `{"name":["/web1"]}`, `{"name":["web1","old"]}`, `{"name":["("]}`, `{"name":["W"]}`,
		`{"status":["exited"]}`, `{"status":["created","running"]}`, `{"exited":["3"]}`, `{"exited":["0"]}`, `{"exited":["0","3"]}`,
		`{"label":["k"]}`, `{"label":["k=v"]}`, `{"label":["k","x"]}`, `{"label":["k=v","x"]}`, `{"label":["x="]}`, `{"label":["a=1"]}`,
		`{"volume":["vol"]}`, `{"volume":["/data"]}`, `{"volume":["vo"]}`, `{"ancestor":["bb:1"]}`, `{"ancestor":["bb"]}`, `{"ancestor":["nosuch"]}`, `{"ancestor":["bb:1","bb:2"]}`,
		`{"network":["bridge"]}`, `{"network":["none"]}`, `{"network":["brid"]}`, `{"network":["bridge","none"]}`, `{"health":["none"]}`, `{"is-task":["false"]}`,
		`{"id":["nosuch"]}`, `{"id":["nosuch"],"name":["web1"]}`, `{"name":[]}`, `{"label":{}}`,
	} {
		for _, all := range []string{"0", "1"} {
			p, d := s.both(t, "GET", filtered("/containers/json?all="+all, filters), "")
			if namesOf(t, p) != namesOf(t, d) {
				t.Errorf("all=%s %s: %s; dockerd: %s", all, filters, namesOf(t, p), namesOf(t, d))
			}
		}
	}
	for filters, status := range map[string]int{`{"since":["nosuch"]}`: 404, `{"is-task":["1"]}`: 200} { // 20.10: 500, 400
		if p := request(t, s.proa.Socket, "GET", filtered("/containers/json", filters), ""); p.status != status || status == 200 && p.body != "[]" {
			t.Errorf("%s: %d %s", filters, p.status, p.body)
		}
	}
	var info struct{ ID string }
	request(t, s.proa.Socket, "GET", "/containers/web1/json", "").decode(t, &info)
	if got := namesOf(t, request(t, s.proa.Socket, "GET", filtered("/containers/json", `{"id":["`+beginning(info.ID)+`"]}`), "")); got != "/web1" {
		t.Errorf("by the beginning of its id: %s", got)
	}
	var net struct{ ID string }
	request(t, s.proa.Socket, "GET", "/networks/none", "").decode(t, &net)
	if len(net.ID) != 64 {
		t.Errorf("a network's id is %s", net.ID)
	}
	if got := namesOf(t, request(t, s.proa.Socket, "GET", filtered("/containers/json", `{"network":["`+beginning(net.ID)+`"]}`), "")); got != "/web2" {
		t.Errorf("by the beginning of a network's id: %s", got)
	}
	// annotation is of API 1.56.
	if got := namesOf(t, request(t, s.proa.Socket, "GET", filtered("/containers/json", `{"annotation":["own=1"]}`), "")); got != "/web1" {
		t.Errorf("by annotation: %s", got)
	}
	for _, c := range []string{"old", "web1", "web2", "new"} {
		s.both(t, "DELETE", "/containers/"+c+"?force=1&v=1", "")
	}
}

// Networks by moby's daemon/network/filter.go: the name and the id are patterns.
func testNetworksByFilter(t *testing.T, s *sides) {
	for _, filters := range []string{
		``, `{}`, `{"name":["ridg"]}`, `{"name":["^host$"]}`, `{"name":["nosuch"]}`, `{"id":["nosuch"]}`, `{"driver":["null"]}`, `{"driver":["bridge","host"]}`, `{"driver":["nul"]}`,
		`{"label":["a"]}`, `{"type":["builtin"]}`, `{"type":["custom"]}`, `{"scope":["local"]}`, `{"scope":["swarm"]}`, `{"dangling":["true"]}`, `{"dangling":["0"]}`, `{"scope":["local"],"name":["none"]}`,
	} {
		p, d := s.both(t, "GET", filtered("/networks", filters), "")
		if namesOf(t, p) != namesOf(t, d) {
			t.Errorf("%s: %s; dockerd: %s", filters, namesOf(t, p), namesOf(t, d))
		}
	}
	var host struct{ ID string }
	request(t, s.proa.Socket, "GET", "/networks/host", "").decode(t, &host)
	for _, part := range []string{host.ID, beginning(host.ID), host.ID[len(host.ID)/2:]} {
		if got := namesOf(t, request(t, s.proa.Socket, "GET", filtered("/networks", `{"id":["`+part+`"]}`), "")); got != "host" {
			t.Errorf("by id %s: %s", part, got)
		}
	}
	if a := request(t, s.proa.Socket, "GET", "/networks/"+beginning(host.ID), ""); a.status != 200 {
		t.Errorf("inspect by the beginning of an id: %d %s", a.status, a.body)
	}
}

// Names of volumes are patterns; references match in both forms (moby, API 1.56).
func testNamesAreMatched(t *testing.T, s *sides) {
	for _, v := range []string{"v", "v1", "data"} {
		s.both(t, "POST", "/volumes/create", `{"Name":"`+v+`","Labels":{"n":"`+v+`"}}`)
	}
	for _, filters := range []string{
		`{"name":["^v$"]}`, `{"name":["v"]}`, `{"name":["^v[0-9]$","dat"]}`, `{"name":["nosuch"]}`, `{"driver":["local"]}`, `{"driver":["loca"]}`, `{"label":["n=v"]}`, `{"label":["n"]}`,
		`{"dangling":["1"]}`, `{"dangling":["false"]}`,
	} {
		p, d := s.both(t, "GET", filtered("/volumes", filters), "")
		if namesOf(t, p) != namesOf(t, d) {
			t.Errorf("volumes %s: %s; dockerd: %s", filters, namesOf(t, p), namesOf(t, d))
		}
	}
	for filters, want := range map[string]string{
		`{"reference":["bb"]}`: "bb:1 bb:2", `{"reference":["bb:1"]}`: "bb:1", `{"reference":["docker.io/library/bb"]}`: "bb:1 bb:2",
		`{"reference":["docker.io/library/*:2"]}`: "bb:2", `{"reference":["b?:*"]}`: "bb:1 bb:2", `{"reference":["library/bb"]}`: "", `{"reference":["["]}`: "",
		`{"label":["a=1"]}`: "bb:1", `{"label":["a","b=3"]}`: "", `{"label!":["a"]}`: "bb:2", `{"dangling":["true"]}`: "", `{"dangling":["0"]}`: "bb:1 bb:2",
		`{"since":["bb:1"]}`: "bb:2", `{"before":["bb:2"]}`: "bb:1", `{"until":["1h"]}`: "", `{"until":["0s"]}`: "bb:1 bb:2",
	} {
		if got := namesOf(t, request(t, s.proa.Socket, "GET", filtered("/images/json", filters), "")); got != want {
			t.Errorf("images %s: %s, want %s", filters, got, want)
		}
	}
	if got := namesOf(t, request(t, s.proa.Socket, "GET", "/v1.24/images/json?filter=bb:2", "")); got != "bb:2" {
		t.Errorf("filter= of API 1.24: %s", got)
	}
	// label! keeps what lacks one of several (moby daemon/prune.go).
	p, d := s.both(t, "POST", filtered("/v1.41/volumes/prune", `{"label!":["n=v","n=v1"]}`), "")
	var gone [2]struct{ VolumesDeleted []string }
	p.decode(t, &gone[0])
	d.decode(t, &gone[1])
	for i := range gone {
		slices.Sort(gone[i].VolumesDeleted)
	}
	if !slices.Equal(gone[0].VolumesDeleted, gone[1].VolumesDeleted) {
		t.Errorf("prune: %v; dockerd: %v", gone[0], gone[1])
	}
	for _, v := range []string{"v", "v1", "data"} {
		s.both(t, "DELETE", "/volumes/"+v+"?force=1", "")
	}
}

// An argument with a space is quoted in the list (20.10.24).
func testCommandIsQuoted(t *testing.T, s *sides) {
	for i, cmd := range []string{`["sh","-c","exit 3"]`, `["sh"]`, `["echo","it's",""]`, `["echo","a\tb","c  d"]`} {
		name := fmt.Sprintf("cmd%d", i)
		s.both(t, "POST", "/containers/create?name="+name, `{"Image":"bb:1","Cmd":`+cmd+`}`)
		p, d := s.both(t, "GET", filtered("/containers/json?all=1", `{"name":["`+name+`"]}`), "")
		var one [2][]struct{ Command string }
		p.decode(t, &one[0])
		d.decode(t, &one[1])
		if len(one[0]) != 1 || len(one[1]) != 1 || one[0][0] != one[1][0] {
			t.Errorf("%s: %v; dockerd: %v", cmd, one[0], one[1])
		}
		s.both(t, "DELETE", "/containers/"+name, "")
	}
}

// A container whose image's name means another image, or none, shows its
// image's id, and ancestor finds the image that a name means now (20.10.24;
// moby daemon/list.go refreshImage).
func testImageThatHasMoved(t *testing.T, s *sides) {
	s.both(t, "POST", "/images/bb:1/tag?repo=app&tag=latest", "")
	s.both(t, "POST", "/containers/create?name=first", `{"Image":"app"}`)
	shown := func(filters string) (out [2]string) {
		p, d := s.both(t, "GET", filtered("/containers/json?all=1", filters), "")
		for i, a := range []answer{p, d} {
			var list []struct{ Image, ImageID string }
			a.decode(t, &list)
			for _, c := range list {
				if c.Image == c.ImageID {
					c.Image = "its id"
				}
				out[i] += c.Image + " "
			}
		}
		return out
	}
	same := func(when, filters, want string) {
		t.Helper()
		if got := shown(filters); got[0] != want || got[1] != want {
			t.Errorf("%s, %s: %q; dockerd: %q; want %q", when, filters, got[0], got[1], want)
		}
	}
	same("first", `{}`, "app ")
	same("first", `{"ancestor":["app"]}`, "app ")
	s.both(t, "POST", "/images/bb:2/tag?repo=app&tag=latest", "")
	s.both(t, "POST", "/containers/create?name=second", `{"Image":"app:latest"}`)
	same("moved", `{}`, "app:latest its id ")
	same("moved", `{"ancestor":["app"]}`, "app:latest ")
	same("moved", `{"ancestor":["bb:1"]}`, "its id ")
	s.both(t, "DELETE", "/images/app:latest?force=1", "")
	same("removed", `{}`, "its id its id ")
	same("removed", `{"ancestor":["app"]}`, "")
	s.both(t, "DELETE", "/containers/first", "")
	s.both(t, "DELETE", "/containers/second", "")
}
