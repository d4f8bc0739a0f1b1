package daemon

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"proa/internal/image/remote"
)

// Where things are unless the configuration says otherwise.
const (
	defaultDataRoot   = "/var/lib/proa"
	defaultExecRoot   = "/run/proa"
	defaultConfigFile = "/etc/proa/proad.json"
	defaultBridge     = "proa0"
)

// Config is the whole configuration of one engine. Each field is a flag; the
// configuration file has the flags' names as keys, and a flag that is given
// wins over the file.
type Config struct {
	ConfigFile string
	DataRoot   string // what lasts
	ExecRoot   string // what lasts until the host goes down; its sockets' paths have at most 108 bytes
	Hosts      []string
	Group      string // of unix sockets
	LogLevel   string
	PidFile    string

	Isolation       string // what a container gets that names none
	StorageStrategy string
	MaxLayerSize    string // what one layer may unpack to
	CertsDir        string // of registries
	Bridge          string
	BIP             string // subnet of the bridge
	BIP6            string
	UserNS          string
	UserNSSize      uint32 // how many ids, from 0 on, a container has
	SubidFiles      []string
	CgroupParent    string
	OwnCgroup       bool
	BootIDFile      string // names this boot of the host; tests of a reboot name another file

	Shim, Agent string
	QEMU        string
	GuestKernel []string
	Accelerator string

	Builder        string
	BuildIsolation string
	BuildCache     string // how much the build cache may use
	BuildIdle      time.Duration

	Version bool
}

// flags binds every field to its flag.
func (c *Config) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet("proad", pflag.ContinueOnError)
	f.SortFlags = false
	f.StringVar(&c.ConfigFile, "config-file", defaultConfigFile, "configuration: JSON, with these flags' names as keys")
	f.StringVar(&c.DataRoot, "data-root", defaultDataRoot, "directory of images, volumes and containers")
	f.StringVar(&c.ExecRoot, "exec-root", defaultExecRoot, "directory of what runs: sockets, shims")
	f.StringArrayVarP(&c.Hosts, "host", "H", nil, "socket to serve on, can be repeated: unix:///path or tcp://127.0.0.1:port (default unix://<exec-root>/proa.sock)")
	f.StringVarP(&c.Group, "group", "G", "proa", "group that may use a unix socket")
	f.StringVarP(&c.LogLevel, "log-level", "l", "info", "debug, info, warn or error")
	f.StringVarP(&c.PidFile, "pidfile", "p", "", "file with the engine's process id (default <exec-root>/proad.pid)")
	f.StringVar(&c.Isolation, "isolation", "container", "what a container gets that names none: container or vm")
	f.StringVar(&c.StorageStrategy, "storage-strategy", "", "force how images are mounted: file, loop or extract")
	f.StringVar(&c.MaxLayerSize, "max-layer-size", "64g", "how much one layer of an image may unpack to")
	f.StringVar(&c.CertsDir, "certs-dir", remote.DefaultCertsDir, "certificates of registries: <host[:port]>/*.crt are authorities, x.cert and x.key what to show the registry")
	f.StringVarP(&c.Bridge, "bridge", "b", defaultBridge, "name of the bridge")
	f.StringVar(&c.BIP, "bip", "", "IPv4 subnet of the bridge, as 172.30.0.0/16 (default: a free one)")
	f.StringVar(&c.BIP6, "bip6", "", "IPv6 subnet of the bridge, or none (default: a unique local one where the host has IPv6)")
	f.StringVar(&c.UserNS, "userns", "", "strict: refuse what would run in the host's user namespace; host: use none of our own")
	f.Uint32Var(&c.UserNSSize, "userns-size", 1<<31, "how many user and group ids, from 0 on, a container has, 65536 to 2147483648; fewer where other lines of the subid files have the rest")
	f.StringArrayVar(&c.SubidFiles, "subid-file", []string{"/etc/subuid", "/etc/subgid"}, "where the ids of containers are recorded")
	f.StringVar(&c.CgroupParent, "cgroup-parent", "/proa", "control group of all containers")
	f.BoolVar(&c.OwnCgroup, "own-cgroup", false, "leave the control group of whoever started the engine")
	f.StringVar(&c.BootIDFile, "boot-id-file", "/proc/sys/kernel/random/boot_id", "file that is different after each boot of the host")
	f.StringVar(&c.Shim, "shim", "", "program that keeps a container (default: proa-shim beside proad)")
	f.StringVar(&c.Agent, "agent", "", "program that a VM runs first (default: proa-agent beside proad)")
	f.StringVar(&c.QEMU, "qemu", "", "QEMU (default: qemu-system-* on the path)")
	f.StringArrayVar(&c.GuestKernel, "guest-kernel", nil, "directory with an unpacked kernel package for VMs, can be repeated (default: beside the programs, then <data-root>/kernel)")
	f.StringVar(&c.Builder, "builder", "", "program that builds images (default: proa-build beside proad)")
	f.StringVar(&c.BuildIsolation, "build-isolation", "container", "wall that RUN steps of a build run behind unless it asks for one: container or vm")
	f.StringVar(&c.BuildCache, "build-cache", "", "how much the build cache may use, as 20GB or 10% of the disk (default: 10%, at most 20GB)")
	f.DurationVar(&c.BuildIdle, "build-idle", 5*time.Minute, "how long the builder goes on after its last build")
	f.StringVar(&c.Accelerator, "accelerator", "", "force kvm or tcg (default: what works here)")
	f.BoolVarP(&c.Version, "version", "v", false, "print the version and exit")
	return f
}

