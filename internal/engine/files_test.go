package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"proa/internal/rootfs"
)

func tarFile(t testing.TB, name, body string, uid int) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644, Typeflag: tar.TypeReg, Uid: uid, Gid: uid}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// entries are a tar stream as "name uid body".
func entries(t testing.TB, r io.Reader) (out []string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %d %.100s", h.Name, h.Uid, b)))
	}
}

func (w *world) files(ref string, r rootfs.Request, in io.Reader) *bytes.Buffer {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.Files(context.Background(), ref, &r, in, &out); err != nil {
		w.t.Fatalf("%s %s: %v", r.Op, r.Path, err)
	}
	return &out
}

func (w *world) changes(ref string) (out []string) {
	w.t.Helper()
	for d := json.NewDecoder(w.files(ref, rootfs.Request{Op: rootfs.OpChanges}, nil)); ; {
		var c rootfs.Change
		err := d.Decode(&c)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, "CAD"[c.Kind:c.Kind+1]+" "+c.Path)
	}
}

// The same files are seen, with the owners of inside, before the first start,
// while a container runs and after it has ended, through volumes and binds.
func TestFiles(t *testing.T) {
	w := newWorld(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "given"), []byte("given"), 0o644); err != nil {
		t.Fatal(err)
	}
	id := w.create("cat /vol/early /early > /seen; touch /own; busybox chown 7:8 /own; echo ready >/ready; read x", func(r *CreateRequest) {
		r.Name = "files"
		r.Config.OpenStdin = true
		r.Host.Binds = []string{"files-vol:/vol", host + ":/bind:ro"}
	})
	w.files(id, rootfs.Request{Op: rootfs.OpPut, Path: "/vol"}, tarFile(t, "early", "in-volume ", 0))
	w.files(id, rootfs.Request{Op: rootfs.OpPut, Path: "/"}, tarFile(t, "early", "in-root", 0))
	w.start(id)
	look := func(when string) {
		t.Helper()
		for path, want := range map[string]string{
			"/seen": "seen 0 in-volume in-root", "/own": "own 7", "/vol/early": "early 0 in-volume", "/bind/given": "given 0 given",
		} {
			if got := entries(t, w.files(id, rootfs.Request{Op: rootfs.OpGet, Path: path}, nil)); !slices.Equal(got, []string{want}) {
				t.Errorf("%s: %s: %q, want %q", when, path, got, want)
			}
		}
		for dir, want := range map[string]int{"/proc": 1, "/dev": 4, "/sys": 1} { // the places below /dev are the root's
			if got := entries(t, w.files(id, rootfs.Request{Op: rootfs.OpGet, Path: dir}, nil)); len(got) != want {
				t.Errorf("%s: %s holds %q", when, dir, got)
			}
		}
		exported := entries(t, w.files(id, rootfs.Request{Op: rootfs.OpExport}, nil))
		for _, want := range []string{"own 7", "seen 0 in-volume in-root", "vol/ 0", "bin/busybox 0 \x7fELF"} {
			if !slices.ContainsFunc(exported, func(l string) bool { return strings.HasPrefix(l, want) }) {
				t.Errorf("%s: the export lacks %q", when, want)
			}
		}
		if slices.ContainsFunc(exported, func(l string) bool { return strings.HasPrefix(l, "vol/e") || strings.HasPrefix(l, "proc/1") }) {
			t.Errorf("%s: the export holds mounts: %q", when, exported)
		}
		changed := strings.Join(w.changes(id), ", ")
		if want := "A /bind, A /early, A /own, A /ready, A /seen, A /vol"; strings.Replace(changed, "C /tmp, ", "", 1) != want {
			t.Errorf("%s: changes: %s, want %s", when, changed, want)
		}
		for path, words := range map[string]string{"/nope": "Could not find the file /nope in container", "/proc/1/root/etc": "Could not find the file"} {
			err := w.Files(t.Context(), id, &rootfs.Request{Op: rootfs.OpGet, Path: path}, nil, io.Discard)
			if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %s: %v", when, path, err)
			}
		}
		err := w.Files(t.Context(), id, &rootfs.Request{Op: rootfs.OpPut, Path: "/bind"}, tarFile(t, "x", "x", 0), nil)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "mounted volume is marked read-only") {
			t.Errorf("%s: a read-only bind: %v", when, err)
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if w.Files(t.Context(), id, &rootfs.Request{Op: rootfs.OpStat, Path: "/ready"}, nil, io.Discard) == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not get ready: %s", w.logs(id))
		}
	}
	look("running")
	w.files(id, rootfs.Request{Op: rootfs.OpPut, Path: "/tmp"}, tarFile(t, "put", "put", 33))
	if out := w.exec(id, "busybox stat -c %u:%g /tmp/put; cat /tmp/put; busybox rm /tmp/put"); out != "33:33\nput" {
		t.Errorf("what was put into it is seen as %q", out)
	}
	// Links that lead out lead nowhere, and a FIFO blocks nobody.
	w.exec(id, "busybox mkdir /x; busybox ln -s ../../../../../../etc /x/up; busybox ln -s "+host+" /x/abs; busybox mkfifo /x/fifo; busybox mkdir /x/tmp")
	for _, path := range []string{"/x/abs/given", "/x/up/hostname"} {
		if err := w.Files(t.Context(), id, &rootfs.Request{Op: rootfs.OpGet, Path: path}, nil, io.Discard); path == "/x/abs/given" && !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if got := entries(t, w.files(id, rootfs.Request{Op: rootfs.OpGet, Path: "/x"}, nil)); len(got) != 5 {
		t.Errorf("%q", got)
	}
	w.exec(id, "busybox rm -r /x")
	if err := w.Kill(t.Context(), id, "KILL"); err != nil {
		t.Fatal(err)
	}
	w.wait(id, "not-running")
	look("stopped")
	w.files(id, rootfs.Request{Op: rootfs.OpPut, Path: "/", User: "7:9"}, tarFile(t, "late", "late", 0))
	if got := entries(t, w.files(id, rootfs.Request{Op: rootfs.OpGet, Path: "late"}, nil)); !slices.Equal(got, []string{"late 7 late"}) {
		t.Errorf("%q", got)
	}
}

