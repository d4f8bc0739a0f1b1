package faults

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"proa/test/proatest"
)

// D33: options of --tmpfs that dockerd 20.10.24 takes were refused, or had no
// effect (moby/sys/mount, MergeTmpfsOptions, and runc's mount of them).
func TestFaultD33TmpfsOptions(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	// What /proc/self/mountinfo has for it.
	options := map[string][2]string{ // has, has not
		"size=10%": {"size=", ""}, "sync": {"sync", ""}, "dirsync": {"dirsync", ""}, "sync,async": {"", "sync"},
		"shared": {"shared:", ""}, "rshared": {"shared:", ""}, "private": {"", "shared:"}, "rprivate": {"", "shared:"}, "slave": {"", "shared:"}, "rslave": {"", "shared:"},
		"unbindable": {"unbindable", ""}, "runbindable": {"unbindable", ""},
		"noatime": {"noatime", ""}, "nodiratime": {"nodiratime", ""}, "strictatime": {"", "relatime"}, "noatime,relatime": {"relatime", "noatime"}, "norelatime,nostrictatime": {"relatime", ""},
		"ro,rw": {"rw,nosuid", ""}, "rw,ro": {"ro,nosuid", ""}, "mand,nomand,atime,diratime": {"relatime", ""}, "exec,noexec,suid": {"nodev,noexec", "nosuid"}, "nr_inodes=4K": {"nr_inodes=4096", ""},
		"size=20%,size=1m": {"size=1024k", ""},
	}
	line := []string{"run", "--rm"}
	var all []string
	for o := range options {
		line = append(line, "--tmpfs", fmt.Sprintf("/t%d:%s", len(all), o))
		all = append(all, o)
	}
	for _, isolation := range isolations {
		r := e.Docker(slices.Concat(line, []string{"--runtime", isolation, "bb", "cat", "/proc/self/mountinfo"})...)
		if r.Code != 0 {
			t.Errorf("%s: exit code %d %s", isolation, r.Code, r.Stderr)
			continue
		}
		for i, o := range all {
			_, info, _ := strings.Cut(r.Stdout, fmt.Sprintf(" /t%d ", i))
			info, _, ok := strings.Cut(info, "\n")
			want := options[o]
			if isolation == "vm" && (strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "unbindable")) {
				want[0] = "" // all mounts of a guest are private
			}
			if !ok || !strings.Contains(info, want[0]) || want[1] != "" && strings.Contains(info, want[1]) {
				t.Errorf("%s: --tmpfs with %s is mounted as %q, want %q and not %q", isolation, o, info, want[0], want[1])
			}
		}
	}
	for _, o := range []string{"bogus", "bind", "remount", "size=x%", "size=", "shared=1"} {
		if r := e.Docker("run", "--rm", "--tmpfs", "/t:"+o, "bb", "true"); r.Code != 125 || !strings.Contains(r.Stderr, "invalid tmpfs option") {
			t.Errorf("--tmpfs with %s: exit code %d %s", o, r.Code, r.Stderr)
		}
	}
}

// D33 and its neighbours: bind-recursive=writable was refused. Since API 1.44
// Docker makes mounts below a read-only bind read-only unless that is said.
func TestFaultD33BindRecursive(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	proatest.NeedRoot(t)
	if err := syscall.Mount("tmpfs", dir+"/sub", "tmpfs", 0, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir+"/sub", syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e := proatest.New(t)
	e.ImportBusybox("bb")
	for how, want := range map[string]string{
		"readonly": "ro ro", "readonly,bind-recursive=enabled": "ro ro", "readonly,bind-recursive=writable": "ro rw",
		"readonly,bind-recursive=readonly,bind-propagation=rprivate": "ro ro", "bind-recursive=disabled": "rw", "readonly,bind-recursive=disabled": "ro",
	} {
		for _, cli := range []func(...string) proatest.Result{e.Docker, e.Proa} {
			r := cli("run", "--rm", "--mount", "type=bind,source="+dir+",target=/b,"+how, "bb", "sh", "-c", "grep -E ' /b(/sub)? ' /proc/self/mountinfo | cut -d' ' -f6 | cut -c-2 | xargs")
			if r.Out() != want {
				t.Errorf("%s: got %q %s, want %q", how, r.Out(), r.Stderr, want)
			}
		}
	}
	// A file that is put lands where the container could write as well.
	id := e.MustDocker("create", "--mount", "type=bind,source="+dir+",target=/b,readonly,bind-recursive=writable", "bb", "true")
	if r := e.Docker("cp", "/proc/self/cmdline", id+":/b/sub/"); r.Code == 0 {
		t.Error("a file was put below a read-only bind, which Docker refuses by the mount point")
	}
}
