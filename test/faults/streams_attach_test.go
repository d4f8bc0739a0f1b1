package faults

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"proa/test/proatest"
)

const catConfig = `"Image":"bb:1","Cmd":["cat"],"OpenStdin":true,"StdinOnce":true,"AttachStdin":true`

// Docker reads no body of attach; what is declared is thrown away, and what
// comes behind it is the process's input.
func testAttachBody(t *testing.T, e *proatest.Engine) {
	const body = `{"stream":true,"stdin":true}`
	path := func(id string) string { return "/containers/" + id + "/attach?stream=1&stdin=1&stdout=1&stderr=1" }
	for name, c := range map[string]struct{ ask, want string }{
		"no body":                {string(proatest.RequestBytes("POST", "%s", "", proatest.Upgrade...)), ""},
		"no length":              {string(proatest.RequestBytes("POST", "%s", "", append(proatest.Upgrade, "Content-Length", "")...)), ""},
		"a body with its length": {string(proatest.RequestBytes("POST", "%s", body, proatest.Upgrade...)), ""},
		"chunks":                 {string(proatest.RequestBytes("POST", "%s", "", append(proatest.Upgrade, "Content-Length", "", "Transfer-Encoding", "chunked", "Content-Type", "application/json")...)) + "1c\r\n" + body + "\r\n0\r\n\r\n", ""},
		"no upgrade":             {string(proatest.RequestBytes("POST", "%s", body)), ""},
		"input with the request": {string(proatest.RequestBytes("POST", "%s", body, proatest.Upgrade...)) + "early\n", "early\n"},
	} {
		t.Run(name, func(t *testing.T) {
			id := created(t, e, "", catConfig)
			w := proatest.NewWire(t, e.Socket)
			fmt.Fprintf(w, c.ask, path(id))
			if _, _, behind := w.Head(); len(behind) > 0 {
				t.Errorf("%q came with the head", behind)
			}
			post(t, e, "/containers/"+id+"/start", "", 204)
			if _, err := w.Write([]byte("late\n")); err != nil {
				t.Fatal(err)
			}
			w.EndInput()
			if stdout, stderr, err := proatest.Frames(w.Rest()); stdout != c.want+"late\n" || stderr != "" || err != nil {
				t.Errorf("%q %q %v", stdout, stderr, err)
			}
			if code := waitFor(t, e, id); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		id := created(t, e, "", catConfig)
		w := proatest.NewWire(t, e.Socket)
		fmt.Fprintf(w, "POST %s HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 8388608\r\n\r\n", path(id))
		var sent sync.WaitGroup
		sent.Go(func() { _, _ = w.Write(make([]byte, 8<<20)) })
		if status, _, _ := w.Head(); status != 400 {
			t.Errorf("status %d", status)
		}
		w.Close()
		sent.Wait()
	})
}

// What attach sends: the log, the output from now on, or both; frames by the
// container's Tty; it ends with the container. Errors are JSON.
func testAttach(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "", `"Image":"bb:1","Cmd":["sh","-c","echo out; echo err >&2"]`)
	waitFor(t, e, id)
	for query, want := range map[string][2]string{
		"logs=1&stdout=1&stderr=1": {"out\n", "err\n"}, "logs=1&stdout=1": {"out\n", ""}, "logs=1&stderr=1": {"", "err\n"}, "stdout=1&stderr=1": {"", ""},
	} {
		w := proatest.NewWire(t, e.Socket)
		w.Ask("POST", "/containers/"+id+"/attach?"+query, "", proatest.Upgrade...)
		status, h, behind := w.Head()
		stdout, stderr, err := proatest.Frames(w.Rest())
		if status != 101 || len(behind) > 0 || stdout != want[0] || stderr != want[1] || err != nil || h.Get("Api-Version") == "" {
			t.Errorf("%s: %d %q %q %q %v", query, status, behind, stdout, stderr, err)
		}
	}
	for _, c := range []struct {
		version string
		tty     bool
		upgrade []string
		kind    string
	}{
		{"/v1.42", false, proatest.Upgrade, "application/vnd.docker.multiplexed-stream"}, {"/v1.41", false, proatest.Upgrade, "application/vnd.docker.raw-stream"},
		{"/v1.42", true, proatest.Upgrade, "application/vnd.docker.raw-stream"}, {"/v1.42", false, nil, "application/vnd.docker.raw-stream"},
	} {
		id := created(t, e, "", fmt.Sprintf(`"Image":"bb:1","Cmd":["echo","x"],"Tty":%v`, c.tty))
		w := proatest.NewWire(t, e.Socket)
		w.Ask("POST", c.version+"/containers/"+id+"/attach?stream=1&stdout=1&stderr=1", "", c.upgrade...)
		_, h, behind := w.Head()
		post(t, e, "/containers/"+id+"/start", "", 204)
		out, want := string(w.Rest()), "\x01\x00\x00\x00\x00\x00\x00\x02x\n"
		if c.tty {
			want = "x\r\n"
		}
		if h.Get("Content-Type") != c.kind || len(behind) > 0 || out != want {
			t.Errorf("%+v: %s %q %q", c, h.Get("Content-Type"), behind, out)
		}
	}
	post(t, e, "/containers/nosuch/attach?stream=1", "", 404)
	paused := running(t, e, "", `"Image":"bb:1","Cmd":["sleep","1000"]`)
	post(t, e, "/containers/"+paused+"/pause", "", 204)
	if a := post(t, e, "/containers/"+paused+"/attach?stream=1", "", 409); a.message() == a.body {
		t.Errorf("%s", a.body)
	}
	post(t, e, "/containers/"+paused+"/unpause", "", 204)
}

