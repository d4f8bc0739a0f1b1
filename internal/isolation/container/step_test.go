package container_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// What is mounted is none of the root's files: a mount point that the root did
// not have goes with the container, and the directory that held it looks as if
// nothing had happened. What the process wrote itself stays.
func TestMountPointsGo(t *testing.T) {
	for _, tree := range []bool{false, true} {
		name := map[bool]string{false: "overlay", true: "tree"}[tree]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := busybox(t)
			must(t, os.Symlink("/run/deep/target", filepath.Join(root, "etc/dangling")))
			old := time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)
			must(t, os.Chtimes(filepath.Join(root, "etc"), old, old))
			spec := newSpec(t, root, "/bin/sh", "-c", "cat /etc/one /etc/dangling; echo kept >/new/b/kept; ls /a/b/c; ls /etc/hosts")
			spec.Root.Unstub = true
			if tree {
				clone, err := sys.CloneTree(nil, root, false)
				must(t, err)
				t.Cleanup(func() { clone.Close() })
				spec.Root.Image, spec.Root.Upper, spec.Root.Tree = 0, "", isolation.File(sys.RawFD(clone))
			}
			src := t.TempDir()
			must(t, os.WriteFile(filepath.Join(src, "file"), []byte("word\n"), 0o644))
			must(t, os.MkdirAll(filepath.Join(src, "dir", "in"), 0o755))
			hosts := filepath.Join(src, "file")
			spec.Network.Hosts, spec.Network.FixedFiles = hosts, true
			bind(t, spec, hosts, "/etc/one", nil)
			bind(t, spec, hosts, "/etc/dangling", nil)
			bind(t, spec, filepath.Join(src, "dir"), "/a/b/c", nil)
			bind(t, spec, filepath.Join(src, "dir"), "/new/b/c", nil)
			spec.Mounts = append(spec.Mounts, isolation.Mount{Type: isolation.MountTmpfs, Target: "/memory"})
			out, errs, exit := runAndDelete(t, spec)
			if exit.Code != 0 || out != "word\nword\nin\n/etc/hosts\n" {
				t.Fatalf("%+v %q %q", exit, out, errs)
			}
			top := root
			if !tree {
				top = filepath.Join(spec.Root.Upper, "upper")
			}
			for path, there := range map[string]bool{
				"etc/one": false, "etc/hosts": false, "run/deep/target": false, "run/deep": true, "a/b/c": false, "a/b": true,
				"new/b/kept": true, "new/b/c": false, "memory": false, "proc": true, "sys": true, "dev": true,
			} {
				if _, err := os.Lstat(filepath.Join(top, path)); (err == nil) != there {
					t.Errorf("%s: %v, wanted there: %v", path, err, there)
				}
			}
			if fi, err := os.Stat(filepath.Join(top, "etc")); err != nil || !fi.ModTime().Equal(old) {
				t.Errorf("etc: %v %v, not %v", fi.ModTime(), err, old)
			}
		})
	}
}

// With parents, so do directories on the way that held nothing else, also of a
// root that is read-only.
func TestMountPointsGoWithParents(t *testing.T) {
	t.Parallel()
	spec := newSpec(t, busybox(t), "/bin/sh", "-c", "! touch /x/mine")
	spec.Root.Unstub, spec.Root.UnstubParents, spec.Root.Readonly = true, true, true
	src := t.TempDir()
	bind(t, spec, src, "/a/b/c", nil)
	bind(t, spec, src, "/x/y", nil)
	if _, errs, exit := runAndDelete(t, spec); exit.Code != 0 {
		t.Fatalf("%+v %q", exit, errs)
	}
	for path, there := range map[string]bool{"a": false, "x": false, "proc": true} {
		if _, err := os.Lstat(filepath.Join(spec.Root.Upper, "upper", path)); (err == nil) != there {
			t.Errorf("%s: %v, wanted there: %v", path, err, there)
		}
	}
}

// runAndDelete runs a container to its end and removes it.
func runAndDelete(t *testing.T, s *isolation.Spec) (stdout, stderr string, exit isolation.Exit) {
	t.Helper()
	var out, errs output
	i := create(t, s)
	r, err := i.Start(t.Context(), isolation.Stdio{Stdout: &out, Stderr: &errs})
	must(t, err)
	exit, err = r.Wait(t.Context())
	must(t, err)
	must(t, i.Delete(t.Context()))
	return out.String(), errs.String(), exit
}
