// Package store owns the data root of one registry: blobs as files that are
// named by their digest, uploads that are under way, and the index that says
// which repository holds which blobs, manifests and tags. It keeps the order
// of writes that makes a kill or a power cut at any moment harmless: a file is
// whole and on disk before the index names it, and the index changes by one
// transaction.
//
// It never speaks HTTP, never decides who may do what, and knows of a
// manifest only what its caller read out of it. No name that a client chose
// becomes a file's name: files are named by digests, which are checked, and by
// ids that this package makes.
//
//	lock                    held by the one process that uses the root
//	index.db                repositories, manifests, tags, links (package state)
//	blobs/<algorithm>/<hex> content, manifests among it; whole from its first moment
//	uploads/<id>-<repo>     bytes that have arrived so far; <repo> is a hash of the repository's name
//	tls/                    certificates, if the registry made its own
package store

import (
	"crypto/sha256"
	_ "crypto/sha512" // digests may ask for it
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"proa/internal/state"
)

// Config says how much a store accepts. Zero means the default.
type Config struct {
	MaxBlob      int64         // bytes of one blob; default 64 GiB
	MaxUploads   int           // uploads that are begun and not ended; default 4096
	MaxPerOwner  int           // of those, begun by one client; default 256
	UploadExpiry time.Duration // after which an upload that nobody wrote to is dropped; default 1 h
	KeepUnused   time.Duration // how long a blob stays that no manifest of its repository names; default 1 h
}

func (c *Config) complete() {
	if c.MaxBlob == 0 {
		c.MaxBlob = 64 << 30
	}
	if c.MaxUploads == 0 {
		c.MaxUploads = 4096
	}
	if c.MaxPerOwner == 0 {
		c.MaxPerOwner = 256
	}
	if c.UploadExpiry == 0 {
		c.UploadExpiry = time.Hour
	}
	if c.KeepUnused == 0 {
		c.KeepUnused = time.Hour
	}
}

// Store is one open data root. It can be used by many goroutines.
type Store struct {
	cfg  Config
	root *os.Root // every file is opened below it, whatever its name
	lock *os.File
	db   *state.DB

	// life orders making a blob visible against removing one: who links a
	// blob holds it shared from looking for the file until the link is on
	// disk, who removes a file holds it alone. Taken after an upload's turn.
	life sync.RWMutex

	mu      sync.Mutex
	uploads map[string]*upload // by file name
}

const (
	blobsDir   = "blobs"
	uploadsDir = "uploads"
)

var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

// Open opens the data root, making it (0700) if there is none. Errors:
// errdefs.ErrUnavailable when another process uses it,
// errdefs.ErrFailedPrecondition or errdefs.ErrDataLoss when its index cannot be read.
func Open(dir string, cfg Config) (_ *Store, err error) {
	cfg.complete()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the registry's root: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot close the registry's root to others: %w", err)
	}
	s := &Store{cfg: cfg, uploads: map[string]*upload{}}
	if s.root, err = os.OpenRoot(dir); err != nil {
		return nil, fmt.Errorf("cannot open the registry's root: %w", err)
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.lock, err = takeLock(s.root, dir); err != nil {
		return nil, err
	}
	for _, a := range algorithms {
		if err := s.root.MkdirAll(blobsDir+"/"+a.String(), 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the registry's root: %w", err)
		}
	}
	if err := s.root.MkdirAll(uploadsDir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the registry's root: %w", err)
	}
	if s.db, err = state.Open(filepath.Join(dir, "index.db")); err != nil {
		return nil, err
	}
	// The names of all these must be on disk before anything in them counts.
	for _, d := range []string{blobsDir, "."} {
		if err := s.syncDir(d); err != nil {
			return nil, err
		}
	}
	return s, s.findUploads()
}

// takeLock makes this process the root's only user.
func takeLock(root *os.Root, dir string) (*os.File, error) {
	f, err := root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the registry's root: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock the registry's root %q: %w", dir, err)
		}
		return nil, fmt.Errorf("the root %q is in use by another registry (process %s): stop that one, or choose another --root: %w", dir, strings.TrimSpace(string(pid)), errdefs.ErrUnavailable)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write the lock of the registry's root: %w", err)
	}
	return f, nil
}

// Close waits for running transactions and gives the root up. Uploads that
// are under way stay and can be resumed.
func (s *Store) Close() error {
	var errs []error
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	if s.root != nil {
		errs = append(errs, s.root.Close())
	}
	return errors.Join(errs...)
}

// syncDir puts the names in a directory on disk.
func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return fmt.Errorf("cannot sync a directory of the registry: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("cannot sync a directory of the registry: %w", err)
	}
	return nil
}

var (
	nameWord = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagWord  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// maxName is how long a repository's name may be: what clients accept once a
// host stands before it.
const maxName = 255

// CheckName says whether name can be a repository's, by the distribution
// specification's expression. The error is errdefs.ErrInvalidArgument.
func CheckName(name string) error {
	if len(name) > maxName {
		return fmt.Errorf("repository name of %d characters: at most %d are allowed: %w", len(name), maxName, errdefs.ErrInvalidArgument)
	}
	if !nameWord.MatchString(name) {
		return fmt.Errorf("repository name %q: use lower case letters, digits, and . _ - / between them: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// CheckTag says whether tag can be one. The error is errdefs.ErrInvalidArgument.
func CheckTag(tag string) error {
	if !tagWord.MatchString(tag) {
		return fmt.Errorf("tag %.140q: use at most 128 letters, digits and . _ -, beginning with none of . and -: %w", tag, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ParseDigest reads a digest of an algorithm that the store knows, sha256 or
// sha512. The error is errdefs.ErrInvalidArgument.
func ParseDigest(text string) (digest.Digest, error) {
	d := digest.Digest(text)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.150q: %w: %w", text, err, errdefs.ErrInvalidArgument)
	}
	for _, a := range algorithms {
		if d.Algorithm() == a {
			return d, nil
		}
	}
	return "", fmt.Errorf("digest of algorithm %s: this registry knows sha256 and sha512: %w", d.Algorithm(), errdefs.ErrInvalidArgument)
}

// blobFile is the name of a blob's file. d came from ParseDigest.
func blobFile(d digest.Digest) string {
	return blobDir(d) + "/" + d.Encoded()
}

func blobDir(d digest.Digest) string { return blobsDir + "/" + d.Algorithm().String() }

// hasFile says whether the blob's file is there; it is whole if it is.
func (s *Store) hasFile(d digest.Digest) (size int64, ok bool, err error) {
	fi, err := s.root.Stat(blobFile(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("cannot look for blob %s: %w", d, err)
	}
	return fi.Size(), true, nil
}

// place gives the file from its final name, with everything on disk. The
// caller holds life; the file's content is synced.
func (s *Store) place(from string, d digest.Digest) error {
	if err := s.root.Rename(from, blobFile(d)); err != nil {
		return fmt.Errorf("cannot store blob %s: %w", d, err)
	}
	return s.syncDir(blobDir(d))
}

// repoHash is a repository's name as a part of a file's name.
func repoHash(repo string) string {
	sum := sha256.Sum256([]byte(repo))
	return fmt.Sprintf("%x", sum[:8])
}
