package engine

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func imageConfig() dockerspec.DockerOCIImageConfig {
	var c dockerspec.DockerOCIImageConfig
	c.User, c.WorkingDir, c.StopSignal = "app", "/srv", "SIGQUIT"
	c.Env = []string{"PATH=/opt/bin:/bin", "A=image", "B=image"}
	c.Entrypoint, c.Cmd = []string{"/entry"}, []string{"serve", "--all"}
	c.Labels = map[string]string{"l": "image", "m": "image"}
	c.Volumes = map[string]struct{}{"/data": {}}
	c.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}}
	c.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "check"}, Interval: time.Second, Retries: 7}
	return c
}

// Docker's rule for the command line: a given entrypoint drops the image's
// command, a given command keeps the image's entrypoint.
func TestMergeCommand(t *testing.T) {
	for _, c := range []struct {
		entry, cmd []string
		want       []string
	}{
		{nil, nil, []string{"/entry", "serve", "--all"}},
		{nil, []string{"x"}, []string{"/entry", "x"}},
		{[]string{"/other"}, nil, []string{"/other"}},
		{[]string{"/other"}, []string{"x"}, []string{"/other", "x"}},
		{[]string{""}, []string{"x"}, []string{"x"}},
		{[]string{}, nil, []string{"serve", "--all"}},
		{[]string{}, []string{"x"}, []string{"x"}},
	} {
		got, err := merge(&container.Config{Entrypoint: c.entry, Cmd: c.cmd}, imageConfig())
		if err != nil {
			t.Fatal(err)
		}
		if all := slices.Concat(got.Entrypoint, got.Cmd); !slices.Equal(all, c.want) {
			t.Errorf("entrypoint %q, command %q: %q, want %q", c.entry, c.cmd, all, c.want)
		}
	}
	if _, err := merge(&container.Config{Entrypoint: []string{""}}, imageConfig()); err == nil || !strings.Contains(err.Error(), "no command") {
		t.Errorf("nothing to run: %v", err)
	}
}

func TestMergeRest(t *testing.T) {
	want := &container.Config{
		Env: []string{"A=mine", "C=mine", "EMPTY"}, Labels: map[string]string{"l": "mine", "n": "mine"},
		ExposedPorts: network.PortSet{network.MustParsePort("443/tcp"): {}}, Volumes: map[string]struct{}{"/more": {}},
		Healthcheck: &container.HealthConfig{Interval: 5 * time.Second},
	}
	before := *want
	got, err := merge(want, imageConfig())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*want, before) {
		t.Error("merging changed what the client sent")
	}
	if got.User != "app" || got.WorkingDir != "/srv" || got.StopSignal != "SIGQUIT" {
		t.Errorf("defaults: %+v", got)
	}
	if !slices.Equal(got.Env, []string{"A=mine", "C=mine", "EMPTY", "PATH=/opt/bin:/bin", "B=image"}) {
		t.Errorf("environment: %q", got.Env)
	}
	if !reflect.DeepEqual(got.Labels, map[string]string{"l": "mine", "m": "image", "n": "mine"}) {
		t.Errorf("labels: %v", got.Labels)
	}
	if len(got.ExposedPorts) != 3 || len(got.Volumes) != 2 {
		t.Errorf("ports %v, volumes %v", got.ExposedPorts, got.Volumes)
	}
	if h := got.Healthcheck; h.Interval != 5*time.Second || h.Retries != 7 || !slices.Equal(h.Test, []string{"CMD", "check"}) {
		t.Errorf("health check: %+v", h)
	}
}

func TestConfigRefusals(t *testing.T) {
	for what, c := range map[string]container.Config{
		"working directory":   {WorkingDir: "relative"},
		"environment":         {Env: []string{"=x"}},
		"invalid signal":      {StopSignal: "SIGNOTHING"},
		"hostname":            {Hostname: "a/b"},
		"Healthcheck":         {Healthcheck: &container.HealthConfig{Interval: 3}},
		"zero byte":           {Cmd: []string{"a\x00b"}},
		"invalid domain name": {Domainname: strings.Repeat("x", 65)},
	} {
		c.Entrypoint = []string{"x"}
		if _, err := merge(&c, imageConfig()); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("want %q: %v", what, err)
		}
	}
}

func TestEnviron(t *testing.T) {
	got := environ(&container.Config{Tty: true, Env: []string{"PATH=/x", "A=1", "TERM", "A=2"}}, "box")
	if want := []string{"PATH=/x", "HOSTNAME=box", "A=2"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestSignals(t *testing.T) {
	for s, want := range map[string]int{"9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "64": 64} {
		if got, err := parseSignal(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "65", "-1", "SIG", "RTMIN-1", "RTMIN+", "RTMIN+31", "RTMAX+1", "KILL9"} {
		if n, err := parseSignal(s); err == nil {
			t.Errorf("%q is read as %d", s, n)
		}
	}
}

func TestNames(t *testing.T) {
	taken := map[string]bool{}
	for range 500 {
		n := generateName(func(s string) bool { return taken[s] })
		if taken[n] || checkName(n) != nil {
			t.Fatalf("generated %q", n)
		}
		taken[n] = true
	}
	for _, bad := range []string{"", "a", "/x", "-ab", "a b", "a/b", "ü12"} {
		if checkName(bad) == nil {
			t.Errorf("%q is a valid name", bad)
		}
	}
	if id := newID(); len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
		t.Errorf("id %q", id)
	}
}
