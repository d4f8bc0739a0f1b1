package faults

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"proa/test/proatest"
)

// The faults of streams are looked at on one engine, with requests written and
// answers read byte by byte. docs/dev/streams.md is the contract. What is right
// was seen on dockerd 20.10.24 (API 1.41) and read in moby's source of August
// 2026 (API 1.56) where the row says nothing else.
func TestFaultsOfStreams(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	box := running(t, e, "box", `"Image":"bb:1","Cmd":["sleep","1000"]`)
	t.Run("A1ExecHeadComesAlone", func(t *testing.T) { testExecHead(t, e, box) })
	t.Run("A1ManyExecsLoseNothing", func(t *testing.T) {
		proatest.EchoExecs(t, e.Socket, box, 100, 1)
		proatest.EchoExecs(t, e.Socket, box, 100, 8)
	})
	t.Run("A2FramesFollowStart", func(t *testing.T) { testExecFrames(t, e, box) })
	t.Run("A2ConsoleSize", func(t *testing.T) { testConsoleSize(t, e, box) })
	t.Run("ExecInput", func(t *testing.T) { testExecInput(t, e, box) })
	t.Run("B1SecondStart", func(t *testing.T) { testSecondStart(t, e, box) })
	t.Run("C25UnknownUser", func(t *testing.T) { testUnknownUser(t, e, box) })
	t.Run("A19D34UserThatIsGone", func(t *testing.T) { testUserThatIsGone(t, e) })
	t.Run("C26DetachKeys", func(t *testing.T) { testDetachKeys(t, e, box) })
	t.Run("C30ExecsEndWithTheRun", func(t *testing.T) { testExecsOfARun(t, e) })
	t.Run("D26ResizeWaitsForTheStart", func(t *testing.T) { testResizeWaits(t, e, box) })
	t.Run("D34ResizeWithoutTerminal", func(t *testing.T) { testResize(t, e, box) })
	t.Run("A3AttachWithBody", func(t *testing.T) { testAttachBody(t, e) })
	t.Run("AttachLogsAndEnds", func(t *testing.T) { testAttach(t, e) })
	t.Run("ClientsThatAreGone", func(t *testing.T) { testClientsThatAreGone(t, e) })
	t.Run("WaitHead", func(t *testing.T) { testWaitHead(t, e) })
	t.Run("A4LoadErrors", func(t *testing.T) { testLoadErrors(t, e) })
	t.Run("A13WebSocket", func(t *testing.T) { testWebSocket(t, e) })
	t.Run("C6HangUps", func(t *testing.T) { testHangUps(t, e) })
}

// TestFaultsOfStreamsInVM looks at what passes the guest's agent.
func TestFaultsOfStreamsInVM(t *testing.T) {
	e := proatest.New(t, proatest.Args("--isolation", "vm"))
	e.ImportBusybox("bb:1")
	vm := running(t, e, "vm", `"Image":"bb:1","Cmd":["sleep","1000"]`)
	t.Run("A1ManyExecsLoseNothing", func(t *testing.T) { proatest.EchoExecs(t, e.Socket, vm, 16, 4) })
	t.Run("A2FramesFollowStart", func(t *testing.T) { testExecFrames(t, e, vm) })
	t.Run("C25UnknownUser", func(t *testing.T) { testUnknownUser(t, e, vm) })
	t.Run("D34ResizeWithoutTerminal", func(t *testing.T) { testResize(t, e, vm) })
	t.Run("C30ExecOfAStoppedVM", func(t *testing.T) {
		x := execOf(t, e, vm, `"Cmd":["true"]`)
		post(t, e, "/containers/"+vm+"/kill", "", 204)
		waitFor(t, e, vm)
		post(t, e, "/exec/"+x+"/start", `{}`, 404)
	})
}

