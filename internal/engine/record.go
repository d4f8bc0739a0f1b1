package engine

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/isolation"
	"proa/internal/state"
)

// records holds one record per container under its id. The name stands in the
// record and nowhere else: the map of names in memory is made from them.
var records = state.NewBucket[record]("engine.containers")

// record is what lasts of a container. What was wanted is written once at
// create (Update and Rename change it); the rest follows its life.
type record struct {
	ID         string                               `json:"id"`
	Name       string                               `json:"name"`
	Created    time.Time                            `json:"created"`
	Config     *container.Config                    `json:"config"`
	Host       *container.HostConfig                `json:"host"`
	Networking map[string]*network.EndpointSettings `json:"networking,omitempty"`
	ImageID    digest.Digest                        `json:"imageID"`
	ImageRef   string                               `json:"imageRef"`
	Image      ocispec.Descriptor                   `json:"image"`
	Platform   ocispec.Platform                     `json:"platform"`
	Kind       isolation.Kind                       `json:"kind"`
	Mounts     []MountPlan                          `json:"mounts,omitempty"`
	Warnings   []string                             `json:"warnings,omitempty"`
	UserNS     bool                                 `json:"userNS"`

	State         State     `json:"state"`
	Pid           int       `json:"pid,omitempty"`
	StartedAt     time.Time `json:"startedAt,omitzero"`
	FinishedAt    time.Time `json:"finishedAt,omitzero"`
	ExitCode      int       `json:"exitCode"`
	OOMKilled     bool      `json:"oomKilled,omitempty"`
	Error         string    `json:"error,omitempty"`
	RestartCount  int       `json:"restartCount,omitempty"`
	StoppedByUser bool      `json:"stoppedByUser,omitempty"`
	// BootID is that of the boot in which it was last started: processes of
	// another boot are gone, whatever State says.
	BootID string `json:"bootID,omitempty"`
	// Usage is the last reading of its latest run; nil while it runs, and where
	// nobody could take one.
	Usage *isolation.Usage `json:"usage,omitempty"`
	// Health has the results of the latest checks, also of earlier runs; nil
	// before the first run, and without a check. It is saved with other changes.
	Health *container.Health `json:"health,omitempty"`
	// DropVolumes is set with Removing: anonymous volumes go as well.
	DropVolumes bool `json:"dropVolumes,omitempty"`
}

// argv splits what runs into Docker's Path and Args.
func argv(c *container.Config) (string, []string) {
	all := slices.Concat(c.Entrypoint, c.Cmd)
	if len(all) == 0 {
		return "", nil
	}
	return all[0], all[1:]
}

// snapshot makes what readers see. Maps and pointers that the engine may
// replace later are replaced whole, never changed in place, so they are shared.
func (r *record) snapshot(l *live) *Container {
	c := &Container{
		ID: r.ID, Name: r.Name, Created: r.Created, Config: r.Config, Host: r.Host, Networking: r.Networking,
		ImageID: r.ImageID, ImageRef: r.ImageRef, Image: r.Image, Platform: r.Platform, Kind: r.Kind,
		Warnings: r.Warnings, UserNS: r.UserNS,
		State: r.State, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, ExitCode: r.ExitCode, OOMKilled: r.OOMKilled,
		Error: r.Error, RestartCount: r.RestartCount, StoppedByUser: r.StoppedByUser,
		Mounts: l.points,
	}
	c.Path, c.Args = argv(r.Config)
	if r.State.alive() {
		c.Pid = r.Pid
		c.Endpoint, c.Ports = l.endpoint, l.ports
		c.ResolvConfPath, c.HostsPath, c.HostnamePath = l.resolv, l.hosts, l.hostname
	}
	c.Health, c.LogPath = r.Health, l.logPath
	for id, x := range l.execs {
		if x.running || !x.started {
			c.ExecIDs = append(c.ExecIDs, id)
		}
	}
	slices.Sort(c.ExecIDs)
	return c
}
