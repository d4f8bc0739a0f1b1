package sys

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
)

// spawn runs a shell line and returns its output and status.
func spawn(t *testing.T, change func(*Spawn), args ...string) (string, syscall.WaitStatus, error) {
	t.Helper()
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
	s := &Spawn{Path: args[0], Args: args, Files: []*os.File{null, w, w}, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		Groups: []uint32{uint32(os.Getgid())}, Capabilities: 1<<64 - 1, Umask: 0o27}
	if change != nil {
		change(s)
	}
	pid, err := s.Start(true)
	w.Close()
	if err != nil {
		return "", 0, err
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return string(out), ws, nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a process's user and groups are set")
	}
}

func TestSpawn(t *testing.T) {
	needRoot(t)
	out, ws, err := spawn(t, nil, "/bin/sh", "-c", "umask; echo $#; exit 9")
	if err != nil || out != "0027\n0\n" || ws.ExitStatus() != 9 {
		t.Errorf("%q %v %v", out, ws, err)
	}
	dir, err := OpenPath("/usr/lib")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	out, _, err = spawn(t, func(s *Spawn) { s.Dir, s.UID, s.GID, s.Groups = dir, 12345, 54321, []uint32{54321, 7} },
		"/bin/sh", "-c", "pwd; id -u; id -G; ps -o sid= -p $$ | tr -d ' ' | grep -qx $$ && echo leader")
	if want := "/usr/lib\n12345\n54321 7\nleader\n"; err != nil || out != want {
		t.Errorf("got %q %v, want %q", out, err, want)
	}
}

// Not one descriptor of ours reaches the new process, close-on-exec or not.
func TestSpawnLeaksNothing(t *testing.T) {
	needRoot(t)
	leaky, err := syscall.Open("/etc/passwd", syscall.O_RDONLY, 0) // without O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leaky)
	out, _, err := spawn(t, nil, "/bin/ls", "/proc/self/fd")
	if err != nil || out != "0\n1\n2\n3\n" { // 3 is ls's own
		t.Errorf("descriptors in the new process: %q %v", out, err)
	}
}

func TestSpawnErrors(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	text := dir + "/text"
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path   string
		change func(*Spawn)
		step   SpawnStep
		errno  syscall.Errno
	}{
		{"/no/such", nil, StepExec, syscall.ENOENT},
		{dir, nil, StepExec, syscall.EACCES},
		{text, nil, StepExec, syscall.ENOEXEC},
		{"/bin/true\x00", nil, StepExec, syscall.EINVAL},
		{"/bin/true", func(s *Spawn) { s.Rlimits = []SpawnLimit{{Type: 999}} }, StepRlimit, syscall.EINVAL},
		{"/bin/true", func(s *Spawn) { s.Rlimits = []SpawnLimit{{Type: syscall.RLIMIT_NOFILE, Soft: 9, Hard: 8}} }, StepRlimit, syscall.EINVAL},
		{"/bin/true", func(s *Spawn) { s.OOMScoreAdj = 2000 }, StepOOMScore, syscall.EINVAL},
		{"/bin/true", func(s *Spawn) { s.Terminal = true }, StepTerminal, syscall.ENOTTY},
		{"/bin/true", func(s *Spawn) { s.Seccomp = make([]byte, 7) }, StepSeccomp, syscall.EINVAL},
		{"/bin/true", func(s *Spawn) { s.Seccomp = bytes.Repeat([]byte{0xff}, 8) }, StepSeccomp, syscall.EINVAL},
		{"/bin/true", func(s *Spawn) { s.UID = 1<<32 - 1 }, StepExec, 0}, // -1: the kernel leaves the user as it is
	} {
		_, _, err := spawn(t, c.change, c.path)
		if c.errno == 0 {
			if err != nil {
				t.Errorf("%q: %v", c.path, err)
			}
			continue
		}
		var s *SpawnError
		if !errors.As(err, &s) || s.Step != c.step || s.Err != c.errno || !strings.HasPrefix(s.Error(), "cannot ") {
			t.Errorf("%q: got %v, want step %d, %v", c.path, err, c.step, c.errno)
		}
	}
}

func BenchmarkSpawn(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: a process's user and groups are set")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for range b.N {
		s := &Spawn{Path: "/bin/true", Args: []string{"true"}, Files: []*os.File{null, null, null}, Capabilities: 1<<64 - 1}
		pid, err := s.Start(true)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			b.Fatal(err)
		}
	}
}