// running creates and starts a container and gives its id.
func running(t *testing.T, e *proatest.Engine, name, config string) string {
	t.Helper()
	id := created(t, e, name, config)
	post(t, e, "/containers/"+id+"/start", "", 204)
	return id
}

func created(t *testing.T, e *proatest.Engine, name, config string) string {
	t.Helper()
	var c struct{ ID string }
	post(t, e, "/containers/create?name="+name, "{"+config+"}", 201).decode(t, &c)
	return c.ID
}

// post asks and wants that status.
func post(t *testing.T, e *proatest.Engine, path, body string, status int) answer {
	t.Helper()
	a := request(t, e.Socket, "POST", path, body)
	if a.status != status {
		t.Fatalf("POST %s %s: %d %s, want %d", path, body, a.status, a.body, status)
	}
	return a
}

// waitFor waits for a container's end.
func waitFor(t *testing.T, e *proatest.Engine, id string) (code int) {
	t.Helper()
	var w struct{ StatusCode int }
	post(t, e, "/containers/"+id+"/wait", "", 200).decode(t, &w)
	return w.StatusCode
}

// execOf creates an exec with both outputs attached.
func execOf(t *testing.T, e *proatest.Engine, id, config string) string {
	t.Helper()
	var x struct{ ID string }
	post(t, e, "/containers/"+id+"/exec", `{"AttachStdout":true,"AttachStderr":true,`+config+`}`, 201).decode(t, &x)
	return x.ID
}

func execCode(t *testing.T, e *proatest.Engine, x string) (code *int, running bool) {
	t.Helper()
	var in struct {
		ExitCode *int
		Running  bool
	}
	request(t, e.Socket, "GET", "/exec/"+x+"/json", "").decode(t, &in)
	return in.ExitCode, in.Running
}

// startExec starts an exec over a connection of its own and gives the head and
// all that comes behind it.
func startExec(t *testing.T, e *proatest.Engine, version, x, body string, header ...string) (int, http.Header, []byte) {
	t.Helper()
	w := proatest.NewWire(t, e.Socket)
	w.Ask("POST", version+"/exec/"+x+"/start", body, header...)
	status, h, behind := w.Head()
	if len(behind) > 0 && status < 300 {
		t.Errorf("%q came with the head", behind)
	}
	return status, h, append(behind, w.Rest()...)
}

