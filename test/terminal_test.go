package test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"proa/test/proatest"
)

// onTerminal is a command on a terminal of its own.
type onTerminal struct {
	cmd    *exec.Cmd
	master console.Console
	slave  *os.File
	modes  string // what stty says before
	out    *lockedBuffer
	drawn  chan struct{} // closed when all is read
}

// stty gives every mode of a terminal, as text that can be compared.
func stty(t *testing.T, terminal *os.File) string {
	t.Helper()
	cmd := exec.Command("stty", "-g")
	cmd.Stdin = terminal
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("stty: %v", err)
	}
	return string(out)
}

func startOnTerminal(t *testing.T, e *proatest.Engine, columns uint16, args ...string) *onTerminal {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := master.Resize(console.WinSize{Width: columns, Height: 24}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	c := &onTerminal{
		cmd: exec.Command(filepath.Join(e.Bin(), "proa"), args...), master: master, slave: slave, modes: stty(t, slave),
		out: &lockedBuffer{mu: make(chan struct{}, 1)}, drawn: make(chan struct{}),
	}
	c.cmd.Env = append(os.Environ(), "PROA_HOST="+e.Host, "TERM=xterm")
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = slave, slave, slave
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	go func() {
		_, _ = io.Copy(c.out, master) // ends with EIO when nobody has the terminal any more
		close(c.drawn)
	}()
	return c
}

// await waits for words on the screen.
func (c *onTerminal) await(t *testing.T, words string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !strings.Contains(c.out.String(), words); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q on the terminal:\n%q", words, c.out)
		}
	}
}

// end waits for the command, gives all that was written and the exit code, and
// judges in which state the terminal was left.
func (c *onTerminal) end(t *testing.T) (out string, code int) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- c.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		t.Fatalf("the command does not end:\n%q", c.out)
	}
	if now := stty(t, c.slave); now != c.modes {
		t.Errorf("the terminal's modes were %s and are %s", c.modes, now)
	}
	c.slave.Close()
	<-c.drawn
	out = c.out.String()
	if i := strings.LastIndex(out, "\x1b[?25"); i >= 0 && !strings.HasPrefix(out[i:], "\x1b[?25h") {
		t.Errorf("the cursor stays hidden:\n%q", out)
	}
	if all := sgr.FindAllString(out, -1); len(all) > 0 && all[len(all)-1] != "\x1b[0m" {
		t.Errorf("colours stay, the last one is %q:\n%q", all[len(all)-1], out)
	}
	if !strings.HasSuffix(escape.ReplaceAllString(out, ""), "\r\n") {
		t.Errorf("the prompt would not begin a line:\n%q", out)
	}
	return out, c.cmd.ProcessState.ExitCode()
}

var (
	sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")
	// escape is any command to the terminal.
	escape = regexp.MustCompile("\x1b\\[[?0-9;]*[A-Za-z]")
	// up moves the cursor over what was drawn before.
	up = regexp.MustCompile("\x1b\\[[0-9]+A")
)

// On a terminal a build is drawn live, and the terminal is left as it was:
// after success, after a failure and after ctrl-C, which also ends the step.
func TestBuildOnATerminal(t *testing.T) {
	e := proatest.New(t)
	e.ImportBusybox("bb")
	works := buildContext(t, "Dockerfile", "FROM bb\nRUN echo hello; sleep 0.3; echo there\n")
	fails := buildContext(t, "Dockerfile", "FROM bb\nRUN printf '\\033[31mred'; exit 4\n")
	for _, c := range []struct {
		name    string
		columns uint16
		live    bool
		dir     string
		code    int
		says    string
	}{
		{"success", 80, true, works, 0, "FINISHED"},
		{"failure", 80, true, fails, 1, "proa: cannot build: RUN in line 2: exit code: 4"},
		{"too narrow to draw", 20, false, works, 0, "#2 DONE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := startOnTerminal(t, e, c.columns, "build", "--no-cache", c.dir).end(t)
			if code != c.code || !strings.Contains(out, c.says) {
				t.Errorf("exit code %d, no %q in\n%q", code, c.says, out)
			}
			if drawn := up.MatchString(out); drawn != c.live {
				t.Errorf("drawn over: %v, want %v\n%q", drawn, c.live, out)
			}
		})
	}
	t.Run("ctrl-C", func(t *testing.T) {
		b := startOnTerminal(t, e, 80, "build", "--no-cache", buildContext(t, "Dockerfile", waits))
		b.await(t, "it-began")
		if _, err := b.master.Write([]byte{3}); err != nil {
			t.Fatal(err)
		}
		out, code := b.end(t)
		last := out[strings.LastIndex(out, "CANCELED")+1:]
		if code != 130 || !strings.Contains(last, "\x1b[J") || !strings.HasSuffix(out, "proa: the build was cancelled\r\n") {
			t.Errorf("exit code %d:\n%q", code, out)
		}
		for end := time.Now().Add(20 * time.Second); e.InNetns("pgrep", "-f", "^sleep 300$").Code == 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the step goes on")
			}
		}
		e.MustProa("build", "--no-cache", works)
	})
}
