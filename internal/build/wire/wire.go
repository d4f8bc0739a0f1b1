// Package wire is what the engine and the builder say to each other at the
// builder's start, and where they meet. It owns these words and nothing else.
//
// The builder (proa-build serve) is forked by the engine into the engine's
// mount namespace with these descriptors:
//
//	0      /dev/null        1, 2   build.log of its kind
//	3      the listening socket of its HTTP server
//	4      Config, JSON in a sealed memory file
//	5      the end of a pipe that the engine holds open: when it closes, the
//	       engine has gone, and the builder ends
//
// It dials Config.Engine for the engine's store and steps, and then answers on
// descriptor 3. Its HTTP server speaks HTTP/1.1 and, by prior knowledge, HTTP/2:
//
//	application/grpc       BuildKit's control API, over HTTP/2
//	POST /session          a client's session (Upgrade: h2c)
//	POST /build            Docker's classic build; /build/cancel, /build/prune
//	GET  /usage            build cache records, Docker's shape
//	GET  /ready            204 when everything above works
package wire

import (
	"encoding/json"
	"fmt"
	"io"
)

// Descriptors of the builder at its start.
const (
	Listener = 3
	Setup    = 4
	Lifeline = 5
)

// Files below a builder's run directory, <exec-root>/build/<kind>.
const (
	EngineSocket = "engine.sock" // the engine serves store and steps
	BuildSocket  = "build.sock"  // the builder serves builds
	LogFile      = "build.log"
	Scratch      = "tmp" // the builder's temporary directory; mounts made by it lie below
)

// Namespace is the one of containerd's metadata in which the builder's blobs,
// snapshots and leases lie, the same as that of images.
const Namespace = "proa"

// Snapshotter is the name under which the engine serves snapshots, and BuildKit
// names them in leases. BuildKit starts a merge (COPY --link) from its lowest
// layers in place of copying them only for snapshotters of this name, and what
// it then expects, overlays with an upper directory to write to, is what the
// engine's are.
const Snapshotter = "overlayfs"

// Config is what the engine tells a builder at its start.
type Config struct {
	Kind    string // isolation of RUN steps: container or vm
	Root    string // the builder's own data: <data-root>/build/<kind>
	Run     string // <exec-root>/build/<kind>
	Certs   string // directory with certificates of registries, one below it for each host
	Version string // the engine's
	BootID  string // names this boot of the host, as the engine tells it from others; never empty
	Debug   bool

	// Gateway is the address of the host as RUN steps see it; empty if there is none.
	Gateway string

	// MaxFile is how large a file of a layer can be, in bytes; 0 sets no bound.
	MaxFile int64

	// MaxCache is how many bytes the build cache may use before the oldest
	// records go; Reserved is how many are never taken away by that; MinFree
	// is how many should stay free on the disk. All are bytes.
	MaxCache, Reserved, MinFree int64
}

// Read reads a Config.
func Read(r io.Reader) (Config, error) {
	var c Config
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return c, fmt.Errorf("cannot read the builder's configuration: %w", err)
	}
	return c, nil
}

// GatewayLabel is the worker's label with the host's address as RUN steps see
// it, by the name that buildx asks for.
const GatewayLabel = "org.mobyproject.buildkit.worker.moby.host-gateway-ip"
