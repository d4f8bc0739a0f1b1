package faults

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// made creates a container on both engines and removes it when the test ends.
func (s *sides) made(t *testing.T, name, body string) (proa, docker answer) {
	t.Helper()
	t.Cleanup(func() { s.both(t, "DELETE", "/v1.41/containers/"+name+"?force=1&v=1", "") })
	return s.both(t, "POST", "/v1.41/containers/create?name="+name, body)
}

// run is made and started, both with success.
func (s *sides) run(t *testing.T, name, body string) {
	t.Helper()
	for _, step := range []func() (answer, answer){
		func() (answer, answer) { return s.made(t, name, body) },
		func() (answer, answer) { return s.both(t, "POST", "/containers/"+name+"/start", "") },
	} {
		if p, d := step(); p.status >= 300 || d.status >= 300 {
			t.Fatalf("%s: %d %s; dockerd: %d %s", name, p.status, p.body, d.status, d.body)
		}
	}
}

// createCase is one body of POST /containers/create. What the engine refuses on
// purpose is named in COMPATIBILITY.md, and differs says so.
type createCase struct {
	body    string
	differs int // the status here, where Docker's is 201
}

func (s *sides) compareCreate(t *testing.T, cases ...createCase) {
	t.Helper()
	for _, c := range cases {
		p, d := s.made(t, "create-case", c.body)
		want := d.status
		if c.differs != 0 {
			want = c.differs
		}
		if p.status != want || want == d.status && want >= 400 && p.message() != d.message() {
			t.Errorf("create %s: %d %s; dockerd: %d %s", c.body, p.status, p.body, d.status, d.body)
		}
		s.both(t, "DELETE", "/v1.41/containers/create-case?force=1&v=1", "")
	}
}

func hostConfig(fields string) string { return `{"Image":"bb:1","HostConfig":{` + fields + `}}` }

func endpoints(fields string) string {
	return `{"Image":"bb:1","NetworkingConfig":{"EndpointsConfig":{` + fields + `}}}`
}

// Nothing but a missing image is 404 at create: clients pull then.
func testNotFoundAtCreate(t *testing.T, s *sides) {
	s.compareCreate(t,
		createCase{body: hostConfig(`"VolumesFrom":["nosuch"]`)},
		createCase{body: hostConfig(`"VolumesFrom":["nosuch:ro"]`)},
		createCase{body: hostConfig(`"VolumesFrom":[""]`)},
		createCase{body: hostConfig(`"VolumesFrom":["create-case"]`)},
		createCase{body: hostConfig(`"PidMode":"container:nosuch"`)},
		createCase{body: hostConfig(`"PidMode":"container:create-case"`)},
		createCase{body: hostConfig(`"IpcMode":"container:nosuch"`)},
		createCase{body: hostConfig(`"IpcMode":"container:create-case"`)},
		createCase{body: hostConfig(`"NetworkMode":"container:nosuch"`)},
		createCase{body: hostConfig(`"NetworkMode":"container:create-case"`)},
	)
	// At the start Docker says what is missing; its 500 for itself is 400 here.
	for name, c := range map[string]struct{ mode, says string }{
		"gone":   {"container:nosuch", "No such container: nosuch"},
		"itself": {"container:itself", "cannot join own network"},
	} {
		s.made(t, name, hostConfig(`"NetworkMode":"`+c.mode+`"`))
		p, d := s.both(t, "POST", "/containers/"+name+"/start", "")
		if p.message() != d.message() || p.message() != c.says || p.status != d.status && d.status != 500 {
			t.Errorf("start with --network %s: %d %s; dockerd: %d %s", c.mode, p.status, p.body, d.status, d.body)
		}
	}
	for name, cli := range s.clis() {
		for _, flag := range []string{"--volumes-from", "--pid=container:", "--ipc=container:", "--network=container:"} {
			args := []string{"run", "--rm", flag + "nosuch", "bb:1", "true"}
			if flag == "--volumes-from" {
				args = []string{"run", "--rm", flag, "nosuch", "bb:1", "true"}
			}
			if r := cli(args...); r.Code != 125 || strings.Contains(r.Stderr, "Unable to find image") || !strings.Contains(r.Stderr, "No such container: nosuch") {
				t.Errorf("%s: %v: %d %s", name, args, r.Code, r.Stderr)
			}
		}
	}
}

