package sys_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"proa/internal/sys"
)

// run clones p after adding the steps that give it the descriptors of out and
// an exec, and returns the exit code.
func run(t *testing.T, args []string, search string, steps func(*sys.Program)) (string, int, error) {
	t.Helper()
	p, err := sys.NewProgram(4096)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p.NotDumpable()
	p.Await()
	c, err := p.Clone(sys.CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Pidfd.Close()
	defer p.Close()
	// Everything below is written while the child waits.
	p.DetachFiles(sys.FD(null), sys.FD(w), sys.FD(w))
	if steps != nil {
		steps(p)
	}
	p.DieWithParent()
	p.Exec(args, []string{"A=b"}, search)
	if err := c.Continue(); err != nil {
		t.Fatal(err)
	}
	err = c.WaitExec()
	w.Close()
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		n, e := r.Read(buf)
		out.Write(buf[:n])
		if e != nil {
			break
		}
	}
	code, _, werr := sys.PidfdReap(c.Pidfd)
	if werr != nil {
		t.Fatal(werr)
	}
	return out.String(), code, err
}

func TestProgram(t *testing.T) {
	t.Run("exec", func(t *testing.T) {
		out, code, err := run(t, []string{"sh", "-c", "echo $A; ls /proc/self/fd | tr '\n' ' '; exit 7"}, "/nonexistent:/bin", nil)
		if err != nil || code != 7 || !strings.HasPrefix(out, "b\n0 1 2 3 ") || strings.Count(out, " ") != 4 {
			t.Fatalf("%q %d %v", out, code, err) // 3 is ls's own directory
		}
	})
	for _, c := range []struct {
		args   []string
		search string
		want   syscall.Errno
	}{
		{[]string{"nothing-of-that-name"}, "/bin:/usr/bin", syscall.ENOENT},
		{[]string{"/bin/nothing"}, "", syscall.ENOENT},
		{[]string{"passwd"}, "/etc:/nonexistent", syscall.EACCES},
		{[]string{"/etc"}, "", syscall.EACCES},
		{[]string{""}, "/bin", syscall.ENOENT},
		{[]string{"/proc/self/exe"}, "", syscall.ELOOP}, // CVE-2019-5736
	} {
		_, code, err := run(t, c.args, c.search, nil)
		var pe *sys.ProgramError
		if !errors.As(err, &pe) || pe.Errno != c.want || !strings.HasPrefix(pe.Step, "exec ") || code != 255 {
			t.Errorf("%q: %v, exit %d; want %v", c.args, err, code, c.want)
		}
	}
	t.Run("step", func(t *testing.T) {
		_, _, err := run(t, []string{"/bin/true"}, "", func(p *sys.Program) { p.Chdir("/not/there") })
		if err == nil || err.Error() != `cannot open the working directory "/not/there": no such file or directory` {
			t.Fatal(err)
		}
	})
	t.Run("cwd behind a magic link", func(t *testing.T) { // CVE-2024-21626
		if _, _, err := run(t, []string{"/bin/true"}, "", func(p *sys.Program) { p.Chdir("/proc/self/root/tmp") }); !errors.Is(err, syscall.ELOOP) {
			t.Fatal(err)
		}
	})
	t.Run("reaper", func(t *testing.T) {
		// The grandchild is orphaned; the reaper ends with the code of main.
		_, code, err := run(t, []string{"/bin/sh", "-c", "exit 9"}, "", func(p *sys.Program) { p.Reaper("reaper") })
		if err != nil || code != 9 {
			t.Fatalf("%d %v", code, err)
		}
		_, code, err = run(t, []string{"/bin/sh", "-c", "kill -9 $$"}, "", func(p *sys.Program) { p.Reaper("reaper") })
		if err != nil || code != 137 {
			t.Fatalf("%d %v", code, err)
		}
	})
	t.Run("full", func(t *testing.T) {
		p, err := sys.NewProgram(0)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		p.String(strings.Repeat("x", 1<<20))
		if _, err := p.Clone(sys.CloneOptions{}); err == nil {
			t.Fatal("a program that did not fit was started")
		}
	})
}

func BenchmarkProgram(b *testing.B) {
	for b.Loop() {
		p, err := sys.NewProgram(4096)
		if err != nil {
			b.Fatal(err)
		}
		p.DetachFiles(sys.Int(0), sys.Int(1), sys.Int(2))
		p.Exec([]string{"/bin/true"}, nil, "")
		c, err := p.Clone(sys.CloneOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.WaitExec(); err != nil {
			b.Fatal(err)
		}
		if _, _, err := sys.PidfdReap(c.Pidfd); err != nil {
			b.Fatal(err)
		}
		c.Pidfd.Close()
		p.Close()
	}
}
