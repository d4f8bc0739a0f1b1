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
)

// Save writes one uncompressed tar that is a docker archive and an OCI layout
// at once, with every blob as it is, so that no digest changes. The same
// images give the same bytes. A name without a tag means all tags of that
// repository, as docker save has it; an id is saved without a name. Nothing
// is written when an image is missing or incomplete.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot save image: %w", err)
		}
	}()
	if len(refs) == 0 {
		return fmt.Errorf("no image named: %w", errdefs.ErrInvalidArgument)
	}
	ctx, j, err := s.begin(ctx)
	if err != nil {
		return err
	}
	// Unlike other jobs this one makes nothing, and its client may be slow:
	// the lease alone keeps what it reads.
	j.detachWork()
	defer func() { err = j.end(ctx, err) }()
	chosen, err := s.choices(ctx, j, refs)
	if err != nil {
		return err
	}
	p, err := s.plan(ctx, chosen)
	if err != nil {
		return err
	}
	return s.writeArchive(ctx, w, p)
}

// choices turns references into targets with names, and leases them.
func (s *Store) choices(ctx context.Context, j *job, refs []string) ([]candidate, error) {
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
			if repo, ok := wholeRepository(all, ref); ok {
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
	blobs []ocispec.Descriptor // by digest
}

func (s *Store) plan(ctx context.Context, chosen []candidate) (*savePlan, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var list []entry
	repos := map[string]map[string]string{}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	blobs := map[digest.Digest]ocispec.Descriptor{}
	for _, c := range chosen {
		img, err := s.resolve(ctx, c)
		if err != nil {
			return nil, err
		}
		if err := s.walk(ctx, c.target, func(d ocispec.Descriptor, _ []ocispec.Descriptor) error {
			info, err := s.blobs.Info(in(ctx), d.Digest)
			if err != nil {
				return fmt.Errorf("cannot find blob %s: %w", d.Digest, err)
			}
			blobs[d.Digest] = ocispec.Descriptor{Digest: d.Digest, Size: info.Size}
			return nil
		}); err != nil {
			return nil, err
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
	p := &savePlan{docs: map[string][]byte{}}
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
