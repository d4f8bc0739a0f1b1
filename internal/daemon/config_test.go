package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// parse reads flags with a shim that exists.
func parse(t *testing.T, args ...string) (Config, error) {
	t.Helper()
	shim := filepath.Join(t.TempDir(), "shim")
	if err := os.WriteFile(shim, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return Parse(append([]string{"--shim", shim}, args...))
}

func file(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "proad.json")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFlagsWinOverTheFile(t *testing.T) {
	f := file(t, `{"data-root": "/from/file", "exec-root": "/x", "log-level": "debug", "own-cgroup": true, "host": ["unix:///a.sock", "tcp://127.0.0.1:1"]}`)
	c, err := parse(t, "--config-file", f, "--data-root", "/from/flag")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataRoot != "/from/flag" || c.ExecRoot != "/x" || c.LogLevel != "debug" || !c.OwnCgroup || !slices.Equal(c.Hosts, []string{"unix:///a.sock", "tcp://127.0.0.1:1"}) {
		t.Errorf("%+v", c)
	}
	if c, err = parse(t, "--config-file", f, "-H", "unix:///b.sock"); err != nil || !slices.Equal(c.Hosts, []string{"unix:///b.sock"}) {
		t.Errorf("a host by flag: %v, %v", c.Hosts, err)
	}
}

func TestDefaults(t *testing.T) {
	c, err := parse(t, "--exec-root", "/run/else", "--data-root", "/data/else")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Hosts, []string{"unix:///run/else/proa.sock"}) || c.PidFile != "/run/else/proad.pid" || c.table() != "proa" {
		t.Errorf("%+v", c)
	}
	other, err := parse(t, "--data-root", "/data/third", "--bridge", "br7")
	if err != nil {
		t.Fatal(err)
	}
	if c.subidOwner() == other.subidOwner() || !strings.HasPrefix(c.subidOwner(), "proa-") || other.table() != "br7" {
		t.Errorf("two data roots share ids as %q, or a table as %q", c.subidOwner(), other.table())
	}
	if c, err := parse(t); err != nil || c.subidOwner() != "proa" {
		t.Errorf("the default data root: %q, %v", c.subidOwner(), err)
	}
}

func TestRefusals(t *testing.T) {
	for want, args := range map[string][]string{
		"only loopback":          {"-H", "tcp://0.0.0.0:2375"},
		"unix:///path":           {"-H", "fd://"},
		"--isolation":            {"--isolation", "jail"},
		"--userns":               {"--userns", "maybe"},
		"--log-level":            {"--log-level", "loud"},
		"takes no arguments":     {"now"},
		"unknown flag":           {"--bogus"},
		"cannot read the config": {"--config-file", "/nonexistent/x.json"},
		"is not known":           {"--config-file", file(t, `{"bogus": 1}`)},
		"must be a string":       {"--config-file", file(t, `{"bridge": {"a": 1}}`)},
		"unexpected EOF":         {"--config-file", file(t, `{"bridge": `)},
	} {
		if _, err := parse(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	if _, err := Parse([]string{"--shim", "/nonexistent/shim"}); err == nil || !strings.Contains(err.Error(), "cannot find the shim") {
		t.Errorf("no shim: %v", err)
	}
}

func TestParseHost(t *testing.T) {
	for h, ok := range map[string]bool{
		"unix:///run/x.sock": true, "tcp://127.0.0.1:2375": true, "tcp://[::1]:2375": true, "tcp://localhost:2375": true,
		"tcp://example.org:2375": false, "tcp://10.0.0.1:1": false, "tcp://127.0.0.1": false, "unix://rel": false, "/run/x.sock": false, "": false, "tcp://:2375": false,
	} {
		if _, _, err := parseHost(h); (err == nil) != ok {
			t.Errorf("%q: %v", h, err)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add(`{"host": ["unix:///a"], "own-cgroup": true, "bip": "1.2.3.4/8"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var c Config
		fs := c.flags()
		c.ConfigFile = file(t, text)
		_ = c.readFile(fs) // must not panic, whatever it says
	})
}
