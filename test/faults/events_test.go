package faults

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"proa/internal/event"
	"proa/test/proatest"
)

// happened is an event as the API gives it.
type happened struct {
	Type, Action, Scope string
	Actor               struct {
		ID         string
		Attributes map[string]string
	}
	Time, TimeNano   int64
	Status, ID, From *string
}

// eventsOf asks for the events that are kept.
func eventsOf(t *testing.T, socket, query string) []happened {
	t.Helper()
	a := request(t, socket, "GET", "/events?"+query, "")
	if a.status != 200 {
		t.Fatalf("events?%s: %d %s", query, a.status, a.body)
	}
	var out []happened
	for sc := bufio.NewScanner(strings.NewReader(a.body)); sc.Scan(); {
		var e happened
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			t.Fatalf("%s: %v", sc.Text(), err)
		}
		out = append(out, e)
	}
	return out
}

var hexes = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// kindOf is a value without what differs between two engines.
func kindOf(v string) string {
	if hexes.MatchString(v) {
		return "ID"
	}
	return v
}

// shapes are events as text: type, action, actor, attributes; each once, sorted.
func shapes(all []happened) []string {
	seen := map[string]bool{}
	for _, e := range all {
		attrs := maps.Clone(e.Actor.Attributes)
		if e.Action == "exec_die" && attrs["exitCode"] == "137" {
			continue // a check that ended with its container
		}
		for k, v := range attrs {
			attrs[k] = kindOf(v)
			if k == "execDuration" || k == "reclaimed" {
				attrs[k] = "N"
			}
		}
		seen[fmt.Sprint(e.Type, " ", e.Action, " ", kindOf(e.Actor.ID), " ", attrs)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// TestFaultsOfEvents holds the rows about events. Docker is 20.10.24 next to
// it, which does the same by the raw API.
func TestFaultsOfEvents(t *testing.T) {
	s := &sides{proa: proatest.New(t), docker: proatest.NewDocker(t)}
	s.load(t, "evi:1", proatest.Tar(t, proatest.BusyboxRoot(t)...), `CMD ["sleep","600"]`, "ENV PATH=/bin", "LABEL il=1")
	everything(t, s)
	t.Run("C18_D12", func(t *testing.T) { testEveryEvent(t, s) })
	t.Run("C19_D13", func(t *testing.T) { testImageEvents(t, s) })
	t.Run("C17", func(t *testing.T) { testTimeBounds(t, s) })
	t.Run("D11", func(t *testing.T) { testEventFilters(t, s) })
	t.Run("A11", func(t *testing.T) { testOldFields(t, s) })
}

// everything does what has events on both engines.
func everything(t *testing.T, s *sides) {
	do := func(method, path, body string, header ...string) {
		t.Helper()
		if p, d := s.both(t, method, path, body, header...); p.status != d.status {
			t.Errorf("%s %s: %d %s; dockerd: %d %s", method, path, p.status, p.body, d.status, d.body)
		}
	}
	do("POST", "/images/evi:1/tag?repo=evi&tag=2", "")
	saved := request(t, s.proa.Socket, "GET", "/images/evi:2/get", "")
	request(t, s.docker.Socket, "GET", "/images/evi:2/get", "")
	do("POST", "/images/load", saved.body, "Content-Type", "application/x-tar")
	do("POST", "/volumes/create", `{"Name":"ev"}`)
	do("POST", "/containers/create?name=one", `{"Image":"evi:1","Cmd":["sleep","600"],"Tty":true,"Labels":{"cl":"1"},"HostConfig":{"Binds":["evol:/x","ev:/y:ro"]}}`)
	do("POST", "/containers/create?name=well", `{"Image":"evi:1","Labels":{"hl":"1"},"Healthcheck":{"Test":["CMD","true"],"Interval":200000000}}`)
	do("POST", "/containers/well/start", "")
	for _, path := range []string{
		"/containers/one/start", "/containers/one/rename?name=uno", "/containers/uno/resize?h=20&w=70", "/containers/uno/pause", "/containers/uno/unpause",
		"/containers/uno/attach?stdout=1&logs=1", "/containers/uno/kill?signal=USR1",
	} {
		do("POST", path, "")
	}
	do("POST", "/containers/uno/update", `{"RestartPolicy":{"Name":"no"}}`)
	do("GET", "/containers/uno/top", "")
	for _, socket := range []string{s.proa.Socket, s.docker.Socket} {
		var x struct{ ID string }
		request(t, socket, "POST", "/containers/uno/exec", `{"Cmd":["sh","-c","exit 3"]}`).decode(t, &x)
		request(t, socket, "POST", "/exec/"+x.ID+"/start", `{"Detach":true}`)
		until(t, "the exec has ended and the container is healthy", func() bool {
			exec := request(t, socket, "GET", "/exec/"+x.ID+"/json", "")
			return strings.Contains(exec.body, `"Running":false`) && strings.Contains(request(t, socket, "GET", "/containers/well/json", "").body, `"Status":"healthy"`)
		})
	}
	do("DELETE", "/containers/well?force=1", "")
	do("GET", "/containers/uno/archive?path=/etc", "")
	do("PUT", "/containers/uno/archive?path=/tmp", string(proatest.Tar(t, proatest.Entry{Name: "f", Body: "x"})), "Content-Type", "application/x-tar")
	do("GET", "/containers/uno/export", "")
	do("POST", "/commit?container=uno&repo=evi&tag=3&comment=why", "")
	do("POST", "/containers/uno/restart?t=0", "")
	do("POST", "/containers/uno/stop?t=0", "")
	do("POST", "/containers/create?name=two", `{"Image":"evi:1","Cmd":["sh","-c","exit 5"],"HostConfig":{"NetworkMode":"none"}}`)
	do("POST", "/containers/two/start", "")
	do("POST", "/containers/two/wait", "")
	do("POST", "/containers/create?name=three", `{"Image":"evi:2","HostConfig":{"NetworkMode":"host","Binds":["/anon"]},"Volumes":{"/anon":{}}}`)
	do("POST", "/containers/three/start", "")
	do("POST", "/containers/three/kill", "")
	do("DELETE", "/containers/three?v=1", "")
	do("DELETE", "/containers/uno", "")
	do("DELETE", "/volumes/ev", "")
	do("DELETE", "/images/evi:2", "")
	for _, what := range []string{"containers", "images", "volumes", "networks", "build"} {
		do("POST", "/v1.41/"+what+"/prune", "")
	}
	do("DELETE", "/images/evi:3", "")
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute passed before %s", what)
		}
	}
}

// untilNow asks for all events that are kept.
func untilNow() string {
	return "since=0&until=" + fmt.Sprintf("%d.%09d", time.Now().Unix(), time.Now().Nanosecond())
}

// on20 is an event of Proa as 20.10.24 has it; "" where it has none. What
// differs is newer: execDuration (23.0), the name in untag (containerd's image
// store), the destroy of a volume by prune (24.0), image create (API 1.46).
func on20(e happened) *happened {
	a := maps.Clone(e.Actor.Attributes)
	switch e.Type + " " + e.Action {
	case "image create":
		return nil
	case "container die":
		delete(a, "execDuration")
	case "image untag":
		a["name"] = e.Actor.ID
	case "volume destroy":
		if e.Actor.ID == "evol" {
			return nil
		}
	}
	e.Actor.Attributes = a
	return &e
}

// Each event of the table that this script causes is there, and has the actor
// and the attributes that 20.10.24 gives it.
func testEveryEvent(t *testing.T, s *sides) {
	mine := eventsOf(t, s.proa.Socket, untilNow())
	var as20 []happened
	seen := map[string]bool{}
	for _, e := range mine {
		action, _, _ := strings.Cut(e.Action, ":")
		seen[e.Type+" "+action] = true
		if old := on20(e); old != nil {
			as20 = append(as20, *old)
		}
	}
	p, d := shapes(as20), shapes(eventsOf(t, s.docker.Socket, untilNow()))
	for _, e := range p {
		if !slices.Contains(d, e) {
			t.Errorf("only here:       %s", e)
		}
	}
	for _, e := range d {
		if !slices.Contains(p, e) {
			t.Errorf("only at dockerd: %s", e)
		}
	}
	// These need a registry, a terminal with keys, or a kill by the kernel.
	elsewhere := []string{"container detach", "container exec_detach", "container oom", "image pull", "image push"}
	for _, r := range event.Rows() {
		if what := r.Type + " " + r.Action; !seen[what] && !slices.Contains(elsewhere, what) {
			t.Errorf("no event %s: %s", what, r.When)
		}
	}
	// A restart stops, kills what does not end, and starts (20.10.24).
	var order []string
	for _, e := range mine {
		if e.Type == "container" && e.Actor.Attributes["name"] == "uno" && slices.Contains([]string{"kill", "die", "stop", "start", "restart"}, e.Action) {
			order = append(order, e.Action+e.Actor.Attributes["signal"])
		}
	}
	if got, want := strings.Join(order, " "), "kill10 kill15 kill9 die stop start restart kill15 kill9 die stop"; !strings.HasSuffix(got, want) {
		t.Errorf("order: %s, want %s", got, want)
	}
}

// Image events have the image's id, the familiar name and its labels (moby
// daemon/containerd/image_events.go, API 1.56).
func testImageEvents(t *testing.T, s *sides) {
	for _, e := range eventsOf(t, s.proa.Socket, untilNow()+"&filters="+escape(`{"type":["image"]}`)) {
		if e.Action == "prune" {
			continue
		}
		name := e.Actor.Attributes["name"]
		if kindOf(e.Actor.ID) != "ID" || strings.HasPrefix(name, "docker.io/") || e.Action != "delete" && e.Actor.Attributes["il"] != "1" {
			t.Errorf("%s: %+v", e.Action, e.Actor)
		}
		if (e.Action == "tag" || e.Action == "untag") && !strings.HasPrefix(name, "evi:") {
			t.Errorf("%s: %+v", e.Action, e.Actor)
		}
	}
	if found := eventsOf(t, s.proa.Socket, untilNow()+"&filters="+escape(`{"label":["il=1"],"event":["untag"]}`)); len(found) == 0 {
		t.Error("no image event has the image's label")
	}
}

// Kept events between since and until (moby daemon/events and
// server/router/system, API 1.56; dockerd 20.10.24).
func testTimeBounds(t *testing.T, s *sides) {
	all := eventsOf(t, s.proa.Socket, untilNow())
	_, until, _ := strings.Cut(untilNow(), "&")
	if got := eventsOf(t, s.proa.Socket, until); len(got) != len(all) || len(all) == 0 {
		t.Errorf("until without since: %d events of %d", len(got), len(all))
	}
	if len(all) == 0 {
		t.FailNow()
	}
	middle := all[len(all)/2]
	at := fmt.Sprintf("%d.%09d", middle.Time, middle.TimeNano%1e9)
	if got := eventsOf(t, s.proa.Socket, "since="+at+"&until="+at); len(got) == 0 || got[0].TimeNano != middle.TimeNano {
		t.Errorf("at %s: %+v", at, got)
	}
	if got := eventsOf(t, s.proa.Socket, "since=1&until=2"); len(got) != 0 {
		t.Errorf("in 1970: %+v", got)
	}
	for query, want := range map[string]string{
		"since=2&until=1":   "`since` time (2) cannot be after `until` time (1)",
		"since=1.5&until=1": "`since` time (1.5) cannot be after `until` time (1)",
		"since=10m":         "invalid value for 'since': ",
		"until=soon":        "invalid value for 'until': ",
	} {
		p, d := s.both(t, "GET", "/events?"+query, "")
		if p.status != 400 || d.status < 400 || !strings.HasPrefix(p.message(), want) {
			t.Errorf("%s: %d %s; dockerd: %d %s", query, p.status, p.body, d.status, d.body)
		}
	}
	r := s.proa.Docker("events", "--since", "0", "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "event=rename", "--format", "{{.Actor.Attributes.oldName}}")
	if r.Code != 0 || r.Out() != "/one" {
		t.Errorf("docker events: %d %q %s", r.Code, r.Stdout, r.Stderr)
	}
}

// Filters of events (moby daemon/events/filter.go; 20.10.24).
func testEventFilters(t *testing.T, s *sides) {
	for _, filters := range []string{
		`{"image":["evi"]}`, `{"image":["evi:1"]}`, `{"image":["ev"]}`, `{"container":["un"]}`, `{"container":["uno"]}`, `{"container":["no"]}`, `{"volume":["ev"]}`, `{"network":["no"]}`,
		`{"type":["network"]}`, `{"type":["contain"]}`, `{"event":["die"]}`, `{"event":["exec_create"]}`, `{"event":["health_status"]}`, `{"event":["exec_create: sh"]}`,
		`{"label":["cl"]}`, `{"label":["cl=1","il=1"]}`, `{"label":["cl=2"]}`, `{"scope":["local"]}`, `{"scope":["swarm"]}`, `{"daemon":["nosuch"]}`, `{"node":["nosuch"]}`, `{"nosuch":["x"]}`,
		`{"type":["container"],"event":["start","stop"],"container":["two"]}`,
	} {
		var as20 []happened
		for _, e := range eventsOf(t, s.proa.Socket, untilNow()+"&filters="+escape(filters)) {
			if old := on20(e); old != nil && e.Action != "untag" {
				as20 = append(as20, *old)
			}
		}
		theirs := slices.DeleteFunc(eventsOf(t, s.docker.Socket, untilNow()+"&filters="+escape(filters)), func(e happened) bool { return e.Action == "untag" })
		if p, d := shapes(as20), shapes(theirs); !slices.Equal(p, d) {
			t.Errorf("%s:\n%s\ndockerd:\n%s", filters, strings.Join(p, "\n"), strings.Join(d, "\n"))
		}
	}
}

// status, id and from of clients below API 1.52 (log of the API), and image
// create from 1.46 on.
func testOldFields(t *testing.T, s *sides) {
	for version, old := range map[string]bool{"1.24": true, "1.41": true, "1.51": true, "1.52": false, "1.56": false} {
		a := request(t, s.proa.Socket, "GET", "/v"+version+"/events?"+untilNow(), "")
		if has := strings.Contains(a.body, `"status":"start"`) && strings.Contains(a.body, `"from":"evi:1"`); has != old {
			t.Errorf("%s: status and from: %v", version, has)
		}
		created := slices.ContainsFunc(strings.Split(a.body, "\n"), func(line string) bool {
			return strings.Contains(line, `"Type":"image"`) && strings.Contains(line, `"Action":"create"`)
		})
		if created != (version >= "1.46") {
			t.Errorf("%s: image create: %v", version, created)
		}
	}
}