// A network that is not there is found out at the start; strings that nothing
// needs are kept; what has an effect in Docker and none here is refused.
func testRefusedAtCreate(t *testing.T, s *sides) {
	s.compareCreate(t,
		createCase{body: hostConfig(`"NetworkMode":"nosuchnet"`)},
		createCase{body: endpoints(`"nosuchnet":{}`)},
		createCase{body: `{"Image":"bb:1","HostConfig":{"NetworkMode":"nosuchnet"},"NetworkingConfig":{"EndpointsConfig":{"nosuchnet":{"Aliases":["a"]}}}}`},
		createCase{body: hostConfig(`"VolumeDriver":"nosuch"`)},
		createCase{body: endpoints(`"bridge":{"DriverOpts":{"a":"b"}}`)},
		createCase{body: endpoints(`"bridge":{"Aliases":["a"]}`)},
		createCase{body: hostConfig(`"DeviceCgroupRules":["c 7:128 rwm"]`), differs: 400},
		createCase{body: hostConfig(`"CpuRealtimePeriod":1000`), differs: 400},
		createCase{body: hostConfig(`"CpuRealtimeRuntime":1000`), differs: 400},
		createCase{body: hostConfig(`"StorageOpt":{"size":"1G"}`), differs: 400},
		createCase{body: endpoints(`"bridge":{"IPAMConfig":{"LinkLocalIPs":["169.254.1.1"]}}`), differs: 400},
		createCase{body: endpoints(`"bridge":{"DriverOpts":{"com.docker.network.endpoint.ifname":"x0"}}`), differs: 400},
	)
	for name, body := range map[string]string{
		"net-mode":     hostConfig(`"NetworkMode":"nosuchnet"`),
		"net-endpoint": endpoints(`"nosuchnet":{}`),
		"net-alias":    endpoints(`"bridge":{"Aliases":["a"]}`),
	} {
		s.made(t, name, body)
		p, d := s.both(t, "POST", "/containers/"+name+"/start", "")
		if p.status != d.status || p.message() != d.message() {
			t.Errorf("start of %s: %d %s; dockerd: %d %s", name, p.status, p.body, d.status, d.body)
		}
		var got, want struct {
			State           struct{ Status, Error string }
			NetworkSettings struct{ Networks map[string]any }
		}
		p, d = s.both(t, "GET", "/v1.41/containers/"+name+"/json", "")
		p.decode(t, &got)
		d.decode(t, &want)
		if got.State != want.State || len(got.NetworkSettings.Networks) != 1 {
			t.Errorf("%s after its start: %+v; dockerd: %+v", name, got, want)
		}
	}
	// The driver options are shown again.
	s.made(t, "opts", endpoints(`"bridge":{"DriverOpts":{"a":"b"}}`))
	if p := request(t, s.proa.Socket, "GET", "/containers/opts/json", ""); !strings.Contains(p.body, `"DriverOpts":{"a":"b"}`) {
		t.Errorf("driver options: %s", p.body)
	}
	for name, cli := range s.clis() {
		if r := cli("run", "--rm", "--network", "nosuchnet", "bb:1", "true"); r.Code != 125 || !strings.Contains(r.Stderr, "network nosuchnet not found") {
			t.Errorf("%s: --network nosuchnet: %d %s", name, r.Code, r.Stderr)
		}
	}
}

// refuses asks Proa alone: Docker looks for a plugin for 15 seconds before it
// gives the answer that is recorded here (20.10.24).
func (s *sides) refuses(t *testing.T, path, body string, status int, says string) {
	t.Helper()
	if p := request(t, s.proa.Socket, "POST", path, body); p.status != status || p.message() != says {
		t.Errorf("%s: %d %s; dockerd: %d %s", body, p.status, p.body, status, says)
	}
}

// Messages that clients compare whole (docker-py's tests among them).
func testCreateMessages(t *testing.T, s *sides) {
	s.refuses(t, "/containers/create", hostConfig(`"LogConfig":{"Type":"asdf"}`), 400, `error looking up logging plugin asdf: plugin "asdf" not found`)
	s.compareCreate(t,
		createCase{body: hostConfig(`"LogConfig":{"Type":"json-file","Config":{"nosuch":"1"}}`)},
		createCase{body: hostConfig(`"LogConfig":{"Type":"none","Config":{"a":"1"}}`)},
		createCase{body: hostConfig(`"ExtraHosts":["a"]`)},
		createCase{body: hostConfig(`"ExtraHosts":["a:b"]`)},
		createCase{body: hostConfig(`"ExtraHosts":[":1.2.3.4"]`)},
		createCase{body: hostConfig(`"VolumesFrom":["x:bad"]`)},
		createCase{body: hostConfig(`"CgroupnsMode":"bogus"`)},
		createCase{body: hostConfig(`"AutoRemove":true,"RestartPolicy":{"Name":"always"}`)},
		createCase{body: hostConfig(`"Memory":1000`)},
		createCase{body: hostConfig(`"ShmSize":-1`)},
		createCase{body: hostConfig(`"CpuPeriod":10`)},
		createCase{body: hostConfig(`"CpuQuota":10`)},
		createCase{body: hostConfig(`"Binds":["/tmp:/x","/tmp:/x"]`)},
		createCase{body: `{"Image":"bb:1","Env":["=x"]}`},
		createCase{body: `{"Image":"bb:1","Healthcheck":{"Test":["CMD","x"],"Interval":1}}`},
		createCase{body: `{"Image":"bb:1","Healthcheck":{"Retries":-1}}`},
	)
}

