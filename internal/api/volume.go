package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	volumetypes "github.com/moby/moby/api/types/volume"

	"proa/internal/volume"
)

func volumeShape(v *volume.Volume) volumetypes.Volume {
	out := volumetypes.Volume{
		Name: v.Name, Driver: v.Driver, Mountpoint: v.Mountpoint, Labels: v.Labels, Options: v.Options, Scope: "local",
		CreatedAt: v.Created.UTC().Format(time.RFC3339),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
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
	s.Publish("volume", "create", v.Name, map[string]string{"driver": v.Driver})
	return c.reply(http.StatusCreated, volumeShape(v))
}

func (s *Server) volumeList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	for k := range f {
		if !slices.Contains([]string{"name", "driver", "label", "dangling"}, k) {
			return bad("invalid filter '%s'", k)
		}
	}
	all, err := s.Volumes.List(c.Context())
	if err != nil {
		return err
	}
	users, err := s.Volumes.Holders(c.Context())
	if err != nil {
		return err
	}
	out := volumetypes.ListResponse{Volumes: []volumetypes.Volume{}, Warnings: []string{}}
	for _, v := range all {
		if volumeMatches(v, len(users[v.Name]), f) {
			out.Volumes = append(out.Volumes, volumeShape(v))
		}
	}
	return c.reply(http.StatusOK, out)
}

func volumeMatches(v *volume.Volume, users int, f map[string][]string) bool {
	if names := f["name"]; len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(v.Name, n) }) {
		return false
	}
	if !matches(f["driver"], v.Driver) {
		return false
	}
	for _, l := range f["label"] {
		k, want, has := strings.Cut(l, "=")
		got, ok := v.Labels[k]
		if !ok || has && got != want {
			return false
		}
	}
	for _, d := range f["dangling"] {
		if (d == "true" || d == "1") != (users == 0) {
			return false
		}
	}
	return true
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
	s.Publish("volume", "destroy", name, map[string]string{"driver": "local"})
	return c.noContent()
}

func (s *Server) volumePrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	// Before API 1.42 every unused volume went, since then only unnamed ones.
	all := c.version < 42
	for _, v := range f["all"] {
		all = v == "true" || v == "1"
	}
	gone, bytes, err := s.Volumes.Prune(c.Context(), all, f)
	if err != nil {
		return err
	}
	for _, name := range gone {
		s.Publish("volume", "destroy", name, map[string]string{"driver": "local"})
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
