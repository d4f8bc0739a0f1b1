package image

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/interrupt"
	"proa/internal/platform"
)

// Save writes one uncompressed tar that is a docker archive and an OCI layout
// at once, with every blob as it is, so that no digest changes. The same
// images give the same bytes. A name without a tag means all tags of that
// repository, as docker save has it; an id is saved without a name. Of an index
// goes what is here, or only what is for some platforms: where that is not all
// of it, one manifest takes its place, or a shorter index, so that the archive
// holds all that it names. PlanSave finds out what to write: nothing is written when
// an image is missing or incomplete, or has none of the platforms
// (errdefs.ErrNotFound).
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string, only ...ocispec.Platform) error {
	write, end, err := s.PlanSave(ctx, refs, only)
	if err != nil {
		return err
	}
	defer end()
	return write(ctx, w)
}

// PlanSave is the part of Save before its first byte. What write needs is kept
// until end is called.
func (s *Store) PlanSave(ctx context.Context, refs []string, only []ocispec.Platform) (write func(context.Context, io.Writer) error, end func(), err error) {
	fail := func(err error) error {
		if err != nil {
			err = fmt.Errorf("cannot save image: %w", err)
		}
		return err
	}
	if len(refs) == 0 {
		return nil, nil, fail(fmt.Errorf("no image named: %w", errdefs.ErrInvalidArgument))
	}
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return nil, nil, fail(err)
	}
	// Unlike other jobs this one makes nothing, and its client may be slow:
	// the lease alone keeps what it reads.
	j.detachWork()
	var p *savePlan
	chosen, err := s.choices(ctx, j, refs, true)
	if err == nil {
		p, err = s.plan(ctx, chosen, only)
	}
	if err != nil {
		return nil, nil, fail(j.end(ctx, err))
	}
	return func(ctx context.Context, w io.Writer) error { return fail(s.writeArchive(ctx, w, p)) },
		func() { s.warn(j.end(ctx, nil)) }, nil
}

// choices turns references into targets with names, and leases them. With whole
// set a name without a tag stands for all of its repository.
func (s *Store) choices(ctx context.Context, j *job, refs []string, whole bool) ([]candidate, error) {
	var out []candidate
	add := func(t ocispec.Descriptor, id digest.Digest, name string) {
		i := slices.IndexFunc(out, func(c candidate) bool { return c.target.Digest == t.Digest && c.want == id })
		if i < 0 {
			out = append(out, candidate{target: t, want: id})
			i = len(out) - 1
		}
		if name != "" && !slices.Contains(out[i].names, name) {
			out[i].names = append(out[i].names, name)
		}
	}
	err := s.meta.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(in(ctx), tx)
		all, err := s.records.List(ctx)
		if err != nil {
			return fmt.Errorf("cannot list images: %w", err)
		}
		for _, ref := range refs {
			if repo, ok := wholeRepository(all, ref); ok && whole {
				for _, r := range repo {
					if isTagged(r) {
						add(r.Target, recordID(r), r.Name)
					} else {
						add(r.Target, recordID(r), "")
					}
				}
				continue
			}
			id, name, err := find(all, ref)
			if err != nil {
				return err
			}
			t := targetOf(all, id)
			for _, r := range all {
				if r.Name == name {
					t = r.Target
				}
			}
			add(t, id, name)
		}
		for _, c := range out {
			if err := s.leases.AddResource(ctx, j.lease, leases.Resource{ID: c.target.Digest.String(), Type: "content"}); err != nil {
				return fmt.Errorf("cannot lease %s: %w", c.target.Digest, err)
			}
		}
		return nil
	})
	for i := range out {
		slices.Sort(out[i].names)
	}
	return out, err
}

// wholeRepository gives the records that a name without a tag stands for.
func wholeRepository(all []images.Image, ref string) ([]images.Image, bool) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil || !reference.IsNameOnly(n) {
		return nil, false
	}
	var out []images.Image
	for _, r := range all {
		if m, err := reference.ParseNormalizedNamed(r.Name); err == nil && m.Name() == n.Name() {
			out = append(out, r)
		}
	}
	return out, len(out) > 0
}

// savePlan is all that an archive will hold.
type savePlan struct {
	docs  map[string][]byte
	blobs []ocispec.Descriptor     // by digest
	made  map[digest.Digest][]byte // the blobs that are not in the store
}

