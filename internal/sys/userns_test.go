package sys

import (
	"os"
	"syscall"
	"testing"
)

func TestUserNSAndIdmapProbe(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: making a mapped user namespace needs root")
	}
	ns, err := MakeUserNS([]syscall.SysProcIDMap{{HostID: 2_000_000_000, Size: 65536}})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	dir, err := OpenPath(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := CanIdmap(dir, ns, false); err != nil {
		t.Errorf("a temporary directory: %v", err)
	}
	proc, err := OpenPath("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if err := CanIdmap(proc, ns, true); err == nil {
		t.Error("proc can be idmapped, which no kernel is known to do")
	}
}
