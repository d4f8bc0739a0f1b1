package api

import (
	"encoding/json"
	"strings"

	imagetypes "github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image"
)

// platforms reads the platform parameters of a request, JSON of the OCI type.
// Before the API version since they did not exist and are not read, as in
// Docker; before many one value is allowed.
func (c *call) platforms(name string, since, many int) ([]ocispec.Platform, error) {
	values := c.URL.Query()[name]
	if c.version < since {
		return nil, nil
	}
	var out []ocispec.Platform
	for _, v := range values {
		if v == "" || v == "null" {
			continue
		}
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(v), &p); err != nil {
			return nil, bad("failed to parse platform: %w", err)
		}
		if p.OS == "" || p.Architecture == "" {
			if p.OS == "" && p.Architecture == "" && (p.Variant != "" || p.OSVersion != "" || len(p.OSFeatures) > 0) {
				return nil, bad("optional platform fields provided, but OS and Architecture are missing")
			}
			return nil, bad("both OS and Architecture must be provided")
		}
		out = append(out, p)
	}
	if len(out) > 1 && c.version < many {
		return nil, bad("multiple platform parameters are not supported in this API version; use API version 1.%d or later", many)
	}
	return out, nil
}

// never is a version in which a parameter never takes several values.
const never = 1 << 30

// platform reads a platform parameter that takes one value; nil if it is not
// there.
func (c *call) platform(since int) (*ocispec.Platform, error) {
	list, err := c.platforms("platform", since, never)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	return &list[0], nil
}

// manifests shows the manifests of an image as API 1.47 and later have them.
func (s *Server) manifests(c *call, img *image.Image) ([]imagetypes.ManifestSummary, error) {
	all, err := s.Images.Variants(c.Context(), img)
	if err != nil {
		return nil, err
	}
	out := make([]imagetypes.ManifestSummary, 0, len(all))
	for _, v := range all {
		m := imagetypes.ManifestSummary{ID: v.Desc.Digest.String(), Descriptor: v.Desc, Available: v.Available, Kind: imagetypes.ManifestKindUnknown}
		m.Size.Content, m.Size.Total = v.Content, v.Content+v.Unpacked
		switch {
		case v.Attestation:
			m.Kind = imagetypes.ManifestKindAttestation
			m.AttestationData = &imagetypes.AttestationProperties{For: v.For}
		case v.Platform != nil:
			m.Kind = imagetypes.ManifestKindImage
			m.ImageData = &imagetypes.ImageProperties{Platform: *v.Platform, Containers: []string{}}
			m.ImageData.Size.Unpacked = v.Unpacked
			for _, h := range v.Holders {
				if id, ok := strings.CutPrefix(h, "container/"); ok {
					m.ImageData.Containers = append(m.ImageData.Containers, id)
				}
			}
		}
		out = append(out, m)
	}
	return out, nil
}
