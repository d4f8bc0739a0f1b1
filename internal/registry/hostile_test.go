package registry

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"proa/internal/registry/store"
)

// net/http waits for the body of a request that was answered without reading
// it, without end if nobody sets a limit: a stranger without a password could
// hold as many connections as there are descriptors (CWE-400).
func TestStrangerCannotHoldConnections(t *testing.T) {
	file := filepath.Join(t.TempDir(), "htpasswd")
	line, err := PasswordLine("anna", "secret")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPasswords(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, Config{Stall: 200 * time.Millisecond, Auth: p})
	for _, head := range []string{"PUT /v2/a/manifests/x HTTP/1.1\r\nContent-Length: 100", "POST /nothing HTTP/1.1\r\nTransfer-Encoding: chunked", "GET /v2/ HTTP/1.1\r\nContent-Length: 5"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "%s\r\nHost: x\r\n\r\n", head)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("%.30q is still held: %v", head, err)
		}
	}
}

// 4 MiB of "{}," used to become hundreds of MiB of descriptors.
func TestManifestOfManyValuesTakesNoMemory(t *testing.T) {
	raw := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}` + strings.Repeat(",{}", 1_300_000) + `]}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := readManifest(raw, "")
	runtime.ReadMemStats(&after)
	if err == nil {
		t.Error("it was read")
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("%d bytes were allocated", took)
	}
	if tooManyValues([]byte(`{"a":",,,\",,","b":1}`), 1) || !tooManyValues([]byte(`{"a":1,"b":1,"c":1}`), 1) {
		t.Error("commas were counted wrongly")
	}
}

// Who begins uploads and ends none keeps no manifest out.
func TestManifestNeedsNoUpload(t *testing.T) {
	st, err := store.Open(t.TempDir(), store.Config{MaxUploads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := start(t, Config{Store: st})
	m := image("{}", "layer")
	w.push("a", "{}")
	w.push("a", "layer")
	for range 2 {
		w.want(202, "", "POST", "/v2/a/blobs/uploads/", "")
	}
	w.want(429, codeTooManyRequests, "POST", "/v2/a/blobs/uploads/", "")
	w.pushManifest("a", "1", m)
}

// One client cannot take all the uploads that may be begun: another one's go on,
// and what it is told says what to do.
func TestUploadsOfOneClientAreBounded(t *testing.T) {
	var lines []byte
	for _, name := range []string{"anna", "bert"} {
		line, err := PasswordLine(name, "secret")
		if err != nil {
			t.Fatal(err)
		}
		lines = append(append(lines, line...), '\n')
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPasswords(file, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.TempDir(), store.Config{MaxUploads: 4, MaxPerOwner: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := start(t, Config{Store: st, Auth: p})
	begin := func(user string) (int, string, string) {
		t.Helper()
		q, err := http.NewRequest(http.MethodPost, w.url+"/v2/a/blobs/uploads/", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.SetBasicAuth(user, "secret")
		resp, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text), resp.Header.Get("Location")
	}
	var at string
	for range 2 {
		var status int
		var text string
		if status, text, at = begin("anna"); status != http.StatusAccepted {
			t.Fatalf("%d %s", status, text)
		}
	}
	const want = "2 uploads of user anna are begun and not ended, which is the limit for one client: end or cancel some"
	if status, text, _ := begin("anna"); status != http.StatusTooManyRequests || !strings.Contains(text, codeTooManyRequests) || !strings.Contains(text, want) {
		t.Errorf("a third one: %d %s", status, text)
	}
	if status, text, _ := begin("bert"); status != http.StatusAccepted {
		t.Errorf("another user: %d %s", status, text)
	}
	q, err := http.NewRequest(http.MethodDelete, w.url+at, nil)
	if err != nil {
		t.Fatal(err)
	}
	q.SetBasicAuth("anna", "secret")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if status, text, _ := begin("anna"); status != http.StatusAccepted {
		t.Errorf("after one was cancelled (%d): %d %s", resp.StatusCode, status, text)
	}
}

func TestClientOfARequest(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1:1234": "10.0.0.1", "[::ffff:10.0.0.1]:5": "10.0.0.1", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::/64", "[fe80::1%eth0]:5": "fe80::/64", "@": "@",
	} {
		if got := (&request{Request: &http.Request{RemoteAddr: addr}}).client(); got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
	if got := (&request{Request: &http.Request{RemoteAddr: "10.0.0.1:1"}, user: "anna"}).client(); got != "user anna" {
		t.Errorf("a user: %q", got)
	}
}

// An unknown name costs what the dearest known one does, whatever cost the
// file's maker chose.
func TestUnknownNameTakesAsLong(t *testing.T) {
	cheap, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	dear, err := bcrypt.GenerateFromPassword([]byte("y"), 7)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		have map[string][]byte
		want int
	}{"none": {nil, bcryptCost}, "one": {map[string][]byte{"a": cheap}, bcrypt.MinCost}, "two": {map[string][]byte{"a": cheap, "b": dear}, 7}} {
		d, err := dummyFor(c.have)
		if err != nil {
			t.Fatal(err)
		}
		if cost, err := bcrypt.Cost(d); err != nil || cost != c.want {
			t.Errorf("%s: cost %d, %v, want %d", name, cost, err, c.want)
		}
	}
	p := &Passwords{path: filepath.Join(t.TempDir(), "none"), log: slog.New(slog.DiscardHandler), slow: make(chan struct{}, 1), hashes: map[string][]byte{"a": cheap}, dummy: cheap, right: map[string][32]byte{}}
	if p.Check(t.Context(), "b", "x") || !p.Check(t.Context(), "a", "x") {
		t.Error("the hash of one user let in another")
	}
}
