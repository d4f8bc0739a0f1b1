package shapes

// onPurpose are the differences from dockerd 20.10.24 that stay.
var onPurpose = []reason{
	{"GET /containers/json...", "*.Proa", "what Docker has no place for: the isolation"},
	{"GET /containers/...", "Proa", "what Docker has no place for: the isolation"},
	{"GET /containers/json?all=1&size=1", "*.SizeRw", "blocks of the writable layer, directories included; Docker counts files' lengths"},
	{"GET /system/df", "Containers.*.SizeRw", "blocks of the writable layer, directories included; Docker counts files' lengths"},
	{"GET /containers/...", "HostConfig.Dns", "an empty list where none was sent, as from Docker's command line, which sends it"},
	{"GET /containers/...", "HostConfig.DnsOptions", "an empty list where none was sent, as from Docker's command line, which sends it"},
	{"GET /containers/...", "HostConfig.DnsSearch", "an empty list where none was sent, as from Docker's command line, which sends it"},
	{"GET /containers/made/json", "HostConfig.Runtime", "chosen at create, by Docker at the first start"},
	{"GET /containers/running/stats?stream=0", "blkio_stats....", "as Docker on a host with cgroup v2; 20.10 looks at v1's files here"},
	{"GET /containers/running/stats?stream=0", "cpu_stats.cpu_usage.percpu_usage", "as Docker on a host with cgroup v2"},
	{"GET /containers/running/stats?stream=0", "precpu_stats.cpu_usage.percpu_usage", "as Docker on a host with cgroup v2"},
	{"GET /containers/running/stats?stream=0", "pids_stats.limit", "there always is a limit of processes"},
	{"GET /images/json...", "*.RepoDigests", "every name has the digest of its manifest, as in Docker's containerd store"},
	{"GET /system/df", "Images.*.RepoDigests", "every name has the digest of its manifest, as in Docker's containerd store"},
	{"GET /images/...", "RepoDigests.*", "every name has the digest of its manifest, as in Docker's containerd store"},
	{"GET /images/committed...", "ContainerConfig....", "the container that was committed is not kept, as in Docker's containerd store"},
	{"GET /images/committed...", "Config.Labels", "an OCI configuration leaves out an empty map"},
	{"GET /volumes", "Volumes.*.Labels", "an unnamed volume has the label com.docker.volume.anonymous, as in Docker since 23.0"},
	{"GET /system/df", "Volumes.*.Labels", "an unnamed volume has the label com.docker.volume.anonymous, as in Docker since 23.0"},
	{"POST /volumes/create", "Labels", "an unnamed volume has the label com.docker.volume.anonymous, as in Docker since 23.0"},
	{"GET /networks", "*.IPAM.Config.*.Gateway", "the bridge's gateway is known before the first container, as in Docker since 27"},
	{"GET /networks/bridge", "IPAM.Config.*.Gateway", "the bridge's gateway is known before the first container, as in Docker since 27"},
}
