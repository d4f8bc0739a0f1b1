package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"

	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/network"
	"proa/internal/shim"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Start starts a container that does not run. One that runs already gives
// errdefs.ErrNotModified. An executable that is missing or not allowed gives an
// error that wraps *isolation.StartError and is errdefs.ErrInvalidArgument.
func (e *Engine) Start(ctx context.Context, ref string) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	if err := b.lock(ctx); err != nil {
		return err
	}
	defer b.unlock()
	switch s := b.snap.Load().State; s {
	case Running:
		return refusef(errdefs.ErrNotModified, "container %s is running already", short(b.id))
	case Paused:
		return conflict("cannot start a paused container, try unpause instead")
	case Restarting:
		e.unplan(b)
	}
	b.change(func(r *record, l *live) { r.RestartCount, l.backoff = 0, backoff{} })
	return e.start(ctx, b)
}

// undo are the steps that take a start back, newest first.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

func (u undo) run() {
	for _, f := range slices.Backward(u) {
		f()
	}
}

// start takes a container that does not run to Running, or leaves nothing of
// the attempt but the error in its record. The caller holds op. A client that
// goes away does not stop it half-way.
func (e *Engine) start(ctx context.Context, b *box) error {
	ctx = context.WithoutCancel(ctx)
	e.work.Go(cgroup.Warm)
	if err := b.snap.Load().State.canBecome(b.id, Running); err != nil {
		return err
	}
	e.endService(b)
	sh, pid, err := e.launch(ctx, b)
	if e.distrusts(b.id, err) {
		sh, pid, err = e.launch(ctx, b)
	}
	if err == nil {
		e.began(b, sh, pid)
		return nil
	}
	failure, code := startFailure("failed to start container", err)
	b.change(func(r *record, l *live) {
		r.ExitCode, r.Error = code, failure.Error()
		if r.State == Restarting {
			r.State = Exited
		}
		l.tell(WaitResult{ExitCode: code}, false) // why is told to who started it
	})
	c := b.snap.Load()
	if c.Host.AutoRemove {
		if _, err := b.step(Removing, nil); err == nil {
			if err := e.erase(ctx, b, true); err != nil {
				e.cfg.Log.Error("cannot remove a container that could not start", "id", short(b.id), "err", err)
			}
		}
		return failure
	}
	e.saves.later(b, nil)
	return failure
}

// began books a start that succeeded and watches the instance.
func (e *Engine) began(b *box, sh *shim.Shim, pid int) {
	r := &run{done: make(chan struct{})}
	c, err := b.step(Running, func(rec *record, l *live) {
		rec.Pid, rec.StartedAt = pid, e.cfg.Now().UTC()
		rec.ExitCode, rec.Error, rec.OOMKilled, rec.StoppedByUser, rec.BootID = 0, "", false, false, e.bootID
		rec.Usage = nil
		l.shim, l.run, l.stopping = sh, r, false
	})
	if err != nil { // start checked it, and op is held
		panic(err)
	}
	e.saves.later(b, nil)
	e.emit(c, event.ContainerStart)
	e.watch(b, sh, r)
	e.watchHealth(b, r)
}

// launch makes an instance run. On error everything that it made is gone again.
func (e *Engine) launch(ctx context.Context, b *box) (_ *shim.Shim, pid int, err error) {
	var back undo
	defer func() {
		if err != nil {
			b.read(func(_ *record, l *live) { l.shim = nil })
			e.refuseAttached(b)
			back.run()
		}
	}()
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })

	p := parts{
		upper: e.upperDir(b.id), dir: e.runDir(b.id), logPath: e.logPath(b.id), parent: e.cfg.CgroupParent,
		hostname: e.host, ids: e.ids,
	}
	if err := checkPlatform(&rec); err != nil {
		return nil, 0, err
	}
	if err := e.makeDirs(&rec); err != nil {
		return nil, 0, err
	}
	back.add(func() { os.RemoveAll(p.dir) })
	step("start: directories made")
	if p.seccomp, err = seccompOf(rec.Host); err != nil {
		return nil, 0, err
	}
	files := shim.NewFiles()
	defer func() { closeAll(files) }()

	if rec.Kind == isolation.Container {
		tree, err := e.cfg.Images.Mount(ctx, rec.ImageID.String())
		if err != nil {
			return nil, 0, fmt.Errorf("cannot mount the image: %w", err)
		}
		defer tree.Close()
		p.root = files.Add(tree.Tree)
		places, err := sys.CloneTree(e.places, "", false)
		if err != nil {
			return nil, 0, err
		}
		p.places = files.Add(places)
		if p.devices, err = devicesOf(rec.Host); err != nil {
			return nil, 0, err
		}
	}
	if err := e.openMounts(ctx, b, &rec, &p, &files); err != nil {
		return nil, 0, err
	}
	step("start: mounts open")
	if err := e.openJoins(b, &rec, &p, &files); err != nil {
		return nil, 0, err
	}
	endpoint, err := e.reserveNetwork(ctx, b, &rec, &p, &files, &back)
	if err != nil {
		return nil, 0, err
	}
	step("start: network reserved")
	spec, err := buildSpec(&rec, p)
	if err != nil {
		return nil, 0, err
	}
	if rec.Kind == isolation.VM {
		disk, err := e.cfg.Images.Disk(ctx, rec.ImageID.String())
		if err != nil {
			return nil, 0, fmt.Errorf("cannot give the image to the VM: %w", err)
		}
		if err := e.prepareMachine(ctx, spec, disk, e.dir(b.id), &files); err != nil {
			return nil, 0, err
		}
	}
	return e.raise(ctx, spec, files, endpoint, &back, func(sh *shim.Shim) error {
		e.linkAttached(ctx, b, sh)
		return nil
	})
}

