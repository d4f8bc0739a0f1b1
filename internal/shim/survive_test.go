package shim_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/shim"
	"proa/internal/sys"
)

// engine is the part of an engine that is killed in TestEngineKilledTwice: it
// starts or finds the shim of dir, attaches, reads a while and never ends.
func engine(dir string) {
	fail := func(err error) {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx := context.Background()
	starter := &shim.Starter{Binary: "/proc/self/exe", Dir: filepath.Join(dir, "shim")}
	s, err := starter.Find(ctx, "aaaa")
	if errdefs.IsNotFound(err) {
		var spec isolation.Spec
		b, err := os.ReadFile(filepath.Join(dir, "spec"))
		if err == nil {
			err = json.Unmarshal(b, &spec)
		}
		if err == nil {
			s, err = starter.Start(ctx, &spec, nil)
		}
		if err == nil {
			_, err = s.Create(ctx)
		}
		if err == nil {
			err = s.Start(ctx)
		}
		if err != nil {
			fail(err)
		}
	} else if err != nil {
		fail(err)
	}
	st, err := s.Attach(ctx, shim.Streams{Stdout: true})
	if err != nil {
		fail(err)
	}
	if _, _, err := st.Next(); err != nil {
		fail(err)
	}
	fmt.Println("attached") // and from here on it reads no more: the process is held back until we die
	select {}
}

// The engine is killed with SIGKILL twice, attached and in the middle of the
// output of 100,000 lines across rotations: the log has each once, and the
// third engine learns the exit code.
func TestEngineKilledTwice(t *testing.T) {
	h := newHouse(t, "/bin/sh", "-c", "i=0; while [ $i -lt 100000 ]; do seq -f 'line %.0f' $i $((i+4999)); i=$((i+5000)); sleep 0.02; done; exit 42")
	spec, err := json.Marshal(h.spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(h.spec.Dir, "spec"), spec, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{"engine", h.spec.Dir}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 100)
		n, err := out.Read(line)
		want(t, "engine says", fmt.Sprintf("%q %v", line[:n], err), `"attached\n" <nil>`)
		time.Sleep(30 * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	var e isolation.Exit
	s, err := h.Find(t.Context(), "aaaa")
	if err == nil {
		e = h.exit(s)
		h.gone(s)
	} else if e, err = h.Exit("aaaa"); err != nil { // ended before it was looked for
		t.Fatal(err)
	}
	want(t, "exit", fmt.Sprint(e.Code, " ", e.Error), "42 ")
	lines := strings.Split(strings.TrimSuffix(h.logged(), "\n"), "\n")
	want(t, "lines", len(lines), 100000)
	for i, l := range lines {
		if l != fmt.Sprint("line ", i) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if _, err := os.Stat(h.spec.Log.Path + ".3"); err != nil {
		t.Error("the log did not rotate: ", err)
	}
}

// Whoever connects and says nothing, or half a message, is dropped after 15
// seconds; the others do not notice.
func TestHalfOpenConnections(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "/bin/sleep", "100")
	s := h.start()
	ends := make(chan time.Duration)
	start := time.Now()
	for _, say := range []string{"", "\x10", "\x10\x00\x00\x00\x00\x00\x00\x50{\"op\":", "\x10\x00\x00\x00\x00\x00\x00\x12{\"v\":1,\"op\":\"hello\"}"[:26]} {
		f, err := sys.DialUnix(filepath.Join(h.Dir, "aaaa", "sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(say); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = io.Copy(io.Discard, f)
			ends <- time.Since(start)
		}()
	}
	for range 4 {
		if d := <-ends; d > 17*time.Second {
			t.Errorf("dropped after %v", d)
		}
		if _, _, err := s.State(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Nonsense gets an answer with a kind, or the line is cut; the shim lives on.
func TestNonsense(t *testing.T) {
	h := newHouse(t, "/bin/sleep", "100")
	s := h.start()
	for _, say := range []string{
		"GET / HTTP/1.1\r\n\r\n", "\x10\x00\x00\x00\x00\x00\x00\x02{]", "\x10\x00\x00\x00\xff\xff\xff\xff", "\x01\x00\x00\x00\x00\x00\x00\x01x",
		"\x10\x00\x00\x00\x00\x00\x27\x10" + strings.Repeat("[", 10000), "\x10\x00\x00\x00\x00\x00\x00\x10{\"op\":\"explode\"}",
	} {
		f, err := sys.DialUnix(filepath.Join(h.Dir, "aaaa", "sock"))
		if err != nil {
			t.Fatal(err)
		}
		_ = f.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = f.WriteString(say)
		b := make([]byte, 4096)
		n, err := f.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) || n > 0 && !strings.Contains(string(b[:n]), `"kind":`) {
			t.Errorf("%.20q: %q %v", say, b[:n], err)
		}
		f.Close()
	}
	if _, _, err := s.State(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait that is given up: %v", err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Errorf("second delete: %v", err)
	}
}

// An attached reader that stands still for good cannot keep a container from
// having ended.
func TestStuckReader(t *testing.T) {
	t.Parallel()
	h := newHouse(t, "/bin/sh", "-c", "head -c 1000000 /dev/zero & sleep 0.2; kill -9 $$")
	s := h.create()
	st, err := s.Attach(t.Context(), shim.Streams{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	want(t, "exit", h.exit(s).Code, 137)
	if d := time.Since(t0); d > 15*time.Second {
		t.Errorf("known after %v", d)
	}
	h.gone(s)
}

// Delete works in every phase.
func TestDeleteEarly(t *testing.T) {
	h := newHouse(t, "/bin/sleep", "100")
	s, err := h.Start(t.Context(), h.spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context()); err != nil { // perhaps not even created
		t.Fatal(err)
	}
	s = h.create()
	waited := make(chan isolation.Exit, 1)
	go func() { waited <- h.exit(s) }()
	time.Sleep(20 * time.Millisecond)
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := <-waited; e.Error == "" {
		t.Errorf("exit of one that never ran: %+v", e)
	}
	if _, err := os.Stat(filepath.Join(h.spec.Dir, "left")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the driver did not delete")
	}
}