// A client that is gone is let go, though the process says nothing; one that
// only ended its input is not.
func testClientsThatAreGone(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "", `"Image":"bb:1","Cmd":["sleep","1000"],"OpenStdin":true`)
	open := func() int {
		t.Helper()
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	before := open()
	const many = 20
	half := proatest.NewWire(t, e.Socket)
	for n := range many {
		w := proatest.NewWire(t, e.Socket)
		if n == 0 {
			half = w
		}
		w.Ask("POST", fmt.Sprintf("/containers/%s/attach?stream=1&stdin=%d&stdout=1", id, n%2), "", proatest.Upgrade...)
		w.Head()
		w.EndInput()
		if n > 0 {
			w.Close()
		}
	}
	eventually(t, "the connections of clients that are gone are closed", func() bool { return open() <= before+many/2 })
	post(t, e, "/containers/"+id+"/kill", "", 204)
	if out := half.Rest(); len(out) > 0 {
		t.Errorf("%q", out)
	}
}

// The head of wait comes before the exit, below 1.30 with it (moby,
// postContainersWait); that of events at once.
func testWaitHead(t *testing.T, e *proatest.Engine) {
	id := running(t, e, "", `"Image":"bb:1","Cmd":["sleep","1000"]`)
	w, old, ev := proatest.NewWire(t, e.Socket), proatest.NewWire(t, e.Socket), proatest.NewWire(t, e.Socket)
	w.Ask("POST", "/containers/"+id+"/wait?condition=next-exit", "")
	if status, _, behind := w.Head(); status != 200 || len(behind) > 0 {
		t.Errorf("wait: %d %q", status, behind)
	}
	old.Ask("POST", "/v1.29/containers/"+id+"/wait?condition=nonsense", "")
	ev.Ask("GET", "/events", "")
	if status, _, behind := ev.Head(); status != 200 || len(behind) > 0 {
		t.Errorf("events: %d %q", status, behind)
	}
	post(t, e, "/containers/"+id+"/kill", "", 204)
	if status, _, _ := old.Head(); status != 200 {
		t.Errorf("wait of 1.29: %d", status)
	}
	post(t, e, "/containers/"+id+"/wait?condition=nonsense", "", 400)
}

// handshake is RFC 6455, section 1.3.
var handshake = []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}

// Opcodes of RFC 6455, section 5.2.
const opText, opBinary, opClose, opPing, opPong = 1, 2, 8, 9, 10

// webSocket is a client's side of one, after the handshake.
type webSocket struct{ *proatest.Wire }

func openWebSocket(t *testing.T, e *proatest.Engine, path string) webSocket {
	t.Helper()
	w := proatest.NewWire(t, e.Socket)
	w.Ask("GET", path, "", handshake...)
	status, h, behind := w.Head()
	if status != 101 || len(behind) > 0 || h.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || h.Get("Api-Version") == "" {
		t.Fatalf("%s: %d %v %q", path, status, h, behind)
	}
	return webSocket{w}
}