// prepareMachine makes what a VM needs besides its spec: a writable disk below
// dir, and the open files of the machine.
func (e *Engine) prepareMachine(ctx context.Context, spec *isolation.Spec, disk *image.Disk, dir string, files *shim.Files) error {
	m, err := e.cfg.Machines.Prepare(ctx, spec, machine.Disk{Index: disk.Index, Data: disk.Data}, machine.Options{Dir: dir, FirstFile: nextFile(files)})
	if err != nil {
		return err
	}
	for _, f := range m.Files {
		files.Add(f)
	}
	return nil
}

// raise takes a spec to a running process: shim, creation, network card, start.
// created is called when the instance exists and nothing of the user's runs yet.
// What takes it back is added to back.
func (e *Engine) raise(ctx context.Context, spec *isolation.Spec, files shim.Files, ep *network.Endpoint, back *undo, created func(*shim.Shim) error) (*shim.Shim, int, error) {
	sh, err := e.cfg.Shims.Start(ctx, spec, files)
	if err != nil {
		return nil, 0, err
	}
	back.add(func() { e.destroy(spec.ID, spec.Resources.CgroupParent, sh) })
	step("start: shim runs")
	pid, err := sh.Create(ctx)
	if err != nil {
		if spec.Machine != nil && !spec.Machine.Emulated {
			err = &hardwareError{err}
		}
		return nil, 0, err
	}
	step("start: created")
	if ep != nil && spec.Kind == isolation.Container {
		if err := e.plug(ctx, spec.ID, pid); err != nil {
			return nil, 0, err
		}
	}
	step("start: plugged")
	if err := created(sh); err != nil {
		return nil, 0, err
	}
	if err := sh.Start(ctx); err != nil {
		return nil, 0, err
	}
	step("start: runs")
	return sh, pid, nil
}

// hardwareError is a VM that was to run on hardware and did not come up.
type hardwareError struct{ err error }

func (h *hardwareError) Error() string { return h.err.Error() }
func (h *hardwareError) Unwrap() error { return h.err }

// distrusts says whether a start failed that is worth to be tried again without
// KVM: the probe had nothing against it, yet no guest came up under it. It is
// remembered, and everybody emulates from now on.
func (e *Engine) distrusts(id string, err error) bool {
	var untrue *hardwareError
	if !errors.As(err, &untrue) {
		return false
	}
	e.cfg.Log.Warn("a VM did not come up under KVM; emulating from now on", "id", short(id), "err", err)
	return e.cfg.Machines.Distrust(untrue.err.Error()) == nil
}

// makeDirs makes what an instance writes to, but not the upper directory: that
// is made by its driver, in the likeness of the image's root.
func (e *Engine) makeDirs(rec *record) error {
	dirs := []string{e.dir(rec.ID), e.runDir(rec.ID)}
	if rec.Kind == isolation.Container {
		up := e.upperDir(rec.ID)
		dirs = append(dirs, up, filepath.Join(up, "work"))
		if rec.Host.AutoRemove {
			// A volatile overlay refuses to be mounted a second time (Linux 5.10)
			// lest data be lost in between; this one was told that it may be.
			if err := os.RemoveAll(filepath.Join(up, "work", "work", "incompat")); err != nil {
				return fmt.Errorf("cannot reuse the writable layer: %w", err)
			}
		}
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("cannot make a directory of the container: %w", err)
		}
	}
	return nil
}

// openMounts opens the sources of all mounts, so that what is checked here is
// what gets mounted.
func (e *Engine) openMounts(ctx context.Context, b *box, rec *record, p *parts, files *shim.Files) error {
	if err := e.makeVolumes(ctx, b); err != nil {
		return err
	}
	for _, m := range rec.Mounts {
		switch m.Type {
		case mount.TypeTmpfs:
			p.mounts = append(p.mounts, tmpfsMount(m))
			continue
		case mount.TypeVolume:
			f, origin, err := e.openVolume(ctx, m)
			if err != nil {
				return err
			}
			p.mounts = append(p.mounts, bindMount(m, files.Add(f), origin))
			continue
		}
		if m.MakeSource {
			if _, err := os.Stat(m.Source); errors.Is(err, os.ErrNotExist) {
				if err := os.MkdirAll(m.Source, 0o755); err != nil {
					return fmt.Errorf("error while creating mount source path '%s': %w", m.Source, err)
				}
			}
		}
		f, err := sys.OpenPath(m.Source)
		if err != nil {
			return invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
		}
		if rec.UserNS {
			if err := sys.CanIdmap(f, e.userns, !m.NonRecursive); err != nil {
				f.Close()
				return refusef(errdefs.ErrFailedPrecondition, "cannot mount %s with shifted owners: %w; create the container again with --userns host", m.Source, err)
			}
		}
		p.mounts = append(p.mounts, bindMount(m, files.Add(f), m.Source))
	}
	return nil
}

