package api

import (
	"context"
	"strings"

	"github.com/distribution/reference"

	"proa/internal/event"
	"proa/internal/image"
)

// imageEvent publishes what happened to the image that ref means; name "" is
// its id.
func (s *Server) imageEvent(ctx context.Context, row *event.Row, ref, name string) {
	img, err := s.Images.Get(context.WithoutCancel(ctx), ref)
	if err != nil {
		return // removed meanwhile
	}
	if name == "" {
		name = img.ID.String()
	}
	s.Publish(row.Of(img.ID.String(), img.Config.Config.Labels, name))
}

// transferEvent publishes a pull or a push, whose actor is the name.
func (s *Server) transferEvent(ctx context.Context, row *event.Row, ref string, named reference.Named) {
	var labels map[string]string
	if img, err := s.Images.Get(context.WithoutCancel(ctx), ref); err == nil {
		labels = img.Config.Config.Labels
	}
	s.Publish(row.Of(ref, labels, reference.FamiliarName(named)))
}

// removalEvents publishes what a removal or a prune did to images, which are
// those from before it. The digest that goes with the last tag of a
// repository has no event of its own.
func (s *Server) removalEvents(gone []image.Removed, before []*image.Image) {
	owner := func(name string) *image.Image {
		for _, img := range before {
			for _, n := range append(append([]string{img.ID.String()}, img.Names...), img.Digests...) {
				if n == name {
					return img
				}
			}
		}
		return nil
	}
	tagged := map[*image.Image]bool{}
	for _, g := range gone {
		name := g.Untagged
		if g.Deleted != "" {
			s.Publish(event.ImageDelete.Of(g.Deleted, nil, g.Deleted))
			continue
		}
		img := owner(name)
		if img == nil || strings.Contains(name, "@") && tagged[img] {
			continue
		}
		tagged[img] = true
		s.Publish(event.ImageUntag.Of(img.ID.String(), img.Config.Config.Labels, name))
	}
}
