package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// engine is one that does with each connection what answer does.
func engine(t *testing.T, answer func(net.Conn)) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answer(conn)
		}
	}()
	c, err := New("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// leave are the two ways out of HTTP.
func leave(c *Client) map[string]func(context.Context) (net.Conn, error) {
	return map[string]func(context.Context) (net.Conn, error){
		"hijack": func(ctx context.Context) (net.Conn, error) {
			conn, err := c.Hijack(ctx, "/exec/x/start", nil, map[string]bool{"Tty": true})
			if conn == nil { // which is no nil net.Conn
				return nil, err
			}
			return conn, err
		},
		"upgrade": func(ctx context.Context) (net.Conn, error) { return c.Upgrade(ctx, "/session", "h2c", nil) },
	}
}

// An engine that takes a request and never answers keeps nobody for ever.
func TestLeavingHTTPEndsWithContext(t *testing.T) {
	c := engine(t, func(conn net.Conn) {
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
	})
	for name, do := range leave(c) {
		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		conn, err := do(ctx)
		if !errors.Is(err, why) || conn != nil {
			t.Errorf("%s: %v, %v", name, conn, err)
		}
	}
}

// Afterwards the connection is the caller's, whatever becomes of the context,
// and what the engine sent behind its answer is not lost.
func TestLeavingHTTP(t *testing.T) {
	c := engine(t, func(conn net.Conn) {
		defer conn.Close()
		r := bufio.NewReader(conn)
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Upgrade") == "" {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nhello\n")
		_, _ = io.Copy(conn, r)
	})
	for name, do := range leave(c) {
		ctx, cancel := context.WithCancel(t.Context())
		conn, err := do(ctx)
		cancel()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r := bufio.NewReader(conn)
		if s, err := r.ReadString('\n'); s != "hello\n" {
			t.Errorf("%s: %q, %v", name, s, err)
		}
		if _, err := io.WriteString(conn, "back\n"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s, err := r.ReadString('\n'); s != "back\n" {
			t.Errorf("%s: %q, %v", name, s, err)
		}
		conn.Close()
	}
}

func TestLeavingHTTPIsRefused(t *testing.T) {
	c := engine(t, func(conn net.Conn) {
		defer conn.Close()
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(conn, "HTTP/1.1 409 Conflict\r\nContent-Length: 22\r\n\r\n{\"message\":\"not alive\"}")
	})
	for name, do := range leave(c) {
		var api *APIError
		if _, err := do(t.Context()); !errors.As(err, &api) || api.Status != http.StatusConflict || !strings.Contains(api.Message, "not alive") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
