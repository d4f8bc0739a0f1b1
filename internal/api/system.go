package api

import (
	"context"
	"fmt"
	"mime"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	volumetypes "github.com/moby/moby/api/types/volume"

	"proa/internal/api/versions"
	"proa/internal/engine"
	"proa/internal/event"
	"proa/internal/filters"
	"proa/internal/isolation"
	proanet "proa/internal/network"
	"proa/internal/version"
)

func serverVersion() string { return version.Version }

func (s *Server) ping(c *call) error {
	h := c.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "2")
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	c.started = true
	if c.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := c.Write([]byte("OK"))
	return err
}

func (s *Server) version(c *call) error {
	details := map[string]string{
		"ApiVersion": MaxVersion, "MinAPIVersion": MinVersion, "Os": runtime.GOOS, "Arch": runtime.GOARCH,
		"GoVersion": runtime.Version(), "KernelVersion": s.Host.KernelVersion,
		"GitCommit": version.Commit, "BuildTime": version.Built, "Experimental": "false",
	}
	return c.reply(http.StatusOK, system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Proa"}, Version: serverVersion(), APIVersion: MaxVersion, MinAPIVersion: MinVersion,
		Os: runtime.GOOS, Arch: runtime.GOARCH, GoVersion: runtime.Version(), KernelVersion: s.Host.KernelVersion,
		GitCommit: version.Commit, BuildTime: version.Built,
		Components: []system.ComponentVersion{{Name: "Engine", Version: serverVersion(), Details: details}},
	})
}

func (s *Server) info(c *call) error {
	n := s.Engine.Count()
	imgs, err := s.Images.List(c.Context())
	if err != nil {
		return err
	}
	strategy, why := s.Images.Strategy()
	security := []string{"name=seccomp,profile=builtin"}
	if s.Host.UserNS {
		security = append(security, "name=userns")
	}
	out := system.Info{
		ID: s.Host.ID, Containers: n.Total, ContainersRunning: n.Running, ContainersPaused: n.Paused, ContainersStopped: n.Stopped,
		Images: len(imgs), Driver: "proa", DriverStatus: [][2]string{{"Mount strategy", strategy}},
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "none"}},
		MemoryLimit: true, SwapLimit: s.Host.SwapLimit, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true, IPv4Forwarding: true,
		NGoroutines: runtime.NumGoroutine(), SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file",
		CgroupDriver: s.Host.CgroupDriver, CgroupVersion: s.Host.CgroupVersion, KernelVersion: s.Host.KernelVersion, OperatingSystem: s.Host.OS,
		OSType: runtime.GOOS, Architecture: machine(), NCPU: runtime.NumCPU(), MemTotal: s.Host.MemTotal, DockerRootDir: s.Host.DataRoot,
		Name: s.Host.Name, Labels: []string{}, ServerVersion: serverVersion(), DefaultRuntime: string(isolation.Container),
		Runtimes:           map[string]system.RuntimeWithStatus{string(isolation.Container): {Runtime: system.Runtime{Path: "proa-shim"}}, string(isolation.VM): {Runtime: system.Runtime{Path: "proa-shim"}}},
		LiveRestoreEnabled: true, Isolation: container.Isolation(""), SecurityOptions: security, CDISpecDirs: []string{},
	}
	if why != "" {
		out.DriverStatus = append(out.DriverStatus, [2]string{"Because", why})
	}
	out.Swarm.LocalNodeState = "inactive"
	out.IndexServerAddress, out.RegistryConfig = hubAddress, registryConfig()
	if s.Host.Warnings != nil {
		out.Warnings = s.Host.Warnings(c.Context())
	}
	var names []string
	for _, o := range security {
		name, _, _ := strings.Cut(strings.TrimPrefix(o, "name="), ",")
		names = append(names, name)
	}
	return c.reply(http.StatusOK, versions.With{Newest: out, Old: map[string]any{"SecurityNames": names}})
}

// hubAddress is Docker Hub's, which clients look credentials up by.
const hubAddress = "https://index.docker.io/v1/"

// registryConfig is that of a Docker whose registries are not configured: what
// proad's own rules are is in no shape that Docker's clients know.
func registryConfig() *registry.ServiceConfig {
	return &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		IndexConfigs:          map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
		Mirrors:               []string{},
	}
}

// machine is uname's word for the architecture.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

func (s *Server) events(c *call) error {
	since, err := filters.ParseUnix(c.query("since"))
	if err != nil {
		return bad("invalid value for 'since': %w", err)
	}
	until, err := filters.ParseUnix(c.query("until"))
	if err != nil {
		return bad("invalid value for 'until': %w", err)
	}
	if !until.IsZero() && until.Before(since) {
		return bad("`since` time (%s) cannot be after `until` time (%s)", c.query("since"), c.query("until"))
	}
	f, err := c.filters(&filters.Events)
	if err != nil {
		return err
	}
	ch, err := s.Engine.Events(c.Context(), since, until, f)
	if err != nil {
		return err
	}
	kind := c.eventType()
	c.started = true
	c.Header().Set("Content-Type", kind)
	c.WriteHeader(http.StatusOK)
	c.flush()
	for ev := range ch {
		if c.version < ev.Since {
			continue // its clients do not know it
		}
		if kind == jsonSequence {
			if _, err := c.Write([]byte{recordSeparator}); err != nil {
				return err
			}
		}
		m := eventMessage(ev)
		if err := c.encode(m); err != nil {
			return err
		}
		c.flush()
	}
	return nil
}