// narrow gives what an archive or a push holds of a candidate: its target if all
// of that is here and wanted, else the one manifest or, in doc, a new index of
// the manifests that are. Attestations go with the manifests that they are for.
func (s *Store) narrow(ctx context.Context, c candidate, only []ocispec.Platform) (_ candidate, doc []byte, err error) {
	if !images.IsIndexType(c.target.MediaType) {
		if len(only) == 0 {
			return c, nil, nil
		}
	}
	all, err := s.variants(ctx, c.target, 0)
	if err != nil {
		return c, nil, err
	}
	name := short(c.want)
	if len(c.names) > 0 {
		name = familiar(c.names[0])
	}
	for _, p := range only {
		if indexOf(all, platform.Exact(p)) < 0 {
			return c, nil, missing(name, p, all)
		}
	}
	wanted := candidate{only: only}
	keep := map[digest.Digest]bool{}
	var pictures []Variant
	for _, v := range all {
		if v.ID != "" && v.Available && wanted.matches(*v.Platform) {
			keep[v.Desc.Digest] = true
			pictures = append(pictures, v)
		}
	}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, v := range all {
		if keep[v.Desc.Digest] || v.Attestation && v.Available && keep[v.For] || v.Available && v.ID == "" && !v.Attestation && len(only) == 0 {
			idx.Manifests = append(idx.Manifests, v.Desc)
		}
	}
	if len(pictures) == 0 {
		return c, nil, nil // resolve tells what is wrong
	}
	if len(idx.Manifests) == len(all) {
		return c, nil, nil
	}
	of := make([]ocispec.Platform, len(pictures))
	for i, v := range pictures {
		of[i] = *v.Platform
	}
	if best := pictures[platform.Best(of)]; len(only) > 0 {
		c.want = best.ID // the image that readers of manifest.json get
	}
	if len(pictures) == 1 {
		c.target, c.want = pictures[0].Desc, pictures[0].ID
		return c, nil, nil
	}
	doc, err = json.Marshal(idx)
	if err != nil {
		return c, nil, fmt.Errorf("cannot encode an image index: %w", err)
	}
	c.part = ocispec.Descriptor{MediaType: idx.MediaType, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	c.kids = idx.Manifests
	return c, doc, nil
}

func (s *Store) plan(ctx context.Context, chosen []candidate, only []ocispec.Platform) (*savePlan, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var list []entry
	repos := map[string]map[string]string{}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	blobs := map[digest.Digest]ocispec.Descriptor{}
	made := map[digest.Digest][]byte{}
	for _, c := range chosen {
		c, doc, err := s.narrow(ctx, c, only)
		if err != nil {
			return nil, err
		}
		img, err := s.resolve(ctx, c)
		if err != nil {
			return nil, err
		}
		tops := []ocispec.Descriptor{c.target}
		if doc != nil {
			tops, c.target = c.kids, c.part
			made[c.part.Digest] = doc
			blobs[c.part.Digest] = c.part
		}
		for _, top := range tops {
			if err := s.walk(ctx, top, func(d ocispec.Descriptor, _ []ocispec.Descriptor) error {
				info, err := s.blobs.Info(in(ctx), d.Digest)
				if err != nil {
					return fmt.Errorf("cannot find blob %s: %w", d.Digest, err)
				}
				blobs[d.Digest] = ocispec.Descriptor{Digest: d.Digest, Size: info.Size}
				return nil
			}); err != nil {
				return nil, err
			}
		}
		e := entry{Config: blobName(img.id)}
		for _, l := range img.manifest.Layers {
			e.Layers = append(e.Layers, blobName(l.Digest))
		}
		for _, n := range c.names {
			e.RepoTags = append(e.RepoTags, familiar(n))
			repo, tag := repository(n), ""
			if t, err := parseName(n); err == nil {
				tag = t.Tag()
			}
			if n := len(img.manifest.Layers); n > 0 { // it names the topmost layer
				if repos[repo] == nil {
					repos[repo] = map[string]string{}
				}
				repos[repo][tag] = img.manifest.Layers[n-1].Digest.Encoded()
			}
			d := c.target
			d.Annotations = map[string]string{images.AnnotationImageName: n, ocispec.AnnotationRefName: tag}
			idx.Manifests = append(idx.Manifests, d)
		}
		if len(c.names) == 0 {
			idx.Manifests = append(idx.Manifests, c.target)
		}
		list = append(list, e)
	}
	p := &savePlan{docs: map[string][]byte{}, made: made}
	docs := map[string]any{
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
		ocispec.ImageIndexFile:  idx,
		dockerManifest:          list,
	}
	if len(repos) > 0 {
		docs[dockerRepos] = repos
	}
	for name, v := range docs {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("cannot encode %q: %w", name, err)
		}
		p.docs[name] = raw
	}
	for _, d := range blobs {
		p.blobs = append(p.blobs, d)
	}
	slices.SortFunc(p.blobs, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return p, nil
}

func blobName(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

// writeArchive writes the plan: documents first, so that a reader knows what
// is coming.
func (s *Store) writeArchive(ctx context.Context, w io.Writer, p *savePlan) error {
	tw := tar.NewWriter(w)
	header := func(name string, size int64) error {
		h := &tar.Header{Name: name, Size: size, Mode: 0o644, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("cannot write %q: %w", name, err)
		}
		return nil
	}
	names := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile, dockerManifest, dockerRepos}
	for _, name := range names {
		raw, ok := p.docs[name]
		if !ok {
			continue
		}
		if err := header(name, int64(len(raw))); err != nil {
			return err
		}
		if _, err := tw.Write(raw); err != nil {
			return fmt.Errorf("cannot write %q: %w", name, err)
		}
	}
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := header(d, 0); err != nil {
			return err
		}
	}
	buf := make([]byte, 256<<10)
	for _, d := range p.blobs {
		if err := header(blobName(d.Digest), d.Size); err != nil {
			return err
		}
		if raw, ok := p.made[d.Digest]; ok {
			if _, err := tw.Write(raw); err != nil {
				return fmt.Errorf("cannot write blob %s: %w", d.Digest, err)
			}
			continue
		}
		ra, err := s.blobs.ReaderAt(in(ctx), d)
		if err != nil {
			return fmt.Errorf("cannot read blob %s: %w", d.Digest, err)
		}
		_, err = io.CopyBuffer(onlyWriter{tw}, interrupt.Reader(ctx, content.NewReader(ra)), buf)
		if err = cmp.Or(err, ra.Close()); err != nil {
			return fmt.Errorf("cannot write blob %s: %w", d.Digest, err)
		}
	}
	return tw.Close()
}