// The head is sent before the process starts, in a write of its own, with the
// engine's headers; 200 and raw-stream without Upgrade at any version.
func testExecHead(t *testing.T, e *proatest.Engine, box string) {
	for n := range 20 {
		x := execOf(t, e, box, `"Cmd":["echo","hello"]`)
		header := proatest.Upgrade
		if n%2 == 1 {
			header = nil
		}
		status, h, out := startExec(t, e, "", x, `{"Detach":false,"Tty":false}`, header...)
		if want := map[bool]int{true: 101, false: 200}[header != nil]; status != want {
			t.Errorf("status %d, want %d", status, want)
		}
		if got := h.Get("Content-Type"); header == nil && got != "application/vnd.docker.raw-stream" || header != nil && got != "application/vnd.docker.multiplexed-stream" {
			t.Errorf("status %d has the type %s", status, got)
		}
		for _, name := range []string{"Api-Version", "Server", "Ostype", "Docker-Experimental"} {
			if h.Get(name) == "" {
				t.Errorf("the head lacks %s", name)
			}
		}
		if stdout, stderr, err := proatest.Frames(out); stdout != "hello\n" || stderr != "" || err != nil {
			t.Errorf("%q %q %v", stdout, stderr, err)
		}
	}
	// A client of HTTP/1.0, and one that closes: the same stream.
	for _, head := range []string{"POST /exec/%s/start HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "POST /exec/%s/start HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"} {
		w := proatest.NewWire(t, e.Socket)
		fmt.Fprintf(w, head, execOf(t, e, box, `"Cmd":["echo","old"]`))
		status, _, behind := w.Head()
		if stdout, _, err := proatest.Frames(w.Rest()); status != 200 || len(behind) > 0 || stdout != "old\n" || err != nil {
			t.Errorf("%d %q %q %v", status, behind, stdout, err)
		}
	}
	// What is refused before the stream has a status and a JSON body.
	for body, want := range map[string]int{"{x": 400, `{} {}`: 400} {
		x := execOf(t, e, box, `"Cmd":["true"]`)
		if a := request(t, e.Socket, "POST", "/exec/"+x+"/start", body); a.status != want || a.message() == a.body {
			t.Errorf("%q: %d %s", body, a.status, a.body)
		}
	}
	if a := request(t, e.Socket, "POST", "/exec/nosuch/start", "{}"); a.status != 404 || a.message() != "No such exec instance: nosuch" {
		t.Errorf("unknown exec: %d %s", a.status, a.body)
	}
	post(t, e, "/containers/"+box+"/pause", "", 204)
	x := request(t, e.Socket, "POST", "/containers/"+box+"/exec", `{"Cmd":["true"]}`)
	post(t, e, "/containers/"+box+"/unpause", "", 204)
	if x.status != 409 {
		t.Errorf("exec of a paused container: %d %s", x.status, x.body)
	}
	// What fails behind the head is in the stream, on stdout, and has a code.
	bad := execOf(t, e, box, `"Cmd":["nosuch"]`)
	status, _, out := startExec(t, e, "", bad, `{}`, proatest.Upgrade...)
	stdout, stderr, err := proatest.Frames(out)
	if status != 101 || !strings.Contains(stdout, "executable file not found in $PATH") || !strings.HasSuffix(stdout, "\r\n") || stderr != "" || err != nil {
		t.Errorf("%d %q %q %v", status, stdout, stderr, err)
	}
	if code, on := execCode(t, e, bad); code == nil || *code != 127 || on {
		t.Errorf("the exit code of what could not be started: %v, running %v", code, on)
	}
}

// Frames follow the Tty of start, the terminal that of create (both clients
// and versions as moby's postContainerExecStart).
func testExecFrames(t *testing.T, e *proatest.Engine, box string) {
	const cmd = `"Cmd":["sh","-c","echo out; echo err >&2"],`
	frame := func(n int, text string) string {
		return fmt.Sprintf("%c\x00\x00\x00\x00\x00\x00%c%s", n, len(text), text)
	}
	for _, c := range []struct {
		create, start string
		mux           bool
		raw           string // the stream; or, with mux, what each stream brings
		out, err      string
	}{
		{`"Tty":true`, `{"Tty":false}`, true, "", "out\r\nerr\r\n", ""},
		{`"Tty":true`, `{}`, true, "", "out\r\nerr\r\n", ""},
		{`"Tty":true`, `{"Tty":true}`, false, "out\r\nerr\r\n", "", ""},
		{`"Tty":false`, `{"Tty":true}`, false, "out\n", "", ""},
		{`"Tty":false`, `{}`, true, "", "out\n", "err\n"},
		{`"AttachStdout":false,"Tty":false`, `{}`, true, "", "", "err\n"},
		{`"AttachStderr":false,"Tty":false`, `{}`, true, "", "out\n", ""},
		{`"AttachStdout":false,"Tty":true`, `{"Tty":true}`, false, "", "", ""},
	} {
		for _, version := range []string{"/v1.41", "/v1.42"} {
			x := execOf(t, e, box, cmd+c.create)
			status, h, out := startExec(t, e, version, x, c.start, proatest.Upgrade...)
			kind := "application/vnd.docker.raw-stream"
			if c.mux && version == "/v1.42" {
				kind = "application/vnd.docker.multiplexed-stream"
			}
			if status != 101 || h.Get("Content-Type") != kind {
				t.Errorf("%+v %s: %d %s", c, version, status, h.Get("Content-Type"))
			}
			if !c.mux {
				if string(out) != c.raw {
					t.Errorf("%+v: %q", c, out)
				}
				continue
			}
			stdout, stderr, err := proatest.Frames(out)
			if stdout != c.out || stderr != c.err || err != nil {
				t.Errorf("%+v: %q %q %v (one frame would be %q)", c, stdout, stderr, err, frame(1, c.out))
			}
		}
	}
}

