// Package state owns the one file in which the engine keeps what must last:
// a bbolt database, opened once, with a typed bucket for each owner. One
// transaction can span owners, so that a record, its name and its lease are
// all there or none is.
//
// It never knows what a value means: owners define their own types and their
// own buckets. It is never a cache and never opened by two processes.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Schema is the version of the layout of all buckets together. Open refuses a
// file that a newer engine has written.
const Schema = 1

// lockTimeout is how long Open waits for the file: long enough for an engine
// that is just shutting down, short enough for a person.
const lockTimeout = 3 * time.Second

// mapSize is the address space reserved for the file. A transaction that must
// map more waits for every reader first; reserving ahead (it costs neither
// memory nor disk) keeps a slow reader from blocking writers.
const mapSize = 256 << 20

var (
	metaBucket = []byte("proa")
	schemaKey  = []byte("schema")
)

// DB is the engine's database. It can be used by many goroutines; there is
// one writer at a time.
type DB struct {
	bolt *bolt.DB
	path string
}

// Open opens the database at path, making it (0600) and its directory (0700)
// if there is none. The file is locked until Close. Errors:
// errdefs.ErrUnavailable when another engine holds the file,
// errdefs.ErrFailedPrecondition when a newer engine wrote it,
// errdefs.ErrDataLoss when it is not a database.
func Open(path string) (*DB, error) {
	return open(path, lockTimeout)
}

func open(path string, timeout time.Duration) (_ *DB, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the directory of %q: %w", path, err)
	}
	// A file that ends early would be read beyond its end through the map,
	// which is SIGBUS and not an error.
	if err := checkLength(path); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot read database %q: %v: %w", path, p, errdefs.ErrDataLoss)
		}
	}()
	b, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: timeout,
		// The free list is found again by reading the tree at Open: a file of
		// some megabytes, against one more page write in each transaction.
		NoFreelistSync:  true,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mapSize,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("cannot open database %q: another engine uses this data root (stop it, or choose another --data-root): %w", path, errdefs.ErrUnavailable)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("cannot open database %q: %w: %w", path, err, errdefs.ErrDataLoss)
	case err != nil:
		return nil, fmt.Errorf("cannot open database %q: %w", path, err)
	}
	d := &DB{bolt: b, path: path}
	if err := d.checkSchema(); err != nil {
		_ = b.Close()
		return nil, err
	}
	return d, nil
}

func checkLength(path string) error {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot open database: %w", err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("cannot open database %q: not a regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	if min := int64(4 * os.Getpagesize()); fi.Size() != 0 && fi.Size() < min {
		return fmt.Errorf("cannot open database %q: it has %d bytes, fewer than the smallest database (%d): %w", path, fi.Size(), min, errdefs.ErrDataLoss)
	}
	return nil
}

func (d *DB) checkSchema() error {
	var have int
	err := d.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(metaBucket)
		if b == nil {
			return nil
		}
		n, err := strconv.Atoi(string(b.Get(schemaKey)))
		if err != nil {
			return corrupt(string(metaBucket), string(schemaKey), err)
		}
		have = n
		return nil
	})
	if err != nil {
		return err
	}
	if have > Schema {
		return fmt.Errorf("cannot use database %q: its layout is version %d and this engine knows up to %d (a newer engine wrote it; use that one): %w", d.path, have, Schema, errdefs.ErrFailedPrecondition)
	}
	if have == Schema {
		return nil
	}
	return d.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(metaBucket)
		if err != nil {
			return err
		}
		return b.Put(schemaKey, []byte(strconv.Itoa(Schema)))
	})
}

// View runs fn in a read-only transaction: one consistent picture, whatever
// is written meanwhile.
func (d *DB) View(fn func(*bolt.Tx) error) error { return d.bolt.View(fn) }

// Update runs fn in the one writable transaction. When fn returns nil its
// writes are on disk once Update returns; otherwise none of them is. fn must
// do nothing slow: every other writer waits.
func (d *DB) Update(fn func(*bolt.Tx) error) error { return d.bolt.Update(fn) }

// Batch is Update for writers that come in crowds: calls made at about the
// same time share one transaction and its fsync. Each call waits up to a few
// milliseconds for company, and fn may run more than once, so it must set
// what it captures and not add to it.
func (d *DB) Batch(fn func(*bolt.Tx) error) error { return d.bolt.Batch(fn) }

// Bolt is the database itself, for libraries that keep buckets of their own
// in it: containerd's metadata uses the top-level bucket "v1".
func (d *DB) Bolt() *bolt.DB { return d.bolt }

// Path is where the file lies.
func (d *DB) Path() string { return d.path }

// Close waits for running transactions and gives the file up.
func (d *DB) Close() error {
	if err := d.bolt.Close(); err != nil {
		return fmt.Errorf("cannot close database %q: %w", d.path, err)
	}
	return nil
}
