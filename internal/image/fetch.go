package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/image/flat"
	"proa/internal/image/remote"
)

// maxDamaged is how often a blob is fetched that arrives with a wrong digest.
const maxDamaged = 3

// tellEvery is how often somebody who waits for a layer hears how far it is.
const tellEvery = 100 * time.Millisecond

// fetches are the layers that are on their way, by digest and diffID. One that
// several pulls want is fetched once; it ends early when nobody wants it any
// more.
type fetches struct {
	mu  sync.Mutex
	all map[[2]digest.Digest]*fetch
}

// fetch is one layer on its way.
type fetch struct {
	users  int // guarded by fetches.mu
	cancel context.CancelFunc
	done   chan struct{} // closed when err is set
	err    error

	job *job // leases the blob until the last user has it
	got atomic.Int64

	mu     sync.Mutex
	stages []Progress // without Downloading
}

func (f *fetch) enter(s Stage) {
	f.mu.Lock()
	f.stages = append(f.stages, Progress{Stage: s})
	f.mu.Unlock()
}

// fetch brings a layer that is not here, alone or with others who want it.
func (p *puller) fetch(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest, tell func(Progress)) error {
	for {
		f, mine := p.join(ctx, blob, diffID)
		err := p.s.await(ctx, f, blob, tell)
		if err == nil {
			// While the fetch still holds it.
			_, ok, herr := p.s.holdBlob(ctx, blob.Digest)
			if err = herr; err == nil && !ok {
				err = fmt.Errorf("blob %s is gone: %w", blob.Digest, errdefs.ErrNotFound)
			}
		}
		p.leave(ctx, f, [2]digest.Digest{blob.Digest, diffID}, err)
		// Whoever began it may lack the rights that we have, or ask a registry
		// that is down.
		if err != nil && !mine && ctx.Err() == nil {
			continue
		}
		return err
	}
}

// join begins to fetch a layer, or to wait for it with those who did.
func (p *puller) join(ctx context.Context, blob ocispec.Descriptor, diffID digest.Digest) (f *fetch, mine bool) {
	key := [2]digest.Digest{blob.Digest, diffID}
	all := &p.s.fetches
	all.mu.Lock()
	defer all.mu.Unlock()
	if f := all.all[key]; f != nil {
		f.users++
		return f, false
	}
	// It ends with its last user, who need not be the first.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f = &fetch{users: 1, cancel: cancel, done: make(chan struct{})}
	if all.all == nil {
		all.all = map[[2]digest.Digest]*fetch{}
	}
	all.all[key] = f
	go func() {
		defer close(f.done)
		life, j, err := p.s.begin(life)
		if err != nil {
			f.err = err
			return
		}
		f.job = j
		f.err = p.s.receive(life, f, p.repo, blob, diffID, p.source(nil))
	}()
	return f, true
}

// leave ends one user's interest. The last one to leave waits until nothing
// runs any more and gives up the lease.
func (p *puller) leave(ctx context.Context, f *fetch, key [2]digest.Digest, err error) {
	all := &p.s.fetches
	all.mu.Lock()
	f.users--
	last := f.users == 0
	// Nobody shall join what has failed. Who was cancelled leaves it to the others.
	if (last || err != nil && ctx.Err() == nil) && all.all[key] == f {
		delete(all.all, key)
	}
	all.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	<-f.done
	if f.job != nil {
		_ = f.job.end(ctx, f.err)
	}
}

// await tells what happens to a layer until it is here.
func (s *Store) await(ctx context.Context, f *fetch, blob ocispec.Descriptor, tell func(Progress)) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	told, bytes := 0, int64(-1)
	report := func() {
		f.mu.Lock()
		news := f.stages[told:]
		f.mu.Unlock()
		if now := f.got.Load(); now != bytes {
			bytes = now
			tell(Progress{Stage: Downloading, Done: now, Total: blob.Size})
		}
		for _, e := range news {
			e.Done, e.Total = blob.Size, blob.Size
			tell(e)
		}
		told += len(news)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.done:
			if f.err == nil {
				report()
			}
			return f.err
		case <-tick.C:
			report()
		}
	}
}

