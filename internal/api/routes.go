package api

// route is one line of the table: a method, a path without its version, who
// answers, and the minor version of the API that brought it (0: all have it).
type route struct {
	method, path string
	do           handler
	since        int
}

// routes is the whole API: what is served, and what Docker's API has besides,
// with the answer of a Docker that has none of it. Order matters where two
// lines fit one path; words stand before wildcards.
func (s *Server) routes() []route {
	return []route{
		{"GET", "/_ping", s.ping, 0},
		{"HEAD", "/_ping", s.ping, 0},
		{"GET", "/version", s.version, 0},
		{"GET", "/info", s.info, 0},
		{"GET", "/events", s.events, 0},
		{"GET", "/system/df", s.diskUsage, 0},
		{"GET", "/proa/doctor", s.doctor, 0},
		{"GET", "/proa/containers/{id...}/usage", s.containerUsage, 0},

		{"GET", "/containers/json", s.containerList, 0},
		{"POST", "/containers/create", s.containerCreate, 0},
		{"POST", "/containers/prune", s.containerPrune, 25},
		{"GET", "/containers/{id...}/json", s.containerInspect, 0},
		{"GET", "/containers/{id...}/logs", s.containerLogs, 0},
		{"GET", "/containers/{id...}/stats", s.containerStats, 0},
		{"GET", "/containers/{id...}/top", s.containerTop, 0},
		{"POST", "/containers/{id...}/start", s.containerStart, 0},
		{"POST", "/containers/{id...}/stop", s.containerStop, 0},
		{"POST", "/containers/{id...}/restart", s.containerRestart, 0},
		{"POST", "/containers/{id...}/kill", s.containerKill, 0},
		{"POST", "/containers/{id...}/pause", s.containerPause, 0},
		{"POST", "/containers/{id...}/unpause", s.containerUnpause, 0},
		{"POST", "/containers/{id...}/rename", s.containerRename, 0},
		{"POST", "/containers/{id...}/update", s.containerUpdate, 0},
		{"POST", "/containers/{id...}/resize", s.containerResize, 0},
		{"POST", "/containers/{id...}/wait", s.containerWait, 0},
		{"POST", "/containers/{id...}/attach", s.containerAttach, 0},
		{"POST", "/containers/{id...}/exec", s.execCreate, 0},
		{"HEAD", "/containers/{id...}/archive", s.archiveStat, 0},
		{"GET", "/containers/{id...}/archive", s.archiveGet, 0},
		{"PUT", "/containers/{id...}/archive", s.archivePut, 0},
		{"GET", "/containers/{id...}/changes", s.containerChanges, 0},
		{"GET", "/containers/{id...}/export", s.containerExport, 0},
		{"GET", "/containers/{id...}/attach/ws", s.containerAttachWS, 0},
		{"GET", "/containers/{id...}/checkpoints", s.experimental, 0},
		{"POST", "/containers/{id...}/checkpoints", s.experimental, 0},
		{"DELETE", "/containers/{id}/checkpoints/{checkpoint}", s.experimental, 0},
		{"DELETE", "/containers/{id...}", s.containerRemove, 0},
		{"POST", "/commit", s.containerCommit, 0},

		{"POST", "/exec/{id...}/start", s.execStart, 0},
		{"POST", "/exec/{id...}/resize", s.execResize, 0},
		{"GET", "/exec/{id...}/json", s.execInspect, 0},

		{"GET", "/images/json", s.imageList, 0},
		{"GET", "/images/get", s.imageSave, 0},
		{"GET", "/images/search", s.notServed, 0},
		{"POST", "/images/load", s.imageLoad, 0},
		{"POST", "/images/create", s.imageCreate, 0},
		{"POST", "/images/prune", s.imagePrune, 25},
		{"GET", "/images/{name...}/json", named(s.imageInspect), 0},
		{"GET", "/images/{name...}/history", named(s.imageHistory), 0},
		{"GET", "/images/{name...}/get", named(s.imageSaveOne), 0},
		{"GET", "/images/{name...}/attestations", s.notServed, 55},
		{"POST", "/images/{name...}/push", named(s.imagePush), 0},
		{"POST", "/images/{name...}/tag", named(s.imageTag), 0},
		{"DELETE", "/images/{name...}", s.imageRemove, 0},

		{"POST", "/build", s.build, 0},
		{"POST", "/build/cancel", s.buildCancel, 0},
		{"POST", "/build/prune", s.buildPrune, 31},
		{"POST", "/grpc", s.grpc, 0},
		{"POST", "/session", s.session, 0},
		{"POST", "/auth", s.auth, 0},
		{"GET", "/distribution/{name...}/json", named(s.distribution), 30},

		{"GET", "/volumes", s.volumeList, 0},
		{"POST", "/volumes/create", s.volumeCreate, 0},
		{"POST", "/volumes/prune", s.volumePrune, 25},
		{"GET", "/volumes/{name...}", s.volumeInspect, 0},
		{"PUT", "/volumes/{name...}", s.volumeUpdate, 42},
		{"DELETE", "/volumes/{name...}", s.volumeRemove, 0},

		{"GET", "/networks", s.networkList, 0},
		{"GET", "/networks/", s.networkList, 0},
		{"POST", "/networks/create", s.notServed, 0},
		{"POST", "/networks/prune", s.networkPrune, 25},
		{"POST", "/networks/{name...}/connect", s.notServed, 0},
		{"POST", "/networks/{name...}/disconnect", s.notServed, 0},
		{"GET", "/networks/{name...}", s.networkInspect, 0},
		{"DELETE", "/networks/{name...}", s.networkRemove, 0},

		// Docker without a plugin: there is none to be listed, shown or removed.
		{"GET", "/plugins", s.pluginList, 0},
		{"GET", "/plugins/privileges", s.notServed, 0},
		{"POST", "/plugins/pull", s.notServed, 0},
		{"POST", "/plugins/create", s.notServed, 0},
		{"GET", "/plugins/{name...}/json", s.noPlugin, 0},
		{"DELETE", "/plugins/{name...}", s.noPlugin, 0},
		{"POST", "/plugins/{name...}/enable", s.notServed, 0},
		{"POST", "/plugins/{name...}/disable", s.notServed, 0},
		{"POST", "/plugins/{name...}/push", s.notServed, 0},
		{"POST", "/plugins/{name...}/upgrade", s.notServed, 26},
		{"POST", "/plugins/{name...}/set", s.notServed, 0},

		// Docker that is in no swarm.
		{"POST", "/swarm/init", s.notServed, 0},
		{"POST", "/swarm/join", s.notServed, 0},
		{"POST", "/swarm/leave", s.noSwarm, 0},
		{"GET", "/swarm", s.noManager, 0},
		{"GET", "/swarm/unlockkey", s.noManager, 0},
		{"POST", "/swarm/update", s.noManager, 0},
		{"POST", "/swarm/unlock", s.noManager, 0},
		{"GET", "/services", s.noManager, 0},
		{"POST", "/services/create", s.noManager, 0},
		{"GET", "/services/{id}", s.noManager, 0},
		{"DELETE", "/services/{id}", s.noManager, 0},
		{"POST", "/services/{id}/update", s.noManager, 0},
		{"GET", "/services/{id}/logs", s.noManager, 0},
		{"GET", "/nodes", s.noManager, 0},
		{"GET", "/nodes/{id}", s.noManager, 0},
		{"DELETE", "/nodes/{id}", s.noManager, 0},
		{"POST", "/nodes/{id}/update", s.noManager, 0},
		{"GET", "/tasks", s.noManager, 0},
		{"GET", "/tasks/{id}", s.noManager, 0},
		{"GET", "/tasks/{id}/logs", s.noManager, 0},
		{"GET", "/secrets", s.noManager, 25},
		{"POST", "/secrets/create", s.noManager, 25},
		{"GET", "/secrets/{id}", s.noManager, 25},
		{"DELETE", "/secrets/{id}", s.noManager, 25},
		{"POST", "/secrets/{id}/update", s.noManager, 25},
		{"GET", "/configs", s.noManager, 30},
		{"POST", "/configs/create", s.noManager, 30},
		{"GET", "/configs/{id}", s.noManager, 30},
		{"DELETE", "/configs/{id}", s.noManager, 30},
		{"POST", "/configs/{id}/update", s.noManager, 30},

		{"OPTIONS", "/{any...}", s.options, 0},
	}
}

// named is a handler of an image's name.
func named(do func(*call, string) error) handler {
	return func(c *call) error { return do(c, c.PathValue("name")) }
}
