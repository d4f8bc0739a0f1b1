package api

// route is one line of the table: a method, a path without its version, and
// who answers.
type route struct {
	method, path string
	do           handler
}

// routes is the whole API.
func (s *Server) routes() []route {
	return []route{
		{"GET", "/_ping", s.ping},
		{"HEAD", "/_ping", s.ping},
		{"GET", "/version", s.version},
		{"GET", "/info", s.info},
		{"GET", "/events", s.events},
		{"GET", "/system/df", s.diskUsage},
		{"GET", "/proa/doctor", s.doctor},
		{"GET", "/proa/containers/{id}/usage", s.containerUsage},

		{"GET", "/containers/json", s.containerList},
		{"POST", "/containers/create", s.containerCreate},
		{"POST", "/containers/prune", s.containerPrune},
		{"GET", "/containers/{id}/json", s.containerInspect},
		{"GET", "/containers/{id}/logs", s.containerLogs},
		{"GET", "/containers/{id}/stats", s.containerStats},
		{"GET", "/containers/{id}/top", s.containerTop},
		{"POST", "/containers/{id}/start", s.containerStart},
		{"POST", "/containers/{id}/stop", s.containerStop},
		{"POST", "/containers/{id}/restart", s.containerRestart},
		{"POST", "/containers/{id}/kill", s.containerKill},
		{"POST", "/containers/{id}/pause", s.containerPause},
		{"POST", "/containers/{id}/unpause", s.containerUnpause},
		{"POST", "/containers/{id}/rename", s.containerRename},
		{"POST", "/containers/{id}/update", s.containerUpdate},
		{"POST", "/containers/{id}/resize", s.containerResize},
		{"POST", "/containers/{id}/wait", s.containerWait},
		{"POST", "/containers/{id}/attach", s.containerAttach},
		{"POST", "/containers/{id}/exec", s.execCreate},
		{"HEAD", "/containers/{id}/archive", s.archiveStat},
		{"GET", "/containers/{id}/archive", s.archiveGet},
		{"PUT", "/containers/{id}/archive", s.archivePut},
		{"GET", "/containers/{id}/changes", s.containerChanges},
		{"GET", "/containers/{id}/export", s.containerExport},
		{"POST", "/commit", s.containerCommit},
		{"DELETE", "/containers/{id}", s.containerRemove},

		{"POST", "/exec/{id}/start", s.execStart},
		{"POST", "/exec/{id}/resize", s.execResize},
		{"GET", "/exec/{id}/json", s.execInspect},

		{"GET", "/images/json", s.imageList},
		{"GET", "/images/get", s.imageSave},
		{"POST", "/images/load", s.imageLoad},
		{"POST", "/images/create", s.imageCreate},
		{"POST", "/images/prune", s.imagePrune},
		// Names of images hold slashes: {name...} takes the whole rest, and the
		// verb is cut from its end.
		{"GET", "/images/{name...}", s.imageGet},
		{"POST", "/images/{name...}", s.imagePost},
		{"DELETE", "/images/{name...}", s.imageRemove},

		{"POST", "/build", s.build},
		{"POST", "/build/cancel", s.buildCancel},
		{"POST", "/build/prune", s.buildPrune},
		{"POST", "/grpc", s.grpc},
		{"POST", "/session", s.session},
		{"POST", "/auth", s.auth},
		{"GET", "/distribution/{name...}", s.distribution},

		{"GET", "/volumes", s.volumeList},
		{"POST", "/volumes/create", s.volumeCreate},
		{"POST", "/volumes/prune", s.volumePrune},
		{"GET", "/volumes/{name}", s.volumeInspect},
		{"DELETE", "/volumes/{name}", s.volumeRemove},

		{"GET", "/networks", s.networkList},
		{"GET", "/networks/{name}", s.networkInspect},
	}
}

// notServed are the parts of Docker's API that this engine knows of and does
// not have.
var notServed = []string{
	"/configs", "/containers/", "/images/", "/networks", "/nodes", "/plugins",
	"/secrets", "/services", "/swarm", "/tasks", "/volumes/",
}