// receive fetches a blob into the content store and makes its flat layer of
// the same stream, once more when what arrives is not what was promised.
func (s *Store) receive(ctx context.Context, f *fetch, repo *remote.Repository, blob ocispec.Descriptor, diffID digest.Digest, labels map[string]string) error {
	for try := 1; ; try++ {
		err := s.stream(ctx, f, fmt.Sprintf("%s/%d", f.job.ref, try), repo, blob, diffID, labels)
		if err == nil || try == maxDamaged || !isDigestError(err) || ctx.Err() != nil {
			return err
		}
		f.got.Store(0)
	}
}

func isDigestError(err error) bool {
	var d *DigestError
	return errors.As(err, &d)
}

// stream is one pass over a layer:
//
//	network -> content store (digest) -> unpack -> flat layer (diffID)
//
// each of the three on a goroutine of its own. Nothing of it can be seen
// before its digest is right.
func (s *Store) stream(ctx context.Context, f *fetch, ref string, repo *remote.Repository, blob ocispec.Descriptor, diffID digest.Digest, labels map[string]string) (err error) {
	have, err := s.haveLayer(diffID)
	if err != nil {
		return err
	}
	w, err := s.blobs.Writer(in(ctx), content.WithRef(ref))
	if err != nil {
		return fmt.Errorf("cannot write blob: %w", err)
	}
	defer func() {
		_ = w.Close()
		if err != nil {
			_ = s.blobs.Abort(in(context.WithoutCancel(ctx)), ref)
		}
	}()
	body := repo.Blob(ctx, blob)
	defer body.Close()
	arriving := readAhead(&keeping{r: body, w: w, n: &f.got})
	defer arriving.Close()
	var bad error
	if have == nil {
		bad = s.unpackStream(ctx, arriving, diffID)
		if bad != nil && !errdefs.IsInvalidArgument(bad) && !errors.Is(bad, io.ErrUnexpectedEOF) {
			return bad
		}
	}
	// To its end: what follows the packed stream belongs to the blob, and where
	// the layer made no sense the digest tells whose fault that is.
	if _, err := io.Copy(io.Discard, arriving); err != nil {
		return err
	}
	f.enter(Verifying)
	if got := w.Digest(); got != blob.Digest {
		return &DigestError{Want: blob.Digest, Got: got}
	}
	if bad != nil {
		return bad
	}
	f.enter(Downloaded)
	if have == nil {
		f.enter(Unpacking)
	}
	if err := w.Commit(in(ctx), blob.Size, blob.Digest, content.WithLabels(labels)); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("cannot write blob %s: %w", blob.Digest, err)
	}
	f.enter(Pulled)
	return nil
}

// unpackStream makes a flat layer of a packed stream.
func (s *Store) unpackStream(ctx context.Context, r io.Reader, diffID digest.Digest) error {
	z, _, err := decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	a := readAhead(z)
	defer a.Close()
	_, err = flat.Write(ctx, a, filepath.Join(s.cfg.Root, "flat"), flat.Limits{Bytes: s.cfg.MaxLayerBytes, Want: diffID})
	return err
}

// keeping is a stream that is stored as it is read.
type keeping struct {
	r io.Reader
	w io.Writer
	n *atomic.Int64
}

func (k *keeping) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if n > 0 {
		if _, werr := k.w.Write(p[:n]); werr != nil {
			return 0, werr
		}
		k.n.Add(int64(n))
	}
	return n, err
}

// readBlob reads a small blob whole and checks its digest.
func readBlob(ctx context.Context, repo *remote.Repository, d ocispec.Descriptor) ([]byte, error) {
	for try := 1; ; try++ {
		body := repo.Blob(ctx, d)
		raw, err := io.ReadAll(body)
		body.Close()
		if err != nil {
			return nil, err
		}
		got := digest.FromBytes(raw)
		if got == d.Digest {
			return raw, nil
		}
		if try == maxDamaged {
			return nil, &DigestError{Want: d.Digest, Got: got}
		}
	}
}
