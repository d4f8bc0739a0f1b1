package versions

// place is where a shape occurs: a route's answer, the way to it, and the
// first version in which it is there.
type place struct {
	route, path string
	since       int
}

// shapes are objects that occur in several answers or requests.
var shapes = map[string][]place{
	"image": {
		{route: "GET /images/json", path: "*"},
		{route: "GET /system/df", path: "Images.*"},
	},
	"container": {
		{route: "GET /containers/json", path: "*"},
		{route: "GET /system/df", path: "Containers.*"},
	},
	"endpoint": {
		{route: "GET /containers/{id...}/json", path: "NetworkSettings.Networks.*"},
		{route: "GET /containers/json", path: "*.NetworkSettings.Networks.*"},
		{route: "GET /system/df", path: "Containers.*.NetworkSettings.Networks.*"},
	},
	"network": {
		{route: "GET /networks", path: "*"},
		{route: "GET /networks/", path: "*"},
		{route: "GET /networks/{name...}"},
	},
	"config": {
		{route: "POST /containers/create"},
		{route: "POST /commit"},
	},
}

const (
	containerInspect = "GET /containers/{id...}/json"
	imageInspect     = "GET /images/{name...}/json"
	// emptyConfig is a container's configuration of which nothing is set, as API
	// 1.49 and below show it.
	emptyConfig = `{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,"AttachStderr":false,"Tty":false,` +
		`"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":null,"Image":"","Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null}`
)

