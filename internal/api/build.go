package api

import (
	"context"
	"net/http"
	"strconv"

	"github.com/moby/moby/api/types/build"

	"proa/internal/builder"
	"proa/internal/event"
	"proa/internal/filters"
)

// The builder answers these itself; the engine passes them on.

func (s *Server) build(c *call) error { return s.Builders.Build(c.ResponseWriter, c.Request) }

func (s *Server) buildCancel(c *call) error { return s.Builders.Cancel(c.ResponseWriter, c.Request) }

func (s *Server) grpc(c *call) error { return s.Builders.GRPC(c.ResponseWriter, c.Request) }

func (s *Server) session(c *call) error { return s.Builders.Session(c.ResponseWriter, c.Request) }

func (s *Server) buildPrune(c *call) error {
	f, err := c.filters(&filters.BuildPrune)
	if err != nil {
		return err
	}
	s.Images.Snapshots().Tidy()
	gone := builder.Pruned{CachesDeleted: []string{}}
	if !f.Has("label") { // no record has labels
		if gone, err = s.Builders.Prune(c.Context(), c.URL.Query()); err != nil {
			return err
		}
	}
	s.Publish(event.BuilderPrune.Of("", nil, strconv.FormatUint(gone.SpaceReclaimed, 10)))
	return c.reply(http.StatusOK, build.CachePruneReport{CachesDeleted: gone.CachesDeleted, SpaceReclaimed: gone.SpaceReclaimed})
}

// buildUsage is what the build cache uses, record by record.
func (s *Server) buildUsage(ctx context.Context) (*build.DiskUsage, error) {
	all, err := s.Builders.Usage(ctx)
	if err != nil {
		return nil, err
	}
	out := &build.DiskUsage{TotalCount: int64(len(all)), Items: []build.CacheRecord{}}
	for _, r := range all {
		out.Items = append(out.Items, build.CacheRecord{
			ID: r.ID, Parents: r.Parents, Type: r.Type, Description: r.Description, InUse: r.InUse, Shared: r.Shared,
			Size: r.Size, CreatedAt: r.CreatedAt, LastUsedAt: r.LastUsedAt, UsageCount: r.UsageCount,
		})
		if r.InUse {
			out.ActiveCount++
		}
		if r.Shared {
			continue // counted with the images
		}
		out.TotalSize += r.Size
		if !r.InUse {
			out.Reclaimable += r.Size
		}
	}
	return out, nil
}
