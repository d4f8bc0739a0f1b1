package api

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A client that was stopped in the middle of an upload is given up, in words
// that say so; one that sends slowly is not.
func TestUploadsMustMove(t *testing.T) {
	type end struct {
		text string
		err  error
		took time.Duration
	}
	ended := make(chan end, 2)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{ResponseWriter: w, Request: r}
		u := c.upload()
		if u.stall != stallTime {
			t.Errorf("an upload may stand still for %v", u.stall)
		}
		u.stall = 500 * time.Millisecond
		began := time.Now()
		b, err := io.ReadAll(u)
		ended <- end{string(b), err, time.Since(began)}
	}))
	defer s.Close()
	send := func(parts ...string) end {
		t.Helper()
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
		for _, p := range parts {
			fmt.Fprint(conn, p)
			time.Sleep(200 * time.Millisecond)
		}
		select {
		case e := <-ended:
			return e
		case <-time.After(20 * time.Second):
			t.Fatal("it is waited for")
			return end{}
		}
	}
	if e := send("a", "b", "c", "d", "e"); e.err != nil || e.text != "abcde" {
		t.Errorf("a slow client: %q, %v", e.text, e.err)
	}
	const want = "the client sent nothing for 500ms (was it stopped?), so it was given up: send it again"
	if e := send("a", "b"); e.err == nil || e.err.Error() != want || e.text != "ab" || e.took < 500*time.Millisecond {
		t.Errorf("a stopped client: %q, %v after %v", e.text, e.err, e.took)
	}
}