// Answers are the differences of answers from those of the newest version.
// A Source "log 1.52" is that version's part of docs/CHANGELOG.md of
// github.com/moby/moby/api; "moby image/..." is a file of
// github.com/moby/moby/v2 below daemon/server/router; "20.10" is what dockerd
// 20.10.24 answers, which test/shapes compares.
var Answers = []Row{
	// Events. Docker's CLI and compose before 25 panic where these are missing (moby pull 50832).
	{Of: "GET /events", Path: "status", Until: 52, Do: Add, From: "Action", When: "Type=container,image", Source: "log 1.52"},
	{Of: "GET /events", Path: "id", Until: 52, Do: Add, From: "Actor.ID", When: "Type=container,image", Source: "log 1.52"},
	{Of: "GET /events", Path: "from", Until: 52, Do: Add, From: "Actor.Attributes.image", Value: `""`, When: "Type=container", Source: "log 1.52"},
	{Of: "GET /events", Path: "from", Until: 52, Do: Trim, When: "Type=container", Source: "20.10: absent without an image"},

	// Images.
	{Of: "image", Path: "RepoDigests", Until: 43, Do: Fill, Value: `["<none>@<none>"]`, When: "RepoTags=", Source: "log 1.43"},
	{Of: "image", Path: "RepoTags", Until: 43, Do: Fill, Value: `["<none>:<none>"]`, When: "RepoDigests=<none>@<none>", Source: "log 1.43"},
	{Of: "image", Path: "Labels", Until: 42, Do: Fill, Value: "null", Source: "20.10"},
	{Of: "image", Path: "VirtualSize", Until: 44, Do: Set, From: "Size", Source: "log 1.44"},
	{Of: "image", Path: "Descriptor", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: "image", Path: "Manifests", Until: 47, Do: Drop, Source: "log 1.47"},
	{Of: "GET /images/json", Path: "*.Containers", Until: 51, Do: Set, Value: "-1", Source: "log 1.51"},

	{Of: imageInspect, Path: "VirtualSize", Until: 44, Do: Set, From: "Size", Source: "log 1.44"},
	{Of: imageInspect, Path: "Created", Until: 44, Do: Fill, Value: `"0001-01-01T00:00:00Z"`, Source: "log 1.44"},
	{Of: imageInspect, Path: "Container", Until: 45, Do: Add, From: "@Container", Value: `""`, Source: "log 1.45"},
	{Of: imageInspect, Path: "ContainerConfig", Until: 45, Do: Add, From: "@ContainerConfig", Value: emptyConfig, Source: "log 1.45"},
	{Of: imageInspect, Path: "Descriptor", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: imageInspect, Path: "Manifests", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: imageInspect, Path: "Identity", Until: 53, Do: Drop, Source: "log 1.53"},
	{Of: imageInspect, Path: "Parent", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: imageInspect, Path: "Comment", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: imageInspect, Path: "DockerVersion", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: imageInspect, Path: "Author", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: imageInspect, Path: "Config", Until: 52, Do: Add, Value: `{}`, Source: "20.10"},
	{Of: imageInspect, Path: "Config.Cmd", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.Entrypoint", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.Env", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.Labels", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.OnBuild", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.Volumes", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.User", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.WorkingDir", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: imageInspect, Path: "Config.Hostname", Until: 50, Do: Add, Value: `""`, Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.Domainname", Until: 50, Do: Add, Value: `""`, Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.Image", Until: 50, Do: Add, Value: `""`, Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.AttachStdin", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.AttachStdout", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.AttachStderr", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.OpenStdin", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.StdinOnce", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: imageInspect, Path: "Config.Tty", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},

	// Containers.
	{Of: "container", Path: "HostConfig.Annotations", Until: 46, Do: Drop, Source: "log 1.46"},
	{Of: "container", Path: "ImageManifestDescriptor", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: "container", Path: "Health", Until: 52, Do: Drop, Source: "moby container/container_routes.go"},
	{Of: "endpoint", Path: "DNSNames", Until: 44, Do: Drop, Source: "log 1.44"},
	{Of: "endpoint", Path: "GwPriority", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: containerInspect, Path: "ImageManifestDescriptor", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: containerInspect, Path: "Storage", Until: 52, Do: Drop, Source: "moby container/inspect.go"},
	{Of: containerInspect, Path: "HostConfig.Umask", Until: 56, Do: Drop, Source: "log 1.56"},
	{Of: containerInspect, Path: "HostConfig.Annotations", Until: 43, Do: Drop, Source: "log 1.43"},
	{Of: containerInspect, Path: "HostConfig.KernelMemory", Until: 42, Do: Add, Value: "0", Source: "log 1.42"},
	{Of: containerInspect, Path: "HostConfig.KernelMemoryTCP", Until: 42, Do: Add, Value: "0", Source: "log 1.42"},
	{Of: containerInspect, Path: "Config.OnBuild", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: containerInspect, Path: "Config.MacAddress", Until: 52, Do: Add, From: "@MacAddress", Source: "moby container/inspect.go"},
	{Of: containerInspect, Path: "Config.MacAddress", Until: 52, Do: Trim, Source: "moby container/inspect.go: only what was asked for"},
	{Of: containerInspect, Path: "NetworkSettings.Bridge", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.HairpinMode", Until: 52, Do: Add, Value: "false", Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.LinkLocalIPv6Address", Until: 52, Do: Add, Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.LinkLocalIPv6PrefixLen", Until: 52, Do: Add, Value: "0", Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.SecondaryIPAddresses", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.SecondaryIPv6Addresses", Until: 52, Do: Add, Value: "null", Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.EndpointID", Until: 52, Do: Add, From: "Networks.bridge.EndpointID", Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.Gateway", Until: 52, Do: Add, From: "Networks.bridge.Gateway", Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.GlobalIPv6Address", Until: 52, Do: Add, From: "Networks.bridge.GlobalIPv6Address", Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.GlobalIPv6PrefixLen", Until: 52, Do: Add, From: "Networks.bridge.GlobalIPv6PrefixLen", Value: "0", Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.IPAddress", Until: 52, Do: Add, From: "Networks.bridge.IPAddress", Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.IPPrefixLen", Until: 52, Do: Add, From: "Networks.bridge.IPPrefixLen", Value: "0", Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.IPv6Gateway", Until: 52, Do: Add, From: "Networks.bridge.IPv6Gateway", Value: `""`, Source: "log 1.52"},
	{Of: containerInspect, Path: "NetworkSettings.MacAddress", Until: 52, Do: Add, From: "Networks.bridge.MacAddress", Value: `""`, Source: "log 1.52"},
	{Of: "GET /containers/{id...}/stats", Path: "os_type", Until: 52, Do: Drop, Source: "log 1.52"},

	{Of: "POST /containers/{id...}/wait", Path: "Error", Until: 42, Do: Add, Value: "null", Source: "20.10"},
	{Of: "GET /exec/{id...}/json", Path: "ProcessConfig.user", Until: 42, Do: Add, Value: `""`, Source: "20.10"},

	// The engine.
	{Of: "GET /info", Path: "ExecutionDriver", Until: 25, Do: Add, Value: `"<not supported>"`, Source: "20.10"},
	{Of: "GET /info", Path: "SecurityOptions", Until: 25, Do: Set, From: "@SecurityNames", Value: "[]", Source: "log 1.25"},
	{Of: "GET /info", Path: "KernelMemory", Until: 42, Do: Add, Value: "false", Source: "log 1.42"},
	{Of: "GET /info", Path: "KernelMemoryTCP", Until: 42, Do: Add, Value: "false", Source: "log 1.42"},
	{Of: "GET /info", Path: "CDISpecDirs", Until: 44, Do: Drop, Source: "log 1.44"},
	{Of: "GET /info", Path: "Runtimes.*.status", Until: 44, Do: Drop, Source: "log 1.44"},
	{Of: "GET /info", Path: "Containerd", Until: 46, Do: Drop, Source: "log 1.46"},
	{Of: "GET /info", Path: "RegistryConfig.AllowNondistributableArtifactsCIDRs", Until: 48, Do: Add, Value: "[]", Source: "20.10, log 1.48"},
	{Of: "GET /info", Path: "RegistryConfig.AllowNondistributableArtifactsCIDRs", Since: 48, Until: 49, Do: Add, Value: "null", Source: "log 1.49"},
	{Of: "GET /info", Path: "RegistryConfig.AllowNondistributableArtifactsHostnames", Until: 48, Do: Add, Value: "[]", Source: "20.10, log 1.48"},
	{Of: "GET /info", Path: "RegistryConfig.AllowNondistributableArtifactsHostnames", Since: 48, Until: 49, Do: Add, Value: "null", Source: "log 1.49"},
	{Of: "GET /info", Path: "FirewallBackend", Until: 49, Do: Drop, Source: "log 1.49"},
	{Of: "GET /info", Path: "ContainerdCommit.Expected", Until: 49, Do: Add, From: "ID", Value: `""`, Source: "log 1.49"},
	{Of: "GET /info", Path: "RuncCommit.Expected", Until: 49, Do: Add, From: "ID", Value: `""`, Source: "log 1.49"},
	{Of: "GET /info", Path: "InitCommit.Expected", Until: 49, Do: Add, From: "ID", Value: `""`, Source: "log 1.49"},
	{Of: "GET /info", Path: "DiscoveredDevices", Until: 50, Do: Drop, Source: "log 1.50"},
	{Of: "GET /info", Path: "BridgeNfIptables", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: "GET /info", Path: "BridgeNfIp6tables", Until: 50, Do: Add, Value: "false", Source: "log 1.50"},
	{Of: "GET /info", Path: "NRI", Until: 53, Do: Drop, Source: "log 1.53"},

	// Disk usage: from 1.52 on both forms are there, unless verbose was asked for.
	{Of: "GET /system/df", Path: "ImageUsage", Until: 52, Do: Drop, Source: "log 1.52"},
	{Of: "GET /system/df", Path: "ContainerUsage", Until: 52, Do: Drop, Source: "log 1.52"},
	{Of: "GET /system/df", Path: "VolumeUsage", Until: 52, Do: Drop, Source: "log 1.52"},
	{Of: "GET /system/df", Path: "BuildCacheUsage", Until: 52, Do: Drop, Source: "log 1.52"},
	{Of: "GET /system/df", Path: "LayersSize", Until: 52, Do: Add, Value: "0", Source: "20.10"},
	{Of: "GET /system/df", Path: "BuildCache", Until: 42, Do: Fill, Value: "null", Source: "20.10"},
	{Of: "GET /system/df", Path: "BuilderSize", Until: 42, Do: Add, Value: "0", Source: "log 1.42"},
	{Of: "GET /system/df", Path: "BuildCache.*.Parents", Until: 42, Do: Drop, Source: "log 1.42"},
	{Of: "GET /system/df", Path: "BuildCache.*.Parent", Until: 42, Do: Add, Value: `""`, Source: "log 1.42"},

	// Networks.
	{Of: "network", Path: "EnableIPv4", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: "network", Path: "Status", Until: 52, Do: Drop, Source: "log 1.52"},
	{Of: "GET /networks", Path: "*.Containers", Until: 48, Do: Add, Value: "{}", Source: "20.10"},
	{Of: "GET /networks/", Path: "*.Containers", Until: 48, Do: Add, Value: "{}", Source: "20.10"},
}