// Parse reads the arguments of proad and its configuration file.
func Parse(args []string) (Config, error) {
	var c Config
	f := c.flags()
	f.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: proad [flags]\n\nThe engine: serves the Docker Engine API.\n\n%s", f.FlagUsages())
	}
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("proad takes no arguments, only flags: %q", f.Args())
	}
	if err := c.readFile(f); err != nil {
		return c, err
	}
	return c, c.complete()
}

// readFile sets the flags that were not given from the file. A file that does
// not exist is an error only if it was named.
func (c *Config) readFile(f *pflag.FlagSet) error {
	raw, err := os.ReadFile(c.ConfigFile)
	if errors.Is(err, os.ErrNotExist) && !f.Changed("config-file") {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the configuration: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	values := map[string]any{}
	if err := dec.Decode(&values); err != nil {
		return fmt.Errorf("cannot read the configuration %q: %w", c.ConfigFile, err)
	}
	for key, value := range values {
		flag := f.Lookup(key)
		if flag == nil || key == "config-file" || key == "version" {
			return fmt.Errorf("cannot read the configuration %q: %q is not known (proad --help lists all keys)", c.ConfigFile, key)
		}
		if flag.Changed {
			continue
		}
		list, isList := value.([]any)
		if !isList {
			list = []any{value}
		}
		for _, v := range list {
			switch v.(type) {
			case string, bool, json.Number:
			default:
				return fmt.Errorf("cannot read the configuration %q: %q must be a string, a number, true or false, or a list of strings", c.ConfigFile, key)
			}
			if err := f.Set(key, fmt.Sprint(v)); err != nil {
				return fmt.Errorf("cannot read the configuration %q: %w", c.ConfigFile, err)
			}
		}
	}
	return nil
}

// complete fills in what follows from other values, and checks.
func (c *Config) complete() error {
	for _, p := range []*string{&c.DataRoot, &c.ExecRoot} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if len(c.Hosts) == 0 {
		c.Hosts = []string{"unix://" + filepath.Join(c.ExecRoot, "proa.sock")}
	}
	for _, h := range c.Hosts {
		if _, _, err := parseHost(h); err != nil {
			return err
		}
	}
	if c.PidFile == "" {
		c.PidFile = filepath.Join(c.ExecRoot, "proad.pid")
	}
	if !slices.Contains([]string{"container", "vm"}, c.Isolation) {
		return fmt.Errorf("--isolation %q: use container or vm", c.Isolation)
	}
	if !slices.Contains([]string{"container", "vm"}, c.BuildIsolation) {
		return fmt.Errorf("--build-isolation %q: use container or vm", c.BuildIsolation)
	}
	if c.BuildIdle < time.Second {
		return fmt.Errorf("--build-idle %s: use a second or more", c.BuildIdle)
	}
	if _, err := c.cacheLimit(0); err != nil {
		return err
	}
	if !slices.Contains([]string{"", "strict", "host"}, c.UserNS) {
		return fmt.Errorf("--userns %q: use strict or host, or leave it out", c.UserNS)
	}
	if c.UserNSSize < 1<<16 || c.UserNSSize > 1<<31 {
		return fmt.Errorf("--userns-size %d: use 65536 to 2147483648", c.UserNSSize)
	}
	if _, err := c.level(); err != nil {
		return err
	}
	if _, err := c.maxLayer(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	beside := filepath.Dir(self)
	if c.Shim == "" {
		c.Shim = filepath.Join(beside, "proa-shim")
	}
	if c.Agent == "" {
		c.Agent = filepath.Join(beside, "proa-agent")
	}
	if c.Builder == "" {
		c.Builder = filepath.Join(beside, "proa-build")
	}
	if _, err := os.Stat(c.Shim); err != nil {
		return fmt.Errorf("cannot find the shim (it is built beside proad; --shim names another place): %w", err)
	}
	if len(c.GuestKernel) == 0 {
		// Beside the programs as a package would install it, in a clone as
		// `make setup` leaves it, and below the data root.
		c.GuestKernel = []string{filepath.Join(beside, "../lib/proa/kernel"), filepath.Join(beside, "../.cache/kernel"), filepath.Join(c.DataRoot, "kernel")}
	}
	return nil
}

func (c *Config) maxLayer() (int64, error) {
	n, err := units.RAMInBytes(c.MaxLayerSize)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("--max-layer-size %q: use a number of bytes, with a unit as in 64g", c.MaxLayerSize)
	}
	return n, nil
}

func (c *Config) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("--log-level %q: use debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// cacheLimit is how many bytes the build cache may use on a disk of that size.
func (c *Config) cacheLimit(disk int64) (int64, error) {
	const most = 20_000_000_000
	if c.BuildCache == "" {
		return min(disk/10, most), nil
	}
	if percent, ok := strings.CutSuffix(c.BuildCache, "%"); ok {
		n, err := strconv.ParseFloat(percent, 64)
		if err != nil || n <= 0 || n > 100 {
			return 0, fmt.Errorf("--build-cache %q: use a size such as 20GB or a share such as 10%%", c.BuildCache)
		}
		return int64(float64(disk) * n / 100), nil
	}
	n, err := units.FromHumanSize(c.BuildCache)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("--build-cache %q: use a size such as 20GB or a share such as 10%%", c.BuildCache)
	}
	return n, nil
}

// subidOwner is the name under which the ids of this engine's containers are
// recorded: each data root has its own, so that two engines share none.
func (c *Config) subidOwner() string {
	if c.DataRoot == defaultDataRoot {
		return "proa"
	}
	sum := sha256.Sum256([]byte(c.DataRoot))
	return "proa-" + hex.EncodeToString(sum[:4])
}

// table is the name of the engine's nftables table.
func (c *Config) table() string {
	if c.Bridge == defaultBridge {
		return "proa"
	}
	return c.Bridge
}

// parseHost reads "unix:///path" and "tcp://address:port". The API is root's
// power without a password, so TCP is for loopback only.
func parseHost(h string) (network, address string, err error) {
	network, address, ok := strings.Cut(h, "://")
	switch {
	case ok && network == "unix" && filepath.IsAbs(address):
		return network, address, nil
	case ok && network == "tcp":
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return "", "", fmt.Errorf("--host %q: %w", h, err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return "", "", fmt.Errorf("--host %q: only loopback addresses are served, since whoever reaches the socket is root; use ssh to reach it from elsewhere", h)
		}
		return network, address, nil
	}
	return "", "", fmt.Errorf("--host %q: use unix:///path or tcp://127.0.0.1:port", h)
}
