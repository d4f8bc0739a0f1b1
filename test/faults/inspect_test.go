package faults

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"testing"
)

// field is the JSON of one place of an answer, "" where there is no such key.
func field(t *testing.T, a answer, path string) string {
	t.Helper()
	raw := json.RawMessage(a.body)
	for _, key := range strings.Split(path, ".") {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatalf("%s: %d %s: %v", path, a.status, a.body, err)
		}
		var ok bool
		if raw, ok = m[key]; !ok {
			return ""
		}
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	sorted, err := json.Marshal(v) // the order of keys is no matter
	if err != nil {
		t.Fatal(err)
	}
	return string(sorted)
}

// same compares places of an inspect of both engines.
func (s *sides) same(t *testing.T, name string, paths ...string) {
	t.Helper()
	p, d := s.both(t, "GET", "/v1.41/containers/"+name+"/json", "")
	for _, path := range paths {
		if a, b := field(t, p, path), field(t, d, path); a != b {
			t.Errorf("%s of %s is %s; dockerd: %s", path, name, a, b)
		}
	}
}

// mounts are the Mounts of an inspect but for names and paths that are random.
func mounts(t *testing.T, a answer) string {
	t.Helper()
	var list struct {
		Mounts []struct {
			Type, Destination, Mode, Driver string
			RW                              bool
		}
	}
	a.decode(t, &list)
	sort.Slice(list.Mounts, func(i, j int) bool { return list.Mounts[i].Destination < list.Mounts[j].Destination })
	return fmt.Sprintf("%+v", list.Mounts)
}

// What inspect shows of what was asked for.
func testInspect(t *testing.T, s *sides) {
	s.run(t, "shown", `{"Image":"bb:1","Cmd":["sleep","100"],"Volumes":{},"HostConfig":{"Tmpfs":{"/flag":"","/flag2/":"size=1m"},"Mounts":[{"Type":"tmpfs","Target":"/mount"}]}}`)
	s.same(t, "shown", "Config.Volumes", "HostConfig.Annotations", "HostConfig.Tmpfs", "HostConfig.OomKillDisable")
	p, d := s.both(t, "GET", "/v1.41/containers/shown/json", "")
	if a, b := mounts(t, p), mounts(t, d); a != b {
		t.Errorf("mounts are %s; dockerd: %s", a, b)
	}
	// Docker of today gives lists also where 20.10 gives null to a client that sends none.
	for _, path := range []string{"HostConfig.Dns", "HostConfig.DnsOptions", "HostConfig.DnsSearch"} {
		if got := field(t, p, path); got != "[]" {
			t.Errorf("%s is %s, want []", path, got)
		}
	}
	for name, cli := range s.clis() {
		if r := cli("inspect", "-f", "{{.HostConfig.Dns}}", "shown"); r.Out() != "[]" {
			t.Errorf("%s: Dns: %s%s", name, r.Stdout, r.Stderr)
		}
		if r := cli("ps", "--format", "{{.Mounts}}", "--filter", "name=shown"); r.Code != 0 || strings.HasPrefix(r.Stdout, ",") {
			t.Errorf("%s: Mounts in ps: %s%s", name, r.Stdout, r.Stderr)
		}
	}

	// API 1.48: the descriptor names the platform.
	p = request(t, s.proa.Socket, "GET", "/v1.48/containers/shown/json", "")
	if got := field(t, p, "ImageManifestDescriptor.platform.os"); got != `"linux"` {
		t.Errorf("ImageManifestDescriptor.platform.os is %s", got)
	}

	// The isolation stands in a field of its own, in inspect and in the list, so
	// that what was asked for can be fed back to create.
	if got := field(t, p, "Proa.Isolation") + field(t, p, "HostConfig.Annotations"); got != `"container"` {
		t.Errorf("isolation and annotations: %s", got)
	}
	var list []struct {
		Names      []string
		HostConfig struct{ Annotations map[string]string }
		Proa       struct{ Isolation string }
	}
	request(t, s.proa.Socket, "GET", "/containers/json", "").decode(t, &list)
	for _, c := range list {
		if c.Proa.Isolation != "container" || len(c.HostConfig.Annotations) > 0 {
			t.Errorf("in the list: %+v", c)
		}
	}
	if out := s.proa.MustProa("ps", "--filter", "name=shown"); !strings.Contains(out, "container") {
		t.Errorf("proa ps: %s", out)
	}

	s.made(t, "allowed", hostConfig(`"Privileged":true`))
	s.same(t, "allowed", "HostConfig.MaskedPaths", "HostConfig.ReadonlyPaths")
}

