package api

import (
	"context"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	volumetypes "github.com/moby/moby/api/types/volume"

	"proa/internal/filters"
	"proa/internal/volume"
)

func volumeShape(v *volume.Volume) volumetypes.Volume {
	return volumetypes.Volume{
		Name: v.Name, Driver: v.Driver, Mountpoint: v.Mountpoint, Labels: v.Labels, Options: v.Options, Scope: "local",
		CreatedAt: v.Created.UTC().Format(time.RFC3339),
	}
}

func (s *Server) volumeCreate(c *call) error {
	var r volumetypes.CreateRequest
	if err := c.decode(&r, true); err != nil {
		return err
	}
	if r.ClusterVolumeSpec != nil {
		return bad("cannot create a cluster volume: this engine is one node")
	}
	v, err := s.Volumes.Create(c.Context(), r.Name, r.Driver, r.Labels, r.DriverOpts)
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, volumeShape(v))
}

func (s *Server) volumeList(c *call) error {
	f, err := c.filters(&filters.Volumes)
	if err != nil {
		return err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return err
	}
	all, err := s.Volumes.List(c.Context())
	if err != nil {
		return err
	}
	users, err := s.Volumes.Holders(c.Context())
	if err != nil {
		return err
	}
	out := volumetypes.ListResponse{Volumes: []volumetypes.Volume{}}
	for _, v := range all {
		if f.Has("dangling") && dangling != (len(users[v.Name]) == 0) {
			continue
		}
		if f.Pattern("name", v.Name) && f.Exact("driver", v.Driver) && f.Labels(v.Labels) {
			out.Volumes = append(out.Volumes, volumeShape(v))
		}
	}
	return c.reply(http.StatusOK, out)
}

func (s *Server) volumeInspect(c *call) error {
	v, err := s.Volumes.Get(c.Context(), c.PathValue("name"))
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, volumeShape(v))
}

// volumeUpdate is for volumes of a swarm.
func (s *Server) volumeUpdate(*call) error {
	return &refusal{errdefs.ErrUnavailable, "volume update only valid for cluster volumes, but swarm is unavailable"}
}

func (s *Server) volumeRemove(c *call) error {
	name := c.PathValue("name")
	if err := s.Volumes.Remove(c.Context(), name, c.flag("force")); err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) volumePrune(c *call) error {
	f, err := filters.Parse(c.query("filters"))
	if err != nil {
		return err
	}
	if c.version < 42 { // then every unused volume went, since then only unnamed ones
		f.Add("all", "true")
	}
	gone, bytes, err := s.Volumes.Prune(c.Context(), f)
	if err != nil {
		return err
	}
	return c.reply(http.StatusOK, volumetypes.PruneReport{VolumesDeleted: nonNil(gone), SpaceReclaimed: uint64(bytes)})
}

func (s *Server) volumeUsage(ctx context.Context) (*volumetypes.DiskUsage, error) {
	list, err := s.Volumes.Usage(ctx)
	if err != nil {
		return nil, err
	}
	out := &volumetypes.DiskUsage{TotalCount: int64(len(list)), Items: []volumetypes.Volume{}}
	for _, u := range list {
		v := volumeShape(u.Volume)
		v.UsageData = &volumetypes.UsageData{RefCount: int64(u.Users), Size: u.Size}
		out.Items = append(out.Items, v)
		out.TotalSize += u.Size
		if u.Users > 0 {
			out.ActiveCount++
		} else {
			out.Reclaimable += u.Size
		}
	}
	return out, nil
}
