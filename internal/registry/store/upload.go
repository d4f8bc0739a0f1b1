package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Source is where the bytes of an upload come from. Interrupt makes a Read
// that waits, and every later one, return an error soon; any goroutine may
// call it.
type Source interface {
	io.Reader
	Interrupt()
}

// OffsetError says that a chunk does not begin where the upload ends.
type OffsetError struct{ Have, Given int64 }

func (e *OffsetError) Error() string {
	return fmt.Sprintf("the chunk begins at byte %d, but the upload has %d bytes: send what follows byte %[2]d", e.Given, e.Have)
}

// Unwrap gives the kind, errdefs.ErrOutOfRange.
func (e *OffsetError) Unwrap() error { return errdefs.ErrOutOfRange }

// DigestError says that content is not what its digest promises.
type DigestError struct{ Want, Got digest.Digest }

func (e *DigestError) Error() string {
	return fmt.Sprintf("the content has the digest %s and not %s", e.Got, e.Want)
}

// Unwrap gives the kind, errdefs.ErrInvalidArgument.
func (e *DigestError) Unwrap() error { return errdefs.ErrInvalidArgument }

// upload is what one process remembers of an upload: the hash of what has
// arrived, so that a chunk costs no reading of those before it. After a
// restart it is made again by reading the file once.
type upload struct {
	owner string        // who began it; "" after a restart
	turn  chan struct{} // who could put a token in may touch the file and what stands below, until it takes it out
	size  int64
	hash  hash.Hash // SHA-256; nil until the file was read
	gone  bool      // committed or cancelled

	seen atomic.Int64 // size, for those who only want to know

	mu     sync.Mutex
	source Source // what the holder of the turn reads from
}

func newUpload(h hash.Hash, size int64) *upload {
	u := &upload{turn: make(chan struct{}, 1), hash: h, size: size}
	u.seen.Store(size)
	return u
}

// findUploads takes up what was under way when the last process ended.
func (s *Store) findUploads() error {
	return s.each(context.Background(), uploadsDir, func(name string) error {
		fi, err := s.root.Stat(uploadsDir + "/" + name)
		if err != nil {
			return fmt.Errorf("cannot look at an upload: %w", err)
		}
		s.uploads[name] = newUpload(nil, fi.Size())
		return nil
	})
}

// Begin begins an upload into a repository and returns its id. owner is the
// client who does, in words for people. Too many uploads that are begun and not
// ended, of one owner or of all, are errdefs.ErrResourceExhausted.
func (s *Store) Begin(repo, owner string) (id string, err error) {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	id = hex.EncodeToString(raw[:])
	name := uploadName(repo, id)
	s.mu.Lock()
	own := 0
	for _, u := range s.uploads {
		if u.owner == owner {
			own++
		}
	}
	full, greedy := len(s.uploads) >= s.cfg.MaxUploads, own >= s.cfg.MaxPerOwner
	if !full && !greedy {
		u := newUpload(digest.SHA256.Hash(), 0)
		u.owner = owner
		s.uploads[name] = u
	}
	s.mu.Unlock()
	switch {
	case greedy:
		return "", fmt.Errorf("%d uploads of %s are begun and not ended, which is the limit for one client: end or cancel some, or try again later; one that is idle for %v ends by itself: %w",
			own, owner, s.cfg.UploadExpiry, errdefs.ErrResourceExhausted)
	case full:
		return "", fmt.Errorf("%d uploads are begun and not ended, which is the limit: try again later; one that is idle for %v ends by itself: %w", s.cfg.MaxUploads, s.cfg.UploadExpiry, errdefs.ErrResourceExhausted)
	}
	f, err := s.root.OpenFile(uploadsDir+"/"+name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		s.forget(name)
		return "", fmt.Errorf("cannot begin an upload: %w", err)
	}
	return id, f.Close()
}

func uploadName(repo, id string) string { return id + "-" + repoHash(repo) }

func (s *Store) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, name)
}

func (s *Store) find(repo, id string) *upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uploads[uploadName(repo, id)]
}

// take gives the caller the upload alone. Whoever had it is interrupted if it
// reads from a source: the newer request of a client is the one that lives, the
// older one's connection may have been dead for minutes. Not known is
// errdefs.ErrNotFound. The caller calls done.
func (s *Store) take(ctx context.Context, repo, id string, src Source) (u *upload, name string, done func(), err error) {
	if u = s.find(repo, id); u == nil {
		return nil, "", nil, unknownUpload(id)
	}
	name = uploadName(repo, id)
	select {
	case u.turn <- struct{}{}:
	default:
		u.interrupt()
		select {
		case u.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, "", nil, context.Cause(ctx)
		}
	}
	if u.gone {
		<-u.turn
		return nil, "", nil, unknownUpload(id)
	}
	u.mu.Lock()
	u.source = src
	u.mu.Unlock()
	return u, name, func() {
		u.mu.Lock()
		u.source = nil
		u.mu.Unlock()
		<-u.turn
	}, nil
}

func (u *upload) interrupt() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.source != nil {
		u.source.Interrupt()
	}
}

func unknownUpload(id string) error {
	return fmt.Errorf("no upload %.40q in this repository: it has ended, was cancelled, or was idle for too long: %w", id, errdefs.ErrNotFound)
}

// drop removes the upload. The caller has its turn.
func (s *Store) drop(u *upload, name string) error {
	u.gone = true
	err := s.root.Remove(uploadsDir + "/" + name)
	s.forget(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove an upload: %w", err)
	}
	return nil
}