// ConsoleSize counts with a terminal and from 1.42 on; start's only with
// start's Tty, else create's.
func testConsoleSize(t *testing.T, e *proatest.Engine, box string) {
	for _, c := range []struct{ version, create, start, want string }{
		{"/v1.42", `"Tty":true,"ConsoleSize":[11,22]`, `{"Tty":true}`, "11 22"},
		{"/v1.42", `"Tty":true,"ConsoleSize":[11,22]`, `{"Tty":true,"ConsoleSize":[33,44]}`, "33 44"},
		{"/v1.42", `"Tty":true,"ConsoleSize":[11,22]`, `{"ConsoleSize":[33,44]}`, "11 22"},
		{"/v1.41", `"Tty":true,"ConsoleSize":[11,22]`, `{"Tty":true,"ConsoleSize":[33,44]}`, "stty: standard input"},
	} {
		var x struct{ ID string }
		post(t, e, c.version+"/containers/"+box+"/exec", `{"AttachStdout":true,"Cmd":["stty","size"],"AttachStdin":true,`+c.create+`}`, 201).decode(t, &x)
		w := proatest.NewWire(t, e.Socket)
		w.Ask("POST", c.version+"/exec/"+x.ID+"/start", c.start, proatest.Upgrade...)
		w.Head()
		if out := string(w.Rest()); !strings.Contains(out, c.want) {
			t.Errorf("%+v: %q", c, out)
		}
	}
}

// What comes with the request is input, and so is what comes later; the end of
// the client's input reaches the process, whose output still comes.
func testExecInput(t *testing.T, e *proatest.Engine, box string) {
	for _, chunked := range []bool{false, true} {
		x := execOf(t, e, box, `"AttachStdin":true,"Cmd":["sh","-c","wc -c; echo done >&2"]`)
		w := proatest.NewWire(t, e.Socket)
		ask := proatest.RequestBytes("POST", "/exec/"+x+"/start", `{}`, proatest.Upgrade...)
		if chunked {
			ask = proatest.RequestBytes("POST", "/exec/"+x+"/start", "", "Connection", "Upgrade", "Upgrade", "tcp", "Content-Type", "application/json", "Content-Length", "", "Transfer-Encoding", "chunked")
			ask = append(ask, "1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"...)
		}
		if _, err := w.Write(append(ask, "early\n"...)); err != nil {
			t.Fatal(err)
		}
		if _, _, behind := w.Head(); len(behind) > 0 {
			t.Errorf("%q came with the head", behind)
		}
		if _, err := w.Write([]byte("late\n")); err != nil {
			t.Fatal(err)
		}
		w.EndInput()
		stdout, stderr, err := proatest.Frames(w.Rest())
		if strings.TrimSpace(stdout) != "11" || stderr != "done\n" || err != nil {
			t.Errorf("chunked %v: %q %q %v", chunked, stdout, stderr, err)
		}
	}
	// Unread input costs no output.
	x := execOf(t, e, box, `"AttachStdin":true,"Cmd":["echo","all of it"]`)
	w := proatest.NewWire(t, e.Socket)
	w.Ask("POST", "/exec/"+x+"/start", `{}`, proatest.Upgrade...)
	w.Head()
	var sent sync.WaitGroup
	sent.Go(func() { _, _ = w.Write(make([]byte, 1<<20)) })
	if stdout, _, err := proatest.Frames(w.Rest()); stdout != "all of it\n" || err != nil {
		t.Errorf("%q %v", stdout, err)
	}
	w.Close()
	sent.Wait()
}

