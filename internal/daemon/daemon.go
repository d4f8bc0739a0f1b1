// Package daemon wires the house: it reads the configuration, opens the rooms
// in order, serves the API on its sockets, and closes everything in reverse.
// It decides nothing about containers and holds no state of its own besides
// open files.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"proa/internal/api"
	"proa/internal/builder"
	"proa/internal/engine"
	"proa/internal/event"
	"proa/internal/failure"
	"proa/internal/image"
	"proa/internal/image/remote"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/network"
	"proa/internal/pace"
	"proa/internal/shim"
	"proa/internal/state"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
	"proa/internal/version"
	"proa/internal/volume"
)

const (
	// headerLimit is how long a client may take to send its request's header:
	// half-open connections are dropped after it.
	headerLimit = 15 * time.Second
	idleLimit   = 2 * time.Minute
	// stopLimit is how long requests may take to end when the engine stops.
	stopLimit = 5 * time.Second
	// heapRate trades some CPU for memory: the engine is idle nearly always.
	heapRate = 50
)

// Main is the program proad. It returns the exit code.
func Main(args []string) int {
	if len(args) == 2 && args[1] == "kvm-probe" {
		return machine.ProbeChild(os.Stdout)
	}
	cfg, err := Parse(args[1:])
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		return failure.Report(os.Stderr, "proad", err)
	case cfg.Version:
		fmt.Println("proad version", version.Version)
		return 0
	}
	if err := sys.PrivateMounts(); err != nil {
		return failure.Report(os.Stderr, "proad", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return failure.Report(os.Stderr, "proad", Run(ctx, cfg))
}

// Run serves until ctx ends. Containers go on running after it. The process
// must be in a mount namespace of its own (sys.PrivateMounts).
func Run(ctx context.Context, cfg Config) (err error) {
	heap := pace.New(heapRate)
	syscall.Umask(0o022)
	level, err := cfg.level()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	slog.SetDefault(log)
	if cfg.OwnCgroup {
		if err := leaveCgroup(); err != nil {
			log.Warn("the engine stays in the control group of whoever started it", "err", err)
		}
	}
	unlock, err := prepareRoots(&cfg)
	if err != nil {
		return err
	}
	defer unlock()

	h := &house{cfg: cfg, log: log, heap: heap}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.open(ctx); err != nil {
		return err
	}
	handler := api.New(h.rooms())
	return serve(ctx, cfg, log, handler)
}

// house are the open rooms.
type house struct {
	cfg     Config
	log     *slog.Logger
	closers []func() error // in order of opening
	bootID  string         // names this boot of the host

	db         *state.DB
	images     *image.Store
	registries *remote.Client
	volumes    *volume.Store
	network    *network.Manager
	machines   *machine.Factory
	events     *event.Ring
	engine     *engine.Engine
	builders   *builder.Builders
	heap       *pace.Pace
}

func (h *house) closing(f func() error) { h.closers = append(h.closers, f) }

// close closes the rooms in reverse order.
func (h *house) close() error {
	var errs []error
	for i := len(h.closers) - 1; i >= 0; i-- {
		errs = append(errs, h.closers[i]())
	}
	return errors.Join(errs...)
}

// open opens the rooms from the ground floor up.
func (h *house) open(ctx context.Context) (err error) {
	data, run := h.cfg.DataRoot, h.cfg.ExecRoot
	boot, err := os.ReadFile(h.cfg.BootIDFile)
	if err != nil {
		return fmt.Errorf("cannot tell this boot from the last: %w", err)
	}
	if h.bootID = strings.TrimSpace(string(boot)); h.bootID == "" {
		return fmt.Errorf("cannot tell this boot from the last: %q is empty (--boot-id-file names another)", h.cfg.BootIDFile)
	}
	if h.db, err = state.Open(filepath.Join(data, "proa.db")); err != nil {
		return err
	}
	h.closing(h.db.Close)
	h.events = event.New(event.Kept)

	var eng atomic.Pointer[engine.Engine]
	most, err := h.cfg.maxLayer()
	if err != nil {
		return err
	}
	h.registries = remote.New(remote.Config{CertsDir: h.cfg.CertsDir})
	h.images, err = image.Open(ctx, image.Config{
		Registries: h.registries, MaxLayerBytes: most, Events: h.events,
		Root: filepath.Join(data, "image"), Mounts: filepath.Join(run, "image"), Strategy: h.cfg.StorageStrategy, DB: h.db,
		Running: func(holder string) bool {
			id, ours := strings.CutPrefix(holder, "container/")
			e := eng.Load()
			return ours && (e == nil || e.Running(id))
		},
		Warn: func(err error) { h.log.Warn("image store", "err", err) },
	})
	if err != nil {
		return err
	}
	h.closing(h.images.Close)
	if h.volumes, err = volume.Open(filepath.Join(data, "volumes"), h.db); err != nil {
		return err
	}
	h.volumes.Events = h.events
	h.network, err = network.Open(ctx, network.Config{
		Bridge: h.cfg.Bridge, Table: h.cfg.table(), Subnet: h.cfg.BIP, Subnet6: h.cfg.BIP6, Dir: filepath.Join(run, "network"),
	})
	if err != nil {
		return err
	}
	h.closing(h.network.Close)
	noMachines := h.openMachines()
	if noMachines != nil {
		h.log.Warn("no VMs", "why", noMachines)
	}
	if err := h.guardShim(); err != nil {
		return fmt.Errorf("cannot guard the shim's program: %w", err)
	}
	h.engine, err = engine.Open(ctx, engine.Config{
		DataRoot: data, ExecRoot: run, DB: h.db, Images: h.images, Volumes: h.volumes, Network: h.network,
		Shims:    &shim.Starter{Binary: h.cfg.Shim, Dir: filepath.Join(run, "shim")},
		Machines: h.machines, NoMachines: noMachines, Events: h.events, Log: h.log,
		DefaultKind: isolation.Kind(h.cfg.Isolation), CgroupParent: h.cfg.CgroupParent,
		UserNS: h.cfg.UserNS, SubidFiles: h.cfg.SubidFiles, SubidOwner: h.cfg.subidOwner(), SubidWidth: h.cfg.UserNSSize,
		BootID: h.bootID,
	})
	if err != nil {
		return err
	}
	eng.Store(h.engine)
	h.closing(h.engine.Close)
	return h.openBuilders()
}

// guardShim lays a read-only mount of the shim's program over itself, in this
// process's own mount namespace: what a process of a container catches of the
// program that it was born from, it cannot change, whatever rights it has on
// the host (CVE-2019-5736).
func (h *house) guardShim() error {
	m, err := sys.ReadonlyProgram(h.cfg.Shim)
	if err != nil {
		return err
	}
	defer m.Close()
	return sys.Attach(m, h.cfg.Shim)
}

// openMachines makes the factory of VMs. The VMM gets an id of its own that is
// nobody else's, recorded as those of containers are.
func (h *house) openMachines() error {
	if _, err := os.Stat(h.cfg.Agent); err != nil {
		return fmt.Errorf("cannot find the guest agent (it is built beside proad; --agent names another place): %w", err)
	}
	id, err := engine.ClaimRange(h.cfg.SubidFiles, h.cfg.subidOwner()+"-vmm", 1)
	if err != nil {
		return err
	}
	h.machines, err = machine.Open(machine.Config{
		Dir: filepath.Join(h.cfg.DataRoot, "vm"), KernelDirs: h.cfg.GuestKernel, Agent: h.cfg.Agent, QEMU: h.cfg.QEMU,
		Accelerator: h.cfg.Accelerator, Probe: []string{"/proc/self/exe", "kvm-probe"}, BootID: h.bootID, UID: id.Host, GID: id.Host,
	})
	return err
}

func (h *house) rooms() api.Rooms {
	return api.Rooms{
		Engine: h.engine, Images: h.images, Registries: h.registries, Volumes: h.volumes, Builders: h.builders, Log: h.log, Host: h.host(),
		Publish: h.events.Publish,
	}
}

// prepareRoots makes the directories, keeps others out of the data root (what
// lies there is truly root's, setuid files included: CVE-2021-41091), and takes
// the lock of the exec root. The data root's lock is the database's.
func prepareRoots(cfg *Config) (unlock func(), err error) {
	for dir, mode := range map[string]os.FileMode{cfg.DataRoot: 0o700, cfg.ExecRoot: 0o711, filepath.Join(cfg.ExecRoot, "shim"): 0o700} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("cannot make the engine's directory: %w", err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			return nil, fmt.Errorf("cannot close the engine's directory to others: %w", err)
		}
	}
	f, err := os.OpenFile(cfg.PidFile, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot open the pid file: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(io.LimitReader(f, 20))
		f.Close()
		return nil, fmt.Errorf("another engine (process %s) runs in %q: stop it, or choose another --exec-root", strings.TrimSpace(string(pid)), cfg.ExecRoot)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write the pid file: %w", err)
	}
	return func() {
		os.Remove(cfg.PidFile)
		f.Close()
	}, nil
}

