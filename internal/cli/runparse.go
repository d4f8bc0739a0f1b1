package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// checks refuses flags that cannot be read, or not together, and brings --add-host into its older form.
func (f *runFlags) checks(_ *pflag.FlagSet, _ *container.Config, _ *container.HostConfig) error {
	for i, stream := range f.attach {
		f.attach[i] = strings.ToLower(stream)
		if !slices.Contains([]string{"stdin", "stdout", "stderr"}, f.attach[i]) {
			return fmt.Errorf("cannot read --attach %q: it must be stdin, stdout or stderr", stream)
		}
	}
	if f.rm && f.restart != "" && f.restart != "no" {
		return errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	for i, x := range f.addHost {
		name, addr, ok := strings.Cut(x, "=")
		if !ok {
			name, addr, ok = strings.Cut(x, ":")
		}
		if !ok || name == "" {
			return fmt.Errorf("bad format for add-host: %q: it must be NAME:IP", x)
		}
		f.addHost[i] = name + ":" + strings.Trim(addr, "[]")
	}
	return nil
}

// switches sets what is on or off, and what counts only when it was given.
func (f *runFlags) switches(s *pflag.FlagSet, cfg *container.Config, host *container.HostConfig) error {
	if f.vm {
		if f.isolation != "" && f.isolation != "vm" {
			return fmt.Errorf("cannot use --vm together with --isolation %s", f.isolation)
		}
		host.Isolation = "vm"
	}
	if s.Changed("entrypoint") {
		cfg.Entrypoint = []string{f.entrypoint}
	}
	if s.Changed("stop-timeout") {
		cfg.StopTimeout = &f.stopTimeout
	}
	if f.init {
		host.Init = &f.init
	}
	if f.oomKillDisable {
		host.OomKillDisable = &f.oomKillDisable
	}
	if s.Changed("pids-limit") {
		host.PidsLimit = &f.pidsLimit
	}
	return nil
}

// environment reads variables, labels and other NAME=VALUE flags, the restart policy and the health check.
func (f *runFlags) environment(s *pflag.FlagSet, cfg *container.Config, host *container.HostConfig) error {
	for _, file := range f.envFile {
		env, err := readEnvFile(file)
		if err != nil {
			return err
		}
		cfg.Env = append(cfg.Env, env...)
	}
	for _, e := range f.env {
		if strings.HasPrefix(e, "=") || e == "" {
			return fmt.Errorf("invalid environment variable: %s", e)
		}
		cfg.Env = append(cfg.Env, ownEnv(e))
	}
	var err error
	if cfg.Labels, err = f.labels(); err != nil {
		return err
	}
	if host.Annotations, err = keyValues("--annotation", f.annotation, true); err != nil {
		return err
	}
	if host.Sysctls, err = keyValues("--sysctl", f.sysctl, false); err != nil {
		return err
	}
	if host.LogConfig.Config, err = keyValues("--log-opt", f.logOpt, true); err != nil {
		return err
	}
	if host.RestartPolicy, err = parseRestart(f.restart); err != nil {
		return err
	}
	return f.health(s, cfg)
}

// limits reads sizes, CPUs, ulimits and the umask.
func (f *runFlags) limits(_ *pflag.FlagSet, _ *container.Config, host *container.HostConfig) error {
	var err error
	for _, b := range []struct {
		flag, value string
		into        *int64
	}{
		{"--memory", f.memory, &host.Memory}, {"--memory-swap", f.memorySwap, &host.MemorySwap},
		{"--memory-reservation", f.memoryReservation, &host.MemoryReservation}, {"--shm-size", f.shmSize, &host.ShmSize},
	} {
		if b.value == "-1" && b.flag == "--memory-swap" {
			*b.into = -1
		} else if b.value != "" {
			if *b.into, err = units.RAMInBytes(b.value); err != nil {
				return fmt.Errorf("cannot read %s %q: it must be a size such as 128m or 2g", b.flag, b.value)
			}
		}
	}
	if f.cpus != "" {
		n, err := strconv.ParseFloat(f.cpus, 64)
		if err != nil || n < 0 || n > 1<<20 {
			return fmt.Errorf("cannot read --cpus %q: it must be a positive number such as 1.5", f.cpus)
		}
		host.NanoCPUs = int64(math.Round(n * 1e9))
	}
	for _, u := range f.ulimit {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return fmt.Errorf("cannot read --ulimit %q: %w", u, err)
		}
		host.Ulimits = append(host.Ulimits, l)
	}
	if f.umask != "" {
		n, err := strconv.ParseUint(f.umask, 8, 32)
		if err != nil || n > 0o777 {
			return fmt.Errorf("cannot read --umask %q: it must be octal, 0 to 777", f.umask)
		}
		mask := uint32(n)
		host.Umask = &mask
	}
	return nil
}

