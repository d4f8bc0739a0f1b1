package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every command has a description, and its flags fit together. Some are
// programs of their own, which explain themselves; they stand in $PROA_BIN, else
// in bin/ of this checkout.
func TestEveryCommandExplainsItself(t *testing.T) {
	bin := os.Getenv("PROA_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	var out bytes.Buffer
	a := &app{in: os.Stdin, out: &out, err: &out}
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		if c.Short == "" {
			t.Errorf("%v has no description", path)
		}
		for _, sub := range c.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" {
				walk(sub, append(append([]string{}, path...), sub.Name()))
			}
		}
		if len(path) == 0 {
			return
		}
		out.Reset()
		root := a.root()
		root.SetArgs(append(append([]string{}, path...), "--help"))
		if err := root.Execute(); err != nil || !strings.Contains(out.String(), "Usage:") {
			t.Errorf("%v --help: %v %s", path, err, out.String())
		}
	}
	walk(a.root(), nil)
}

func parse(t *testing.T, args ...string) (*container.Config, *container.HostConfig, error) {
	t.Helper()
	var f runFlags
	s := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f.add(s)
	if err := s.Parse(args); err != nil {
		return nil, nil, err
	}
	cfg, host, _, err := f.parse(s, s.Args())
	return cfg, host, err
}