// reserveNetwork gets a container's addresses, ports and files; nil for no card
// at all.
func (e *Engine) reserveNetwork(ctx context.Context, b *box, rec *record, p *parts, files *shim.Files, back *undo) (*network.Endpoint, error) {
	if rec.Host.NetworkMode.IsContainer() {
		e.emitMounts(b.snap.Load(), true)
		back.add(func() { e.emitMounts(b.snap.Load(), false) })
		return nil, nil // another container's, which openJoins has opened
	}
	if err := checkNetworks(rec); err != nil {
		return nil, err
	}
	req, err := e.networkRequest(rec)
	if err != nil {
		return nil, err
	}
	ep, err := e.reserve(ctx, b.id, rec.Kind, req, p, files, back)
	if err != nil {
		return nil, err
	}
	back.add(func() { b.change(func(_ *record, l *live) { l.forgetNetwork() }) })
	c := b.change(func(r *record, l *live) { l.takeNetwork(r, ep) })
	e.emitNetwork(rec, event.NetworkConnect)
	e.emitMounts(c, true)
	back.add(func() {
		e.emitMounts(c, false)
		e.emitNetwork(rec, event.NetworkDisconnect)
	})
	if req.Kind != isolation.NetworkBridge {
		return nil, nil
	}
	return ep, nil
}

// reserve gets an instance's endpoint, into p and files.
func (e *Engine) reserve(ctx context.Context, id string, kind isolation.Kind, req network.Request, p *parts, files *shim.Files, back *undo) (*network.Endpoint, error) {
	ep, err := e.cfg.Network.Reserve(ctx, id, req)
	if errdefs.IsAlreadyExists(err) { // of an engine that was killed in the middle
		if err := e.cfg.Network.Release(ctx, id); err != nil {
			return nil, err
		}
		ep, err = e.cfg.Network.Reserve(ctx, id, req)
	}
	if err != nil {
		return nil, err
	}
	back.add(func() {
		if err := e.cfg.Network.Release(ctx, id); err != nil {
			e.cfg.Log.Error("cannot release the network of a failed start", "id", short(id), "err", err)
		}
	})
	p.network = isolation.Network{Mode: req.Kind, ResolvConf: ep.ResolvConf, Hosts: ep.Hosts, HostsName: ep.HostsName}
	for _, h := range ep.Held {
		p.network.Held = append(p.network.Held, files.Add(h))
	}
	ep.Held = nil // closed with files
	if req.Kind != isolation.NetworkBridge {
		return ep, nil
	}
	nic := ep.NIC()
	if kind == isolation.VM {
		tap, err := e.cfg.Network.PlugTap(ctx, id)
		if err != nil {
			return nil, err
		}
		nic.Tap = files.Add(tap)
	}
	p.network.NICs = []isolation.NIC{nic}
	return ep, nil
}

// plug gives a created container its network card.
func (e *Engine) plug(ctx context.Context, id string, pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("cannot open the container's network namespace: %w", err)
	}
	defer ns.Close()
	return e.cfg.Network.Plug(ctx, id, ns)
}

// destroy ends an instance whatever it is doing, and removes all of it.
func (e *Engine) destroy(id, parent string, sh *shim.Shim) {
	ctx, cancel := context.WithTimeout(context.Background(), destroyLimit)
	defer cancel()
	if err := sh.Delete(ctx); err != nil {
		e.cfg.Log.Warn("a shim does not obey; killing it", "id", short(id), "err", err)
		sh.Kill()
	}
	sh.Close()
	e.sweep(id, parent)
}

// sweep removes what a shim that has ended may have left.
func (e *Engine) sweep(id, parent string) {
	if err := e.cfg.Shims.Sweep(parent, id); err != nil {
		e.cfg.Log.Error("cannot remove what an instance left", "id", short(id), "err", err)
	}
	if err := e.cfg.Shims.Forget(id); err != nil {
		e.cfg.Log.Error("cannot forget a shim", "id", short(id), "err", err)
	}
	if err := os.RemoveAll(e.runDir(id)); err != nil {
		e.cfg.Log.Error("cannot remove an instance's directory", "id", short(id), "err", err)
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// nearest is the closest existing ancestor of path, or path itself.
func nearest(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}