// storage reads binds, volumes, mounts and tmpfs.
func (f *runFlags) storage(_ *pflag.FlagSet, cfg *container.Config, host *container.HostConfig) error {
	var err error
	for _, v := range f.volume {
		if !strings.Contains(v, ":") {
			cfg.Volumes[v] = struct{}{}
			continue
		}
		if parts := strings.Split(v, ":"); len(parts) > 3 || slices.Contains(parts, "") {
			return fmt.Errorf("cannot read -v %q: it must be [SOURCE:]TARGET[:OPTIONS]", v)
		}
		src, rest, _ := strings.Cut(v, ":")
		if strings.HasPrefix(src, ".") || strings.HasPrefix(src, "~") {
			if src, err = filepath.Abs(src); err != nil {
				return err
			}
		}
		host.Binds = append(host.Binds, src+":"+rest)
	}
	for _, m := range f.mounts {
		mt, err := parseMount(m)
		if err != nil {
			return err
		}
		host.Mounts = append(host.Mounts, mt)
	}
	for _, t := range f.tmpfs {
		if host.Tmpfs == nil {
			host.Tmpfs = map[string]string{}
		}
		target, opts, _ := strings.Cut(t, ":")
		host.Tmpfs[target] = opts
	}
	return nil
}

// devices reads ports, name servers and devices.
func (f *runFlags) devices(_ *pflag.FlagSet, cfg *container.Config, host *container.HostConfig) error {
	if err := f.ports(cfg, host); err != nil {
		return err
	}
	for _, d := range f.dns {
		ip, err := netip.ParseAddr(d)
		if err != nil {
			return fmt.Errorf("cannot read --dns %q: it must be an IP address", d)
		}
		host.DNS = append(host.DNS, ip)
	}
	for _, d := range f.device {
		parts := strings.Split(d, ":")
		m := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
		switch {
		case len(parts) == 2 && strings.HasPrefix(parts[1], "/"):
			m.PathInContainer = parts[1]
		case len(parts) == 2:
			m.CgroupPermissions = parts[1]
		case len(parts) == 3:
			m.PathInContainer, m.CgroupPermissions = parts[1], parts[2]
		case len(parts) > 3:
			return fmt.Errorf("cannot read --device %q: it must be PATH[:INSIDE[:rwm]]", d)
		}
		host.Devices = append(host.Devices, m)
	}
	return nil
}

// security reads --security-opt; a seccomp profile is sent and not its name.
func (f *runFlags) security(_ *pflag.FlagSet, _ *container.Config, host *container.HostConfig) error {
	for _, o := range f.securityOpt {
		if !strings.ContainsAny(o, "=:") && o != "no-new-privileges" && o != "writable-cgroups" {
			return fmt.Errorf("invalid --security-opt: %q", o)
		}
		if file, ok := strings.CutPrefix(o, "seccomp="); ok && file != "unconfined" && file != "builtin" {
			b, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("cannot read seccomp profile: %w", err)
			}
			if !json.Valid(b) {
				return fmt.Errorf("cannot read seccomp profile %q: it is not JSON", file)
			}
			o = "seccomp=" + string(b)
		}
		host.SecurityOpt = append(host.SecurityOpt, o)
	}
	return nil
}

// endpoint reads what the container wants of its network; nil for nothing.
func (f *runFlags) endpoint() (*network.NetworkingConfig, error) {
	if f.ip == "" && f.mac == "" && len(f.networkAliases) == 0 {
		return nil, nil
	}
	ep := &network.EndpointSettings{Aliases: f.networkAliases}
	if f.ip != "" {
		ip, err := netip.ParseAddr(f.ip)
		if err != nil {
			return nil, fmt.Errorf("cannot read --ip %q: %w", f.ip, err)
		}
		ep.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: ip}
	}
	if f.mac != "" {
		if err := ep.MacAddress.UnmarshalText([]byte(f.mac)); err != nil {
			return nil, fmt.Errorf("cannot read --mac-address %q: %w", f.mac, err)
		}
	}
	name := f.network
	if name == "" {
		name = "default"
	}
	return &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{name: ep}}, nil
}
