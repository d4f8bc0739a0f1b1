package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/network"
)

// rootOf gives a writable root of the test image, as a build has one.
func (w *world) rootOf() StepFiles {
	w.t.Helper()
	ctx := context.Background()
	img, err := w.images.Get(ctx, "box")
	if err != nil {
		w.t.Fatal(err)
	}
	tree, err := w.images.Mount(ctx, img.ID.String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { tree.Close() })
	disk, err := w.images.Disk(ctx, img.ID.String())
	if err != nil {
		w.t.Fatal(err)
	}
	upper, err := os.MkdirTemp(w.dir, "snap")
	if err != nil {
		w.t.Fatal(err)
	}
	return StepFiles{Type: FilesOverlay, Source: filepath.Join(w.dir, "run", "image", disk.ChainID.Encoded()), Upper: upper}
}

// shell is a step that runs a script.
func (w *world) shell(script string) Step {
	return Step{
		Kind: isolation.Container, Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin", "A=b"}, Cwd: "/", Hostname: "builder",
		Root: w.rootOf(), Network: isolation.NetworkNone,
	}
}

// runStep runs a step to its end and returns what it wrote.
func (w *world) runStep(s Step) (string, isolation.Exit, []string) {
	w.t.Helper()
	r, err := w.StartStep(context.Background(), s)
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	for {
		_, b, err := r.Next()
		if err != nil {
			if err != io.EOF {
				w.t.Error(err)
			}
			break
		}
		out.Write(b)
	}
	exit, err := r.Wait()
	if err != nil {
		w.t.Fatal(err)
	}
	return out.String(), exit, r.Warnings
}