func (w webSocket) frame(t *testing.T, op byte, text string) {
	t.Helper()
	mask := []byte{1, 2, 3, 4}
	b := append([]byte{0x80 | op, 0x80 | byte(len(text))}, mask...)
	for i := range len(text) {
		b = append(b, text[i]^mask[i%4])
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (w webSocket) next(t *testing.T) (op byte, text string) {
	t.Helper()
	var h [2]byte
	if _, err := io.ReadFull(w, h[:]); err != nil {
		t.Fatalf("no frame: %v", err)
	}
	b := make([]byte, h[1])
	if _, err := io.ReadFull(w, b); err != nil {
		t.Fatal(err)
	}
	return h[0] & 0x0f, string(b)
}

// until collects what frames bring until it is this text.
func (w webSocket) until(t *testing.T, op byte, want string) {
	t.Helper()
	var all string
	for all != want {
		got, text := w.next(t)
		if all += text; got != op || !strings.HasPrefix(want, all) {
			t.Fatalf("frame of kind %d, %q so far, want %q in frames of kind %d", got, all, want, op)
		}
	}
}

// Attach over a WebSocket (API reference ContainerAttachWebsocket, moby's
// wsContainersAttach): raw bytes in binary frames, in text frames below 1.28.
func testWebSocket(t *testing.T, e *proatest.Engine) {
	closed := func(w webSocket) {
		t.Helper()
		if op, text := w.next(t); op != opClose || len(text) < 2 || binary.BigEndian.Uint16([]byte(text)) != 1000 {
			t.Errorf("frame of kind %d %q instead of a normal close", op, text)
		}
		w.Rest()
	}
	id := created(t, e, "", catConfig)
	w := openWebSocket(t, e, "/containers/"+id+"/attach/ws?stream=1&stdin=1&stdout=1&stderr=1")
	post(t, e, "/containers/"+id+"/start", "", 204)
	w.frame(t, opBinary, "hello\n")
	w.until(t, opBinary, "hello\n")
	w.frame(t, opPing, "are you there")
	w.until(t, opPong, "are you there")
	w.frame(t, opClose, "\x03\xe8")
	closed(w)
	if code := waitFor(t, e, id); code != 0 {
		t.Errorf("the close is not the end of the input: exit code %d", code)
	}

	id = created(t, e, "", `"Image":"bb:1","Cmd":["sh","-c","echo out; echo err >&2"]`)
	w = openWebSocket(t, e, "/v1.27/containers/"+id+"/attach/ws?stream=1")
	none := openWebSocket(t, e, "/v1.42/containers/"+id+"/attach/ws?stream=1&stdout=1")
	post(t, e, "/containers/"+id+"/start", "", 204)
	none.until(t, opBinary, "out\n")
	closed(none)
	var both string
	for len(both) < 8 {
		op, text := w.next(t)
		if both += text; op != opText {
			t.Fatalf("frame of kind %d %q below 1.28", op, text)
		}
	}
	if !strings.Contains(both, "out\n") || !strings.Contains(both, "err\n") {
		t.Errorf("%q", both)
	}
	closed(w)
	waitFor(t, e, id)
	w = openWebSocket(t, e, "/containers/"+id+"/attach/ws?logs=1&stdout=1")
	w.until(t, opBinary, "out\n")
	closed(w)

	tty := running(t, e, "", `"Image":"bb:1","Cmd":["sh"],"Tty":true,"OpenStdin":true`)
	w = openWebSocket(t, e, "/containers/"+tty+"/attach/ws?stream=1&stdin=1&stdout=1&detachKeys=ctrl-a")
	w.frame(t, opBinary, "\x01") // the detach key, and the container goes on
	for {
		if op, _ := w.next(t); op == opClose {
			break
		}
	}
	if a := request(t, e.Socket, "GET", "/containers/"+tty+"/json", ""); !strings.Contains(a.body, `"Running":true`) {
		t.Errorf("it does not run any more: %s", a.body)
	}

	for path, want := range map[string]int{"/containers/nosuch/attach/ws?stream=1": 404, "/containers/no/such/attach/ws": 404} {
		x := proatest.NewWire(t, e.Socket)
		x.Ask("GET", path, "", handshake...)
		if status, _, _ := x.Head(); status != want {
			t.Errorf("%s: %d", path, status)
		}
	}
	for _, header := range [][]string{nil, proatest.Upgrade, append(handshake, "Sec-WebSocket-Version", "7"), append(handshake, "Sec-WebSocket-Key", "")} {
		x := proatest.NewWire(t, e.Socket)
		x.Ask("GET", "/containers/"+tty+"/attach/ws?stream=1", "", header...)
		if status, _, _ := x.Head(); status != 400 {
			t.Errorf("%v: %d", header, status)
		}
	}
}

// eventually looks until it is so; what does not come is a failure of the test's whole time.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
	}
}

// hangUp asks and closes the connection after a moment.
func hangUp(t *testing.T, e *proatest.Engine, after time.Duration, method, path, body string, header ...string) {
	t.Helper()
	w := proatest.NewWire(t, e.Socket)
	w.Ask(method, path, body, header...)
	time.Sleep(after)
	w.Close()
}

