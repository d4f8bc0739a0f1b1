package cli

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"

	"proa/internal/failure"
)

// runFlags are the flags that run and create share, by Docker's names.
type runFlags struct {
	name, platform, cidfile, pull                            string
	quiet                                                    bool
	interactive, tty, init, vm                               bool
	isolation, runtime                                       string
	env, envFile, label, volume, mounts, tmpfs, publish      []string
	expose, addHost, dns, dnsSearch, dnsOption, link         []string
	capAdd, capDrop, securityOpt, groupAdd, device, ulimit   []string
	sysctl, logOpt, volumesFrom, attach                      []string
	publishAll, rm, readOnly, privileged, oomKillDisable     bool
	network, ip, mac                                         string
	hostname, domainname, user, workdir, entrypoint, restart string
	stopSignal, memory, memorySwap, memoryReservation        string
	cpus, cpusetCpus, cpusetMems, shmSize, logDriver, userns string
	pid, ipc, uts, cgroupns, cgroupParent                    string
	cpuShares, cpuPeriod, cpuQuota, pidsLimit                int64
	stopTimeout, oomScoreAdj                                 int
	healthCmd                                                string
	healthInterval, healthTimeout, healthStart               time.Duration
	healthStartInterval                                      time.Duration
	annotation, labelFile, networkAliases                    []string
	volumeDriver, umask                                      string
	healthRetries                                            int
	noHealthcheck                                            bool
}

