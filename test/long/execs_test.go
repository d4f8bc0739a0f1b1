//go:build long

package long

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"proa/test/proatest"
)

// 2,000 execs of `echo N` by clients that read the head with a buffer and then
// the raw socket, at 1 and at 8 at once: no byte is lost (fault A1). Behind
// the VM wall there are fewer, since the machine is emulated here.
func TestExecsLoseNothing(t *testing.T) {
	for kind, n := range map[string]int{"container": 2000, "vm": 200} {
		t.Run(kind, func(t *testing.T) {
			e := proatest.New(t, proatest.Args("--isolation", kind))
			e.ImportBusybox("bb:1")
			c := &http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", e.Socket) }}}
			defer c.CloseIdleConnections()
			ask := func(path, body string) []byte {
				t.Helper()
				resp, err := c.Post("http://docker"+path, "application/json", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				b, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode >= 300 {
					t.Fatalf("%s: %s %s %v", path, resp.Status, b, err)
				}
				return b
			}
			var box struct{ ID string }
			if err := json.Unmarshal(ask("/containers/create", `{"Image":"bb:1","Cmd":["sleep","10000"]}`), &box); err != nil {
				t.Fatal(err)
			}
			ask("/containers/"+box.ID+"/start", "")
			proatest.EchoExecs(t, e.Socket, box.ID, n, 1)
			proatest.EchoExecs(t, e.Socket, box.ID, n, 8)
		})
	}
}
