package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/network"
	"proa/internal/rootfs"
	"proa/internal/shim"
	"proa/internal/state"
	"proa/internal/sys"
	"proa/internal/volume"
)

// Config says where an engine works and with whom. All rooms are open already
// and stay the caller's.
type Config struct {
	DataRoot string // containers/<id> below it: writable layers and logs
	ExecRoot string // run/<id> below it: what lives as long as an instance
	DB       *state.DB
	Images   *image.Store
	Volumes  *volume.Store
	Network  *network.Manager
	Shims    *shim.Starter
	Machines *machine.Factory // nil: VMs are refused with NoMachines
	Events   *event.Ring
	Log      *slog.Logger

	NoMachines   error          // why there are none
	DefaultKind  isolation.Kind // "" is container
	CgroupParent string         // "/proa" if empty
	// UserNS is "" (on where it can be), "strict" (refuse what would need the
	// host's) or "host" (off).
	UserNS     string
	SubidFiles []string // where the ids are recorded; nil is /etc/subuid and /etc/subgid
	SubidOwner string   // the name in these files; "" is "proa"
	SubidWidth uint32   // how many ids from 0 on a container has; 0 is 2^31
	BootID     string   // names this boot of the host; what ran in another one is gone
	Now        func() time.Time
	After      func(time.Duration, func()) (stop func() bool) // nil is time.AfterFunc
}

// Engine holds all containers of one data root. Its methods can be called from
// many goroutines. Readers never wait for a container.
type Engine struct {
	cfg    Config
	ids    isolation.IDMap // of user namespaces; empty: off
	userns *os.File        // one namespace with that map, for probing mounts; nil: off
	places *os.File        // the lowest layer of containers' roots
	bootID string
	host   string // the host's name

	life context.Context // ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // goroutines that watch instances, restart them, or save records

	mu     sync.RWMutex // guards the maps, never held across I/O; taken before a box's
	byID   map[string]*box
	byName map[string]string // name -> id, also of one that is being created
	execs  map[string]string // exec id -> container id

	saves    *saver
	overlays overlays // of steps
}

// Open reads the records, finds what runs, cleans up what nobody owns, and
// lets restart policies run.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.BootID == "" {
		return nil, fmt.Errorf("cannot open the engine: %w: BootID must be set", errdefs.ErrInvalidArgument)
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/proa"
	}
	if cfg.SubidFiles == nil {
		cfg.SubidFiles = []string{"/etc/subuid", "/etc/subgid"}
	}
	if cfg.SubidOwner == "" {
		cfg.SubidOwner = "proa"
	}
	if cfg.SubidWidth == 0 {
		cfg.SubidWidth = mostIDs
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.After == nil {
		cfg.After = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	e := &Engine{cfg: cfg, byID: map[string]*box{}, byName: map[string]string{}, execs: map[string]string{}, bootID: cfg.BootID}
	e.host, _ = os.Hostname()
	for _, d := range []string{e.containersDir(), e.runDir(""), e.viewDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make engine directory: %w", err)
		}
	}
	if err := sys.SpreadDirs(e.containersDir()); err != nil {
		return nil, fmt.Errorf("cannot make engine directory: %w", err)
	}
	if err := e.openPlaces(); err != nil {
		return nil, err
	}
	if err := e.openUserNS(); err != nil {
		return nil, err
	}
	// The rest works all the same: images, builds for other hosts, VMs.
	var no *NoRootsError
	if err := e.TryRoots(); errors.As(err, &no) {
		cfg.Log.Warn("containers cannot start", "why", no, "hint", no.Hint())
	} else if err != nil {
		cfg.Log.Warn("cannot tell whether containers can start", "why", err)
	}
	e.life, e.stop = context.WithCancel(context.Background())
	e.saves = newSaver(cfg.DB, cfg.Log)
	e.work.Go(func() { e.saves.run(e.life) })
	if err := e.reconcile(ctx); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// Close lets go of all containers, which go on running, and writes what is not
// written yet.
func (e *Engine) Close() error {
	e.stop()
	for _, b := range e.boxes() {
		e.endService(b) // who uses it learns that it is gone
		b.letGo()
	}
	e.work.Wait()
	for _, f := range []*os.File{e.userns, e.places} {
		if f != nil {
			f.Close()
		}
	}
	return e.saves.flush()
}

// openPlaces makes the lowest layer of all containers' roots.
func (e *Engine) openPlaces() (err error) {
	dir := filepath.Join(e.cfg.DataRoot, "places")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make engine directory: %w", err)
	}
	if err := rootfs.MakePlaces(dir); err != nil {
		return err
	}
	e.places, err = sys.OpenPath(dir)
	return err
}

