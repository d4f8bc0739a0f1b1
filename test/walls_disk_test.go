package test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"proa/test/proatest"
)

// du is what a directory takes on disk, in bytes.
func du(t *testing.T, path string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "-B1", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Ten containers and ten VMs of one image take no more than the image and
// 64 KiB a container and 8 MiB a VM before their first write.
func TestDiskOfTenAndTen(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	e.MustDocker("run", "--rm", "--runtime", "vm", "--network", "none", "bb", "true") // templates and initramfs are made once
	base := du(t, e.DataRoot)
	create := func(wall string, most int64) {
		for i := range 10 {
			name := fmt.Sprintf("%s%d", wall, i)
			e.MustDocker("run", "-d", "--runtime", wall, "--network", "none", "--name", name, "bb", "sleep", "1000")
		}
		now := du(t, e.DataRoot)
		per := (now - base) / 10
		t.Logf("%s: %d bytes each", wall, per)
		if per > most {
			t.Errorf("%s: %d bytes of disk each, at most %d", wall, per, most)
		}
		base = now
	}
	create("container", 64<<10)
	create("vm", 8<<20)
}

func cached(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if f := strings.Fields(sc.Text()); f[0] == "Cached:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no Cached in /proc/meminfo")
	return 0
}

// Ten containers that read the same 200 MB share one copy in memory.
func TestPageCacheOfTen(t *testing.T) {
	const size = 200_000_000
	e := proatest.New(t)
	var body strings.Builder
	for body.Len() < size {
		fmt.Fprintf(&body, "%d ", body.Len()*2654435761)
	}
	e.ImportBusybox("big", proatest.Entry{Name: "big", Body: body.String()[:size]})
	body.Reset()
	// What the import itself left in the cache must not count.
	if err := exec.Command("sync").Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	// The programs that the test itself runs come back into the cache first.
	e.MustDocker("run", "-d", "--network", "none", "--name", "warm", "big", "sleep", "1000")
	e.MustDocker("exec", "warm", "true")
	before := cached(t)
	for i := range 10 {
		e.MustDocker("run", "-d", "--network", "none", "--name", fmt.Sprintf("c%d", i), "big", "sleep", "1000")
		e.MustDocker("exec", fmt.Sprintf("c%d", i), "sh", "-c", "cat /big >/dev/null")
	}
	grown := cached(t) - before
	t.Logf("page cache grew by %d MB", grown/1_000_000)
	if grown > size*11/10 {
		t.Errorf("page cache grew by %d bytes for ten readers of %d", grown, size)
	}
}

// A bind mount of a directory that belongs to root can be written by the
// container's root, and the files belong to root outside; nothing is chowned,
// and the container's users are not the host's.
func TestBindMountsKeepOwners(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := e.MustDocker("run", "--rm", "--network", "none", "-v", dir+":/b", "-v", "vol:/v", "bb", "sh", "-c",
		"cat /b/old; echo; echo new >/b/new; mkdir /b/d; chown 1000:1000 /b/d; echo v >/v/f; cat /proc/self/uid_map")
	fields := strings.Fields(out)
	if len(fields) < 4 || len(fields)%3 != 1 || fields[0] != "old" || fields[1] != "0" || fields[2] == "0" {
		t.Errorf("inside: %q: want the old file, and a uid_map that does not map 0 to 0", out)
	}
	for path, want := range map[string]string{"new": "0:0 644", "d": "1000:1000 755", "old": "0:0 600", ".": "0:0 755"} {
		got, err := exec.Command("stat", "-c", "%u:%g %a", filepath.Join(dir, path)).Output()
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s outside: %s %v, want %s", path, got, err, want)
		}
	}
	got, err := exec.Command("stat", "-c", "%u:%g", filepath.Join(e.DataRoot, "volumes", "vol", "_data", "f")).Output()
	if err != nil || strings.TrimSpace(string(got)) != "0:0" {
		t.Errorf("file of the volume outside: %s %v", got, err)
	}
}