func (f *runFlags) add(s *pflag.FlagSet) {
	s.SetInterspersed(false)
	s.BoolVar(&f.vm, "vm", false, "run behind a kernel of its own: short for --isolation vm")
	s.StringVar(&f.isolation, "isolation", "", "wall around the container: container (default) or vm")
	s.StringVar(&f.runtime, "runtime", "", "same as --isolation, by Docker's other name")
	s.StringVar(&f.name, "name", "", "name of the container")
	s.StringVar(&f.platform, "platform", "", "platform of the image, os/arch[/variant]")
	s.StringVar(&f.pull, "pull", "missing", "fetch the image first: missing, always or never")
	s.BoolVarP(&f.quiet, "quiet", "q", false, "do not show how the image is fetched")
	s.StringVar(&f.cidfile, "cidfile", "", "write the container's id to this file")
	s.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	s.BoolVarP(&f.tty, "tty", "t", false, "give the process a terminal")
	s.StringArrayVarP(&f.attach, "attach", "a", nil, "attach to stdin, stdout or stderr")
	s.BoolVar(&f.init, "init", false, "run an init as PID 1 that forwards signals and reaps processes")
	s.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable (NAME alone copies yours)")
	s.StringArrayVar(&f.envFile, "env-file", nil, "read environment variables from a file")
	s.StringArrayVarP(&f.label, "label", "l", nil, "set a label")
	s.StringArrayVar(&f.labelFile, "label-file", nil, "read labels from a file")
	s.StringArrayVar(&f.annotation, "annotation", nil, "set an annotation: NAME=VALUE")
	s.StringArrayVarP(&f.volume, "volume", "v", nil, "bind mount or volume: [SOURCE:]TARGET[:ro]")
	s.StringArrayVar(&f.mounts, "mount", nil, "type=bind|volume|tmpfs,source=...,target=...[,readonly]")
	s.StringArrayVar(&f.tmpfs, "tmpfs", nil, "tmpfs at a path: TARGET[:options]")
	s.StringArrayVar(&f.volumesFrom, "volumes-from", nil, "take the volumes of another container")
	s.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: [[IP:]HOSTPORT:]PORT[/udp]")
	s.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish every exposed port on a free one")
	s.StringArrayVar(&f.expose, "expose", nil, "declare a port without publishing it")
	s.StringVar(&f.network, "network", "", "bridge (default), none, host or container:NAME")
	s.StringVar(&f.network, "net", "", "same as --network")
	_ = s.MarkHidden("net")
	s.StringArrayVar(&f.networkAliases, "network-alias", nil, "further name on the network")
	s.StringArrayVar(&f.networkAliases, "net-alias", nil, "same as --network-alias")
	_ = s.MarkHidden("net-alias")
	s.StringVar(&f.umask, "umask", "", "umask of the first process, octal")
	s.StringVar(&f.volumeDriver, "volume-driver", "", "driver of the volumes: local")
	s.StringVar(&f.ip, "ip", "", "IPv4 address on the network")
	s.StringVar(&f.mac, "mac-address", "", "MAC address on the network")
	s.StringArrayVar(&f.addHost, "add-host", nil, "line for /etc/hosts: NAME:IP (IP may be host-gateway)")
	s.StringArrayVar(&f.dns, "dns", nil, "DNS server")
	s.StringArrayVar(&f.dnsSearch, "dns-search", nil, "DNS search domain")
	s.StringArrayVar(&f.dnsOption, "dns-option", nil, "resolver option")
	s.StringVarP(&f.hostname, "hostname", "h", "", "host name inside")
	s.StringVar(&f.domainname, "domainname", "", "domain name inside")
	s.StringVarP(&f.user, "user", "u", "", "user inside: NAME|UID[:GROUP|GID]")
	s.StringArrayVar(&f.groupAdd, "group-add", nil, "further group of the process")
	s.StringVarP(&f.workdir, "workdir", "w", "", "working directory inside")
	s.StringVar(&f.entrypoint, "entrypoint", "", "replace the image's entrypoint (empty string: none)")
	s.StringVar(&f.restart, "restart", "no", "restart policy: no, on-failure[:N], always, unless-stopped")
	s.BoolVar(&f.rm, "rm", false, "remove the container when it has ended")
	s.BoolVar(&f.readOnly, "read-only", false, "root file system is read-only")
	s.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks the container to stop")
	s.IntVar(&f.stopTimeout, "stop-timeout", -1, "seconds until a stop becomes a kill")
	s.StringVarP(&f.memory, "memory", "m", "", "memory limit (128m, 2g)")
	s.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together; -1 is unlimited")
	s.StringVar(&f.memoryReservation, "memory-reservation", "", "memory that is kept for it under pressure")
	s.StringVar(&f.cpus, "cpus", "", "number of CPUs (1.5)")
	s.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative CPU weight")
	s.Int64Var(&f.cpuPeriod, "cpu-period", 0, "CFS period in microseconds")
	s.Int64Var(&f.cpuQuota, "cpu-quota", 0, "CFS quota in microseconds")
	s.StringVar(&f.cpusetCpus, "cpuset-cpus", "", "CPUs it may use (0-1,3)")
	s.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes it may use")
	s.Int64Var(&f.pidsLimit, "pids-limit", 0, "limit of processes and threads; -1 is unlimited (default 4096)")
	s.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm (64m)")
	s.StringArrayVar(&f.ulimit, "ulimit", nil, "resource limit: NAME=SOFT[:HARD]")
	s.BoolVar(&f.privileged, "privileged", false, "all capabilities and devices, no user namespace")
	s.StringArrayVar(&f.capAdd, "cap-add", nil, "add a capability")
	s.StringArrayVar(&f.capDrop, "cap-drop", nil, "drop a capability")
	s.StringArrayVar(&f.securityOpt, "security-opt", nil, "no-new-privileges, seccomp=FILE|unconfined")
	s.StringArrayVar(&f.device, "device", nil, "device of the host: PATH[:INSIDE[:rwm]]")
	s.StringArrayVar(&f.sysctl, "sysctl", nil, "kernel parameter of the container: NAME=VALUE")
	s.StringVar(&f.userns, "userns", "", "host: no user namespace of its own")
	s.StringVar(&f.pid, "pid", "", "host or container:NAME")
	s.StringVar(&f.ipc, "ipc", "", "private, shareable, host or container:NAME")
	s.StringVar(&f.uts, "uts", "", "host")
	s.StringVar(&f.cgroupns, "cgroupns", "", "private or host")
	s.StringVar(&f.cgroupParent, "cgroup-parent", "", "parent cgroup")
	s.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "preference of the OOM killer (-1000..1000)")
	s.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "never kill it for memory (cgroup v1)")
	s.StringVar(&f.logDriver, "log-driver", "", "json-file (default) or none")
	s.StringArrayVar(&f.logOpt, "log-opt", nil, "max-size=20m, max-file=5")
	s.StringVar(&f.healthCmd, "health-cmd", "", "command that tells whether it is healthy")
	s.DurationVar(&f.healthInterval, "health-interval", 0, "time between two checks")
	s.DurationVar(&f.healthTimeout, "health-timeout", 0, "time that a check may take")
	s.DurationVar(&f.healthStart, "health-start-period", 0, "time at the start in which failures do not count")
	s.DurationVar(&f.healthStartInterval, "health-start-interval", 0, "time between two checks in the start period, until the first success")
	s.IntVar(&f.healthRetries, "health-retries", 0, "failures in a row that make it unhealthy")
	s.BoolVar(&f.noHealthcheck, "no-healthcheck", false, "run no health check, also none of the image's")
	refuseRunFlags(s)
}