// dockerd 20.10.24: the error of a second start is in the stream, except with Detach.
func testSecondStart(t *testing.T, e *proatest.Engine, box string) {
	x := execOf(t, e, box, `"Cmd":["true"]`)
	startExec(t, e, "", x, `{"Detach":false}`, proatest.Upgrade...)
	long := execOf(t, e, box, `"Cmd":["sleep","1000"]`)
	post(t, e, "/exec/"+long+"/start", `{"Detach":true}`, 200)
	for _, c := range []struct{ id, words string }{{x, "Exec command " + x + " has already run"}, {long, "Exec command " + long + " is already running"}} {
		for _, header := range [][]string{nil, proatest.Upgrade} {
			status, _, out := startExec(t, e, "", c.id, `{"Detach":false}`, header...)
			stdout, stderr, err := proatest.Frames(out)
			if status >= 300 || stdout != "Error: "+c.words+"\r\n" || stderr != "" || err != nil {
				t.Errorf("%d %q %q %v", status, stdout, stderr, err)
			}
		}
		if a := post(t, e, "/exec/"+c.id+"/start", `{"Detach":true}`, 409); a.message() != "Error: "+c.words {
			t.Errorf("%s", a.body)
		}
	}
	if code, _ := execCode(t, e, x); code == nil || *code != 0 {
		t.Errorf("a second start changed the exit code: %v", code)
	}
}

// Docker 29 refuses an unknown user or group when the exec is created; numbers
// need no entry.
func testUnknownUser(t *testing.T, e *proatest.Engine, box string) {
	const noUser, noGroup = "unable to find user no-such: no matching entries in passwd file", "unable to find group no-such: no matching entries in group file"
	for user, want := range map[string]string{"no-such": noUser, "no-such:root": noUser, "root:no-such": noGroup, "12345:no-such": noGroup, "-1": "uids and gids must be in range 0-2147483647"} {
		a := request(t, e.Socket, "POST", "/containers/"+box+"/exec", `{"Cmd":["id"],"User":"`+user+`"}`)
		if user == "-1" && a.status == 201 {
			continue // a guest's agent leaves it to the start
		}
		if a.status != 400 || a.message() != want {
			t.Errorf("%s: %d %s", user, a.status, a.body)
		}
	}
	for user, want := range map[string]string{"app": "1000:1000", "1000": "1000:1000", "4321": "4321:0", "4321:777": "4321:777", "root:extra": "0:2000"} {
		x := execOf(t, e, box, `"Cmd":["sh","-c","echo $(id -u):$(id -g)"],"User":"`+user+`"`)
		_, _, out := startExec(t, e, "", x, `{}`)
		if stdout, _, _ := proatest.Frames(out); strings.TrimSpace(stdout) != want {
			t.Errorf("%s: %q", user, out)
		}
	}
}

// A user whose entry goes between create and start: the words are in the
// stream and the code is 126 (20.10.24). So is a container without databases.
func testUserThatIsGone(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "gone", `"Image":"bb:1","Cmd":["sleep","1000"]`)
	x := execOf(t, e, id, `"Cmd":["id"],"User":"app"`)
	rm := execOf(t, e, id, `"Cmd":["rm","/etc/passwd","/etc/group"]`)
	startExec(t, e, "", rm, `{}`)
	_, _, out := startExec(t, e, "", x, `{}`)
	if stdout, _, err := proatest.Frames(out); !strings.Contains(stdout, "unable to find user app: no matching entries in passwd file\r\n") || err != nil {
		t.Errorf("%q", out)
	}
	if code, _ := execCode(t, e, x); code == nil || *code != 126 {
		t.Errorf("exit code %v", code)
	}
	if a := request(t, e.Socket, "POST", "/containers/"+id+"/exec", `{"Cmd":["id"],"User":"app"}`); a.status != 400 {
		t.Errorf("without databases: %d %s", a.status, a.body)
	}
	if a := request(t, e.Socket, "POST", "/containers/"+id+"/exec", `{"Cmd":["id"],"User":"7:8"}`); a.status != 201 {
		t.Errorf("numbers without databases: %d %s", a.status, a.body)
	}
	bad := created(t, e, "baduser", `"Image":"bb:1","User":"no-such"`)
	if a := post(t, e, "/containers/"+bad+"/start", "", 500); !strings.Contains(a.message(), "unable to find user no-such: no matching entries in passwd file") {
		t.Errorf("%s", a.body)
	}
}