// What was accepted is carried out without its client. The rows of 20.10.24:
// stop, restart, kill, rm, commit; the others by the same rule.
func testHangUps(t *testing.T, e *proatest.Engine) {
	const moment = 10 * time.Millisecond
	has := func(path string) bool { return request(t, e.Socket, "GET", path, "").status == 200 }
	inspect := func(id string) (c struct {
		Name  string
		State struct {
			Running, Paused bool
			StartedAt       string
		}
	}) {
		request(t, e.Socket, "GET", "/containers/"+id+"/json", "").decode(t, &c)
		return c
	}
	const stubborn = `"Image":"bb:1","Cmd":["sh","-c","trap '' TERM; echo up; while :; do sleep 1; done"]`
	ready := func(name string) string {
		id := running(t, e, name, stubborn)
		eventually(t, "it ignores TERM", func() bool {
			return strings.Contains(request(t, e.Socket, "GET", "/containers/"+id+"/logs?stdout=1", "").body, "up")
		})
		return id
	}
	t.Run("stop", func(t *testing.T) {
		id := ready("")
		hangUp(t, e, moment, "POST", "/containers/"+id+"/stop?t=1", "")
		if code := waitFor(t, e, id); code != 137 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("restart", func(t *testing.T) {
		id := ready("")
		before := inspect(id).State.StartedAt
		hangUp(t, e, moment, "POST", "/containers/"+id+"/restart?t=1", "")
		eventually(t, "it was started again", func() bool { s := inspect(id).State; return s.Running && s.StartedAt != before })
	})
	t.Run("kill, rm, start, pause, rename", func(t *testing.T) {
		id := ready("")
		hangUp(t, e, 0, "POST", "/containers/"+id+"/pause", "")
		eventually(t, "it is paused", func() bool { return inspect(id).State.Paused })
		hangUp(t, e, 0, "POST", "/containers/"+id+"/unpause", "")
		eventually(t, "it is not paused", func() bool { return !inspect(id).State.Paused })
		hangUp(t, e, 0, "POST", "/containers/"+id+"/rename?name=other-name", "")
		eventually(t, "it has the other name", func() bool { return inspect(id).Name == "/other-name" })
		hangUp(t, e, moment, "POST", "/containers/"+id+"/kill", "")
		if code := waitFor(t, e, id); code != 137 {
			t.Errorf("exit code %d", code)
		}
		hangUp(t, e, 0, "POST", "/containers/"+id+"/start", "")
		eventually(t, "it runs", func() bool { return inspect(id).State.Running })
		hangUp(t, e, 0, "DELETE", "/containers/"+id+"?force=1", "")
		eventually(t, "it is gone", func() bool { return !has("/containers/" + id + "/json") })
	})
	t.Run("commit", func(t *testing.T) {
		id := ready("big")
		x := execOf(t, e, id, `"Cmd":["dd","if=/dev/urandom","of=/big","bs=1M","count=30"]`)
		startExec(t, e, "", x, `{}`)
		hangUp(t, e, moment, "POST", "/commit?container="+id+"&repo=kept&tag=1", "")
		eventually(t, "the image is there", func() bool { return has("/images/kept:1/json") })
		if inspect(id).State.Paused {
			t.Error("the container is still paused")
		}
	})
	t.Run("create, tag, untag", func(t *testing.T) {
		hangUp(t, e, 0, "POST", "/containers/create?name=made", `{"Image":"bb:1"}`)
		eventually(t, "the container is there", func() bool { return has("/containers/made/json") })
		hangUp(t, e, 0, "POST", "/images/bb:1/tag?repo=more&tag=1", "")
		eventually(t, "the name is there", func() bool { return has("/images/more:1/json") })
		hangUp(t, e, 0, "DELETE", "/images/more:1", "")
		eventually(t, "the name is gone", func() bool { return !has("/images/more:1/json") })
		hangUp(t, e, 0, "POST", "/volumes/create", `{"Name":"made"}`)
		eventually(t, "the volume is there", func() bool { return has("/volumes/made") })
	})
	t.Run("load, import", func(t *testing.T) {
		tar := string(proatest.Tar(t, proatest.BusyboxRoot(t)...))
		hangUp(t, e, 0, "POST", "/images/create?fromSrc=-&repo=imported&tag=1", tar, "Content-Type", "application/x-tar")
		eventually(t, "what was imported is there", func() bool { return has("/images/imported:1/json") })
		saved := request(t, e.Socket, "GET", "/images/imported:1/get", "").body
		post := request(t, e.Socket, "DELETE", "/images/imported:1", "")
		if post.status != 200 {
			t.Fatalf("%d %s", post.status, post.body)
		}
		hangUp(t, e, 0, "POST", "/images/load", saved, "Content-Type", "application/x-tar")
		eventually(t, "what was loaded is there", func() bool { return has("/images/imported:1/json") })
	})
	t.Run("pull", func(t *testing.T) {
		const addr = "127.0.0.1:5000"
		proatest.Box(t, e.Netns, addr, t.TempDir())
		name := addr + "/bb:1"
		e.MustProa("tag", "bb:1", name)
		e.MustProa("push", name)
		e.MustProa("rmi", name)
		hangUp(t, e, moment, "POST", "/images/create?fromImage="+addr+"/bb&tag=1", "")
		eventually(t, "the image is there", func() bool { return has("/images/" + name + "/json") })
	})
}