// Limits that are none: null after create and 0 after update.
func testPidsLimit(t *testing.T, s *sides) {
	for i, limit := range []string{"-1", "0", "-5", "5", "null"} {
		name := fmt.Sprintf("pids-%d", i)
		s.run(t, name, `{"Image":"bb:1","Cmd":["sleep","100"],"HostConfig":{"MemorySwappiness":-1,"PidsLimit":`+limit+`}}`)
		s.same(t, name, "HostConfig.PidsLimit", "HostConfig.MemorySwappiness")
		// What is shown is what is done: no limit is none, not our default.
		max := s.proa.MustProa("exec", name, "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max")
		if want := map[string]string{"5": "5", "null": "4096"}[limit]; max != want && (want != "" || max != "max") {
			t.Errorf("PidsLimit %s gives %s", limit, max)
		}
		p, d := s.both(t, "POST", "/v1.41/containers/"+name+"/update", `{"PidsLimit":-1}`)
		if p.status != 200 || d.status != 200 {
			t.Errorf("update: %d %s; dockerd: %d %s", p.status, p.body, d.status, d.body)
		}
		s.same(t, name, "HostConfig.PidsLimit")
	}
}

// Inspect of a container that does not run, of volumes, ports and networks.
func testInspectOfCreated(t *testing.T, s *sides) {
	s.made(t, "wanted", endpoints(`"bridge":{"MacAddress":"02:42:ac:11:00:0a","IPAMConfig":{"IPv4Address":"172.17.0.77"}}`))
	s.same(t, "wanted", "NetworkSettings.Networks.bridge.IPAMConfig", "NetworkSettings.SandboxID", "NetworkSettings.SandboxKey", "NetworkSettings.Ports")
	// The address that was asked for stays with the endpoint (API 1.44; before, it was not read there).
	request(t, s.proa.Socket, "DELETE", "/v1.44/containers/wanted", "")
	request(t, s.proa.Socket, "POST", "/v1.44/containers/create?name=wanted", endpoints(`"bridge":{"MacAddress":"02:42:ac:11:00:0a"}`))
	p := request(t, s.proa.Socket, "GET", "/v1.44/containers/wanted/json", "")
	if got := field(t, p, "NetworkSettings.Networks.bridge.MacAddress"); got != `"02:42:ac:11:00:0a"` {
		t.Errorf("MacAddress of a created one: %s", got)
	}

	s.run(t, "volumes", `{"Image":"bb:1","Cmd":["sleep","100"],"Volumes":{"/any":{}},"HostConfig":{"Binds":["shown-a:/a","shown-b:/b:ro","shown-c:/c:nocopy","/anonymous"],
		"Mounts":[{"Type":"volume","Target":"/m"},{"Type":"volume","Source":"shown-m","Target":"/mn"}]}}`)
	t.Cleanup(func() {
		for _, v := range []string{"shown-a", "shown-b", "shown-c", "shown-m"} {
			s.both(t, "DELETE", "/volumes/"+v+"?force=1", "")
		}
	})
	p, d := s.both(t, "GET", "/v1.41/containers/volumes/json", "")
	if a, b := mounts(t, p), mounts(t, d); a != b {
		t.Errorf("mounts are\n%s; dockerd:\n%s", a, b)
	}
	if id, key := field(t, p, "NetworkSettings.SandboxID"), field(t, p, "NetworkSettings.SandboxKey"); len(id) != 66 || key == `""` {
		t.Errorf("SandboxID %s, SandboxKey %s", id, key)
	} else if r := s.proa.Exec("", "nsenter", "--net="+strings.Trim(key, `"`), "ip", "-o", "link"); !strings.Contains(r.Stdout, "eth0") {
		t.Errorf("cards in %s: %s%s", key, r.Stdout, r.Stderr)
	}

	for _, mode := range []string{"none", "host", "bridge"} {
		s.run(t, "ports-"+mode, `{"Image":"bb:1","Cmd":["sleep","100"],"ExposedPorts":{"80/tcp":{}},"HostConfig":{"NetworkMode":"`+mode+`"}}`)
		s.same(t, "ports-"+mode, "NetworkSettings.Ports")
	}

	s.run(t, "sick", `{"Image":"bb:1","Cmd":["sleep","100"],"Healthcheck":{"Test":["CMD","true"],"Interval":100000000000}}`)
	s.same(t, "sick", "State.Health")
}