// Media types of a stream of events. All of them end an event with a line feed;
// a JSON sequence begins it with a record separator as well (RFC 7464).
const (
	jsonLines       = "application/jsonl"
	jsonSequence    = "application/json-seq"
	recordSeparator = 0x1e
)

// eventType is the media type that the client asked for by name, else the one
// of its version: JSON lines from 1.52 on.
func (c *call) eventType() string {
	for _, accepted := range c.Request.Header.Values("Accept") {
		for _, one := range strings.Split(accepted, ",") {
			kind, _, err := mime.ParseMediaType(one)
			if err == nil && slices.Contains([]string{"application/json", "application/x-ndjson", jsonLines, jsonSequence}, kind) {
				return kind
			}
		}
	}
	if c.version < 52 {
		return "application/json"
	}
	return jsonLines
}

// eventMessage is an event in Docker's shape. This engine is one node, so
// every event's scope is local.
func eventMessage(ev event.Event) events.Message {
	return events.Message{
		Type: events.Type(ev.Type), Action: events.Action(ev.Action), Actor: events.Actor{ID: ev.ID, Attributes: ev.Attributes},
		Scope: engine.Scope, Time: ev.Time.Unix(), TimeNano: ev.Time.UnixNano(),
	}
}

func (s *Server) doctor(c *call) error {
	checks := s.Host.Doctor(c.Context())
	if checks == nil {
		checks = []Check{}
	}
	return c.reply(http.StatusOK, checks)
}

// diskUsage is the answer of system/df: a sum of each kind of object and, unless
// verbose was asked for, the lists of API 1.51 and before beside it, which
// clients that name no version still read.
type diskUsage struct {
	system.DiskUsage
	LayersSize int64                `json:",omitempty"`
	Images     []imagetypes.Summary `json:",omitzero"`
	Containers []container.Summary  `json:",omitzero"`
	Volumes    []volumetypes.Volume `json:",omitzero"`
	BuildCache []build.CacheRecord  `json:",omitzero"`
}

func (s *Server) diskUsage(c *call) error {
	ctx := c.Context()
	kinds, err := usageKinds(c)
	if err != nil {
		return err
	}
	old := c.version < 52 || !c.flag("verbose")
	var out diskUsage
	if kinds[system.ImageObject] {
		if out.ImageUsage, err = s.imageUsage(ctx); err != nil {
			return err
		}
		if old {
			out.LayersSize, out.Images = out.ImageUsage.TotalSize, out.ImageUsage.Items
		}
	}
	if kinds[system.ContainerObject] {
		if out.ContainerUsage, err = s.containersUsage(ctx); err != nil {
			return err
		}
		if old {
			out.Containers = out.ContainerUsage.Items
		}
	}
	if kinds[system.VolumeObject] {
		if out.VolumeUsage, err = s.volumeUsage(ctx); err != nil {
			return err
		}
		if old {
			out.Volumes = out.VolumeUsage.Items
		}
	}
	if kinds[system.BuildCacheObject] {
		if out.BuildCacheUsage, err = s.buildUsage(ctx); err != nil {
			return err
		}
		if old {
			out.BuildCache = out.BuildCacheUsage.Items
		}
	}
	return c.reply(http.StatusOK, out)
}

// usageKinds are the kinds of objects that the query wants the usage of: all
// unless it names some, which it may from 1.42 on.
func usageKinds(c *call) (map[system.DiskUsageObject]bool, error) {
	all := map[system.DiskUsageObject]bool{
		system.ImageObject: true, system.ContainerObject: true, system.VolumeObject: true, system.BuildCacheObject: true,
	}
	names := c.URL.Query()["type"]
	if c.version < 42 || len(names) == 0 {
		return all, nil
	}
	out := map[system.DiskUsageObject]bool{}
	for _, n := range names {
		if !all[system.DiskUsageObject(n)] {
			return nil, bad("unknown object type: %s", n)
		}
		out[system.DiskUsageObject(n)] = true
	}
	return out, nil
}

func (s *Server) imageUsage(ctx context.Context) (*imagetypes.DiskUsage, error) {
	u, err := s.Images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	out := &imagetypes.DiskUsage{TotalSize: u.Total(), TotalCount: int64(len(u.Images)), Items: []imagetypes.Summary{}}
	var used int64
	for _, i := range u.Images {
		out.Items = append(out.Items, imageSummary(i))
		if i.Holders > 0 {
			out.ActiveCount++
			used += i.Size
		}
	}
	out.Reclaimable = max(0, out.TotalSize-used)
	return out, nil
}

