package faults

import (
	"strings"
	"testing"
)

const notManager = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`

// Docker that is in no swarm: 503 with these words (20.10.24, moby daemon/cluster/errors.go);
// docker-py's leave_swarm(force=True) takes 406 and 503 for "in no swarm".
func testSwarmThatIsOff(t *testing.T, s *sides) {
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/swarm", ""},
		{"GET", "/v1.40/swarm", ""},
		{"GET", "/swarm/unlockkey", ""},
		{"GET", "/services", ""},
		{"GET", "/services/x", ""},
		{"GET", "/services/x/logs?stdout=1", ""},
		{"POST", "/services/create", `{"TaskTemplate":{}}`},
		{"POST", "/services/x/update?version=1", `{"TaskTemplate":{}}`},
		{"DELETE", "/services/x", ""},
		{"GET", "/nodes", ""},
		{"GET", "/nodes/x", ""},
		{"DELETE", "/nodes/x", ""},
		{"POST", "/nodes/x/update?version=1", `{"Role":"worker"}`},
		{"GET", "/tasks", ""},
		{"GET", "/tasks/x", ""},
		{"GET", "/tasks/x/logs?stdout=1", ""},
		{"GET", "/secrets", ""},
		{"GET", "/secrets/x", ""},
		{"POST", "/secrets/create", `{"Name":"s","Data":"eA=="}`},
		{"DELETE", "/secrets/x", ""},
		{"GET", "/configs", ""},
		{"GET", "/configs/x", ""},
		{"POST", "/configs/create", `{"Name":"c","Data":"eA=="}`},
		{"DELETE", "/configs/x", ""},
		{"POST", "/configs/x/update?version=1", `{"Name":"c"}`},
		{"POST", "/swarm/update?version=1", `{"Name":"default"}`},
		{"POST", "/swarm/unlock", `{"UnlockKey":"x"}`},
	} {
		p, d := s.both(t, c.method, c.path, c.body)
		if p.status != d.status || p.message() != d.message() || d.message() != notManager {
			t.Errorf("%s %s: %d %s; dockerd: %d %s", c.method, c.path, p.status, p.body, d.status, d.body)
		}
	}
	for _, path := range []string{"/swarm/leave", "/swarm/leave?force=1", "/swarm/leave?force=true"} {
		p, d := s.both(t, "POST", path, "")
		if p.status != 503 || p.status != d.status || p.message() != d.message() {
			t.Errorf("POST %s: %d %s; dockerd: %d %s", path, p.status, p.body, d.status, d.body)
		}
	}
	for _, verb := range []string{"init", "join"} {
		if p := request(t, s.proa.Socket, "POST", "/swarm/"+verb, "{}"); p.status != 501 {
			t.Errorf("swarm %s: %d %s", verb, p.status, p.body)
		}
	}
	if r := s.proa.Docker("service", "ls"); r.Code == 0 || !strings.Contains(r.Stderr, "This node is not a swarm manager") {
		t.Errorf("docker service ls: %d %s", r.Code, r.Stderr)
	}
}

// Docker without plugins: an empty list, and 404 for each by name, with
// slashes in it or not; 501 is for what would bring one.
func testPlugins(t *testing.T, s *sides) {
	for _, c := range []struct{ method, path string }{
		{"GET", "/plugins"},
		{"GET", "/v1.41/plugins"},
		{"GET", "/plugins?filters=%7B%22enabled%22%3A%5B%22true%22%5D%7D"},
		{"GET", "/plugins/nosuch/json"},
		{"GET", "/plugins/vieux/sshfs:1/json"},
		{"GET", "/v1.40/plugins/localhost:5000/a/b/json"},
		{"DELETE", "/plugins/nosuch"},
		{"DELETE", "/plugins/a/b?force=1"},
	} {
		p, d := s.both(t, c.method, c.path, "")
		if p.status != d.status || p.body != d.body {
			t.Errorf("%s %s: %d %s; dockerd: %d %s", c.method, c.path, p.status, p.body, d.status, d.body)
		}
	}
	for _, path := range []string{"/plugins/pull?remote=x", "/plugins/create?name=x", "/plugins/x/enable?timeout=1", "/plugins/x/set", "/plugins/x/y/upgrade?remote=z"} {
		if p := request(t, s.proa.Socket, "POST", path, "[]"); p.status != 501 {
			t.Errorf("POST %s: %d %s", path, p.status, p.body)
		}
	}
	for _, cli := range []func(...string) string{
		func(a ...string) string { return s.old(a...).Stderr }, func(a ...string) string { return s.proa.Docker(a...).Stderr },
	} {
		for _, name := range []string{"nosuch", "acme/nosuch:1"} {
			if got := cli("inspect", name); !strings.Contains(strings.ToLower(got), "no such object: "+name) {
				t.Errorf("docker inspect %s: %s", name, got)
			}
		}
	}
}

// A wrong method and an unknown path are 404 `page not found` in Docker; what
// is not implemented says so; fixed words stand before names.
func testWrongMethods(t *testing.T, s *sides) {
	for _, c := range []struct{ method, path string }{
		{"POST", "/containers/json"},
		{"GET", "/containers/create"},
		{"PATCH", "/containers/json"},
		{"PUT", "/containers/x/json"},
		{"DELETE", "/info"},
		{"POST", "/v1.41/version"},
		{"POST", "/networks"},
		{"POST", "/networks/x"},
		{"PUT", "/networks/bridge"},
		{"GET", "/networks/nosuch"},
		{"GET", "/networks/create"},
		{"GET", "/networks/prune"},
		{"DELETE", "/networks/bridge"},
		{"DELETE", "/networks/host"},
		{"DELETE", "/networks/none"},
		{"DELETE", "/networks/nosuch"},
		{"DELETE", "/networks/a/b"},
		{"POST", "/networks/prune"},
		{"GET", "/nowhere"},
		{"GET", "/v1.41/nowhere"},
		{"GET", "/v1.99/nowhere"},
		{"GET", "/v1.41"},
		{"GET", "/v1.41/"},
		{"GET", "/"},
		{"GET", "/v1.x/info"},
		{"GET", "/v1.41/v1.41/info"},
		{"GET", "/containers/"},
		{"GET", "/containers/x"},
		{"GET", "/containers/json/"},
		{"GET", "/containers/x/nosuch"},
		{"POST", "/containers/x/json"},
		{"GET", "/images/"},
		{"GET", "/images/x/nosuch"},
		{"POST", "/images/x/nosuch"},
		{"GET", "/volumes/create"},
		{"GET", "/exec/x"},
		{"GET", "/plugins/"},
		{"GET", "/containers/x/checkpoints"},
		{"POST", "/containers/x/checkpoints"},
		{"DELETE", "/containers/x/checkpoints/y"},
		{"OPTIONS", "/containers/json"},
		{"OPTIONS", "/nowhere/at/all"},
		{"HEAD", "/containers/json"},
		{"HEAD", "/info"},
		{"HEAD", "/images/bb:1/json"},
		{"HEAD", "/_ping"},
	} {
		p, d := s.both(t, c.method, c.path, "")
		if p.status != d.status || p.message() != d.message() {
			t.Errorf("%s %s: %d %s; dockerd: %d %s", c.method, c.path, p.status, p.body, d.status, d.body)
		}
	}
	for _, path := range []string{"/networks/create", "/networks/bridge/connect", "/networks/a/b/disconnect"} {
		if p := request(t, s.proa.Socket, "POST", path, "{}"); p.status != 501 {
			t.Errorf("POST %s: %d %s", path, p.status, p.body)
		}
	}
	if r := s.old("network", "create", "n"); !strings.Contains(r.Stderr, "POST /networks/create is not implemented") {
		t.Errorf("docker network create: %s", r.Stderr)
	}
}

// All names take slashes, also encoded ones, and a path that is spelled
// uncleanly is sent on to the clean one.
func testNamesWithSlashes(t *testing.T, s *sides) {
	for _, c := range []struct{ method, path string }{
		{"GET", "/containers/acme/app/json"},
		{"GET", "/containers/acme%2Fapp/json"},
		{"GET", "/v1.41/containers/localhost:5000/a/b:1/json"},
		{"GET", "/containers/a/b/logs?stdout=1"},
		{"GET", "/containers/a/b/top"},
		{"GET", "/containers/a/b/stats?stream=0"},
		{"GET", "/containers/a/b/changes"},
		{"POST", "/containers/a/b/start"},
		{"POST", "/containers/a/b/stop"},
		{"POST", "/containers/a/b/kill"},
		{"POST", "/containers/a/b/wait"},
		{"DELETE", "/containers/a/b"},
		{"DELETE", "/containers/a/b/"},
		{"GET", "/exec/a/b/json"},
		{"GET", "/volumes/a/b"},
		{"GET", "/volumes/"},
		{"GET", "/networks/a/b"},
		{"GET", "/v1.41//containers/json"},
		{"GET", "//containers/json?all=1"},
		{"GET", "/containers//json"},
		{"GET", "/containers/../info"},
		{"POST", "/containers//start"},
		{"GET", "/networks//"},
	} {
		p, d := s.both(t, c.method, c.path, "")
		if p.status != d.status || !strings.EqualFold(p.message(), d.message()) || p.header.Get("Location") != d.header.Get("Location") {
			t.Errorf("%s %s: %d %s %s; dockerd: %d %s %s", c.method, c.path, p.status, p.body, p.header["Location"], d.status, d.body, d.header["Location"])
		}
	}
	if p := request(t, s.proa.Socket, "GET", "/networks/", ""); p.status != 200 || !strings.HasPrefix(p.body, "[{") {
		t.Errorf("GET /networks/: %d %s", p.status, p.body)
	}
}

// What the command line asks kind after kind ends at the right one.
func testCLIProbes(t *testing.T, s *sides) {
	s.proa.MustDocker("tag", "bb:1", "localhost:5000/x/y:1")
	s.proa.MustDocker("tag", "bb:1", "acme/app:1")
	for name, cli := range s.clis() {
		for _, image := range []string{"localhost:5000/x/y:1", "acme/app:1", "bb:1"} {
			if r := cli("inspect", "-f", "{{.Id}}", image); r.Code != 0 || !strings.HasPrefix(r.Stdout, "sha256:") {
				t.Errorf("%s: inspect %s: %d %s%s", name, image, r.Code, r.Stdout, r.Stderr)
			}
		}
		for _, args := range [][]string{{"logs", "a/b"}, {"start", "a/b"}, {"rm", "a/b"}, {"stop", "a/b"}, {"kill", "a/b"}, {"top", "a/b"}, {"diff", "a/b"}, {"port", "a/b"}} {
			if r := cli(args...); r.Code != 1 || !strings.Contains(r.Stderr, "No such container: a/b") {
				t.Errorf("%s: %v: %d %s%s", name, args, r.Code, r.Stdout, r.Stderr)
			}
		}
		for _, args := range [][]string{{"network", "inspect", "a/b"}, {"volume", "inspect", "a/b"}, {"plugin", "inspect", "a/b"}} {
			if r := cli(args...); r.Code != 1 || strings.Contains(r.Stderr, "implemented") {
				t.Errorf("%s: %v: %d %s%s", name, args, r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	s.proa.MustDocker("rmi", "localhost:5000/x/y:1", "acme/app:1")
}

// The fields that docker info warns about where they are false have the values of the host.
func testInfo(t *testing.T, s *sides) {
	p, d := s.both(t, "GET", "/v1.41/info", "")
	for _, key := range []string{"MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit", "IPv4Forwarding", "CgroupVersion", "NCPU", "MemTotal", "OSType", "Architecture", "KernelVersion"} {
		if a, b := field(t, p, key), field(t, d, key); a != b {
			t.Errorf("%s of info is %s; dockerd: %s", key, a, b)
		}
	}
}

// system prune goes through containers, networks, volumes, images and cache and
// stops at the first error.
func testSystemPrune(t *testing.T, s *sides) {
	for name, cli := range s.clis() {
		for _, args := range [][]string{
			{"system", "prune", "-f"}, {"system", "prune", "-f", "--volumes"}, {"network", "prune", "-f"},
			{"network", "prune", "-f", "--filter", "until=1h"}, {"network", "ls"}, {"network", "inspect", "bridge", "host", "none"},
		} {
			if r := cli(args...); r.Code != 0 {
				t.Errorf("%s: %v: %d %s%s", name, args, r.Code, r.Stdout, r.Stderr)
			}
		}
	}
	for _, filters := range []string{"", `{"label":["a"]}`, `{"until":["1h"]}`, `{"nosuch":["a"]}`} {
		p, d := s.both(t, "POST", "/networks/prune?filters="+escape(filters), "")
		if p.status != d.status || p.status == 200 && p.body != d.body {
			t.Errorf("prune of networks with %s: %d %s; dockerd: %d %s", filters, p.status, p.body, d.status, d.body)
		}
	}
}