// Extra hosts of a build that are no "name:address" are the client's fault.
func testExtraHostsOfABuild(t *testing.T, s *sides) {
	for _, q := range []string{"extrahosts=nocolon", "extrahosts=a:not-an-ip", "extrahosts=%3A1.2.3.4"} {
		if p := request(t, s.proa.Socket, "POST", "/build?"+q, "x", "Content-Type", "application/x-tar"); p.status != 400 {
			t.Errorf("build with %s: %d %s", q, p.status, p.body)
		}
	}
}

// CPUs and memory nodes that the host does not have are refused by create and
// by update, with Docker's messages.
func testCPUsThatAreNotThere(t *testing.T, s *sides) {
	for _, field := range []string{"CpusetCpus", "CpusetMems"} {
		for _, v := range []string{"0", "01", "0,0", "0-0", "7000", "0-7000", "99999", "1-0", "a", "0,", ",", " 0", "-1", "0-", "0-1:2/4", "1-9223372036854775807"} {
			s.compareCreate(t, createCase{body: hostConfig(fmt.Sprintf("%q:%q", field, v))})
		}
	}
	if s.made(t, "cpus", hostConfig("")); t.Failed() {
		return
	}
	for _, body := range []string{`{"CpusetCpus":"7000"}`, `{"CpusetMems":"7000"}`, `{"CpusetCpus":"x"}`, `{"CpusetCpus":"0"}`} {
		p, d := s.both(t, "POST", "/v1.41/containers/cpus/update", body)
		if p.status != d.status || p.status >= 400 && p.message() != d.message() {
			t.Errorf("update %s: %d %s; dockerd: %d %s", body, p.status, p.body, d.status, d.body)
		}
	}
	if p := request(t, s.proa.Socket, "POST", "/containers/create", `{"Image":"bb:1","HostConfig":{"Isolation":"vm","CpusetCpus":"7000"}}`); p.status != 400 {
		t.Errorf("a VM on CPU 7000: %d %s", p.status, p.body)
	}
}

// What Docker takes at create, or refuses there.
func testTakenAtCreate(t *testing.T, s *sides) {
	s.made(t, "private", `{"Image":"bb:1","Cmd":["sleep","100"]}`)
	for _, state := range []string{"created", "running"} {
		if state == "running" {
			s.both(t, "POST", "/containers/private/start", "")
		}
		s.made(t, "joins-"+state, hostConfig(`"IpcMode":"container:private"`))
		p, d := s.both(t, "POST", "/containers/joins-"+state+"/start", "")
		if p.status < 400 || d.status < 400 || p.status == 404 {
			t.Errorf("start in the shared memory of a private %s one: %d %s; dockerd: %d %s", state, p.status, p.body, d.status, d.body)
		}
	}
	s.compareCreate(t,
		createCase{body: hostConfig(`"IpcMode":"container:private"`)},
		createCase{body: `{"Image":"bb:1","NetworkDisabled":true}`},
		createCase{body: hostConfig(`"Annotations":{"":"x"}`)}, // of API 1.43: not read at 1.41
		createCase{body: hostConfig(`"Annotations":{"a":"x"}`)},
	)
	const noDriver = `create vv: error looking up volume plugin nosuch: plugin "nosuch" not found`
	for _, body := range []string{
		hostConfig(`"VolumeDriver":"nosuch","Binds":["vv:/x"]`),
		hostConfig(`"Mounts":[{"Type":"volume","Source":"vv","Target":"/x","VolumeOptions":{"DriverConfig":{"Name":"nosuch"}}}]`),
	} {
		s.refuses(t, "/containers/create", body, 404, noDriver)
	}
	s.refuses(t, "/volumes/create", `{"Name":"vv","Driver":"nosuch"}`, 404, noDriver)
	s.compareCreate(t, createCase{body: hostConfig(`"VolumeDriver":"local","Binds":["vv:/x"]`)})
	p := request(t, s.proa.Socket, "POST", "/containers/create", hostConfig(`"Annotations":{"":"x"}`))
	if p.message() != "invalid Annotations: the empty string is not permitted as an annotation key" {
		t.Errorf("annotation without a name: %s", p.body)
	}

	// No network but the loopback.
	s.run(t, "alone", `{"Image":"bb:1","NetworkDisabled":true,"Cmd":["sh","-c","ls /sys/class/net; sleep 100"]}`)
	type settings struct {
		NetworkSettings struct {
			Networks map[string]any
			Ports    map[string]any
		}
		Config struct{ NetworkDisabled bool }
	}
	var got, want settings
	p, d := s.both(t, "GET", "/v1.41/containers/alone/json", "")
	p.decode(t, &got)
	d.decode(t, &want)
	if a, b := fmt.Sprint(got), fmt.Sprint(want); a != b {
		t.Errorf("without a network: %s; dockerd: %s", a, b)
	}
	if out := s.proa.MustProa("exec", "alone", "ls", "/sys/class/net"); out != "lo" {
		t.Errorf("cards: %q", out)
	}
}