func (s *Server) containersUsage(ctx context.Context) (*container.DiskUsage, error) {
	list, err := s.Engine.List(ctx, engine.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	now, err := s.imagesNow(ctx, list)
	if err != nil {
		return nil, err
	}
	out := &container.DiskUsage{TotalCount: int64(len(list)), Items: []container.Summary{}}
	for _, ct := range list {
		sum := summary(ct, now)
		sz, err := s.Engine.Size(ctx, ct.ID)
		if errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		sum.SizeRw, sum.SizeRootFs = sz.RW, sz.RootFS
		out.TotalSize += sz.RW
		if ct.State == engine.Running || ct.State == engine.Paused || ct.State == engine.Restarting {
			out.ActiveCount++
		} else {
			out.Reclaimable += sz.RW
		}
		out.Items = append(out.Items, sum)
	}
	return out, nil
}

// networks are the three that there are.
func (s *Server) networks() []network.Inspect {
	local := func(name string) network.Inspect {
		return network.Inspect{
			Network: network.Network{
				Name: name, ID: proanet.ID(name), Scope: "local", Driver: proanet.Driver(name), EnableIPv4: true, IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
				Options: map[string]string{}, Labels: map[string]string{},
			},
			Containers: map[string]network.EndpointResource{},
		}
	}
	bridge := local("bridge")
	bridge.Options["com.docker.network.bridge.name"] = s.Host.Bridge.Name
	subnet, err1 := netip.ParsePrefix(s.Host.Bridge.Subnet())
	gateway, err2 := netip.ParseAddr(s.Host.Bridge.Gateway())
	if err1 == nil && err2 == nil {
		bridge.IPAM.Config = append(bridge.IPAM.Config, network.IPAMConfig{Subnet: subnet, Gateway: gateway})
	}
	return []network.Inspect{bridge, local("host"), local("none")}
}

func (s *Server) networkList(c *call) error {
	f, err := c.filters(&filters.Networks)
	if err != nil {
		return err
	}
	out := []any{}
	for _, n := range s.networks() {
		if !networkMatches(&n.Network, f) {
			continue
		}
		if c.version >= 28 {
			out = append(out, network.Summary{Network: n.Network})
			continue
		}
		if err := s.fillNetwork(c.Context(), &n); err != nil {
			return err
		}
		out = append(out, n) // the list had what inspect has
	}
	return c.reply(http.StatusOK, out)
}

// networkMatches compares one of the built-in networks, which are never dangling.
func networkMatches(n *network.Network, f filters.Args) bool {
	if f["dangling"]["1"] || f["dangling"]["true"] || len(f["type"]) > 0 && !f["type"]["builtin"] {
		return false
	}
	return f.Pattern("name", n.Name) && f.Pattern("id", n.ID) && f.Exact("driver", n.Driver) && f.Exact("scope", n.Scope) && f.Pairs("label", n.Labels)
}

func (s *Server) networkInspect(c *call) error {
	name, ok := proanet.Find(c.PathValue("name"))
	scope := c.query("scope")
	if v := c.query("verbose"); v != "" { // services of a swarm
		if _, err := strconv.ParseBool(v); err != nil {
			return bad("invalid value for verbose: %s", v)
		}
	}
	for _, n := range s.networks() {
		if !ok || n.Name != name || scope != "" && scope != n.Scope {
			continue
		}
		if err := s.fillNetwork(c.Context(), &n); err != nil {
			return err
		}
		return c.reply(http.StatusOK, n)
	}
	return fmt.Errorf("network %s not found: %w", c.PathValue("name"), errdefs.ErrNotFound)
}

// fillNetwork lists the running containers on a network.
func (s *Server) fillNetwork(ctx context.Context, n *network.Inspect) error {
	list, err := s.Engine.List(ctx, engine.ListOptions{})
	if err != nil {
		return err
	}
	for _, ct := range list {
		ep := ct.Endpoint[n.Name]
		if ep == nil {
			continue
		}
		r := network.EndpointResource{Name: ct.Name, EndpointID: ep.EndpointID, MacAddress: ep.MacAddress}
		if ep.IPAddress.IsValid() {
			r.IPv4Address = netip.PrefixFrom(ep.IPAddress, ep.IPPrefixLen)
		}
		if ep.GlobalIPv6Address.IsValid() {
			r.IPv6Address = netip.PrefixFrom(ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen)
		}
		n.Containers[ct.ID] = r
	}
	return nil
}

// networkRemove refuses to remove the three networks that there are.
func (s *Server) networkRemove(c *call) error {
	if name, ok := proanet.Find(c.PathValue("name")); ok {
		return &refusal{errdefs.ErrPermissionDenied, name + " is a pre-defined network and cannot be removed"}
	}
	return fmt.Errorf("network %s not found: %w", c.PathValue("name"), errdefs.ErrNotFound)
}

// networkPrune removes nothing: networks of users' own are not served yet.
func (s *Server) networkPrune(c *call) error {
	if _, err := c.filters(&filters.NetworkPrune); err != nil {
		return err
	}
	s.Publish(event.NetworkPrune.Of("", nil, "0"))
	return c.reply(http.StatusOK, network.PruneReport{})
}
