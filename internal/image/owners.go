package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"proa/internal/image/flat"
)

// Owner is an id above 65535 that a file of an image belongs to.
type Owner = flat.Owner

func (s *Store) ownersPath(chain digest.Digest) string {
	return filepath.Join(s.cfg.Root, "owners", dir(chain))
}

// keepOwners writes the owners of a stack of layers next to its index. It is not
// synced: a file that a power cut left empty is made again.
func (s *Store) keepOwners(chain digest.Digest, owners []Owner) error {
	text, err := json.Marshal(owners)
	if err != nil {
		return err
	}
	at := s.ownersPath(chain)
	f, err := os.CreateTemp(filepath.Dir(at), flat.TempPrefix)
	if err != nil {
		return fmt.Errorf("cannot keep the owners of an image's files: %w", err)
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), at)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("cannot keep the owners of an image's files: %w", err)
	}
	return nil
}

// Owners lists the ids above 65535 that files of the image with this full id
// belong to, in ascending order, at most 1024 of them.
func (s *Store) Owners(ctx context.Context, id string) ([]Owner, error) {
	defer s.share()()
	p, err := s.config(ctx, digest.Digest(id))
	if err != nil {
		return nil, err
	}
	s.cacheMu.Lock()
	known := p.owners
	s.cacheMu.Unlock()
	if known != nil {
		return *known, nil
	}
	var owners []Owner
	text, err := os.ReadFile(s.ownersPath(p.chain))
	switch {
	case err == nil && json.Unmarshal(text, &owners) == nil:
	case err == nil || errors.Is(err, fs.ErrNotExist): // an index from before they were kept
		var layers []*flat.Layer
		for _, d := range p.oci.RootFS.DiffIDs {
			l, err := flat.ReadLayer(s.layerDir(d))
			if err != nil {
				return nil, fmt.Errorf("layer %s: %w", d, err)
			}
			layers = append(layers, l)
		}
		if owners, err = flat.Owners(layers); err != nil {
			return nil, err
		}
		if err := s.keepOwners(p.chain, owners); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("cannot read the owners of an image's files: %w", err)
	}
	s.cacheMu.Lock()
	p.owners = &owners
	s.cacheMu.Unlock()
	return owners, nil
}
