package api

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	units "github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"

	"proa/internal/engine"
	"proa/internal/isolation"
)

// own is what Docker's shapes have no place for: a field of its own next to
// theirs, so that what a client feeds back to create is what it asked for.
type own struct {
	Isolation isolation.Kind
	// UserNamespace is "own" or "host"; "" behind the VM wall.
	UserNamespace string   `json:",omitempty"`
	Warnings      []string `json:",omitempty"` // of create
}

func ownOf(c *engine.Container) own {
	o := own{Isolation: c.Kind, Warnings: c.Warnings}
	if c.Kind == isolation.Container {
		o.UserNamespace = "host"
		if c.UserNS {
			o.UserNamespace = "own"
		}
	}
	return o
}

// listed is one line of the container list.
type listed struct {
	container.Summary
	Proa own
}

// inspected is everything about a container.
type inspected struct {
	container.InspectResponse
	Proa own
}

// stamp is Docker's form of a time; the zero time is its year one.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// statusText is the STATUS column of docker ps.
func statusText(c *engine.Container, now time.Time) string {
	since := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	health := ""
	if c.Health != nil && c.Health.Status != "" && c.Health.Status != container.NoHealthcheck {
		health = " (" + string(c.Health.Status) + ")"
		if c.Health.Status == container.Starting {
			health = " (health: starting)"
		}
	}
	switch c.State {
	case engine.Running:
		return "Up " + since(c.StartedAt) + health
	case engine.Paused:
		return "Up " + since(c.StartedAt) + " (Paused)"
	case engine.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", c.ExitCode, since(c.FinishedAt))
	case engine.Created:
		return "Created"
	case engine.Removing:
		return "Removal In Progress"
	case engine.Dead:
		return "Dead"
	}
	if c.FinishedAt.IsZero() {
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", c.ExitCode, since(c.FinishedAt))
}

func healthSummary(h *container.Health) *container.HealthSummary {
	if h == nil {
		return &container.HealthSummary{Status: container.NoHealthcheck}
	}
	return &container.HealthSummary{Status: h.Status, FailingStreak: h.FailingStreak}
}

// command is the command line of a list; an argument with a space is quoted.
func command(c *engine.Container) string {
	words := []string{c.Path}
	for _, a := range c.Args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// imageName is how a list names the image of a container: as it was named, or
// by its id once the name means another image or none. now are the names' images.
func imageName(c *engine.Container, now map[string]digest.Digest) string {
	if now[c.ImageRef] != c.ImageID {
		return c.ImageID.String()
	}
	return c.ImageRef
}

// imagesNow resolves the image names of containers.
func (s *Server) imagesNow(ctx context.Context, list []*engine.Container) (map[string]digest.Digest, error) {
	refs := make([]string, 0, len(list))
	for _, c := range list {
		refs = append(refs, c.ImageRef)
	}
	return s.Images.Resolve(ctx, refs)
}

// summary is one line of the container list.
func summary(c *engine.Container, now map[string]digest.Digest) container.Summary {
	out := container.Summary{
		ID: c.ID, Names: []string{"/" + c.Name}, Image: imageName(c, now), ImageID: c.ImageID.String(), Command: command(c),
		Created: c.Created.Unix(), Ports: ports(c), Labels: c.Config.Labels, State: container.ContainerState(c.State),
		Status: statusText(c, time.Now()), Health: healthSummary(c.Health), Mounts: mountPoints(c),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpoints(c)},
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.HostConfig.NetworkMode = networkName(c)
	out.HostConfig.Annotations = c.Host.Annotations
	return out
}

func mountPoints(c *engine.Container) []container.MountPoint {
	if c.Mounts == nil {
		return []container.MountPoint{}
	}
	return c.Mounts
}

// ports lists the published and the merely exposed ports, in a steady order.
func ports(c *engine.Container) []container.PortSummary {
	out := []container.PortSummary{}
	seen := map[network.Port]bool{}
	for p, bindings := range c.Ports {
		for _, b := range bindings {
			seen[p] = true
			var public uint16
			fmt.Sscan(b.HostPort, &public)
			out = append(out, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: public, Type: string(p.Proto())})
		}
	}
	if (c.State == engine.Running || c.State == engine.Paused) && networkName(c) == "bridge" {
		for p := range c.Config.ExposedPorts {
			if !seen[p] {
				out = append(out, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.PrivatePort != b.PrivatePort {
			return a.PrivatePort < b.PrivatePort
		}
		if a.Type != b.Type {
			return a.Type < b.Type
		}
		return a.IP.Less(b.IP)
	})
	return out
}

// networkName is the name of the network a container is on.
func networkName(c *engine.Container) string {
	switch m := string(c.Host.NetworkMode); m {
	case "", "default":
		return "bridge"
	default:
		return m
	}
}

// endpoints are the networks of a container: as they are while it runs, as
// they are wanted otherwise.
func endpoints(c *engine.Container) map[string]*network.EndpointSettings {
	if len(c.Endpoint) > 0 {
		return c.Endpoint
	}
	name, out := networkName(c), map[string]*network.EndpointSettings{}
	if strings.HasPrefix(name, "container:") || c.Config.NetworkDisabled {
		return out
	}
	for n, wanted := range c.Networking {
		out[n] = wanted
		if wanted == nil {
			out[n] = &network.EndpointSettings{}
		}
	}
	if len(out) == 0 {
		out[name] = &network.EndpointSettings{}
	}
	return out
}

// inspect is everything about a container.
func inspect(c *engine.Container, strategy string) inspected {
	var h *container.Health
	if c.Health != nil {
		shown := *c.Health
		if shown.Log == nil {
			shown.Log = []*container.HealthcheckResult{}
		}
		h = &shown
	}
	args := c.Args
	if args == nil {
		args = []string{}
	}
	out := container.InspectResponse{
		ID: c.ID, Created: stamp(c.Created), Path: c.Path, Args: args, Image: c.ImageID.String(),
		State: &container.State{
			Status: container.ContainerState(c.State), Running: c.State == engine.Running || c.State == engine.Paused || c.State == engine.Restarting && c.Pid != 0,
			Paused: c.State == engine.Paused, Restarting: c.State == engine.Restarting, OOMKilled: c.OOMKilled, Dead: c.State == engine.Dead,
			Pid: c.Pid, ExitCode: c.ExitCode, Error: c.Error, StartedAt: stamp(c.StartedAt), FinishedAt: stamp(c.FinishedAt), Health: h,
		},
		ResolvConfPath: c.ResolvConfPath, HostnamePath: c.HostnamePath, HostsPath: c.HostsPath, LogPath: c.LogPath,
		Name: "/" + c.Name, RestartCount: c.RestartCount, Driver: "proa", Platform: c.Platform.OS, ExecIDs: c.ExecIDs,
		HostConfig: hostConfig(c.Host), Mounts: mountPoints(c), Config: c.Config,
		GraphDriver:     &storage.DriverData{Name: "proa", Data: map[string]string{"Strategy": strategy}},
		NetworkSettings: &container.NetworkSettings{Ports: c.Ports, Networks: endpoints(c)},
	}
	if c.Image.Digest != "" {
		d := c.Image
		if d.Platform == nil {
			d.Platform = &c.Platform
		}
		out.ImageManifestDescriptor = &d
	}
	if out.NetworkSettings.Ports == nil {
		out.NetworkSettings.Ports = network.PortMap{}
	}
	if c.Pid != 0 && !c.Host.NetworkMode.IsContainer() && !c.Config.NetworkDisabled {
		out.NetworkSettings.SandboxID = c.ID
		if c.Kind == isolation.Container {
			out.NetworkSettings.SandboxKey = fmt.Sprintf("/proc/%d/ns/net", c.Pid)
		}
	}
	return inspected{out, ownOf(c)}
}

// hostConfig is what was asked for, as Docker shows it: no limit of processes
// is null after create and 0 after update.
func hostConfig(h *container.HostConfig) *container.HostConfig {
	if h.PidsLimit == nil || *h.PidsLimit >= 0 {
		return h
	}
	shown := *h
	shown.PidsLimit = nil
	return &shown
}

// stats is one reading in Docker's shape, with the one before it.
func stats(now, prev *engine.Sample) container.StatsResponse {
	cpu := func(s *engine.Sample) container.CPUStats {
		return container.CPUStats{
			CPUUsage:    container.CPUUsage{TotalUsage: s.CPUNanos, PercpuUsage: s.PerCPU, UsageInKernelmode: s.CPUSystem, UsageInUsermode: s.CPUUser},
			SystemUsage: s.SystemCPU, OnlineCPUs: s.OnlineCPUs,
			ThrottlingData: container.ThrottlingData{Periods: s.Periods, ThrottledPeriods: s.Throttled, ThrottledTime: s.ThrottledNs},
		}
	}
	if now.Read.IsZero() { // it does not run
		return container.StatsResponse{ID: now.ID, Name: "/" + now.Name, OSType: "linux"}
	}
	out := container.StatsResponse{
		ID: now.ID, Name: "/" + now.Name, OSType: "linux", Read: now.Read, CPUStats: cpu(now),
		MemoryStats: container.MemoryStats{
			Usage: now.MemoryBytes, MaxUsage: now.MemoryMax, Limit: now.MemoryLimit,
			Stats: map[string]uint64{"inactive_file": now.MemoryCache, "total_inactive_file": now.MemoryCache},
		},
		PidsStats: container.PidsStats{Current: now.Pids, Limit: now.PidsLimit},
		BlkioStats: container.BlkioStats{IoServiceBytesRecursive: []container.BlkioStatEntry{
			{Op: "read", Value: now.ReadBytes}, {Op: "write", Value: now.WriteBytes},
		}},
	}
	if now.Card {
		out.Networks = map[string]container.NetworkStats{"eth0": {
			RxBytes: now.RxBytes, RxPackets: now.RxPackets, RxErrors: now.RxErrors, RxDropped: now.RxDropped,
			TxBytes: now.TxBytes, TxPackets: now.TxPackets, TxErrors: now.TxErrors, TxDropped: now.TxDropped,
		}}
	}
	if prev != nil {
		out.PreRead, out.PreCPUStats = prev.Read, cpu(prev)
	}
	return out
}
