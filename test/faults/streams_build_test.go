package faults

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"

	"proa/test/proatest"
)

// The streams of builds, and HTTP/2 on the API's socket.
func TestFaultsOfBuildStreams(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb:1")
	t.Run("A7BodyBesideSession", func(t *testing.T) { testBodyBesideSession(t, e) })
	t.Run("A16ColourOfStderr", func(t *testing.T) {
		a := build(t, e, "", "FROM bb:1\nRUN echo out; echo err >&2\n")
		if !strings.Contains(a.body, `{"stream":"\u001b[91merr\n\u001b[0m"}`) || !strings.Contains(a.body, `{"stream":"out\n"}`) {
			t.Errorf("%s", a.body)
		}
	})
	t.Run("D34BuildThatFailsEarly", func(t *testing.T) { testBuildThatFailsEarly(t, e) })
	t.Run("C31SessionWithoutConnection", func(t *testing.T) {
		for n, header := range [][]string{{"Upgrade", "h2c"}, {"Upgrade", "h2c", "Connection", "Upgrade"}} {
			w := proatest.NewWire(t, e.Socket)
			w.Ask("POST", "/session", "", append(header, "X-Docker-Expose-Session-Uuid", strconv.Itoa(n), "X-Docker-Expose-Session-Name", "n")...)
			if status, h, _ := w.Head(); status != 101 || !strings.EqualFold(h.Get("Upgrade"), "h2c") || h.Get("Api-Version") == "" {
				t.Errorf("%v: %d %v", header, status, h)
			}
		}
		post(t, e, "/session", "", 400)
	})
	t.Run("C31PriorKnowledge", func(t *testing.T) { testPriorKnowledge(t, e) })
}

// build is a build of the old kind from a Dockerfile alone.
func build(t *testing.T, e *proatest.Engine, query, dockerfile string) answer {
	t.Helper()
	return request(t, e.Socket, "POST", "/build"+query, string(proatest.Tar(t, proatest.Entry{Name: "Dockerfile", Body: dockerfile})), "Content-Type", "application/x-tar")
}

// attachSession runs a client's session that offers nothing but credentials, as
// dockerode's does.
func attachSession(t *testing.T, e *proatest.Engine) *session.Session {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	s, err := session.NewSession(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{}))
	attached := make(chan struct{})
	go func() {
		_ = s.Run(ctx, func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			var header []string
			for k, vs := range meta {
				for _, v := range vs {
					header = append(header, k, v)
				}
			}
			w := proatest.NewWire(t, e.Socket)
			w.Ask("POST", "/session", "", append(header, "Upgrade", "h2c", "Connection", "Upgrade")...)
			_, _, behind := w.Head()
			close(attached)
			return prefixed{w.UnixConn, io.MultiReader(bytes.NewReader(behind), w.UnixConn)}, nil
		})
	}()
	<-attached
	return s
}

// prefixed is a connection of which some bytes were read already.
type prefixed struct {
	net.Conn
	r io.Reader
}

func (p prefixed) Read(b []byte) (int, error) { return p.r.Read(b) }

// moby: the body is the context whenever remote is empty; the answer stays BuildKit's.
func testBodyBesideSession(t *testing.T, e *proatest.Engine) {
	s := attachSession(t, e)
	q := url.Values{"version": {"2"}, "session": {s.ID()}, "dockerfile": {"sub/File"}, "t": {"body:1"}}
	tar := proatest.Tar(t, proatest.Entry{Name: "sub/File", Body: "FROM bb:1\nCOPY f /f\nRUN echo did it > /g\n"}, proatest.Entry{Name: "f", Body: "from the body"})
	a := request(t, e.Socket, "POST", "/build?"+q.Encode(), string(tar), "Content-Type", "application/x-tar")
	if a.status != 200 || !strings.Contains(a.body, `"moby.buildkit.trace"`) || !strings.Contains(a.body, `"moby.image.id"`) || strings.Contains(a.body, `"errorDetail"`) {
		t.Fatalf("%d %.2000s", a.status, a.body)
	}
	if out := e.MustProa("run", "--rm", "body:1", "cat", "/f", "/g"); out != "from the bodydid it" {
		t.Errorf("%q", out)
	}
	// remote=client-session means the session's directories, of which it has none.
	q.Set("remote", "client-session")
	a = request(t, e.Socket, "POST", "/build?"+q.Encode(), string(tar), "Content-Type", "application/x-tar")
	if !strings.Contains(a.body, "the client offers no directories") {
		t.Errorf("%d %.2000s", a.status, a.body)
	}
}