// Detach keys are read before the connection leaves HTTP (moby/term's rules).
func testDetachKeys(t *testing.T, e *proatest.Engine, box string) {
	for _, keys := range []string{"ctrl-A,a", "ctrl-", "abc", "a,,b", "del", "CTRL-a"} {
		for _, path := range []string{"/attach?stream=1&stdout=1&detachKeys=", "/attach/ws?stream=1&stdout=1&detachKeys="} {
			w := proatest.NewWire(t, e.Socket)
			method, header := "POST", proatest.Upgrade
			if strings.Contains(path, "/ws") {
				method, header = "GET", handshake
			}
			w.Ask(method, "/containers/"+box+path+keys, "", header...)
			status, h, behind := w.Head()
			if status != 400 || h.Get("Content-Type") != "application/json" || !strings.Contains(string(behind), "Invalid detach keys ("+keys+") provided") {
				t.Errorf("%s%s: %d %q", path, keys, status, behind)
			}
		}
		if a := request(t, e.Socket, "POST", "/containers/"+box+"/exec", `{"Cmd":["true"],"DetachKeys":"`+keys+`"}`); a.status != 400 || a.message() != "Invalid escape keys ("+keys+") provided" {
			t.Errorf("exec %s: %d %s", keys, a.status, a.body)
		}
	}
	for _, keys := range []string{"ctrl-a,x", "a", "ctrl-@,ctrl-_", "DEL"} {
		execOf(t, e, box, `"Cmd":["true"],"DetachKeys":"`+keys+`"`)
	}
}

// Execs belong to a run: those that were not started are gone with it, also
// after the next start; one that was running has an exit code.
func testExecsOfARun(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "run", `"Image":"bb:1","Cmd":["sleep","1000"]`)
	x, ran, runs := execOf(t, e, id, `"Cmd":["true"]`), execOf(t, e, id, `"Cmd":["true"]`), execOf(t, e, id, `"Cmd":["sleep","1000"]`)
	startExec(t, e, "", ran, `{}`)
	post(t, e, "/exec/"+runs+"/start", `{"Detach":true}`, 200)
	post(t, e, "/containers/"+id+"/kill", "", 204)
	gone := func(when string) {
		for _, body := range []string{`{}`, `{"Detach":true}`} {
			if a := request(t, e.Socket, "POST", "/exec/"+x+"/start", body); a.status != 404 || a.message() != "No such exec instance: "+x {
				t.Errorf("%s: %d %s", when, a.status, a.body)
			}
		}
		if a := request(t, e.Socket, "POST", "/exec/"+x+"/resize?h=1&w=1", ""); a.status != 404 {
			t.Errorf("%s: resize: %d %s", when, a.status, a.body)
		}
	}
	gone("stopped")
	if code, on := execCode(t, e, runs); code == nil || *code != 137 || on {
		t.Errorf("an exec that ended with its container: %v, running %v", code, on)
	}
	post(t, e, "/containers/"+id+"/exec", `{"Cmd":["true"]}`, 409)
	post(t, e, "/containers/"+id+"/start", "", 204)
	gone("started again")
	if _, _, out := startExec(t, e, "", ran, `{}`); !strings.Contains(string(out), "has already run") {
		t.Errorf("%q", out)
	}
	y := execOf(t, e, id, `"Cmd":["true"]`)
	post(t, e, "/containers/"+id+"/pause", "", 204)
	post(t, e, "/exec/"+y+"/start", `{}`, 409)
	post(t, e, "/containers/"+id+"/unpause", "", 204)
}