// A step writes into the directory that it was given, as root of inside and no
// root of outside, and leaves nothing else.
func TestStep(t *testing.T) {
	w := newWorld(t)
	before := inventory(t, w.dir)
	s := w.shell("id -u; hostname; echo $A $HOME; cat /proc/$$/environ /etc/hosts /proc/self/uid_map; echo x >/made; ! echo x >/etc/hosts; cat /c/f; echo y >/c/g; exit 3")
	s.ExtraHosts = []string{"friend:10.1.2.3"}
	cache := t.TempDir()
	if err := os.WriteFile(filepath.Join(cache, "f"), []byte("cached\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Mounts = []StepMount{
		{StepFiles: StepFiles{Type: isolation.MountBind, Source: cache}, Target: "/c"},
		{StepFiles: StepFiles{Type: isolation.MountTmpfs}, Target: "/t"},
	}
	out, exit, warnings := w.runStep(s)
	for _, want := range []string{"0\nbuilder\nb /root\n", "10.1.2.3\tfriend", fmt.Sprint(w.ids.Root()), "cached\n", "Read-only file system"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in %q", want, out)
		}
	}
	if strings.Contains(out, "HOSTNAME=") {
		t.Errorf("the environment was added to: %q", out)
	}
	if exit.Code != 3 || exit.OOMKilled || len(warnings) > 0 {
		t.Errorf("%+v %q", exit, warnings)
	}
	for path, want := range map[string]string{filepath.Join(s.Root.Upper, "upper/made"): "x\n", filepath.Join(cache, "g"): "y\n"} {
		fi, err := os.Stat(path)
		if err != nil || ownerOf(fi) != 0 {
			t.Errorf("%s: %v, owner %d", path, err, ownerOf(fi))
		}
		if b, _ := os.ReadFile(path); string(b) != want {
			t.Errorf("%s: %q", path, b)
		}
	}
	names, _ := os.ReadDir(filepath.Join(s.Root.Upper, "upper"))
	for _, n := range names {
		if !strings.Contains(" made proc sys dev etc ", " "+n.Name()+" ") {
			t.Errorf("left in the layer: %s", n.Name())
		}
	}
	if etc, _ := os.ReadDir(filepath.Join(s.Root.Upper, "upper/etc")); len(etc) > 0 {
		t.Errorf("left in /etc of the layer: %v", etc)
	}
	if left := difference(before, inventory(t, w.dir)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// The same layer again: what an overlay without syncing marks is gone.
	s.Args = []string{"cat", "/made"}
	if out, exit, _ := w.runStep(s); out != "x\n" || exit.Code != 0 {
		t.Errorf("again: %q %+v", out, exit)
	}
}

// A bridge gives a step a card; what cannot be is refused by name; the host's
// network costs the user namespace, which is said.
func TestStepNetworks(t *testing.T) {
	w := newWorld(t)
	s := w.shell("cat /proc/net/dev; cat /proc/self/uid_map")
	s.Network = isolation.NetworkBridge
	if out, exit, _ := w.runStep(s); exit.Code != 0 || !strings.Contains(out, "eth0:") {
		t.Errorf("bridge: %+v %q", exit, out)
	}
	s.Network = isolation.NetworkNone
	if out, _, _ := w.runStep(s); strings.Contains(out, "eth0:") {
		t.Errorf("none: %q", out)
	}
	s.Network = isolation.NetworkHost
	if out, _, warnings := w.runStep(s); !strings.Contains(out, worldName(w.dir)) && !strings.Contains(out, "4294967295") || len(warnings) != 1 {
		t.Errorf("host: %q %q", out, warnings)
	}
	s.Network = "moon"
	if _, err := w.StartStep(t.Context(), s); !errdefs.IsInvalidArgument(err) {
		t.Errorf("moon: %v", err)
	}
}

func TestStepThatCannotStart(t *testing.T) {
	w := newWorld(t)
	before := inventory(t, w.dir)
	s := w.shell("")
	s.Args = []string{"no-such-program"}
	_, err := w.StartStep(t.Context(), s)
	var start *isolation.StartError
	if !errors.As(err, &start) || start.Kind != isolation.StartNotFound || !strings.Contains(err.Error(), "executable file not found in $PATH") {
		t.Errorf("%v", err)
	}
	s.Args, s.User = []string{"true"}, "nobody-knows"
	if _, err = w.StartStep(t.Context(), s); !errors.As(err, &start) || !strings.Contains(err.Error(), "nobody-knows") {
		t.Errorf("%v", err)
	}
	if left := difference(before, inventory(t, w.dir)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// A kill ends a step at once and leaves nothing; so does the end of the engine.
func TestStepKilled(t *testing.T) {
	w := newWorld(t)
	before := inventory(t, w.dir)
	for _, how := range []string{"kill", "signal", "close"} {
		r, err := w.StartStep(t.Context(), w.shell("echo up; trap '' TERM; while :; do sleep 100; done"))
		if err != nil {
			t.Fatal(err)
		}
		if _, b, err := r.Next(); err != nil || string(b) != "up\n" {
			t.Fatalf("%q %v", b, err)
		}
		switch how {
		case "kill":
			r.Kill()
		case "signal":
			if err := r.Signal(t.Context(), int(syscall.SIGKILL)); err != nil {
				t.Error(err)
			}
			if exit, err := r.Wait(); err != nil || exit.Code != 137 || exit.Signal != 9 {
				t.Errorf("%+v %v", exit, err)
			}
		case "close":
			w.Engine.stop()
			select {
			case <-r.gone:
			case <-time.After(20 * time.Second):
				t.Fatal("the step outlives the engine")
			}
		}
		if left := difference(before, inventory(t, w.dir)); len(left) > 0 {
			t.Errorf("%s: left behind: %q", how, left)
		}
	}
}

func TestStepExec(t *testing.T) {
	w := newWorld(t)
	s := w.shell("read x; echo got $x")
	s.Stdin = true
	r, err := w.StartStep(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	x, err := r.Exec(t.Context(), StepProcess{Args: []string{"sh", "-c", "echo $A in; id -u; exit 4"}, User: "app"})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := x.Copy(&out, &out); err != nil {
		t.Fatal(err)
	}
	if exit, ok := x.Exit(); !ok || exit.Code != 4 || out.String() != "b in\n1000\n" {
		t.Errorf("%+v %q", exit, out.String())
	}
	if _, err := r.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	if _, b, err := r.Next(); err != nil || string(b) != "got word\n" {
		t.Errorf("%q %v", b, err)
	}
	if exit, err := r.Wait(); err != nil || exit.Code != 0 {
		t.Errorf("%+v %v", exit, err)
	}
}

// BenchmarkStep is the whole life of a step that does nothing, beside another
// instance: the bridge is there already, as in the middle of a build.
func BenchmarkStep(b *testing.B) {
	for _, mode := range []isolation.NetworkMode{isolation.NetworkNone, isolation.NetworkBridge} {
		b.Run(string(mode), func(b *testing.B) {
			w := newWorld(b)
			s := w.shell("")
			s.Args, s.Network = []string{"true"}, mode
			other := newID()
			if _, err := w.net.Reserve(b.Context(), other, network.Request{Kind: isolation.NetworkBridge, Hostname: "other"}); err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = w.net.Release(context.Background(), other) })
			for b.Loop() {
				if _, exit, _ := w.runStep(s); exit.Code != 0 {
					b.Fatal(exit)
				}
			}
		})
	}
}
