package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/flat"
)

// verify checks a store that is at rest, by reading every byte of it.
func (s *Store) verify(ctx context.Context) error {
	if err := s.clean(ctx); err != nil {
		return err
	}
	recs, err := s.records.List(in(ctx))
	if err != nil {
		return err
	}
	var errs []error
	blobs, layers, chains := map[digest.Digest]bool{}, map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, r := range recs {
		img, err := s.resolve(ctx, candidate{target: r.Target, want: recordID(r)})
		if err != nil {
			errs = append(errs, fmt.Errorf("record %q: %w", r.Name, err))
			continue
		}
		if err := s.walk(ctx, r.Target, func(d ocispec.Descriptor, _ []ocispec.Descriptor) error {
			blobs[d.Digest] = true
			return nil
		}); err != nil {
			errs = append(errs, err)
		}
		chains[img.config.chain] = true
		var stack []*flat.Layer
		for _, d := range img.config.oci.RootFS.DiffIDs {
			layers[d] = true
			l, err := flat.ReadLayer(s.layerDir(d))
			if err != nil {
				errs = append(errs, fmt.Errorf("record %q: layer %s: %w", r.Name, d, err))
				continue
			}
			stack = append(stack, l)
		}
		errs = append(errs, s.verifyLayers(ctx, img))
		if len(stack) == len(img.config.oci.RootFS.DiffIDs) {
			errs = append(errs, s.verifyIndex(img.config.chain, stack))
		}
	}
	// Of the disk, every file must be one of those.
	want := map[string]bool{}
	for d := range blobs {
		want["content/blobs/sha256/"+d.Encoded()] = true
		if err := s.verifyBlob(ctx, d); err != nil {
			errs = append(errs, err)
		}
	}
	for d := range layers {
		want["flat/"+d.Encoded()+"/data"], want["flat/"+d.Encoded()+"/tree"] = true, true
	}
	for d := range chains {
		want["index/"+d.Encoded()] = true
	}
	err = filepath.WalkDir(s.cfg.Root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(s.cfg.Root, p)
		if at, ok := strings.CutPrefix(rel, "owners/"); ok && chains[digest.NewDigestFromEncoded(digest.SHA256, at)] {
			return nil // they may be missing: they are made when they are asked for
		}
		if !want[rel] {
			errs = append(errs, fmt.Errorf("nobody needs the file %q", rel))
		}
		delete(want, rel)
		return nil
	})
	for rel := range want {
		errs = append(errs, fmt.Errorf("there is no file %q", rel))
	}
	// And of the database, nothing but records and holders.
	all, lerr := s.leases.List(in(ctx))
	for _, l := range all {
		if strings.HasPrefix(l.ID, workPrefix) {
			errs = append(errs, fmt.Errorf("lease %q is left", l.ID))
		}
	}
	werr := s.blobs.Walk(in(ctx), func(info content.Info) error {
		if !blobs[info.Digest] {
			errs = append(errs, fmt.Errorf("nobody needs blob %s", info.Digest))
		}
		return nil
	})
	return errors.Join(append(errs, err, lerr, werr)...)
}

func (s *Store) verifyBlob(ctx context.Context, d digest.Digest) error {
	f, err := os.Open(filepath.Join(s.cfg.Root, "content/blobs/sha256", d.Encoded()))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, h); got != d {
		return fmt.Errorf("blob %s has the content of %s", d, got)
	}
	return nil
}

// verifyLayers makes every flat layer of an image once more from its blob and
// compares the bytes.
func (s *Store) verifyLayers(ctx context.Context, img *ready) error {
	dir, err := os.MkdirTemp("", "proa-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var errs []error
	for i, l := range img.manifest.Layers {
		diffID := img.config.oci.RootFS.DiffIDs[i]
		r, err := s.readFrom(ctx, l.Digest, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		z, _, err := decompress(r)
		if err == nil {
			_, err = flat.Write(ctx, z, dir, flat.Limits{Want: diffID})
			z.Close()
		}
		r.Close()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, name := range []string{"data", "tree"} {
			a, aerr := os.ReadFile(filepath.Join(s.layerDir(diffID), name))
			b, berr := os.ReadFile(filepath.Join(dir, diffID.Encoded(), name))
			if err := errors.Join(aerr, berr); err != nil {
				errs = append(errs, err)
			} else if !bytes.Equal(a, b) {
				errs = append(errs, fmt.Errorf("%s of layer %s is not what its blob makes", name, diffID))
			}
		}
	}
	return errors.Join(errs...)
}

// verifyIndex makes an index once more and compares the bytes.
func (s *Store) verifyIndex(chain digest.Digest, stack []*flat.Layer) error {
	dir, err := os.MkdirTemp("", "proa-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := flat.Merge(stack, filepath.Join(dir, "index")); err != nil {
		return err
	}
	a, aerr := os.ReadFile(s.indexPath(chain))
	b, berr := os.ReadFile(filepath.Join(dir, "index"))
	if err := errors.Join(aerr, berr); err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return fmt.Errorf("index %s is not what its layers make", chain)
	}
	return nil
}
