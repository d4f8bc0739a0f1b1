package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// Collected says what a collection removed.
type Collected struct {
	Manifests int   // that no tag leads to; only if asked for
	Blobs     int   // files
	Bytes     int64 // of those files
	Uploads   int   // that nobody wrote to for too long
}

// Collect removes what nobody can reach: uploads that were idle for longer
// than Config.UploadExpiry, links that no manifest has used for
// Config.KeepUnused, and files without links. With untagged it first removes
// manifests that no tag leads to, neither directly, nor through an index, nor
// as a referrer of one that stays. Pushes and pulls may go on meanwhile.
func (s *Store) Collect(ctx context.Context, untagged bool) (c Collected, err error) {
	if c.Uploads, err = s.expireUploads(ctx); err != nil {
		return c, err
	}
	if untagged {
		if c.Manifests, err = s.dropUntagged(); err != nil {
			return c, err
		}
	}
	if err = s.dropLinks(ctx); err != nil {
		return c, err
	}
	for _, a := range algorithms {
		n, size, err := s.dropFiles(ctx, a)
		c.Blobs, c.Bytes = c.Blobs+n, c.Bytes+size
		if err != nil {
			return c, err
		}
	}
	return c, nil
}

// each calls fn with every name in a directory. Names that go meanwhile may
// be given all the same.
func (s *Store) each(ctx context.Context, dir string, fn func(name string) error) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot list the registry's %s: %w", dir, err)
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, name := range names {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := fn(name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot list the registry's %s: %w", dir, err)
		}
	}
}

func (s *Store) expireUploads(ctx context.Context) (n int, err error) {
	err = s.each(ctx, uploadsDir, func(name string) error {
		path := uploadsDir + "/" + name
		fi, err := s.root.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(fi.ModTime()) < s.cfg.UploadExpiry {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot look at an upload: %w", err)
		}
		s.mu.Lock()
		u := s.uploads[name]
		s.mu.Unlock()
		if u == nil {
			return nil // ended since the look
		}
		select {
		case u.turn <- struct{}{}:
			defer func() { <-u.turn }()
		default:
			return nil // in use: a client that sends nothing is dropped by its own limit
		}
		if u.gone {
			return nil
		}
		n++
		return s.drop(u, name)
	})
	return n, err
}

// dropUntagged marks what tags lead to, in one transaction, and deletes the rest.
func (s *Store) dropUntagged() (n int, err error) {
	err = s.db.Update(func(tx *bolt.Tx) error {
		n = 0
		keep := map[string]bool{}
		// What is marked and not yet gone through: repository and digest. No
		// recursion, since indexes and referrers can be chained without end.
		var todo []string
		mark := func(k string) {
			if !keep[k] && manifests.Has(tx, k) { // or else a blob
				keep[k] = true
				todo = append(todo, k)
			}
		}
		if err := tags.ForEach(tx, func(k string, d digest.Digest) error {
			repo, _, _ := strings.Cut(k, sep)
			mark(key(repo, d.String()))
			return nil
		}); err != nil {
			return err
		}
		for len(todo) > 0 {
			k := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			m, err := manifests.Get(tx, k)
			if err != nil {
				return err
			}
			repo, _, _ := strings.Cut(k, sep)
			for _, r := range m.Refs {
				mark(key(repo, r.String()))
			}
			if err := referrers.ForEachPrefix(tx, k+sep, func(rk string, _ struct{}) error {
				mark(key(repo, lastWord(rk)))
				return nil
			}); err != nil {
				return err
			}
		}
		var dead []string
		if err := manifests.ForEach(tx, func(k string, _ manifest) error {
			if !keep[k] {
				dead = append(dead, k)
			}
			return nil
		}); err != nil {
			return err
		}
		for _, k := range dead {
			repo, d, _ := strings.Cut(k, sep)
			if err := deleteUntagged(tx, repo, digest.Digest(d)); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}

// dropLinks removes links without a use whose term is over. Candidates are
// found without holding up writers, and looked at again when they are removed.
func (s *Store) dropLinks(ctx context.Context) error {
	before := time.Now().Add(-s.cfg.KeepUnused).Unix()
	over := func(tx *bolt.Tx, k string, l link) bool { return l.Touched <= before && !inUse(tx, k) }
	var dead []string
	if err := s.db.View(func(tx *bolt.Tx) error {
		return links.ForEach(tx, func(k string, l link) error {
			if over(tx, k, l) {
				dead = append(dead, k)
			}
			return nil
		})
	}); err != nil {
		return err
	}
	const some = 256 // in one transaction
	for len(dead) > 0 && ctx.Err() == nil {
		now := dead[:min(some, len(dead))]
		dead = dead[len(now):]
		if err := s.db.Update(func(tx *bolt.Tx) error {
			for _, k := range now {
				if l, err := links.Get(tx, k); err == nil && over(tx, k, l) {
					if err := links.Delete(tx, k); err != nil {
						return err
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// dropFiles removes files that no repository has. Each is looked at again
// with life held alone, so that nobody is just about to link it.
func (s *Store) dropFiles(ctx context.Context, a digest.Algorithm) (n int, bytes int64, err error) {
	linked := func(d digest.Digest) (yes bool, err error) {
		err = s.db.View(func(tx *bolt.Tx) error {
			_, yes = first(links, tx, d.String()+sep)
			return nil
		})
		return yes, err
	}
	err = s.each(ctx, blobsDir+"/"+a.String(), func(name string) error {
		d := digest.NewDigestFromEncoded(a, name)
		if d.Validate() != nil {
			return nil // not ours
		}
		if yes, err := linked(d); yes || err != nil {
			return err
		}
		s.life.Lock()
		defer s.life.Unlock()
		if yes, err := linked(d); yes || err != nil {
			return err
		}
		fi, err := s.root.Stat(blobFile(d))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = s.root.Remove(blobFile(d))
		}
		if err != nil {
			return fmt.Errorf("cannot remove blob %s: %w", d, err)
		}
		n, bytes = n+1, bytes+fi.Size()
		return nil
	})
	return n, bytes, err
}
