package engine

import (
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/filters"
	"proa/internal/isolation"
)

// CreateRequest is what a client wants. Config and Host are kept as they are
// and shown again by Get, with the image's defaults merged into Config.
type CreateRequest struct {
	Name       string // "" asks for a generated one
	Config     *container.Config
	Host       *container.HostConfig // nil: all defaults
	Networking *network.NetworkingConfig
	Platform   *ocispec.Platform // nil: the host's
}

// CreateResult is a created container's id and what its owner should know.
type CreateResult struct {
	ID       string
	Warnings []string
}

// StopOptions say how to ask the main process to end.
type StopOptions struct {
	Signal string // "" means the container's StopSignal, else SIGTERM
	// Timeout is how long to wait before SIGKILL; nil means the container's
	// StopTimeout, else 10 s; negative means for ever.
	Timeout *time.Duration
}

// RemoveOptions say what Remove may destroy.
type RemoveOptions struct {
	Force   bool // kill it first if it runs
	Volumes bool // also its anonymous volumes
}

// AttachOptions say which streams of the main process are wanted.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	Stream                bool // follow the running process
	Logs                  bool // first replay what was logged so far
	// EndsWithInput says that a client which sends nothing more wants nothing
	// more either. Its input is read even if the process has none.
	EndsWithInput bool
	// DetachKeys ends the attachment when they are typed on a terminal; empty
	// means ctrl-p ctrl-q. Docker's syntax: "ctrl-a,x".
	DetachKeys string
}

// LogsOptions select lines of a container's log.
type LogsOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Since, Until   time.Time // zero: no bound
	Tail           int       // last n lines; negative: all
}

// WaitResult is how a wait ended.
type WaitResult struct {
	ExitCode int
	Error    string // why there is no true code; "" normally
}

// ListOptions select containers. What filters.Containers does not have is
// refused with errdefs.ErrInvalidArgument.
type ListOptions struct {
	All     bool // also those that do not run; implied by Limit and the filter "status"
	Limit   int  // newest n of all; 0: no limit
	Filters filters.Args
}

// State is where a container stands in its life.
type State string

// The states, named as Docker's API names them.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting" // ended, and the restart policy waits to start it again
	Removing   State = "removing"
	Exited     State = "exited"
	Dead       State = "dead" // removal failed half-way; only Remove is possible
)

// Container is an immutable snapshot of one container. Nothing in it may be
// changed by whoever reads it.
type Container struct {
	ID         string // 64 hex digits
	Name       string // without the slash that Docker's API puts before it
	Created    time.Time
	Path       string // executable and its arguments, after merging with the image
	Args       []string
	Config     *container.Config                    // merged with the image's
	Host       *container.HostConfig                // as wanted
	Networking map[string]*network.EndpointSettings // as wanted
	ImageID    digest.Digest
	ImageRef   string             // as the client named it
	Image      ocispec.Descriptor // manifest the container was made from
	Platform   ocispec.Platform
	Kind       isolation.Kind
	Mounts     []container.MountPoint
	Warnings   []string // of create
	UserNS     bool     // false: it runs in the host's user namespace

	State         State
	Pid           int // 0 unless it runs
	StartedAt     time.Time
	FinishedAt    time.Time
	ExitCode      int
	OOMKilled     bool
	Error         string
	RestartCount  int
	StoppedByUser bool
	Health        *container.Health // nil: no health check
	ExecIDs       []string

	// Endpoint is the network as it is while it runs, by network name; empty otherwise.
	Endpoint map[string]*network.EndpointSettings
	Ports    network.PortMap // published ports as they are while it runs

	// Paths on the host, "" where there is none (yet).
	LogPath, ResolvConfPath, HostsPath, HostnamePath string
}

// Exec is an immutable snapshot of one exec'd process.
type Exec struct {
	ID          string
	ContainerID string
	Request     container.ExecCreateRequest
	Running     bool
	ExitCode    *int // nil until it has ended
	Pid         int
}

// ExecStartOptions say how an exec'd process starts.
type ExecStartOptions struct {
	Detach     bool
	Tty        bool   // the client reads one raw stream, which has no place for stderr
	Rows, Cols uint16 // first size of its terminal; 0: as created
}

// Sample is one reading of what a container uses. All zero but ID and Name when
// it does not run.
type Sample struct {
	ID, Name string
	isolation.Stats
	SystemCPU  uint64 // nanoseconds that all CPUs of the host have worked since boot
	OnlineCPUs uint32
	Card       bool // it has a network card, whose counters are in Stats
}

// PruneResult is what Prune removed.
type PruneResult struct {
	Deleted   []string
	Reclaimed int64 // bytes
}

// Counts are containers by state, for Docker's info.
type Counts struct {
	Total, Running, Paused, Stopped int
}

// Size is the disk use of a container in bytes.
type Size struct {
	RW     int64 // its writable layer
	RootFS int64 // image and writable layer
}
