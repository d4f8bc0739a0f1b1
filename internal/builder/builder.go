// Package builder is the engine's side of building. It starts the builder
// (proa-build serve, one process for each wall) when somebody builds, shows it
// the store and the steps through a socket, passes Docker's and BuildKit's
// requests on to it, tells clients what happened when it dies, and ends it when
// it has been idle for a while.
//
// It links no BuildKit and understands nothing of what it passes on. The
// builder may die at any moment without harm to anything but the builds in it;
// it ends with the engine, however the engine ends.
package builder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/build/wire"
	"proa/internal/isolation"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Config says how builders are run.
type Config struct {
	Binary   string // proa-build
	DataRoot string // a builder's own data lies below it, in build/<kind>
	ExecRoot string // sockets, log and mounts lie below it, in build/<kind>
	// CgroupParent is where a builder's control group is made, as build-<kind>.
	CgroupParent string
	Default      isolation.Kind // of builds that ask for none
	Idle         time.Duration  // how long a builder outlives its last request
	BootID       string         // names this boot of the host
	Certs        string         // directory with certificates of registries
	Gateway      func() string  // the host's address as RUN steps see it
	Log          *slog.Logger
	// MaxFile is how large a file of a layer can be, in bytes.
	MaxFile int64
	// MaxCache, Reserved and MinFree bound the build cache, in bytes.
	MaxCache, Reserved, MinFree int64
	// Busy is told while a builder is used, until the function that it returns is called.
	Busy func() (end func())
	// Serve answers a builder of the given kind on l with the engine's store and
	// steps until the listener is closed.
	Serve func(kind isolation.Kind, l net.Listener) error
}

// Builders are the builders of one engine. It is safe for concurrent use.
type Builders struct {
	cfg Config

	mu     sync.Mutex
	closed bool
	byKind map[isolation.Kind]*slot
}

// slot is the place of one kind's builder. Its lock is held while a builder is
// started, so that all who want one wait for the same.
type slot struct {
	start sync.Mutex
	mu    sync.Mutex // guards what follows
	now   *process   // nil when none runs
}

// Open removes what builders of a killed engine left, and starts none.
func Open(cfg Config) (*Builders, error) {
	b := &Builders{cfg: cfg, byKind: map[isolation.Kind]*slot{}}
	for _, kind := range []isolation.Kind{isolation.Container, isolation.VM} {
		b.byKind[kind] = &slot{}
		if err := b.sweep(kind); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// run is the directory of a kind's sockets.
func (b *Builders) run(kind isolation.Kind) string {
	return filepath.Join(b.cfg.ExecRoot, "build", string(kind))
}

// data is the directory of a kind's build cache.
func (b *Builders) data(kind isolation.Kind) string {
	return filepath.Join(b.cfg.DataRoot, "build", string(kind))
}

// kind reads a client's word for the wall of RUN steps.
func (b *Builders) kind(word string) (isolation.Kind, error) {
	switch k := isolation.Kind(word); k {
	case "", "default":
		return b.cfg.Default, nil
	case isolation.Container, isolation.VM:
		return k, nil
	}
	return "", fmt.Errorf("unknown isolation %q of a build: container and vm are known: %w", word, errdefs.ErrInvalidArgument)
}

// use gives the builder of a kind, starting it if none runs, and keeps it from
// being ended until release is called.
func (b *Builders) use(ctx context.Context, kind isolation.Kind) (p *process, release func(), err error) {
	s := b.byKind[kind]
	s.start.Lock()
	defer s.start.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	p = s.now
	s.mu.Unlock()
	busy := func() func() {
		end := b.cfg.Busy()
		return func() { p.leave(); end() }
	}
	if p != nil && p.enter() {
		return p, busy(), nil
	}
	if p != nil {
		<-p.swept // the next one must not meet what is left of the last
	}
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return nil, nil, fmt.Errorf("cannot build: the engine is stopping: %w", errdefs.ErrUnavailable)
	}
	p, err = b.launch(ctx, kind)
	if err != nil {
		return nil, nil, err
	}
	p.enter()
	s.mu.Lock()
	s.now = p
	s.mu.Unlock()
	return p, busy(), nil
}

// known tells whether a kind has ever built here, so that questions about its
// cache need not start a builder for nothing.
func (b *Builders) known(kind isolation.Kind) bool {
	_, err := os.Stat(b.data(kind))
	return err == nil
}

// Close ends all builders. Builds in them fail.
func (b *Builders) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	var errs []error
	for _, s := range b.byKind {
		s.start.Lock() // a start that is under way is waited for
		s.mu.Lock()
		p := s.now
		s.mu.Unlock()
		s.start.Unlock()
		if p != nil {
			p.end()
			errs = append(errs, p.sweepErr)
		}
	}
	return errors.Join(errs...)
}

// sweep removes what a builder that has ended left: processes of its own,
// mounts, sockets, temporary files.
func (b *Builders) sweep(kind isolation.Kind) error {
	if err := cgroup.Sweep(b.group(kind)); err != nil {
		return err
	}
	run := b.run(kind)
	scratch := filepath.Join(run, wire.Scratch)
	if err := sys.DetachBelow(scratch); err != nil {
		return err
	}
	if err := sys.RemoveTree(scratch); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove what a builder left: %w", err)
	}
	for _, name := range []string{wire.EngineSocket, wire.BuildSocket} {
		if err := os.Remove(filepath.Join(run, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot remove what a builder left: %w", err)
		}
	}
	return nil
}