// parse turns flags and the words behind them into what the API takes.
func (f *runFlags) parse(s *pflag.FlagSet, args []string) (*container.Config, *container.HostConfig, *network.NetworkingConfig, error) {
	fail := func(err error) (*container.Config, *container.HostConfig, *network.NetworkingConfig, error) {
		return nil, nil, nil, err
	}
	if !slices.Contains([]string{"missing", "always", "never"}, f.pull) {
		return fail(fmt.Errorf("--pull %q: use missing, always or never", f.pull))
	}
	cfg := &container.Config{
		Image: args[0], Cmd: args[1:], Hostname: f.hostname, Domainname: f.domainname, User: f.user,
		WorkingDir: f.workdir, Tty: f.tty, OpenStdin: f.interactive, StdinOnce: f.interactive,
		AttachStdin: f.interactive, AttachStdout: true, AttachStderr: true,
		StopSignal: f.stopSignal, Volumes: map[string]struct{}{}, ExposedPorts: network.PortSet{},
	}
	host := &container.HostConfig{
		AutoRemove: f.rm, ReadonlyRootfs: f.readOnly, Privileged: f.privileged, PublishAllPorts: f.publishAll,
		GroupAdd: f.groupAdd, ExtraHosts: f.addHost, DNSSearch: f.dnsSearch, DNSOptions: f.dnsOption,
		VolumesFrom: f.volumesFrom, VolumeDriver: f.volumeDriver, OomScoreAdj: f.oomScoreAdj,
		NetworkMode: container.NetworkMode(f.network), PidMode: container.PidMode(f.pid), IpcMode: container.IpcMode(f.ipc),
		UTSMode: container.UTSMode(f.uts), UsernsMode: container.UsernsMode(f.userns), CgroupnsMode: container.CgroupnsMode(f.cgroupns),
		LogConfig: container.LogConfig{Type: f.logDriver, Config: map[string]string{}},
		Runtime:   f.runtime, Isolation: container.Isolation(f.isolation),
		Resources: container.Resources{
			CPUShares: f.cpuShares, CPUPeriod: f.cpuPeriod, CPUQuota: f.cpuQuota,
			CpusetCpus: f.cpusetCpus, CpusetMems: f.cpusetMems, CgroupParent: f.cgroupParent,
		},
	}
	host.CapAdd, host.CapDrop = capabilities(f.capAdd), capabilities(f.capDrop)
	net, err := f.endpoint()
	if err != nil {
		return fail(err)
	}
	for _, read := range []func(*pflag.FlagSet, *container.Config, *container.HostConfig) error{
		f.checks, f.switches, f.environment, f.limits, f.storage, f.devices, f.security,
	} {
		if err := read(s, cfg, host); err != nil {
			return fail(err)
		}
	}
	return cfg, host, net, nil
}