// leaveCgroup moves the engine to the root of every hierarchy, so that it does
// not end, and is not limited, with the session that started it.
func leaveCgroup() error {
	h, err := cgroup.Detect()
	if err != nil {
		return err
	}
	roots := map[string]bool{}
	for _, m := range h.V1 {
		roots[m] = true
	}
	if h.Unified != "" {
		roots[h.Unified] = true
	}
	var errs []error
	for m := range roots {
		errs = append(errs, os.WriteFile(filepath.Join(m, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644))
	}
	return errors.Join(errs...)
}

// serve answers on all sockets until ctx ends.
func serve(ctx context.Context, cfg Config, log *slog.Logger, handler http.Handler) error {
	listeners, err := listen(cfg, log)
	if err != nil {
		return err
	}
	requests, cancel := context.WithCancel(context.Background())
	defer cancel()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // BuildKit's clients may begin with it
	srv := &http.Server{
		Protocols: &protocols,
		Handler:   keepBrowsersOut(handler), ReadHeaderTimeout: headerLimit, IdleTimeout: idleLimit,
		BaseContext: func(net.Listener) context.Context { return api.Life(requests) },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- srv.Serve(l) }()
	}
	log.Info("engine is ready", "version", version.Version, "hosts", cfg.Hosts)
	debug.FreeOSMemory() // start-up is the most it needs for a long time
	sys.Notify("READY=1")
	go trim(requests)
	select {
	case <-ctx.Done():
		err = nil
	case err = <-ended:
	}
	sys.Notify("STOPPING=1")
	log.Info("engine stops; containers go on")
	limit, done := context.WithTimeout(context.Background(), stopLimit)
	defer done()
	time.AfterFunc(stopLimit/5, cancel) // streams end, plain requests may finish
	if serr := srv.Shutdown(limit); serr != nil {
		srv.Close()
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// listen opens the sockets. A unix socket's file of an engine that was killed
// is replaced; the lock of the exec root says that nobody uses it.
func listen(cfg Config, log *slog.Logger) (out []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range out {
				l.Close()
			}
		}
	}()
	for _, h := range cfg.Hosts {
		kind, address, err := parseHost(h)
		if err != nil {
			return out, err
		}
		if kind == "tcp" {
			log.Warn("whoever can reach this address on this host is root here", "host", h)
			l, err := net.Listen(kind, address)
			if err != nil {
				return out, fmt.Errorf("cannot serve on %q: %w", h, err)
			}
			out = append(out, l)
			continue
		}
		l, err := listenUnix(address, cfg.Group)
		if err != nil {
			return out, fmt.Errorf("cannot serve on %q: %w", h, err)
		}
		out = append(out, l)
	}
	return out, nil
}
