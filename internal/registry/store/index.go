package store

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/state"
)

// The index. Keys are joined by NUL, which no name, tag or digest contains,
// so that a prefix never matches half a word.
var (
	// links say which repository a blob is visible in: digest, repository.
	// A file without any is nobody's.
	links = state.NewBucket[link]("registry.link")
	// manifests: repository, digest.
	manifests = state.NewBucket[manifest]("registry.manifest")
	// tags: repository, tag.
	tags = state.NewBucket[digest.Digest]("registry.tag")
	// uses are why a link stays: digest, repository, digest of the manifest
	// that names it (or is it).
	uses = state.NewBucket[struct{}]("registry.use")
	// referrers: repository, digest of the subject, digest of the manifest.
	referrers = state.NewBucket[struct{}]("registry.referrer")
)

const sep = "\x00"

func key(words ...string) string { return strings.Join(words, sep) }

func lastWord(key string) string { return key[strings.LastIndex(key, sep)+1:] }

type link struct {
	Size int64 `json:"size"`
	// Touched is when the blob was pushed, mounted or asked for while no
	// manifest named it, in seconds since 1970.
	Touched int64 `json:"touched"`
}

// manifest is what the index keeps of a manifest; its bytes are a blob.
type manifest struct {
	MediaType    string            `json:"mediaType"`
	Size         int64             `json:"size"`
	Refs         []digest.Digest   `json:"refs,omitempty"`
	Subject      digest.Digest     `json:"subject,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Ref is content that a manifest names.
type Ref struct {
	Digest digest.Digest
	Size   int64
}

// Manifest is a manifest as it comes in: its bytes and what was read out of them.
type Manifest struct {
	MediaType    string
	Digest       digest.Digest // of Body
	Body         []byte
	Refs         []Ref         // must be in the repository
	Subject      digest.Digest // what it refers to, which need not be there; "" for nothing
	ArtifactType string        // shown in the list of its subject's referrers, as are the annotations
	Annotations  map[string]string
}

// MissingError says what a manifest names that is not in its repository.
type MissingError struct{ Missing []digest.Digest }

func (e *MissingError) Error() string {
	words := make([]string, len(e.Missing))
	for i, d := range e.Missing {
		words[i] = d.String()
	}
	return "the manifest names content that this repository does not have: push it first: " + strings.Join(words, ", ")
}

// Unwrap gives the kind, errdefs.ErrFailedPrecondition.
func (e *MissingError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// UsedError says that a blob cannot be deleted because a manifest names it.
type UsedError struct{ Blob, By digest.Digest }

func (e *UsedError) Error() string {
	return fmt.Sprintf("blob %s is used by manifest %s of this repository: delete that one first", e.Blob, e.By)
}

// Unwrap gives the kind, errdefs.ErrFailedPrecondition.
func (e *UsedError) Unwrap() error { return errdefs.ErrFailedPrecondition }

// link makes a blob visible in a repository. The caller holds life.
func (s *Store) link(repo string, d digest.Digest, size int64) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		return links.Put(tx, key(d.String(), repo), link{Size: size, Touched: time.Now().Unix()})
	})
}

func unknownBlob(repo string, d digest.Digest) error {
	return fmt.Errorf("repository %s has no blob %s: %w", repo, d, errdefs.ErrNotFound)
}

// OpenBlob opens a blob of a repository for reading. Not there is
// errdefs.ErrNotFound. A blob that no manifest names yet gets a new term by
// this: a client that has asked for it is about to name it.
func (s *Store) OpenBlob(repo string, d digest.Digest) (*os.File, error) {
	k := key(d.String(), repo)
	var l link
	used := false
	err := s.db.View(func(tx *bolt.Tx) (err error) {
		l, err = links.Get(tx, k)
		used = err == nil && inUse(tx, k)
		return err
	})
	if errdefs.IsNotFound(err) {
		return nil, unknownBlob(repo, d)
	}
	if err != nil {
		return nil, err
	}
	f, err := s.root.Open(blobFile(d))
	if errors.Is(err, fs.ErrNotExist) {
		// Collected since the look, or lost by the file system: either way it is not here.
		return nil, unknownBlob(repo, d)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open blob %s: %w", d, err)
	}
	if !used && time.Since(time.Unix(l.Touched, 0)) > s.cfg.KeepUnused/4 {
		if err := s.touch(k); err != nil {
			f.Close()
			if errdefs.IsNotFound(err) {
				return nil, unknownBlob(repo, d)
			}
			return nil, err
		}
	}
	return f, nil
}

func (s *Store) touch(k string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		l, err := links.Get(tx, k)
		if err != nil {
			return err
		}
		l.Touched = time.Now().Unix()
		return links.Put(tx, k, l)
	})
}

// inUse says whether a manifest uses the link with this key.
func inUse(tx *bolt.Tx, linkKey string) bool {
	_, found := first(uses, tx, linkKey+sep)
	return found
}

var errEnough = errors.New("enough")

// first gives the first key of a bucket that begins with prefix.
func first[T any](b state.Bucket[T], tx *bolt.Tx, prefix string) (found string, ok bool) {
	_ = b.ForEachPrefix(tx, prefix, func(k string, _ T) error {
		found, ok = k, true
		return errEnough
	})
	return found, ok
}

// Mount makes a blob that another repository has visible in this one, without
// a byte moved. An empty from means any. Nothing to mount is errdefs.ErrNotFound.
func (s *Store) Mount(repo, from string, d digest.Digest) error {
	s.life.RLock()
	defer s.life.RUnlock()
	size, have, err := s.hasFile(d)
	if err != nil {
		return err
	}
	if !have {
		return unknownBlob(from, d)
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		known := links.Has(tx, key(d.String(), from))
		if from == "" {
			_, known = first(links, tx, d.String()+sep)
		}
		if !known {
			return unknownBlob(from, d)
		}
		return links.Put(tx, key(d.String(), repo), link{Size: size, Touched: time.Now().Unix()})
	})
}

// DeleteBlob takes a blob out of a repository. Its file goes with the next
// collection, once no repository has it. Errors: errdefs.ErrNotFound, *UsedError.
func (s *Store) DeleteBlob(repo string, d digest.Digest) error {
	k := key(d.String(), repo)
	return s.db.Update(func(tx *bolt.Tx) error {
		if !links.Has(tx, k) {
			return unknownBlob(repo, d)
		}
		if by, used := first(uses, tx, k+sep); used {
			return &UsedError{Blob: d, By: digest.Digest(lastWord(by))}
		}
		return links.Delete(tx, k)
	})
}

// PutManifest stores a manifest and points the tags, if there are any, at it.
// When it returns nil everything is on disk; until then nothing of it can be
// seen. What it names must be in the repository with the size that it says:
// *MissingError, or errdefs.ErrInvalidArgument for a size that is another.
func (s *Store) PutManifest(repo string, m Manifest, tagged ...string) error {
	s.life.RLock()
	defer s.life.RUnlock()
	// A look ahead, so that a manifest that is refused writes no file. The
	// transaction looks again.
	if err := s.db.View(func(tx *bolt.Tx) error { return checkRefs(tx, repo, m.Refs) }); err != nil {
		return err
	}
	if err := s.writeBlob(m.Digest, m.Body); err != nil {
		return err
	}
	record := manifest{MediaType: m.MediaType, Size: int64(len(m.Body)), Subject: m.Subject, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	for _, r := range m.Refs {
		record.Refs = append(record.Refs, r.Digest)
	}
	d := m.Digest.String()
	return s.db.Update(func(tx *bolt.Tx) error {
		if err := checkRefs(tx, repo, m.Refs); err != nil {
			return err
		}
		errs := []error{
			links.Put(tx, key(d, repo), link{Size: record.Size, Touched: time.Now().Unix()}),
			manifests.Put(tx, key(repo, d), record),
			uses.Put(tx, key(d, repo, d), struct{}{}),
		}
		for _, r := range record.Refs {
			errs = append(errs, uses.Put(tx, key(r.String(), repo, d), struct{}{}))
		}
		if m.Subject != "" {
			errs = append(errs, referrers.Put(tx, key(repo, m.Subject.String(), d), struct{}{}))
		}
		for _, tag := range tagged {
			errs = append(errs, tags.Put(tx, key(repo, tag), m.Digest))
		}
		return errors.Join(errs...)
	})
}

func checkRefs(tx *bolt.Tx, repo string, refs []Ref) error {
	var missing MissingError
	for _, r := range refs {
		l, err := links.Get(tx, key(r.Digest.String(), repo))
		switch {
		case errdefs.IsNotFound(err):
			missing.Missing = append(missing.Missing, r.Digest)
		case err != nil:
			return err
		case l.Size != r.Size:
			return fmt.Errorf("the manifest says that %s has %d bytes, but it has %d: %w", r.Digest, r.Size, l.Size, errdefs.ErrInvalidArgument)
		}
	}
	if len(missing.Missing) > 0 {
		return &missing
	}
	return nil
}

// writeBlob stores small content. The caller holds life.
func (s *Store) writeBlob(d digest.Digest, body []byte) error {
	if _, have, err := s.hasFile(d); err != nil {
		return err
	} else if have {
		return s.syncDir(blobDir(d)) // somebody else may be only as far as the rename
	}
	// Not one of the uploads that are counted: who begins many must not keep
	// manifests out. One that a kill leaves is found as an upload and expires.
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	path := uploadsDir + "/" + uploadName("", hex.EncodeToString(id[:]))
	err := func() error {
		f, err := s.root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(body); err != nil {
			return err
		}
		return f.Sync()
	}()
	if err == nil {
		err = s.place(path, d)
	}
	if err != nil {
		_ = s.root.Remove(path)
		return fmt.Errorf("cannot store %s: %w", d, err)
	}
	return nil
}

// Resolve finds the manifest that a tag points to. No such tag is errdefs.ErrNotFound.
func (s *Store) Resolve(repo, tag string) (d digest.Digest, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		d, err = tags.Get(tx, key(repo, tag))
		return err
	})
	if errdefs.IsNotFound(err) {
		return "", fmt.Errorf("repository %s has no tag %s: %w", repo, tag, errdefs.ErrNotFound)
	}
	return d, err
}

// OpenManifest opens the bytes of a manifest. No such manifest in this
// repository is errdefs.ErrNotFound.
func (s *Store) OpenManifest(repo string, d digest.Digest) (mediaType string, f *os.File, err error) {
	var m manifest
	err = s.db.View(func(tx *bolt.Tx) error {
		m, err = manifests.Get(tx, key(repo, d.String()))
		return err
	})
	if errdefs.IsNotFound(err) {
		return "", nil, unknownManifest(repo, d)
	}
	if err != nil {
		return "", nil, err
	}
	f, err = s.root.Open(blobFile(d))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, unknownManifest(repo, d)
	}
	if err != nil {
		return "", nil, fmt.Errorf("cannot open manifest %s: %w", d, err)
	}
	return m.MediaType, f, nil
}

func unknownManifest(repo string, d digest.Digest) error {
	return fmt.Errorf("repository %s has no manifest %s: %w", repo, d, errdefs.ErrNotFound)
}

// DeleteTag takes a tag away. Its manifest stays, by digest. No such tag is
// errdefs.ErrNotFound.
func (s *Store) DeleteTag(repo, tag string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		if !tags.Has(tx, key(repo, tag)) {
			return fmt.Errorf("repository %s has no tag %s: %w", repo, tag, errdefs.ErrNotFound)
		}
		return tags.Delete(tx, key(repo, tag))
	})
}

// DeleteManifest takes a manifest out of a repository, and every tag that
// points to it. No such manifest is errdefs.ErrNotFound.
func (s *Store) DeleteManifest(repo string, d digest.Digest) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		var stale []string
		err := tags.ForEachPrefix(tx, repo+sep, func(k string, to digest.Digest) error {
			if to == d {
				stale = append(stale, k)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, k := range stale {
			if err := tags.Delete(tx, k); err != nil {
				return err
			}
		}
		return deleteUntagged(tx, repo, d)
	})
}

// deleteUntagged takes a manifest that no tag points to out of a repository.
func deleteUntagged(tx *bolt.Tx, repo string, d digest.Digest) error {
	m, err := manifests.Get(tx, key(repo, d.String()))
	if errdefs.IsNotFound(err) {
		return unknownManifest(repo, d)
	}
	if err != nil {
		return err
	}
	errs := []error{manifests.Delete(tx, key(repo, d.String())), uses.Delete(tx, key(d.String(), repo, d.String()))}
	for _, r := range m.Refs {
		errs = append(errs, uses.Delete(tx, key(r.String(), repo, d.String())))
	}
	if m.Subject != "" {
		errs = append(errs, referrers.Delete(tx, key(repo, m.Subject.String(), d.String())))
	}
	if !inUse(tx, key(d.String(), repo)) {
		errs = append(errs, links.Delete(tx, key(d.String(), repo)))
	}
	return errors.Join(errs...)
}

// Tags lists at most n tags of a repository that come after last, in byte
// order, and says whether there are more. A repository without manifests is
// errdefs.ErrNotFound.
func (s *Store) Tags(repo, last string, n int) (list []string, more bool, err error) {
	list = []string{}
	err = s.db.View(func(tx *bolt.Tx) error {
		if _, known := first(manifests, tx, repo+sep); !known {
			return fmt.Errorf("no repository %s: %w", repo, errdefs.ErrNotFound)
		}
		return tags.ForEachAfter(tx, repo+sep, repo+sep+last, func(k string, _ digest.Digest) error {
			if len(list) == n {
				more = true
				return errEnough
			}
			list = append(list, lastWord(k))
			return nil
		})
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, more, err
}

// Repositories lists at most n repositories that have a manifest and come
// after last, in byte order, and says whether there are more.
func (s *Store) Repositories(last string, n int) (list []string, more bool, err error) {
	list = []string{}
	err = s.db.View(func(tx *bolt.Tx) error {
		for {
			// The greatest key that a repository can have, so that each costs one step.
			after := ""
			if last != "" {
				after = last + sep + "\xff"
			}
			next := ""
			err := manifests.ForEachAfter(tx, "", after, func(k string, _ manifest) error {
				next, _, _ = strings.Cut(k, sep)
				return errEnough
			})
			if err != nil && !errors.Is(err, errEnough) {
				return err
			}
			if next == "" {
				return nil
			}
			if len(list) == n {
				more = true
				return nil
			}
			list, last = append(list, next), next
		}
	})
	return list, more, err
}

// Referrers lists at most n manifests of a repository whose subject is d,
// those after last, by digest, and says whether there are more. A non-empty
// artifactType lists only those of that type. A subject that nothing refers to
// has an empty list. The list has at most room bytes as JSON, but one entry if
// there is any: annotations can be as large as manifests, and all of them
// together would be the memory of the host.
func (s *Store) Referrers(repo string, d digest.Digest, artifactType, last string, n, room int) (list []ocispec.Descriptor, more bool, err error) {
	list = []ocispec.Descriptor{}
	prefix := key(repo, d.String()) + sep
	err = s.db.View(func(tx *bolt.Tx) error {
		return referrers.ForEachAfter(tx, prefix, prefix+last, func(k string, _ struct{}) error {
			by := lastWord(k)
			m, err := manifests.Get(tx, key(repo, by))
			if err != nil {
				return err
			}
			if artifactType != "" && m.ArtifactType != artifactType {
				return nil
			}
			desc := ocispec.Descriptor{
				MediaType: m.MediaType, Digest: digest.Digest(by), Size: m.Size, ArtifactType: m.ArtifactType, Annotations: m.Annotations,
			}
			raw, err := json.Marshal(desc)
			if err != nil {
				return err
			}
			if room -= len(raw) + 1; len(list) == n || len(list) > 0 && room < 0 {
				more = true
				return errEnough
			}
			list = append(list, desc)
			return nil
		})
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, more, err
}

// Verify reads everything and says what is not as it must be: content that is
// not what its digest promises, and names in the index that lead nowhere. With
// repair it removes files with wrong content, so that the next push of the
// same blob brings it back. It is for a registry at rest; no faults mean that
// all is well.
func (s *Store) Verify(repair bool) (blobs int, bytes int64, faults []string, err error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	err = s.db.View(func(tx *bolt.Tx) error {
		last := ""
		errs := []error{links.ForEach(tx, func(k string, l link) error {
			d, repo, _ := strings.Cut(k, sep)
			if d == last {
				return nil // one blob, several repositories
			}
			last = d
			got, size, err := s.rehash(digest.Digest(d))
			blobs, bytes = blobs+1, bytes+size
			switch {
			case err != nil:
				fault("blob %s of %s: %v", d, repo, err)
			case got.String() != d || size != l.Size:
				fault("blob %s of %s, %d bytes: there are %d bytes with the digest %s", d, repo, l.Size, size, got)
				if repair {
					return s.root.Remove(blobFile(digest.Digest(d)))
				}
			}
			return nil
		}), manifests.ForEach(tx, func(k string, m manifest) error {
			repo, d, _ := strings.Cut(k, sep)
			if !links.Has(tx, key(d, repo)) || !uses.Has(tx, key(d, repo, d)) {
				fault("manifest %s of %s has no blob", d, repo)
			}
			for _, r := range m.Refs {
				if !links.Has(tx, key(r.String(), repo)) || !uses.Has(tx, key(r.String(), repo, d)) {
					fault("manifest %s of %s names %s, which is not there", d, repo, r)
				}
			}
			if m.Subject != "" && !referrers.Has(tx, key(repo, m.Subject.String(), d)) {
				fault("manifest %s of %s is missing among the referrers of %s", d, repo, m.Subject)
			}
			return nil
		}), tags.ForEach(tx, func(k string, d digest.Digest) error {
			repo, tag, _ := strings.Cut(k, sep)
			if !manifests.Has(tx, key(repo, d.String())) {
				fault("tag %s of %s points to %s, which is not there", tag, repo, d)
			}
			return nil
		}), uses.ForEach(tx, func(k string, _ struct{}) error {
			w := strings.Split(k, sep)
			if len(w) != 3 || !manifests.Has(tx, key(w[1], w[2])) {
				fault("a use of %q belongs to no manifest", w)
			}
			return nil
		}), referrers.ForEach(tx, func(k string, _ struct{}) error {
			w := strings.Split(k, sep)
			if len(w) != 3 || !manifests.Has(tx, key(w[0], w[2])) {
				fault("a referrer of %q is no manifest", w)
			}
			return nil
		})}
		return errors.Join(errs...)
	})
	return blobs, bytes, faults, err
}

func (s *Store) rehash(d digest.Digest) (digest.Digest, int64, error) {
	if _, err := ParseDigest(d.String()); err != nil {
		return "", 0, err
	}
	f, err := s.root.Open(blobFile(d))
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := d.Algorithm().Hash()
	n, err := io.Copy(h, f)
	return digest.NewDigest(d.Algorithm(), h), n, err
}