// health reads the flags of the health check as docker does (docker/cli
// cli/command/container/opts.go): zero values mean those of the image.
func (f *runFlags) health(s *pflag.FlagSet, cfg *container.Config) error {
	wanted := f.healthCmd != "" || f.healthInterval != 0 || f.healthTimeout != 0 || f.healthRetries != 0 || f.healthStart != 0 || f.healthStartInterval != 0
	if f.noHealthcheck {
		if wanted {
			return errors.New("--no-healthcheck conflicts with --health-* options")
		}
		cfg.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
		return nil
	}
	if !wanted {
		return nil
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"interval", f.healthInterval}, {"timeout", f.healthTimeout}, {"start-period", f.healthStart}, {"start-interval", f.healthStartInterval}} {
		if d.value < 0 {
			return fmt.Errorf("--health-%s cannot be negative", d.flag)
		}
	}
	if f.healthRetries < 0 {
		return errors.New("--health-retries cannot be negative")
	}
	h := &container.HealthConfig{
		Interval: f.healthInterval, Timeout: f.healthTimeout, StartPeriod: f.healthStart, StartInterval: f.healthStartInterval, Retries: f.healthRetries,
	}
	if f.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", f.healthCmd}
	}
	cfg.Healthcheck = h
	return nil
}

// labels are those of the files, then those of the flags.
func (f *runFlags) labels() (map[string]string, error) {
	var all []string
	for _, file := range f.labelFile {
		more, err := readKeyFile("--label-file", file, func(line string) []string {
			if !strings.Contains(line, "=") {
				return nil // as docker: a name alone is left out
			}
			return []string{line}
		})
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return keyValues("--label", append(all, f.label...), true)
}

// refuseRunFlags adds docker's flags that the engine cannot honour.
func refuseRunFlags(s *pflag.FlagSet) {
	const blkio, windows, realtime = "limits of block devices are not supported", "it is for Windows", "real-time scheduling is not supported"
	for name, why := range map[string]string{
		"blkio-weight": blkio, "blkio-weight-device": blkio, "device-read-bps": blkio, "device-read-iops": blkio, "device-write-bps": blkio, "device-write-iops": blkio,
		"cpu-count": windows, "cpu-percent": windows, "io-maxbandwidth": windows, "io-maxiops": windows,
		"cpu-rt-period": realtime, "cpu-rt-runtime": realtime,
		"device-cgroup-rule": "give devices by --device", "gpus": "GPUs are not supported; --device gives a device of the host",
		"ip6": "the default network has no IPv6 subnet", "link": "links between containers are not supported; use --network container:NAME",
		"link-local-ip": "link-local addresses are not supported", "memory-swappiness": "it cannot be set for one container on cgroup v2",
		"storage-opt": "a container's disk has no quota",
	} {
		refuseFlag(s, name, why)
	}
	refuseSwitch(s, "use-api-socket", "a container never gets the engine's socket by itself; mount it with -v")
}

// ports reads -p and --expose: [[IP:]HOST:]PORT[/PROTO], each number or range.
func (f *runFlags) ports(cfg *container.Config, host *container.HostConfig) error {
	host.PortBindings = network.PortMap{}
	for _, e := range f.expose {
		r, err := network.ParsePortRange(e)
		if err != nil {
			return fmt.Errorf("cannot read --expose %q: %w", e, err)
		}
		for p := range r.All() {
			cfg.ExposedPorts[p] = struct{}{}
		}
	}
	for _, p := range f.publish {
		bad := func(why string) error {
			return failure.Hint(fmt.Errorf("cannot read -p %q: %s", p, why), "examples: 8080:80, 127.0.0.1:8080:80, 53:53/udp, 80")
		}
		spec, proto, _ := strings.Cut(p, "/")
		var ip netip.Addr
		if strings.HasPrefix(spec, "[") {
			addr, rest, ok := strings.Cut(spec[1:], "]:")
			if !ok {
				return bad("an IPv6 address must be closed by ]:")
			}
			var err error
			if ip, err = netip.ParseAddr(addr); err != nil {
				return bad(err.Error())
			}
			spec = rest
		}
		parts := strings.Split(spec, ":")
		if len(parts) == 3 && !ip.IsValid() {
			var err error
			if parts[0] != "" {
				if ip, err = netip.ParseAddr(parts[0]); err != nil {
					return bad(err.Error())
				}
			}
			parts = parts[1:]
		}
		if len(parts) > 2 {
			return bad("too many colons")
		}
		inside := parts[len(parts)-1]
		if proto != "" {
			inside += "/" + proto
		}
		to, err := network.ParsePortRange(inside)
		if err != nil {
			return bad(err.Error())
		}
		switch to.Proto() {
		case network.TCP, network.UDP:
		default:
			return bad("the protocol must be tcp or udp")
		}
		if to.Start() == 0 {
			return bad("port 0 inside cannot be published")
		}
		from, width := uint16(0), to.End()-to.Start()
		choose := "" // a range of the host for one port inside: the engine picks
		if len(parts) == 2 && parts[0] != "" {
			r, err := network.ParsePortRange(parts[0])
			if err != nil {
				return bad(err.Error())
			}
			from = r.Start()
			switch {
			case r.End()-r.Start() == width:
			case width == 0:
				choose = parts[0]
			default:
				return bad("the two ranges differ in length")
			}
		}
		i := uint16(0)
		for port := range to.All() {
			b := network.PortBinding{HostIP: ip}
			if choose != "" {
				b.HostPort = choose
			} else if from != 0 || len(parts) == 2 && parts[0] != "" {
				b.HostPort = strconv.Itoa(int(from + i))
			}
			cfg.ExposedPorts[port] = struct{}{}
			host.PortBindings[port] = append(host.PortBindings[port], b)
			i++
		}
	}
	return nil
}

func parseRestart(s string) (container.RestartPolicy, error) {
	name, max, has := strings.Cut(s, ":")
	p := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	switch p.Name {
	case "", container.RestartPolicyDisabled, container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		if has {
			return p, fmt.Errorf("cannot read --restart %q: only on-failure takes a number", s)
		}
	case container.RestartPolicyOnFailure:
		if has {
			n, err := strconv.Atoi(max)
			if err != nil || n < 0 {
				return p, fmt.Errorf("cannot read --restart %q: %q is not a number of tries", s, max)
			}
			p.MaximumRetryCount = n
		}
	}
	return p, nil
}

// parseMount reads --mount: comma separated key=value, as CSV.
func parseMount(s string) (mount.Mount, error) {
	m := mount.Mount{Type: mount.TypeVolume}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return m, fmt.Errorf("cannot read --mount %q: %w", s, err)
	}
	yes := func(v string, has bool) (bool, error) {
		if !has {
			return true, nil
		}
		return strconv.ParseBool(v)
	}
	for _, field := range fields {
		k, v, has := strings.Cut(field, "=")
		var err error
		switch strings.ToLower(k) {
		case "type":
			m.Type = mount.Type(strings.ToLower(v))
		case "source", "src":
			m.Source = v
			if strings.HasPrefix(v, ".") {
				m.Source, err = filepath.Abs(v)
			}
		case "target", "dst", "destination":
			m.Target = v
		case "readonly", "ro":
			m.ReadOnly, err = yes(v, has)
		case "bind-propagation":
			bindOptions(&m).Propagation = mount.Propagation(v)
		case "bind-nonrecursive":
			bindOptions(&m).NonRecursive, err = yes(v, has)
		case "bind-recursive":
			switch o := bindOptions(&m); v {
			case "enabled":
			case "disabled":
				o.NonRecursive = true
			case "writable":
				o.ReadOnlyNonRecursive = true
			case "readonly":
				o.ReadOnlyForceRecursive = true
			default:
				err = fmt.Errorf("%q is not enabled, disabled, writable or readonly", v)
			}
		case "volume-nocopy":
			volumeOptions(&m).NoCopy, err = yes(v, has)
		case "volume-subpath":
			volumeOptions(&m).Subpath = v
		case "volume-driver":
			volumeOptions(&m).DriverConfig = &mount.Driver{Name: v}
		case "volume-label":
			o := volumeOptions(&m)
			if o.Labels == nil {
				o.Labels = map[string]string{}
			}
			lk, lv, _ := strings.Cut(v, "=")
			o.Labels[lk] = lv
		case "tmpfs-size":
			tmpfsOptions(&m).SizeBytes, err = units.RAMInBytes(v)
		case "tmpfs-mode":
			var mode uint64
			mode, err = strconv.ParseUint(v, 8, 32)
			tmpfsOptions(&m).Mode = os.FileMode(mode)
		case "consistency":
		default:
			return m, fmt.Errorf("cannot read --mount %q: unknown key %q", s, k)
		}
		if err != nil {
			return m, fmt.Errorf("cannot read --mount %q: value of %q: %w", s, k, err)
		}
	}
	return m, nil
}