func (w *world) exec(id, line string) string {
	w.t.Helper()
	x, err := w.ExecCreate(context.Background(), id, container.ExecCreateRequest{Cmd: []string{"sh", "-c", line}, AttachStdout: true, AttachStderr: true})
	if err != nil {
		w.t.Fatal(err)
	}
	at, err := w.ExecStart(context.Background(), x, ExecStartOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	defer at.Close()
	if err := at.Run(context.Background(), nil, &out, &out); err != nil {
		w.t.Fatal(err)
	}
	return out.String()
}

func TestReadonlyRootRefuses(t *testing.T) {
	w := newWorld(t)
	id := w.create("true", func(r *CreateRequest) {
		r.Host.ReadonlyRootfs = true
		r.Host.Binds = []string{"ro-vol:/vol"}
	})
	err := w.Files(t.Context(), id, &rootfs.Request{Op: rootfs.OpPut, Path: "/"}, tarFile(t, "x", "x", 0), nil)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "container rootfs is marked read-only") {
		t.Errorf("%v", err)
	}
	w.files(id, rootfs.Request{Op: rootfs.OpPut, Path: "/vol"}, tarFile(t, "x", "x", 0))
}

func TestCommit(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.create("busybox rm /etc/group; echo words > /made; read x", func(r *CreateRequest) {
		r.Config.OpenStdin = true
		r.Config.Env = []string{"A=1"}
	})
	empty, err := w.Commit(ctx, id, CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(empty.Config.RootFS.DiffIDs); n != 1 {
		t.Errorf("a container that never ran gives an image of %d layers", n)
	}
	w.start(id)
	for deadline := time.Now().Add(20 * time.Second); w.Files(ctx, id, &rootfs.Request{Op: rootfs.OpStat, Path: "/made"}, nil, io.Discard) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not get ready")
		}
	}
	img, err := w.Commit(ctx, id, CommitOptions{Name: "made:1", Author: "me", Message: "words", Changes: []string{"ENV B=$A/2", `ENTRYPOINT ["cat"]`, `CMD ["/made"]`, "EXPOSE 80"}})
	if err != nil {
		t.Fatal(err)
	}
	if s := w.get(id).State; s != Running {
		t.Errorf("afterwards it is %s", s)
	}
	made, err := w.Create(ctx, CreateRequest{Config: &container.Config{Image: "made:1"}, Host: &container.HostConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	w.start(made.ID)
	if code := w.wait(made.ID, "not-running"); code != 0 || w.logs(made.ID) != "words\n" {
		t.Errorf("code %d, log %q", code, w.logs(made.ID))
	}
	c := w.get(made.ID)
	if !slices.Contains(c.Config.Env, "B=1/2") || !slices.Contains(c.Config.Env, "A=1") || c.Path != "cat" || len(c.Config.ExposedPorts) != 1 {
		t.Errorf("%+v", c.Config)
	}
	if got := entries(t, w.files(made.ID, rootfs.Request{Op: rootfs.OpGet, Path: "/etc"}, nil)); slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "etc/group") }) {
		t.Errorf("what was removed is there: %q", got)
	}
	if h := img.Config.History; len(h) != 2 || h[1].Author != "me" || h[1].Comment != "words" || !strings.HasPrefix(h[1].CreatedBy, "sh -c busybox rm") {
		t.Errorf("%+v", h)
	}
	for _, bad := range []CommitOptions{{Changes: []string{"RUN x"}}, {Name: "UPPER"}} {
		if _, err := w.Commit(ctx, id, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if s := w.get(id).State; s != Running {
		t.Errorf("after refusals it is %s", s)
	}
}
