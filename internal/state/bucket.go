package state

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Bucket keeps values of one type under string keys, as JSON. The zero
// Bucket is of no use; make one with NewBucket, once, as a package variable
// of its owner.
type Bucket[T any] struct {
	name string
}

// NewBucket names a bucket; nothing is written before the first Put. The name
// is "<owner>.<what>", so that two owners never meet. It panics on a name that
// belongs to this package or to containerd.
func NewBucket[T any](name string) Bucket[T] {
	if name == "" || name == "v1" || name == string(metaBucket) {
		panic(fmt.Sprintf("state: bucket name %q is reserved", name))
	}
	return Bucket[T]{name: name}
}

// Get reads the value of key. No such key is errdefs.ErrNotFound, a value
// that cannot be decoded is errdefs.ErrDataLoss.
func (b Bucket[T]) Get(tx *bolt.Tx, key string) (T, error) {
	var v T
	var raw []byte
	if bkt := tx.Bucket([]byte(b.name)); bkt != nil {
		raw = bkt.Get([]byte(key))
	}
	if raw == nil {
		return v, fmt.Errorf("no %q in %s: %w", key, b.name, errdefs.ErrNotFound)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, corrupt(b.name, key, err)
	}
	return v, nil
}

// Has tells whether key is there, without decoding its value.
func (b Bucket[T]) Has(tx *bolt.Tx, key string) bool {
	bkt := tx.Bucket([]byte(b.name))
	return bkt != nil && bkt.Get([]byte(key)) != nil
}

// Put writes the value of key, new or not.
func (b Bucket[T]) Put(tx *bolt.Tx, key string, v T) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode %q for %s: %w", key, b.name, err)
	}
	bkt, err := tx.CreateBucketIfNotExists([]byte(b.name))
	if err != nil {
		return fmt.Errorf("cannot make bucket %s: %w", b.name, err)
	}
	if err := bkt.Put([]byte(key), raw); err != nil {
		return fmt.Errorf("cannot write %q to %s: %w", key, b.name, err)
	}
	return nil
}

// Delete removes key. A key that is not there is no error.
func (b Bucket[T]) Delete(tx *bolt.Tx, key string) error {
	bkt := tx.Bucket([]byte(b.name))
	if bkt == nil {
		return nil
	}
	if err := bkt.Delete([]byte(key)); err != nil {
		return fmt.Errorf("cannot delete %q from %s: %w", key, b.name, err)
	}
	return nil
}

// ForEach calls fn for each key in byte order until fn returns an error. fn
// must not write to the bucket. A value that cannot be decoded ends it with
// errdefs.ErrDataLoss.
func (b Bucket[T]) ForEach(tx *bolt.Tx, fn func(key string, v T) error) error {
	return b.ForEachPrefix(tx, "", fn)
}

// ForEachPrefix is ForEach for the keys that begin with prefix.
func (b Bucket[T]) ForEachPrefix(tx *bolt.Tx, prefix string, fn func(key string, v T) error) error {
	bkt := tx.Bucket([]byte(b.name))
	if bkt == nil {
		return nil
	}
	c := bkt.Cursor()
	p := []byte(prefix)
	for k, raw := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, raw = c.Next() {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return corrupt(b.name, string(k), err)
		}
		if err := fn(string(k), v); err != nil {
			return err
		}
	}
	return nil
}

// ForEachAfter is ForEachPrefix for the keys that come after another in byte
// order, wherever in the bucket that is: the next page of a long list.
func (b Bucket[T]) ForEachAfter(tx *bolt.Tx, prefix, after string, fn func(key string, v T) error) error {
	bkt := tx.Bucket([]byte(b.name))
	if bkt == nil {
		return nil
	}
	c := bkt.Cursor()
	from := max(prefix, after)
	k, raw := c.Seek([]byte(from))
	if string(k) == after {
		k, raw = c.Next()
	}
	for ; k != nil && bytes.HasPrefix(k, []byte(prefix)); k, raw = c.Next() {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return corrupt(b.name, string(k), err)
		}
		if err := fn(string(k), v); err != nil {
			return err
		}
	}
	return nil
}

func corrupt(bucket, key string, err error) error {
	return fmt.Errorf("cannot decode %q of bucket %s: %w: %w", key, bucket, err, errdefs.ErrDataLoss)
}
