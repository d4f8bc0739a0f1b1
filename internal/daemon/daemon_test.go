package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// proad is the built engine and how to start it with everything of its own.
type proad struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	log  bytes.Buffer
	args []string

	within []string // a command that becomes the engine's
}

func build(t *testing.T, dir string) {
	t.Helper()
	for _, p := range []string{"proad", "proa-shim", "proa-agent"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", p), "proa/cmd/"+p)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func newProad(t *testing.T) *proad {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: an engine needs root")
	}
	dir, err := os.MkdirTemp("", "proad")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	build(t, dir)
	name := "pd" + strconv.Itoa(os.Getpid())
	p := &proad{t: t, dir: dir, args: []string{
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"), "--bridge", name, "--cgroup-parent", "/" + name, "--bip", "10.229.7.0/24", "--bip6", "none",
		"--subid-file", filepath.Join(dir, "subuid"), "--subid-file", filepath.Join(dir, "subgid"),
	}}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.stop()
		}
		if t.Failed() {
			t.Logf("the engine said:\n%s", p.log.String())
		}
	})
	return p
}

func (p *proad) socket() string { return filepath.Join(p.dir, "run", "proa.sock") }

func (p *proad) start() {
	p.t.Helper()
	command := append(append(p.within, filepath.Join(p.dir, "bin", "proad")), p.args...)
	p.cmd = exec.Command(command[0], command[1:]...)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("unix", p.socket()); err == nil {
			c.Close()
			return
		}
	}
	p.t.Fatalf("the engine does not answer:\n%s", p.log.String())
}

// stop asks it to end as init does, and says how long that took.
func (p *proad) stop() time.Duration {
	p.t.Helper()
	from := time.Now()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("at its end: %v", err)
	}
	p.cmd = nil
	return time.Since(from)
}

func (p *proad) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", p.socket()) }}}
}

func (p *proad) get(path string, v any) {
	p.t.Helper()
	res, err := p.client().Get("http://x" + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(res.Body)
		p.t.Fatalf("%s: %s: %s", path, res.Status, b)
	}
	if err := json.NewDecoder(res.Body).Decode(v); err != nil {
		p.t.Fatal(err)
	}
}

func TestDaemon(t *testing.T) {
	p := newProad(t)
	p.start()

	t.Run("what others may see", func(t *testing.T) {
		for path, mode := range map[string]os.FileMode{"data": 0o700, "run": 0o711, "run/proa.sock": 0o660, "run/shim": 0o700} {
			fi, err := os.Stat(filepath.Join(p.dir, path))
			if err != nil || fi.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v; want %v", path, fi.Mode().Perm(), err, mode)
			}
		}
		own, _ := os.Readlink("/proc/self/ns/mnt")
		its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", p.cmd.Process.Pid))
		if own == its {
			t.Error("the engine mounts in the host's mount namespace")
		}
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid))
		if !bytes.HasPrefix(env, []byte(filepath.Join(p.dir, "bin", "proad"))) {
			t.Errorf("it is called %q", env)
		}
	})

	t.Run("info and doctor", func(t *testing.T) {
		var info struct{ ID, DockerRootDir, CgroupVersion string }
		p.get("/info", &info)
		if info.ID == "" || info.DockerRootDir != filepath.Join(p.dir, "data") {
			t.Errorf("%+v", info)
		}
		var checks []struct{ Name, State, Detail string }
		p.get("/proa/doctor", &checks)
		seen := map[string]bool{}
		for _, c := range checks {
			seen[c.Name] = true
			if c.State != "yes" && c.State != "no" && c.State != "unknown" || c.Detail == "" {
				t.Errorf("%+v", c)
			}
			if c.Name == "roots of containers" && c.State != "yes" {
				t.Errorf("%+v", c)
			}
		}
		for _, name := range []string{"image mounts", "user namespaces", "roots of containers", "control groups", "network", "free space"} {
			if !seen[name] {
				t.Errorf("doctor does not speak of %s: %v", name, checks)
			}
		}
	})

	t.Run("a second engine is refused", func(t *testing.T) {
		out, err := exec.Command(filepath.Join(p.dir, "bin", "proad"), p.args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "another engine (process "+strconv.Itoa(p.cmd.Process.Pid)+")") {
			t.Errorf("%v: %s", err, out)
		}
		var info struct{ ID string }
		p.get("/info", &info) // and the first one still answers
	})

	t.Run("half-open connections are dropped", func(t *testing.T) {
		if testing.Short() {
			t.Skip("skipped: takes 15 s")
		}
		t.Parallel()
		var all sync.WaitGroup
		defer all.Wait()
		for _, sent := range []string{"", "GET /info HTTP/1.1\r\nHost: x\r\nX-Slow: "} {
			c, err := net.Dial("unix", p.socket())
			if err != nil {
				t.Fatal(err)
			}
			all.Go(func() {
				defer c.Close()
				if _, err := io.WriteString(c, sent); err != nil {
					t.Error(err)
				}
				_ = c.SetReadDeadline(time.Now().Add(headerLimit + 3*time.Second))
				from := time.Now()
				if _, err := io.Copy(io.Discard, bufio.NewReader(c)); err != nil {
					t.Errorf("after %q it is still open after %v: %v", sent, time.Since(from), err)
				}
			})
		}
	})
}

