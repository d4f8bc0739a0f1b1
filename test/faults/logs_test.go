package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"proa/test/proatest"
)

// The faults of logs, behind both isolations. What is right was seen on
// dockerd 20.10.24 and read in moby's source of August 2026 (daemon/logs.go,
// daemon/logger).
func TestFaultsOfLogs(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	l := &logged{e: e, isolation: "container"}
	t.Run("D02LenientTail", func(t *testing.T) { testLenientTail(t, l) })
	t.Run("D33D34Details", func(t *testing.T) { testDetails(t, l) })
	t.Run("D33CompressAndMode", func(t *testing.T) { testCompress(t, l) })
	t.Run("D38Characters", func(t *testing.T) { testCharacters(t, l) })
	t.Run("D33D34D38InVM", func(t *testing.T) { testLogsOfVM(t, &logged{e: e, isolation: "vm"}) })
	t.Run("D33Refused", func(t *testing.T) { testLogOptionsRefused(t, e) })
	t.Run("DriverNone", func(t *testing.T) { testDriverNone(t, e) })
}

// logged makes containers of one isolation.
type logged struct {
	e         *proatest.Engine
	isolation string
}

// run runs a shell command to its end and gives the container's id.
func (l *logged) run(t *testing.T, script string, flags ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id")
	args := append([]string{"run", "--network", "none", "--isolation", l.isolation, "--cidfile", file}, flags...)
	if r := l.e.Docker(append(args, "bb:1", "sh", "-c", script)...); r.Code != 0 {
		t.Fatalf("run: %d %s", r.Code, r.Stderr)
	}
	id, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.e.Docker("rm", "-f", string(id)) })
	return string(id)
}

func testLenientTail(t *testing.T, l *logged) {
	id := l.run(t, "echo one; echo two; echo three")
	all := "one\ntwo\nthree\n"
	for tail, want := range map[string]string{
		"-1": all, "abc": all, "all": all, "": all, "1.5": all, "99999999999999999999": all, "-7": all, "1000000": all, "2": "two\nthree\n", "0": "",
	} {
		for _, follow := range []string{"0", "1"} {
			a := request(t, l.e.Socket, "GET", fmt.Sprintf("/containers/%s/logs?stdout=1&follow=%s&tail=%s", id, follow, tail), "")
			text := ""
			for b := a.body; len(b) >= 8; { // frames of one line each
				n := int(b[7])
				text, b = text+strings.TrimSuffix(b[8:min(len(b), 8+n)], "\n")+"\n", b[min(len(b), 8+n):]
			}
			if a.status != 200 || text != want {
				t.Errorf("tail=%s follow=%s: %d %q; want %q", tail, follow, a.status, text, want)
			}
		}
	}
	if r := l.e.Docker("logs", "--tail", "-1", id); r.Code != 0 || r.Stdout != all {
		t.Errorf("docker logs --tail -1: %+v", r)
	}
	if a := request(t, l.e.Socket, "GET", "/containers/"+id+"/logs?stdout=1&since=x", ""); a.status != 400 {
		t.Errorf("since=x: %d", a.status)
	}
}

func testDetails(t *testing.T, l *logged) {
	plain := l.run(t, "echo hi")
	for _, cli := range []func(...string) proatest.Result{l.e.Docker, l.e.Proa} {
		if r := cli("logs", "--details", plain); r.Stdout != " hi\n" {
			t.Errorf("details without attributes: %q %s", r.Stdout, r.Stderr)
		}
	}
	id := l.run(t, "echo out; echo err >&2", "--name", "tagged-"+l.isolation, "-l", "team=a b", "-l", "x.y=1", "-l", "z=2", "-e", "E=&", "-e", "F=no",
		"--log-opt", "labels=team,nosuch", "--log-opt", "labels-regex=^x", "--log-opt", "env=E", "--log-opt", "env-regex=^nosuch",
		"--log-opt", "tag={{.Name}}/{{.ImageName}}")
	want := "E=%26,tag=tagged-" + l.isolation + "%2Fbb%3A1,team=a+b,x.y=1 "
	for _, cli := range []func(...string) proatest.Result{l.e.Docker, l.e.Proa} {
		if r := cli("logs", "--details", id); r.Stdout != want+"out\n" || r.Stderr != want+"err\n" {
			t.Errorf("details: %q %q; want %q", r.Stdout, r.Stderr, want)
		}
		if r := cli("logs", id); r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Errorf("without: %q %q", r.Stdout, r.Stderr)
		}
		r := cli("logs", "--details", "-t", "-n", "1", id)
		if stamp, rest, _ := strings.Cut(r.Stderr+r.Stdout, " "); !strings.HasSuffix(stamp, "Z") || !strings.HasPrefix(rest, want) {
			t.Errorf("with times: %q", r.Stderr)
		}
	}
}