// Requests are the differences of requests from those of the newest version.
var Requests = []Row{
	// "a string or a list of strings", as the reference says; the engine's types
	// were strslice.StrSlice (moby api/types/strslice of 28.5 and before).
	{Of: "config", Path: "Cmd", Do: List, Source: "20.10 StrSlice"},
	{Of: "config", Path: "Entrypoint", Do: List, Source: "20.10 StrSlice"},
	{Of: "config", Path: "Shell", Do: List, Source: "20.10 StrSlice"},
	{Of: "POST /containers/create", Path: "HostConfig.CapAdd", Do: List, Source: "20.10 StrSlice"},
	{Of: "POST /containers/create", Path: "HostConfig.CapDrop", Do: List, Source: "20.10 StrSlice"},

	{Of: "POST /containers/create", Path: "HostConfig", Until: 40, Do: Add, Value: "{}", Source: "log 1.40: the place of IpcMode"},
	{Of: "POST /containers/create", Path: "HostConfig.IpcMode", Until: 40, Do: Fill, Value: `"shareable"`, Source: "log 1.40"},
	{Of: "POST /containers/create", Path: "HostConfig.Mounts.*.BindOptions.NonRecursive", Until: 40, Do: Drop, Source: "log 1.40"},
	{Of: "POST /containers/create", Path: "HostConfig.Mounts.*.BindOptions.CreateMountpoint", Until: 42, Do: Drop, Source: "log 1.42"},
	{Of: "POST /containers/create", Path: "HostConfig.ConsoleSize", Until: 42, Do: Drop, Source: "log 1.42"},
	{Of: "POST /containers/create", Path: "HostConfig.Annotations", Until: 43, Do: Drop, Source: "log 1.43"},
	{Of: "config", Path: "Healthcheck.StartInterval", Until: 44, Do: Drop, Source: "log 1.44"},
	{Of: "POST /containers/create", Path: "NetworkingConfig.EndpointsConfig.*.GwPriority", Until: 48, Do: Drop, Source: "log 1.48"},
	{Of: "POST /containers/create", Path: "HostConfig.Umask", Until: 56, Do: Drop, Source: "log 1.56"},
	{Of: "POST /containers/{id...}/exec", Path: "ConsoleSize", Until: 42, Do: Drop, Source: "log 1.42"},
	{Of: "POST /exec/{id...}/start", Path: "ConsoleSize", Until: 42, Do: Drop, Source: "log 1.42"},
	{Of: "POST /containers/{id...}/update", Path: "PidsLimit", Until: 40, Do: Drop, Source: "log 1.40"},
	{Of: "POST /containers/{id...}/update", Path: "BlkioWeightDevice", Until: 55, Do: Drop, Source: "log 1.55"},
	{Of: "POST /containers/{id...}/update", Path: "BlkioDeviceReadBps", Until: 55, Do: Drop, Source: "log 1.55"},
	{Of: "POST /containers/{id...}/update", Path: "BlkioDeviceWriteBps", Until: 55, Do: Drop, Source: "log 1.55"},
	{Of: "POST /containers/{id...}/update", Path: "BlkioDeviceReadIOps", Until: 55, Do: Drop, Source: "log 1.55"},
	{Of: "POST /containers/{id...}/update", Path: "BlkioDeviceWriteIOps", Until: 55, Do: Drop, Source: "log 1.55"},
}