// openUserNS claims the ids that containers have on the host, and a namespace
// of them to probe mounts with.
func (e *Engine) openUserNS() error {
	switch e.cfg.UserNS {
	case "host":
		return nil
	case "", "strict":
	default:
		return invalid("invalid userns option %q: use strict or host, or leave it out", e.cfg.UserNS)
	}
	ids, err := ClaimIDs(e.cfg.SubidFiles, e.cfg.SubidOwner, e.cfg.SubidWidth)
	if err != nil {
		return err
	}
	if !ids.Has(e.cfg.SubidWidth - 1) {
		e.cfg.Log.Warn("containers have fewer ids than wanted", "ids", ids, "wanted", e.cfg.SubidWidth, "why", "other lines of "+strings.Join(e.cfg.SubidFiles, " and ")+" have the rest")
	}
	ns, err := sys.MakeUserNS(ids.Kernel())
	if err != nil {
		if e.cfg.UserNS == "strict" {
			return err
		}
		e.cfg.Log.Warn("containers run in the host's user namespace", "why", err)
		return nil
	}
	e.ids, e.userns = ids, ns
	return nil
}

// IDs is the map of the user namespaces of this engine's containers; empty
// where user namespaces are off.
func (e *Engine) IDs() isolation.IDMap { return e.ids }

func (e *Engine) containersDir() string     { return filepath.Join(e.cfg.DataRoot, "containers") }
func (e *Engine) dir(id string) string      { return filepath.Join(e.containersDir(), id) }
func (e *Engine) logPath(id string) string  { return filepath.Join(e.dir(id), id+"-json.log") }
func (e *Engine) runDir(id string) string   { return filepath.Join(e.cfg.ExecRoot, "run", id) }
func (e *Engine) upperDir(id string) string { return filepath.Join(e.dir(id), "rw") }

// boxes are all containers, in no order.
func (e *Engine) boxes() []*box {
	e.mu.RLock()
	defer e.mu.RUnlock()
	out := make([]*box, 0, len(e.byID))
	for _, b := range e.byID {
		out = append(out, b)
	}
	return out
}

// find looks a container up by id, by name, by unique prefix of the id, in
// this order, as Docker does.
func (e *Engine) find(ref string) (*box, error) {
	ref = strings.TrimPrefix(ref, "/")
	if ref == "" {
		return nil, invalid("no container named: the name or id is empty")
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if b := e.byID[ref]; b != nil {
		return b, nil
	}
	if b := e.byID[e.byName[ref]]; b != nil {
		return b, nil
	}
	if strings.Trim(ref, "0123456789abcdef") != "" {
		return nil, noSuch(ref)
	}
	var found *box
	for id, b := range e.byID {
		if !strings.HasPrefix(id, ref) {
			continue
		}
		if found != nil {
			return nil, invalid("multiple IDs found with provided prefix: %s", ref)
		}
		found = b
	}
	if found == nil {
		return nil, noSuch(ref)
	}
	return found, nil
}

// Get finds a container by id, name or unique id prefix. errdefs.ErrNotFound
// ("No such container: x"); an ambiguous prefix is ErrInvalidArgument.
func (e *Engine) Get(ctx context.Context, ref string) (*Container, error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	return b.snap.Load(), nil
}

// Running tells whether the container that holds a lease runs; the image room
// asks before it takes an image away.
func (e *Engine) Running(id string) bool {
	e.mu.RLock()
	b := e.byID[id]
	e.mu.RUnlock()
	return b != nil && b.snap.Load().State.alive()
}

// Count counts containers by state.
func (e *Engine) Count() Counts {
	var c Counts
	for _, b := range e.boxes() {
		c.Total++
		switch b.snap.Load().State {
		case Running, Restarting:
			c.Running++
		case Paused:
			c.Paused++
		default:
			c.Stopped++
		}
	}
	return c
}
