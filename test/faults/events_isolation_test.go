package faults

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"proa/internal/sys"
	"proa/test/proatest"
)

// typeKeys attaches to a hijacked route and types ctrl-p ctrl-q; it returns at
// the end of the stream.
func typeKeys(t *testing.T, socket, path, body string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	r := bufio.NewReader(conn)
	for line := ""; line != "\r\n"; {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatalf("%s: the head: %v", path, err)
		}
	}
	for _, key := range []byte{16, 17} { // each alone, as a terminal sends them
		if _, err := conn.Write([]byte{key}); err != nil {
			t.Fatal(err)
		}
		if key == 16 {
			until(t, "the first key was read", func() bool { n, err := sys.Unread(conn); return n == 0 && err == nil })
		}
	}
	_, _ = io.Copy(io.Discard, r)
}

// The events of a container's life are the same behind both isolations: type,
// action, actor and attributes, among them those that need a terminal or a kill
// by the kernel. Docker's are compared in TestFaultsOfEvents.
func TestFaultC18EventsBehindBothIsolations(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	did := map[string][]string{}
	for _, isolation := range isolations {
		first := untilNow()
		begin := strings.TrimPrefix(first, "since=0&until=")
		e.MustDocker("run", "-dit", "--name", "ev", "--label", "l=1", "--runtime", isolation, "--health-cmd", "true", "--health-interval", "300ms", "bb", "sh")
		until(t, "it is healthy", func() bool { return e.Docker("inspect", "-f", "{{.State.Health.Status}}", "ev").Out() == "healthy" })
		typeKeys(t, e.Socket, "/containers/ev/attach?stream=1&stdin=1&stdout=1", "")
		var x struct{ ID string }
		request(t, e.Socket, "POST", "/containers/ev/exec", `{"Cmd":["sh"],"Tty":true,"AttachStdin":true,"AttachStdout":true}`).decode(t, &x)
		typeKeys(t, e.Socket, "/exec/"+x.ID+"/start", `{"Tty":true}`)
		if r := e.Docker("exec", "ev", "sh", "-c", "exit 3"); r.Code != 3 {
			t.Errorf("%s: exec: %d %s", isolation, r.Code, r.Stderr)
		}
		e.MustDocker("top", "ev")
		request(t, e.Socket, "POST", "/containers/ev/resize?h=20&w=70", "")
		e.MustDocker("pause", "ev")
		e.MustDocker("unpause", "ev")
		e.MustDocker("rename", "ev", "uno")
		e.MustDocker("update", "--restart", "no", "uno")
		e.MustDocker("kill", "-s", "USR1", "uno")
		e.MustDocker("cp", "uno:/etc/passwd", "-")
		e.MustDocker("cp", "/etc/hostname", "uno:/tmp/")
		request(t, e.Socket, "GET", "/containers/uno/export", "")
		e.MustDocker("commit", "uno", "committed")
		e.MustDocker("restart", "-t", "0", "uno")
		e.MustDocker("stop", "-t", "0", "uno")
		e.MustDocker("rm", "uno")
		memory := "32m"
		if isolation == "vm" {
			memory = "128m"
		}
		e.Docker("run", "--rm", "--name", "big", "--runtime", isolation, "--network", "none", "-m", memory, "bb", "tail", "/dev/zero")
		e.MustDocker("container", "prune", "-f")
		var got []string
		for _, s := range shapes(eventsOf(t, e.Socket, "since="+begin+"&"+strings.TrimPrefix(untilNow(), "since=0&"))) {
			// Which exec of a health check ends while a container stops differs from run to run; the exec of the test ends with 3.
			check := strings.Contains(s, "exec_") && strings.Contains(s, "true") || strings.Contains(s, "exec_die") && strings.Contains(s, "exitCode:0")
			if !check {
				got = append(got, s)
			}
		}
		did[isolation] = got
		e.MustDocker("rmi", "-f", "committed")
	}
	for _, s := range did["container"] {
		if !slices.Contains(did["vm"], s) {
			t.Errorf("only of a container: %s", s)
		}
	}
	for _, s := range did["vm"] {
		if !slices.Contains(did["container"], s) {
			t.Errorf("only of a VM: %s", s)
		}
	}
	all := strings.Join(did["container"], "\n")
	for _, want := range []string{
		"create", "attach", "detach", "start", "exec_create: sh", "exec_start: sh", "exec_detach", "exec_die", "top", "resize", "pause", "unpause", "rename", "update", "kill",
		"archive-path", "extract-to-dir", "export", "commit", "restart", "stop", "die", "destroy", "oom", "health_status: healthy", "prune",
	} {
		if !strings.Contains(all, "container "+want) {
			t.Errorf("no event of a container %s in\n%s", want, all)
		}
	}
	for _, want := range []string{"network connect", "network disconnect", "image create"} {
		if !strings.Contains(all, want) {
			t.Errorf("no event %s in\n%s", want, all)
		}
	}
}