// An empty HOME is filled in from passwd, for the main process and an exec.
func testEmptyHome(t *testing.T, s *sides) {
	s.run(t, "home", `{"Image":"bb:1","Env":["HOME=","A=1"],"User":"app","Cmd":["sh","-c","echo $HOME; exec sleep 100"]}`)
	for _, c := range []struct{ env, want string }{{"A=2", "/home/app"}, {"HOME=", "/home/app"}, {"HOME=/x", "/x"}} {
		if out := s.proa.MustDocker("exec", "-e", c.env, "home", "sh", "-c", "echo $HOME"); out != c.want {
			t.Errorf("exec with %s: HOME=%s, want %s", c.env, out, c.want)
		}
	}
	if out := s.proa.MustDocker("logs", "home"); out != "/home/app" {
		t.Errorf("HOME=%s", out)
	}
}

// A body needs a Content-Type, and only JSON is taken.
func testContentTypes(t *testing.T, s *sides) {
	s.made(t, "typed", hostConfig(""))
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/containers/create", `{"Image":"bb:1"}`},
		{"POST", "/containers/typed/update", `{}`},
		{"POST", "/containers/typed/exec", `{"Cmd":["true"]}`},
		{"POST", "/volumes/create", `{"Name":"typed"}`},
		{"POST", "/commit?container=typed", `{}`},
	} {
		for _, ct := range []string{"", "text/plain", "application/jsonp", "application/x-tar", "bad/"} {
			p, d := s.both(t, c.method, c.path, c.body, "Content-Type", ct)
			if p.status != 400 || d.status != 400 {
				t.Errorf("%s %s as %q: %d %s; dockerd: %d %s", c.method, c.path, ct, p.status, p.body, d.status, d.body)
			}
		}
	}
	for _, ct := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON"} {
		if p := request(t, s.proa.Socket, "POST", "/containers/typed/update", `{}`, "Content-Type", ct); p.status != 200 {
			t.Errorf("update as %q: %d %s", ct, p.status, p.body)
		}
	}
	if p := request(t, s.proa.Socket, "POST", "/volumes/prune", ""); p.status != 200 {
		t.Errorf("a request without a body: %d %s", p.status, p.body)
	}
}

// One slash before a name is trimmed, as rename does.
func testNameWithASlash(t *testing.T, s *sides) {
	p, d := s.made(t, "/web2", hostConfig(""))
	if p.status != 201 || d.status != 201 {
		t.Fatalf("create /web2: %d %s; dockerd: %d %s", p.status, p.body, d.status, d.body)
	}
	for _, name := range []string{"web2", "/web2"} {
		var got struct{ Name string }
		p := request(t, s.proa.Socket, "GET", "/containers/web2/json", "")
		if p.decode(t, &got); got.Name != "/web2" {
			t.Errorf("its name by %s is %q", name, got.Name)
		}
	}
	for _, name := range []string{"//web3", "/", "a/b"} {
		p, d := s.both(t, "POST", "/containers/create?name="+escape(name), hostConfig(""))
		if p.status != d.status {
			t.Errorf("create %s: %d %s; dockerd: %d %s", name, p.status, p.body, d.status, d.body)
		}
		for i, a := range []answer{p, d} {
			var made struct{ ID string }
			if json.Unmarshal([]byte(a.body), &made) == nil && made.ID != "" {
				request(t, []string{s.proa.Socket, s.docker.Socket}[i], "DELETE", "/containers/"+made.ID, "")
			}
		}
	}
}

// A restart policy without a name is none, whatever its count is.
func testNamelessPolicy(t *testing.T, s *sides) {
	s.compareCreate(t, createCase{body: hostConfig(`"RestartPolicy":{"Name":"","MaximumRetryCount":3}`)})
	s.made(t, "policy", hostConfig(`"RestartPolicy":{"Name":"","MaximumRetryCount":3}`))
	p, d := s.both(t, "POST", "/v1.41/containers/policy/update", `{"RestartPolicy":{"Name":"","MaximumRetryCount":3}}`)
	if p.status != d.status {
		t.Errorf("update: %d %s; dockerd: %d %s", p.status, p.body, d.status, d.body)
	}
}
