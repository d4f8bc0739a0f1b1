package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/rootfs"
)

// entries lists a tar stream: names, and contents behind those of files.
func entries(t *testing.T, b []byte) (out []string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		line := h.Name
		if h.Typeflag == tar.TypeReg {
			line += "=" + string(body)
		}
		out = append(out, line)
	}
}

func tarOf(t *testing.T, name, body string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Files are read and written before the main process starts, while it runs and
// after it has ended, and a layer holds what was the user's doing and nothing
// of the agent's.
func TestFiles(t *testing.T) {
	c := boot(t)
	ask := func(r *rootfs.Request, in io.Reader) []byte {
		t.Helper()
		var b bytes.Buffer
		if err := c.Files(deadline(t), r, in, &b); err != nil {
			t.Fatalf("%s %s: %v", r.Op, r.Path, err)
		}
		return b.Bytes()
	}
	if err := c.Files(deadline(t), &rootfs.Request{Op: rootfs.OpStat, Path: "/"}, nil, io.Discard); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("before the guest is set up: %v", err)
	}
	s := setupOf(makeDisks(t))
	if err := c.Setup(deadline(t), s); err != nil {
		t.Fatal(err)
	}
	before := ask(&rootfs.Request{Op: rootfs.OpChanges}, nil)
	if strings.Contains(string(before), "/etc") || strings.Contains(string(before), "/proc") {
		t.Errorf("changes of a guest that ran nothing: %s", before)
	}
	ask(&rootfs.Request{Op: rootfs.OpPut, Path: "/home", User: "app"}, bytes.NewReader(tarOf(t, "app/early", "early")))
	if got := entries(t, ask(&rootfs.Request{Op: rootfs.OpGet, Path: "/etc/hosts"}, nil)); !slices.Equal(got, []string{"hosts=" + s.Hosts}) {
		t.Errorf("%q", got)
	}

	main, err := c.Start(deadline(t), &isolation.Process{Args: []string{"sh", "-c", "echo made >/made; read x; echo late >/late"}, Cwd: "/", Capabilities: allCaps, Stdin: true}, isolation.Stdio{Stdin: &gate{c: t.Context()}})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := run(t, c, "cat /home/app/early; stat -c %u:%g /home/app/early; while ! test -s /made; do sleep 0.01; done"); out != "early1000:1000\n" {
		t.Errorf("%q", out)
	}
	if got := entries(t, ask(&rootfs.Request{Op: rootfs.OpGet, Path: "/made"}, nil)); !slices.Equal(got, []string{"made=made\n"}) {
		t.Errorf("%q", got)
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	ask(&rootfs.Request{Op: rootfs.OpPut, Path: "/tmp"}, bytes.NewReader(tarOf(t, "big", big)))
	if got := entries(t, ask(&rootfs.Request{Op: rootfs.OpGet, Path: "/tmp/big"}, nil)); len(got) != 1 || got[0] != "big="+big {
		t.Errorf("%d entries", len(got))
	}
	run(t, c, "dd if=/dev/zero of=/tmp/big bs=1 count=0; ln -s / /root/up")
	for _, r := range []struct {
		rootfs.Request
		is func(error) bool
	}{
		{rootfs.Request{Op: rootfs.OpGet, Path: "/nope"}, errdefs.IsNotFound},
		{rootfs.Request{Op: rootfs.OpPut, Path: "/made"}, errdefs.IsInvalidArgument},
		{rootfs.Request{Op: rootfs.OpPut, Path: "/tmp", User: "nobody-knows"}, func(err error) bool { return err != nil }},
		{rootfs.Request{Op: "dance"}, errdefs.IsInvalidArgument},
	} {
		err := c.Files(deadline(t), &r.Request, bytes.NewReader(tarOf(t, "x", "x")), io.Discard)
		if !r.is(err) {
			t.Errorf("%+v: %v", r.Request, err)
		}
	}
	if err := c.Files(deadline(t), &rootfs.Request{Op: rootfs.OpExport}, nil, failing{}); !errors.Is(err, errFailing) {
		t.Errorf("a writer that fails: %v", err)
	}
	if err := c.Files(deadline(t), &rootfs.Request{Op: rootfs.OpPut, Path: "/tmp"}, io.MultiReader(bytes.NewReader(tarOf(t, "x", big)[:40_000]), failing{}), nil); !errors.Is(err, errFailing) {
		t.Errorf("a reader that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(deadline(t))
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(tarOf(t, "x", "x")[:512])
		cancel()
	}()
	if err := c.Files(ctx, &rootfs.Request{Op: rootfs.OpPut, Path: "/tmp"}, r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	r.Close()

	if err := main.Signal(deadline(t), 9); err != nil {
		t.Fatal(err)
	}
	if _, err := main.Wait(deadline(t)); err != nil {
		t.Fatal(err)
	}
	layer := ask(&rootfs.Request{Op: rootfs.OpLayer, Still: true}, nil)
	names := strings.Join(entries(t, layer), " ")
	for _, want := range []string{"made=made\n", "home/app/early=early", "scratch/deep/"} {
		if !strings.Contains(names, want) {
			t.Errorf("the layer lacks %q: %.500q", want, names)
		}
	}
	for _, bad := range []string{"etc/", "proc/", "dev/", "sys/"} {
		if slices.ContainsFunc(strings.Fields(names), func(n string) bool { return strings.HasPrefix(n, bad) }) {
			t.Errorf("the layer holds %q: %.500q", bad, names)
		}
	}
	if again := ask(&rootfs.Request{Op: rootfs.OpLayer}, nil); !bytes.Equal(layer, again) {
		t.Error("the layer is another one the second time")
	}
	if err := c.Shutdown(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := c.Files(deadline(t), &rootfs.Request{Op: rootfs.OpStat, Path: "/"}, nil, io.Discard); err == nil {
		t.Error("files of a guest that was shut down")
	}
}

// gate is an input that never comes.
type gate struct{ c context.Context }

func (g *gate) Read([]byte) (int, error) { <-g.c.Done(); return 0, io.EOF }

var errFailing = errors.New("failing")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFailing }
func (failing) Read([]byte) (int, error)  { return 0, errFailing }