func TestRunFlags(t *testing.T) {
	cfg, host, err := parse(t, "-it", "--rm", "--vm", "-e", "A=b", "-e", "UNSET_FOR_SURE", "-v", "/h:/c:ro", "-v", "/anon", "-m", "1g", "--cpus", "1.5",
		"-p", "127.0.0.1:8080:80", "-p", "53:53/udp", "-p", "9000-9001:90-91", "-p", "[::1]:81:81", "--entrypoint", "", "--restart", "on-failure:3",
		"--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770", "--tmpfs", "/x:size=2m", "--ulimit", "nofile=1:2", "--device", "/dev/null:/dev/n:r",
		"img", "cmd", "-x")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]any{
		"cmd": cfg.Cmd, "env": cfg.Env, "tty": cfg.Tty, "stdin": cfg.OpenStdin, "entry": cfg.Entrypoint, "anon": len(cfg.Volumes), "binds": host.Binds,
		"isolation": host.Isolation, "mem": host.Memory, "cpus": host.NanoCPUs, "restart": host.RestartPolicy, "mount": host.Mounts[0].TmpfsOptions.SizeBytes,
		"type": host.Mounts[0].Type == mount.TypeTmpfs, "tmpfs": host.Tmpfs, "dev": host.Devices[0], "rm": host.AutoRemove,
	}
	b, _ := json.Marshal(got)
	want := `{"anon":1,"binds":["/h:/c:ro"],"cmd":["cmd","-x"],"cpus":1500000000,"dev":{"PathOnHost":"/dev/null","PathInContainer":"/dev/n","CgroupPermissions":"r"},` +
		`"entry":[""],"env":["A=b"],"isolation":"vm","mem":1073741824,"mount":1048576,"restart":{"Name":"on-failure","MaximumRetryCount":3},"rm":true,"stdin":true,"tmpfs":{"/x":"size=2m"},"tty":true,"type":true}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	var ports []string
	for p, bs := range host.PortBindings {
		for _, b := range bs {
			ip := ""
			if b.HostIP.IsValid() {
				ip = b.HostIP.String()
			}
			ports = append(ports, fmt.Sprintf("%s=%s:%s", p, ip, b.HostPort))
		}
	}
	for _, w := range []string{"80/tcp=127.0.0.1:8080", "53/udp=:53", "90/tcp=:9000", "91/tcp=:9001", "81/tcp=::1:81"} {
		if !strings.Contains(" "+strings.Join(ports, " ")+" ", " "+w+" ") {
			t.Errorf("ports %v lack %s", ports, w)
		}
	}
}

func TestRunFlagsThatAreWrong(t *testing.T) {
	for _, args := range [][]string{
		{"-m", "lots", "i"}, {"--cpus", "0", "i"}, {"--cpus", "-1", "i"}, {"-p", "a:b", "i"}, {"-p", "1:2:3:4", "i"}, {"-p", "80/sctp", "i"}, {"-p", "70000:1", "i"},
		{"-p", "1-3:1-2", "i"}, {"--restart", "sometimes", "i"}, {"--restart", "always:3", "i"}, {"--mount", "type=bind", "i"}, {"--mount", "nonsense=1,dst=/x", "i"},
		{"--ulimit", "nofile", "i"}, {"--dns", "name", "i"}, {"--vm", "--isolation", "container", "i"}, {"-l", "=x", "i"}, {"--sysctl", "x", "i"},
		{"--env-file", "/no/such", "i"}, {"--security-opt", "seccomp=/no/such", "i"}, {"--device", "a:b:c:d", "i"}, {"--ip", "x", "i"}, {"--mac-address", "x", "i"},
	} {
		if _, _, err := parse(t, args...); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

func TestEnvFile(t *testing.T) {
	t.Setenv("FROM_HERE", "yes")
	f := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(f, []byte("\ufeff# comment\n\nA=1\n  B= two \nFROM_HERE\nNOT_SET_ANYWHERE\nEMPTY=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env, err := readEnvFile(f)
	if err != nil || strings.Join(env, "|") != "A=1|B= two |FROM_HERE=yes|EMPTY=" {
		t.Errorf("%q %v", env, err)
	}
}

func TestDetachKeys(t *testing.T) {
	keys, err := parseDetachKeys("ctrl-p,ctrl-q")
	if err != nil || string(keys) != "\x10\x11" {
		t.Fatalf("%q %v", keys, err)
	}
	for in, want := range map[string]string{
		"ab\x10\x11cd": "ab", "a\x10b": "a\x10b", "\x10\x10\x11": "\x10",
	} {
		d := &detachReader{r: strings.NewReader(in), keys: keys}
		var got []byte
		buf := make([]byte, 8)
		for {
			n, err := d.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		if string(got) != want {
			t.Errorf("%q gave %q, want %q", in, got, want)
		}
	}
	if _, err := parseDetachKeys("ctrl-pp"); err == nil {
		t.Error("ctrl-pp was accepted")
	}
}

func TestTables(t *testing.T) {
	cols := []column{{"ID", "CONTAINER ID"}, {"Names", "NAMES"}, {"Secret", "-SECRET"}}
	rows := []row{{"ID": "abc", "Names": "one", "Secret": "x"}}
	for format, want := range map[string]string{
		"":                              "CONTAINER ID   NAMES\nabc            one\n",
		"{{.ID}}:{{.Secret}}":           "abc:x\n",
		`table {{.Names}}\t{{.Secret}}`: "NAMES     SECRET\none       x\n",
		"json":                          "{\"ID\":\"abc\",\"Names\":\"one\",\"Secret\":\"x\"}\n",
	} {
		var out bytes.Buffer
		if err := printRows(&out, format, cols, rows); err != nil || out.String() != want {
			t.Errorf("%q: %q %v, want %q", format, out.String(), err, want)
		}
	}
	if err := printRows(&bytes.Buffer{}, "{{.Nonsense}}", cols, rows); err == nil {
		t.Error("an unknown key was accepted")
	}
}

func TestUnixTime(t *testing.T) {
	for in, want := range map[string]string{"1700000000": "1700000000", "2023-11-14T22:13:20Z": "1700000000.000000000"} {
		if got, err := unixTime(in); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", in, got, err, want)
		}
	}
	if got, err := unixTime("10m"); err != nil || got > fmt.Sprint(time.Now().Add(-9*time.Minute).Unix()) {
		t.Errorf("10m: %q %v", got, err)
	}
	if _, err := unixTime("soon"); err == nil {
		t.Error("soon was taken for a time")
	}
}