// 20.10.24: what fails before the first step has a status and a JSON body, also
// of a quiet build; what fails later is the stream's last message.
func testBuildThatFailsEarly(t *testing.T, e *proatest.Engine) {
	for _, query := range []string{"", "&q=1"} {
		for name, a := range map[string]answer{
			"no tar":           request(t, e.Socket, "POST", "/build?x=1"+query, "abc", "Content-Type", "application/x-tar"),
			"no Dockerfile":    request(t, e.Socket, "POST", "/build?x=1"+query, string(proatest.Tar(t, proatest.Entry{Name: "f", Body: "x"})), "Content-Type", "application/x-tar"),
			"another name":     build(t, e, "?dockerfile=nosuch"+query, "FROM bb:1\n"),
			"a bad line":       build(t, e, "?x=1"+query, "FROM bb:1 as x\nNOSUCH x\n"),
			"an unknown stage": build(t, e, "?target=nosuch"+query, "FROM bb:1 as x\n"),
			"a remote":         build(t, e, "?remote=http%3A%2F%2F127.0.0.1%3A1%2Fx"+query, "FROM bb:1\n"),
		} {
			if a.status != 500 || a.header.Get("Content-Type") != "application/json" || a.message() == a.body || strings.Contains(a.body, "errorDetail") {
				t.Errorf("%s %s: %d %s", name, query, a.status, a.body)
			}
		}
		for name, a := range map[string]answer{
			"a step":   build(t, e, "?x=1"+query, "FROM bb:1\nRUN echo before; false\n"),
			"its FROM": build(t, e, "?x=1"+query, "FROM 127.0.0.1:1/nosuch:1\n"),
		} {
			all := messagesOf(t, a.body)
			if first, _ := all[0]["stream"].(string); a.status != 200 || !strings.HasPrefix(first, "Step 1") {
				t.Errorf("%s %s: %d %s", name, query, a.status, a.body)
			}
			if last := all[len(all)-1]; last["error"] == nil || last["errorDetail"] == nil {
				t.Errorf("%s %s: %s", name, query, a.body)
			}
		}
	}
	if a := build(t, e, "?q=1", "FROM bb:1\nRUN echo quiet\n"); a.status != 200 || !strings.HasPrefix(a.body, `{"stream":"sha256:`) || strings.Contains(a.body, "quiet") {
		t.Errorf("%s", a.body)
	}
}

// Docker serves BuildKit's API over HTTP/2 without an upgrade: buildctl, and
// buildx with its remote driver.
func testPriorKnowledge(t *testing.T, e *proatest.Engine) {
	c, err := client.New(t.Context(), e.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	workers, err := c.ListWorkers(t.Context())
	if err != nil || len(workers) != 1 {
		t.Fatalf("%v %v", workers, err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY r /\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "r"), []byte("remote\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	e.MustDocker("buildx", "create", "--name", "far", "--driver", "remote", e.Host)
	out := filepath.Join(dir, "out")
	e.MustDocker("buildx", "--builder", "far", "build", "-o", "type=local,dest="+out, dir)
	if b, err := os.ReadFile(filepath.Join(out, "r")); err != nil || string(b) != "remote\n" {
		t.Errorf("%q %v", b, err)
	}
	// The other routes answer over HTTP/2 as well, and HTTP/1 is as it was.
	if a := request(t, e.Socket, "GET", "/_ping", ""); a.status != 200 || a.body != "OK" {
		t.Errorf("%d %s", a.status, a.body)
	}
	w := proatest.NewWire(t, e.Socket)
	settings, _ := base64.StdEncoding.DecodeString("AAAABAAAAAAA") // an empty SETTINGS frame
	if _, err := w.Write(append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), settings...)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(w, head); err != nil || head[3] != 4 {
		t.Errorf("no SETTINGS frame of the server: %v %v", head, err)
	}
}
