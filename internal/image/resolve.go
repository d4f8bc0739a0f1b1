package image

import (
	"context"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// FamiliarTag is the short way to write a name with its tag; "" stays.
func FamiliarTag(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(reference.TagNameOnly(n))
}

// Resolve gives the ids of the images that references mean now, of one moment.
// References that mean none are left out.
func (s *Store) Resolve(ctx context.Context, refs []string) (map[string]digest.Digest, error) {
	out := make(map[string]digest.Digest, len(refs))
	if len(refs) == 0 {
		return out, nil
	}
	all, err := s.records.List(in(ctx))
	if err != nil {
		return nil, fmt.Errorf("cannot list images: %w", err)
	}
	tried := make(map[string]bool, len(refs))
	for _, ref := range refs {
		if tried[ref] {
			continue
		}
		tried[ref] = true
		if id, _, err := find(all, ref); err == nil {
			out[ref] = id
		}
	}
	return out, nil
}