// flushEvery is after how many bytes the kernel is asked to begin writing
// them back, so that the sync at the end of a large blob finds little to do.
const flushEvery = 8 << 20

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// Append writes what src gives to the end of the upload and returns the
// upload's size after it. at is where the client believes the end to be; -1
// means wherever it is. When src fails, what had arrived stays and counts.
// Errors: errdefs.ErrNotFound, *OffsetError, errdefs.ErrResourceExhausted when
// the blob would be larger than allowed.
func (s *Store) Append(ctx context.Context, repo, id string, at int64, src Source) (size int64, err error) {
	u, name, done, err := s.take(ctx, repo, id, src)
	if err != nil {
		return 0, err
	}
	defer done()
	f, err := s.openUpload(u, name)
	if err != nil {
		return u.size, err
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("cannot write the upload: %w", cerr)
		}
	}()
	if at >= 0 && at != u.size {
		return u.size, &OffsetError{Have: u.size, Given: at}
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	flushed := u.size
	for {
		n, rerr := fill(src, *buf)
		if n > 0 {
			if u.size+int64(n) > s.cfg.MaxBlob {
				return u.size, fmt.Errorf("the blob is larger than %d bytes, which is the limit (--max-blob): %w", s.cfg.MaxBlob, errdefs.ErrResourceExhausted)
			}
			if _, err := f.WriteAt((*buf)[:n], u.size); err != nil {
				// What was written beyond size is cut off by the next to open it.
				return u.size, fmt.Errorf("cannot write the upload: %w", err)
			}
			u.hash.Write((*buf)[:n])
			u.size += int64(n)
			u.seen.Store(u.size)
			if u.size-flushed >= flushEvery {
				_ = syscall.SyncFileRange(int(f.Fd()), flushed, u.size-flushed, 2 /* SYNC_FILE_RANGE_WRITE */)
				flushed = u.size
			}
		}
		switch {
		case rerr == io.EOF: // not io.ErrUnexpectedEOF, which is a body that was cut
			return u.size, nil
		case rerr != nil:
			return u.size, fmt.Errorf("the upload was cut after %d bytes: %w: %w", u.size, rerr, errdefs.ErrAborted)
		}
	}
}

// fill reads until half of buf is full, so that small packets do not become
// small writes. The error is the reader's own.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf)/2 && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// openUpload opens the file of an upload whose turn the caller has, and reads
// it once if this process has not seen its bytes.
func (s *Store) openUpload(u *upload, name string) (*os.File, error) {
	f, err := s.root.OpenFile(uploadsDir+"/"+name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		u.gone = true
		s.forget(name)
		return nil, fmt.Errorf("the upload's file is gone: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open an upload: %w", err)
	}
	if u.hash == nil {
		h := digest.SHA256.Hash()
		if u.size, err = io.Copy(h, f); err == nil {
			u.hash = h
			u.seen.Store(u.size)
		}
	} else {
		err = f.Truncate(u.size) // a write that failed may have left more
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot read an upload: %w", err)
	}
	return f, nil
}

// Status returns how many bytes have arrived, and disturbs nobody. Not known
// is errdefs.ErrNotFound.
func (s *Store) Status(repo, id string) (int64, error) {
	if u := s.find(repo, id); u != nil {
		return u.seen.Load(), nil
	}
	return 0, unknownUpload(id)
}

// Cancel ends the upload and forgets what arrived. Not known is errdefs.ErrNotFound.
func (s *Store) Cancel(ctx context.Context, repo, id string) error {
	u, name, done, err := s.take(ctx, repo, id, nil)
	if err != nil {
		return err
	}
	defer done()
	return s.drop(u, name)
}

// Commit makes the upload the blob d of its repository; when it returns nil
// the blob is on disk. Content that is not d is *DigestError, and ends the
// upload: no byte that could still come would mend it.
func (s *Store) Commit(ctx context.Context, repo, id string, d digest.Digest) (size int64, err error) {
	u, name, done, err := s.take(ctx, repo, id, nil)
	if err != nil {
		return 0, err
	}
	defer done()
	f, err := s.openUpload(u, name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	got, err := u.digest(f, d.Algorithm())
	if err != nil {
		return 0, err
	}
	if got != d {
		return 0, errors.Join(&DigestError{Want: d, Got: got}, s.drop(u, name))
	}
	sync := func() error {
		if err := f.Sync(); err != nil {
			// The kernel forgets which pages it could not write: a second try would pass and lie.
			return errors.Join(fmt.Errorf("cannot store blob %s: %w", d, err), s.drop(u, name))
		}
		return nil
	}
	_, have, err := s.hasFile(d)
	if err != nil {
		return 0, err
	}
	synced := !have
	if synced { // before the lock, since a large file takes long
		if err := sync(); err != nil {
			return 0, err
		}
	}
	s.life.RLock()
	defer s.life.RUnlock()
	if _, have, err = s.hasFile(d); err != nil {
		return 0, err
	}
	if have {
		// Somebody else's push of the same content may be only as far as the rename.
		if err = s.syncDir(blobDir(d)); err == nil {
			err = s.drop(u, name)
		}
	} else {
		if !synced { // collected since the first look
			if err := sync(); err != nil {
				return 0, err
			}
		}
		if err = s.place(uploadsDir+"/"+name, d); err == nil {
			u.gone = true
			s.forget(name)
		}
	}
	if err != nil {
		return 0, err
	}
	return u.size, s.link(repo, d, u.size)
}

// digest gives the digest of what has arrived.
func (u *upload) digest(f *os.File, a digest.Algorithm) (digest.Digest, error) {
	if a == digest.SHA256 {
		return digest.NewDigest(a, u.hash), nil
	}
	h := a.Hash()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, u.size)); err != nil {
		return "", fmt.Errorf("cannot read an upload: %w", err)
	}
	return digest.NewDigest(a, h), nil
}