// A client sends the terminal's size while its exec starts (moby, resize.go).
func testResizeWaits(t *testing.T, e *proatest.Engine, box string) {
	x := execOf(t, e, box, `"AttachStdin":true,"Tty":true,"Cmd":["sh","-c","read x; stty size"]`)
	resized := make(chan answer, 1)
	go func() { resized <- request(t, e.Socket, "POST", "/exec/"+x+"/resize?h=12&w=34", "") }()
	w := proatest.NewWire(t, e.Socket)
	w.Ask("POST", "/exec/"+x+"/start", `{"Tty":true}`, proatest.Upgrade...)
	w.Head()
	if a := <-resized; a.status != 200 {
		t.Errorf("resize before the start: %d %s", a.status, a.body)
	}
	if _, err := w.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if out := string(w.Rest()); !strings.Contains(out, "12 34") {
		t.Errorf("%q", out)
	}
	if a := request(t, e.Socket, "POST", "/exec/"+x+"/resize?h=1&w=1", ""); a.status != 404 {
		t.Errorf("resize of an exec that has ended: %d %s", a.status, a.body)
	}
}

// 20.10.24: what has no terminal is resized without effect; h and w are
// numbers, of which the kernel keeps 16 bits.
func testResize(t *testing.T, e *proatest.Engine, box string) {
	x := execOf(t, e, box, `"Cmd":["sleep","1000"]`)
	post(t, e, "/exec/"+x+"/start", `{"Detach":true}`, 200)
	for _, path := range []string{"/containers/" + box, "/exec/" + x} {
		for query, want := range map[string]int{"?h=10&w=20": 200, "?h=0&w=0": 200, "?h=70000&w=70000": 200, "": 400, "?h=10": 400, "?w=10": 400, "?h=a&w=1": 400, "?h=1&w=": 400} {
			if a := request(t, e.Socket, "POST", path+"/resize"+query, ""); a.status != want {
				t.Errorf("%s: %d %s, want %d", query, a.status, a.body, want)
			}
		}
	}
	post(t, e, "/containers/nosuch/resize?h=1&w=1", "", 404)
}

// messagesOf decodes a stream of JSON messages.
func messagesOf(t *testing.T, body string) (out []map[string]any) {
	t.Helper()
	for d := json.NewDecoder(strings.NewReader(body)); d.More(); {
		var m map[string]any
		if err := d.Decode(&m); err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		out = append(out, m)
	}
	return out
}

// 20.10.24: a load answers 200 whatever becomes of the archive.
func testLoadErrors(t *testing.T, e *proatest.Engine) {
	for name, body := range map[string]string{"abc": "abc", "a tar without an image": string(proatest.Tar(t, proatest.Entry{Name: "x", Body: "y"}))} {
		for _, query := range []string{"", "?quiet=1", "?quiet=0"} {
			a := request(t, e.Socket, "POST", "/images/load"+query, body, "Content-Type", "application/x-tar")
			if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %d %s", name, a.status, a.body)
				continue
			}
			all := messagesOf(t, a.body)
			last := all[len(all)-1]
			detail, _ := last["errorDetail"].(map[string]any)
			if text, _ := last["error"].(string); text == "" || detail["message"] != text {
				t.Errorf("%s: %s", name, a.body)
			}
			if !strings.Contains(a.body, `{"errorDetail":{"message":`) {
				t.Errorf("%s: not in Docker's order: %s", name, a.body)
			}
		}
	}
	// An import has said nothing when it fails: it has a status.
	if a := request(t, e.Socket, "POST", "/images/create?fromSrc=-&repo=x", "abc", "Content-Type", "application/x-tar"); a.status < 400 {
		t.Errorf("import: %d %s", a.status, a.body)
	}
}
