package builder

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys/cgroup"
)

func open(t *testing.T, binary string) *Builders {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a builder has a control group")
	}
	dir, err := os.MkdirTemp("/tmp", "proa-") // sockets have short paths, $TMPDIR may not
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(Config{
		Binary: binary, DataRoot: filepath.Join(dir, "data"), ExecRoot: dir, CgroupParent: filepath.Base(dir), Default: isolation.Container,
		Idle: time.Minute, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Serve: func(isolation.Kind, net.Listener) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if g, err := cgroup.Open("/" + filepath.Base(dir)); err == nil {
			if err := g.Delete(); err != nil {
				t.Error(err)
			}
			g.Close()
		}
		os.RemoveAll(dir)
	})
	return b
}

func TestGRPCText(t *testing.T) {
	err := fmt.Errorf("it died:\n100%% sure: %w", errdefs.ErrUnavailable)
	if got := grpcText(err); got != "it died:%0A100%25 sure" {
		t.Errorf("%q", got)
	}
}

func TestKind(t *testing.T) {
	b := &Builders{cfg: Config{Default: isolation.VM}}
	for word, want := range map[string]isolation.Kind{"": isolation.VM, "default": isolation.VM, "container": isolation.Container, "vm": isolation.VM} {
		if got, err := b.kind(word); got != want || err != nil {
			t.Errorf("%q: %q %v", word, got, err)
		}
	}
	if _, err := b.kind("hyperv"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

// A program that is missing, and one that ends at once, are errors that say
// so; the next request tries again.
func TestBuilderThatDoesNotStart(t *testing.T) {
	script := filepath.Join(t.TempDir(), "builder")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho it cannot be >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for binary, want := range map[string][]string{
		filepath.Join(t.TempDir(), "nothing"): {"cannot start the builder", "no such file"},
		script:                                {"it ended", "exit code 3", "it cannot be", "build.log"},
	} {
		b := open(t, binary)
		for range 2 {
			r := httptest.NewRequest(http.MethodPost, "/build", nil)
			err := b.Build(httptest.NewRecorder(), r)
			for _, w := range want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("no %q in %v", w, err)
				}
			}
		}
	}
}

func TestOnlyH2C(t *testing.T) {
	b := &Builders{}
	for _, do := range []func(http.ResponseWriter, *http.Request) error{b.GRPC, b.Session} {
		if err := do(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/grpc", nil)); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Error(err)
		}
	}
}
