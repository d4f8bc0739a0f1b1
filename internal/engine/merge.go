package engine

import (
	"maps"
	"path"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// merge gives the wanted configuration with the image's defaults filled in, by
// Docker's rules. Neither argument is changed.
func merge(want *container.Config, img dockerspec.DockerOCIImageConfig) (*container.Config, error) {
	c := *want
	if c.User == "" {
		c.User = img.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = img.Shell
	}
	c.Env = slices.Clone(c.Env)
	for _, kv := range img.Env {
		key, _, _ := strings.Cut(kv, "=")
		if !slices.ContainsFunc(want.Env, func(have string) bool {
			k, _, _ := strings.Cut(have, "=")
			return k == key
		}) {
			c.Env = append(c.Env, kv)
		}
	}

	// A given entrypoint drops the image's command; a given command does not
	// drop the image's entrypoint.
	c.Cmd, c.Entrypoint = slices.Clone(c.Cmd), slices.Clone(c.Entrypoint)
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = slices.Clone(img.Cmd)
		}
		if c.Entrypoint == nil {
			c.Entrypoint = slices.Clone(img.Entrypoint)
		}
	}
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" { // --entrypoint ""
		c.Entrypoint = nil
	}
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return nil, invalid("no command specified: the image has none, so give one")
	}

	c.Labels = maps.Clone(img.Labels)
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	maps.Copy(c.Labels, want.Labels)
	if len(want.Volumes)+len(img.Volumes) > 0 {
		c.Volumes = maps.Clone(img.Volumes)
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		maps.Copy(c.Volumes, want.Volumes)
	} else {
		c.Volumes = nil
	}
	if len(want.ExposedPorts)+len(img.ExposedPorts) > 0 {
		c.ExposedPorts = maps.Clone(want.ExposedPorts)
		if c.ExposedPorts == nil {
			c.ExposedPorts = network.PortSet{}
		}
		for s := range img.ExposedPorts {
			r, err := network.ParsePortRange(s)
			if err != nil {
				continue // what is no port exposes nothing; the image runs, as with Docker
			}
			for p := range r.All() {
				c.ExposedPorts[p] = struct{}{}
			}
		}
	}
	c.Healthcheck = mergeHealth(want.Healthcheck, img.Healthcheck)
	return &c, checkConfig(&c)
}

// mergeHealth fills what the client left open from the image.
func mergeHealth(want, img *container.HealthConfig) *container.HealthConfig {
	if want == nil || img == nil {
		if want == nil {
			return img
		}
		return want
	}
	h := *want
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	if h.Interval == 0 {
		h.Interval = img.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = img.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = img.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = img.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = img.Retries
	}
	return &h
}

// checkConfig refuses what could not be carried out, and cleans WorkingDir.
func checkConfig(c *container.Config) error {
	if c.WorkingDir != "" {
		if !path.IsAbs(c.WorkingDir) {
			return invalid("the working directory %q is invalid, it needs to be an absolute path", c.WorkingDir)
		}
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	for _, kv := range c.Env {
		if name, _, _ := strings.Cut(kv, "="); name == "" {
			return invalid("invalid environment variable: %s", kv)
		}
		if strings.ContainsRune(kv, 0) {
			return invalid("invalid environment variable: %q holds a zero byte", kv)
		}
	}
	for _, list := range [][]string{c.Entrypoint, c.Cmd} {
		for _, a := range list {
			if strings.ContainsRune(a, 0) {
				return invalid("invalid argument %q: it holds a zero byte", a)
			}
		}
	}
	for name, value := range map[string]string{"hostname": c.Hostname, "domain name": c.Domainname} {
		// The kernel holds 64 bytes; a slash would leave the file names that are made of it.
		if len(value) > 64 || strings.ContainsAny(value, "/\x00 \t\n") {
			return invalid("invalid %s %q: at most 64 bytes, no slash, no white space", name, value)
		}
	}
	if c.StopSignal != "" {
		if _, err := parseSignal(c.StopSignal); err != nil {
			return err
		}
	}
	if h := c.Healthcheck; h != nil {
		for name, d := range map[string]int64{"Interval": int64(h.Interval), "Timeout": int64(h.Timeout), "StartPeriod": int64(h.StartPeriod), "StartInterval": int64(h.StartInterval)} {
			if d != 0 && d < int64(container.MinimumDuration) {
				return invalid("%s in Healthcheck cannot be less than %s", name, container.MinimumDuration)
			}
		}
		if h.Retries < 0 {
			return invalid("Retries in Healthcheck cannot be negative")
		}
	}
	return nil
}

// environ makes the environment of the main process: Docker's base, replaced
// and extended by the configured one; "NAME" without "=" removes NAME.
func environ(c *container.Config, hostname string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + hostname}
	if c.Tty {
		env = append(env, "TERM=xterm")
	}
	return overlayEnv(env, c.Env)
}

// overlayEnv replaces and appends; "NAME" alone removes.
func overlayEnv(env, over []string) []string {
	env = slices.Clone(env)
	for _, kv := range over {
		key, _, has := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		switch {
		case !has && i >= 0:
			env = slices.Delete(env, i, i+1)
		case !has:
		case i >= 0:
			env[i] = kv
		default:
			env = append(env, kv)
		}
	}
	return env
}