func TestRestartKeepsIdentity(t *testing.T) {
	p := newProad(t)
	p.start()
	var first, second struct{ ID string }
	p.get("/info", &first)
	uid, _ := os.ReadFile(filepath.Join(p.dir, "subuid"))
	if d := p.stop(); d > 3*time.Second {
		t.Errorf("an idle engine takes %v to stop", d)
	}
	if _, err := os.Stat(p.socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	p.start()
	p.get("/info", &second)
	again, _ := os.ReadFile(filepath.Join(p.dir, "subuid"))
	if first.ID == "" || first.ID != second.ID || string(uid) != string(again) || len(uid) == 0 {
		t.Errorf("ids %q and %q, ranges %q and %q", first.ID, second.ID, uid, again)
	}
	// Killed, it leaves its socket and its pid file; the next one takes them over.
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	if _, err := os.Stat(p.socket()); err != nil {
		t.Fatalf("the test needs a socket that was left: %v", err)
	}
	p.start()
	p.get("/info", &second)

	rss, err := rssOf(p.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB resident", rss)
	if rss > 40<<10 {
		t.Errorf("an idle engine has %d KiB resident", rss)
	}
}

func rssOf(pid int) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.Fields(v)[0])
		}
	}
	return 0, fmt.Errorf("no VmRSS")
}

// A data root inside a container is often an overlay, which no other overlay
// can write to: the engine says so when it starts and when it is asked.
func TestDataRootOnAnOverlay(t *testing.T) {
	p := newProad(t)
	data := filepath.Join(p.dir, "data")
	for _, d := range []string{"lower", "upper", "work", "data"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	p.within = []string{
		"unshare", "--mount", "--propagation", "private", "sh", "-ec", `cd "$0"; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay data; exec "$@"`, p.dir,
	}
	p.start()
	var checks []struct{ Name, State, Detail, Mend string }
	p.get("/proa/doctor", &checks)
	found := false
	for _, c := range checks {
		if c.Name != "roots of containers" {
			continue
		}
		found = true
		if c.State != "no" || !strings.Contains(c.Detail, strconv.Quote(data)+", which lies on overlay: ") || !strings.Contains(c.Mend, "--data-root") || strings.Contains(c.Mend, "--userns host") {
			t.Errorf("%+v", c)
		}
		t.Logf("%s -> %s", c.Detail, c.Mend)
	}
	if !found {
		t.Errorf("doctor says nothing of it: %v", checks)
	}
	if left, err := os.ReadDir(filepath.Join(p.dir, "upper", "containers")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	p.stop()
	if said := p.log.String(); !strings.Contains(said, "containers cannot start") {
		t.Errorf("the engine started without a word:\n%s", said)
	}
}