func bindOptions(m *mount.Mount) *mount.BindOptions {
	if m.BindOptions == nil {
		m.BindOptions = &mount.BindOptions{}
	}
	return m.BindOptions
}

func volumeOptions(m *mount.Mount) *mount.VolumeOptions {
	if m.VolumeOptions == nil {
		m.VolumeOptions = &mount.VolumeOptions{}
	}
	return m.VolumeOptions
}

func tmpfsOptions(m *mount.Mount) *mount.TmpfsOptions {
	if m.TmpfsOptions == nil {
		m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return m.TmpfsOptions
}

// capabilities gives the names of capabilities as docker's command line sends
// them: in upper case, with CAP_, sorted, each once.
func capabilities(names []string) []string {
	var out []string
	for _, n := range names {
		n = strings.ToUpper(strings.TrimSpace(n))
		if n == "ALL" {
			return []string{n}
		}
		if n != "RESET" && !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ownEnv gives a bare NAME this environment's value. Where there is none the
// engine gets the bare name, which removes a variable of the image.
func ownEnv(e string) string {
	if got := expandEnv(e); len(got) == 1 {
		return got[0]
	}
	return e
}

// expandEnv gives NAME=VALUE as it is; a bare NAME takes this environment's
// value and is dropped where there is none.
func expandEnv(e string) []string {
	if strings.Contains(e, "=") {
		return []string{e}
	}
	if v, ok := os.LookupEnv(e); ok {
		return []string{e + "=" + v}
	}
	return nil
}

func readEnvFile(path string) ([]string, error) { return readKeyFile("--env-file", path, expandEnv) }

// readKeyFile reads NAME=VALUE lines; comments and empty lines are left out,
// and take turns a line into what counts.
func readKeyFile(flag, path string, take func(string) []string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", flag, err)
	}
	defer f.Close()
	var env []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimLeft(sc.Text(), " \t")
		if n == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, _ := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("cannot read %s %q: line %d: %q is not a name", flag, path, n, name)
		}
		env = append(env, take(line)...)
	}
	return env, sc.Err()
}

// keyValues reads repeated KEY=VALUE; bare keys have an empty value where allowed.
func keyValues(flag string, args []string, bare bool) (map[string]string, error) {
	m := map[string]string{}
	for _, a := range args {
		k, v, has := strings.Cut(a, "=")
		if k == "" || !has && !bare {
			return nil, fmt.Errorf("cannot read %s %q: it must be NAME=VALUE", flag, a)
		}
		m[k] = v
	}
	return m, nil
}
