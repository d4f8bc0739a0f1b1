package sys_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"proa/internal/sys"
)

// CVE-2019-5736: the program of a process cannot be written through /proc, not
// even by root, once it was executed from a read-only mount.
func TestReadonlyProgram(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	b, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(exec string) error {
		pid, err := syscall.ForkExec(exec, []string{"sleep", "100"}, &syscall.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		// A descriptor that outlives the process, as the attack has it: while
		// it runs ETXTBSY protects the file.
		f, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0)
		if err == nil {
			_ = w.Close()
		}
		return err
	}
	if err := write(path); err != nil {
		t.Fatalf("the attack does not work on a plain program, so this test shows nothing: %v", err)
	}
	m, err := sys.ReadonlyProgram(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := write(fmt.Sprintf("/proc/self/fd/%d", sys.RawFD(m))); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("a program that is running from a read-only mount was opened for writing: %v", err)
	}
}