func testCompress(t *testing.T, l *logged) {
	id := l.run(t, "seq 1 20000", "--log-opt", "max-size=20KiB", "--log-opt", "max-file=1000", "--log-opt", "compress=true")
	var c struct{ LogPath string }
	request(t, l.e.Socket, "GET", "/containers/"+id+"/json", "").decode(t, &c)
	if packed, _ := filepath.Glob(c.LogPath + ".*.gz"); len(packed) < 10 {
		t.Errorf("%d compressed files", len(packed))
	}
	var all strings.Builder
	for i := range 20000 {
		fmt.Fprintln(&all, i+1)
	}
	if r := l.e.Docker("logs", id); r.Stdout != all.String() {
		t.Errorf("%d bytes of %d, %s", len(r.Stdout), all.Len(), r.Stderr)
	}
	if r := l.e.Docker("logs", "-f", "--tail", "15000", id); r.Stdout != all.String()[strings.Index(all.String(), "\n5001\n")+1:] {
		t.Errorf("tail: %d bytes %s", len(r.Stdout), r.Stderr)
	}
	if r := l.e.Docker("logs", "--until", "2001-01-01T00:00:00Z", id); r.Code != 0 || r.Stdout != "" {
		t.Errorf("until: %+v", r)
	}
	id = l.run(t, "seq 1 100", "--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=1.5m")
	if r := l.e.Docker("logs", "--tail", "1", id); r.Stdout != "100\n" {
		t.Errorf("non-blocking: %+v", r)
	}
}

// A character over the border of 16 KiB is in one record or the other.
func testCharacters(t *testing.T, l *logged) {
	id := l.run(t, `head -c 16383 /dev/zero | tr '\0' a; printf 'é日🙂\n'`)
	want := strings.Repeat("a", 16383) + "é日🙂\n"
	if r := l.e.Docker("logs", id); r.Stdout != want {
		t.Errorf("%q", r.Stdout[max(0, len(r.Stdout)-40):])
	}
}

// One VM with everything, because a guest takes its time to boot.
func testLogsOfVM(t *testing.T, l *logged) {
	id := l.run(t, `seq 1 5000; head -c 16383 /dev/zero | tr '\0' a; printf 'é日🙂\n'`, "-l", "team=a", "--log-opt", "labels=team", "--log-opt", "tag={{.Name}}",
		"--log-opt", "max-size=40k", "--log-opt", "max-file=100", "--log-opt", "compress=true", "--log-opt", "mode=non-blocking", "--name", "guest")
	r := l.e.Docker("logs", "--details", id)
	attrs := "tag=guest,team=a "
	if !strings.HasPrefix(r.Stdout, attrs+"1\n"+attrs+"2\n") || !strings.Contains(r.Stdout, "\n"+attrs+"5000\n"+attrs+"aaaa") || !strings.HasSuffix(r.Stdout, attrs+"é日🙂\n") {
		t.Errorf("%d bytes %.80q … %q", len(r.Stdout), r.Stdout, r.Stdout[max(0, len(r.Stdout)-80):])
	}
	var c struct{ LogPath string }
	request(t, l.e.Socket, "GET", "/containers/"+id+"/json", "").decode(t, &c)
	if packed, _ := filepath.Glob(c.LogPath + ".*.gz"); len(packed) < 3 {
		t.Errorf("%d compressed files", len(packed))
	}
	if r := l.e.Docker("logs", "--tail", "-1", id); strings.Count(r.Stdout, "\n") != 5001 {
		t.Errorf("%d lines", strings.Count(r.Stdout, "\n"))
	}
}

func testLogOptionsRefused(t *testing.T, e *proatest.Engine) {
	for _, c := range []struct{ options, want string }{
		{`{"max-size":"-1"}`, "max-size must be a positive number"},
		{`{"max-size":"ten"}`, "max-size"},
		{`{"max-file":"0"}`, "max-file cannot be less than 1"},
		{`{"compress":"true","max-file":"1","max-size":"1m"}`, "compress cannot be true when max-file is less than 2"},
		{`{"mode":"fast"}`, "logger: logging mode not supported: fast"},
		{`{"max-buffer-size":"1m"}`, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
		{`{"nosuch":"1"}`, "unknown log opt 'nosuch' for json-file log driver"},
		{`{"tag":"{{.Nosuch}}"}`, "Nosuch"},
	} {
		a := request(t, e.Socket, "POST", "/containers/create", `{"Image":"bb:1","HostConfig":{"LogConfig":{"Type":"json-file","Config":`+c.options+`}}}`)
		if a.status != 400 || !strings.Contains(a.message(), c.want) {
			t.Errorf("%s: %d %s", c.options, a.status, a.body)
		}
	}
}

func testDriverNone(t *testing.T, e *proatest.Engine) {
	a := request(t, e.Socket, "POST", "/containers/create?name=silent", `{"Image":"bb:1","Cmd":["true"],"HostConfig":{"LogConfig":{"Type":"none","Config":{"max-size":"1m"}}}}`)
	if a.status != 201 {
		t.Fatalf("create: %d %s", a.status, a.body)
	}
	a = request(t, e.Socket, "GET", "/containers/silent/logs?stdout=1", "")
	if a.status != 501 || a.message() != "configured logging driver does not support reading" {
		t.Errorf("logs of driver none: %d %s", a.status, a.body)
	}
	var c struct {
		HostConfig struct{ LogConfig json.RawMessage }
	}
	request(t, e.Socket, "GET", "/containers/silent/json", "").decode(t, &c)
	if string(c.HostConfig.LogConfig) != `{"Type":"none","Config":{"max-size":"1m"}}` {
		t.Errorf("inspect: %s", c.HostConfig.LogConfig)
	}
}
