package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"proa/internal/event"
	"proa/internal/image"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/platform"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// holder is the name under which a container holds its image and its volumes.
func holder(id string) string { return "container/" + id }

// Create makes a container of an image, not running. Errors:
// errdefs.ErrNotFound (image; the text begins "No such image: "),
// ErrConflict (name), ErrInvalidArgument (a knob that is wrong or cannot be
// honoured), ErrNotImplemented.
//
// Nothing exists before its record does, and record, name and image lease are
// one transaction: a crash leaves a whole container or none.
func (e *Engine) Create(ctx context.Context, r CreateRequest) (CreateResult, error) {
	var none CreateResult
	e.work.Go(cgroup.Warm) // most creates are half of a run
	if r.Config == nil || r.Config.Image == "" {
		return none, invalid("no image specified")
	}
	if r.Host == nil {
		r.Host = &container.HostConfig{}
	}
	if r.Name != "" {
		if err := checkName(r.Name); err != nil {
			return none, err
		}
	}
	img, err := e.imageFor(ctx, r)
	if err != nil {
		return none, err
	}
	rec, err := e.plan(ctx, r, img)
	if err != nil {
		return none, err
	}
	release, err := e.reserveName(rec)
	if err != nil {
		return none, err
	}
	err = e.cfg.DB.Update(func(tx *bolt.Tx) error {
		if err := e.cfg.Images.Lease(ctx, tx, holder(rec.ID), img.ID.String()); err != nil {
			return err
		}
		return records.Put(tx, rec.ID, *rec)
	})
	if err != nil {
		release()
		return none, fmt.Errorf("cannot record container %q: %w", rec.Name, err)
	}
	step("create: recorded")
	b := newBox(*rec)
	b.change(func(r *record, l *live) {
		if r.Host.LogConfig.Type != "none" {
			l.logPath = e.logPath(r.ID)
		}
	})
	if err = e.makeVolumes(ctx, b); err == nil {
		err = e.fillVolumes(ctx, b)
	}
	if err != nil {
		return none, errors.Join(err, e.erase(context.WithoutCancel(ctx), b, true))
	}
	step("create: volumes made")
	e.mu.Lock()
	e.byID[rec.ID] = b
	e.mu.Unlock()
	e.emit(b.snap.Load(), event.ContainerCreate)
	return CreateResult{ID: rec.ID, Warnings: rec.Warnings}, nil
}

// plan makes the record of a new container and refuses now what a start could
// not honour.
func (e *Engine) plan(ctx context.Context, r CreateRequest, img *image.Image) (*record, error) {
	cfg, err := merge(r.Config, img.DockerConfig)
	if err != nil {
		return nil, err
	}
	kind, err := kindOf(r.Host, e.cfg.DefaultKind)
	if err != nil {
		return nil, err
	}
	host := withDefaults(r.Host, kind)
	if err := checkHost(cfg, host, kind); err != nil {
		return nil, err
	}
	if err := checkJoined(r.Config, host); err != nil {
		return nil, err
	}
	joined, err := e.resolveJoins(cfg, host)
	if err != nil {
		return nil, err
	}
	rec := &record{
		ID: newID(), Name: r.Name, Created: e.cfg.Now().UTC(), Config: cfg, Host: host,
		ImageID: img.ID, ImageRef: r.Config.Image, Image: img.Target, Platform: img.Platform, Kind: kind, State: Created,
		Warnings: platformWarnings(r, img.Platform, kind),
	}
	if cfg.Hostname == "" && !host.UTSMode.IsHost() {
		cfg.Hostname = short(rec.ID)
		if host.NetworkMode.IsHost() {
			cfg.Hostname = e.host
		}
	}
	if rec.Networking, err = wantedNetworks(r.Networking, host); err != nil {
		return nil, err
	}
	if checkNetworks(rec) == nil { // else the start says so
		if _, err := e.networkRequest(rec); err != nil {
			return nil, err
		}
	}
	rec.Warnings = append(rec.Warnings, unpublished(cfg, host)...)
	rec.Mounts, err = planMounts(cfg, host, kind == isolation.VM, func(ref string) ([]MountPlan, error) {
		b, err := e.find(ref)
		if err != nil {
			return nil, notTheImage(err)
		}
		var plans []MountPlan
		b.read(func(r *record, _ *live) { plans = slices.Clone(r.Mounts) })
		return plans, nil
	})
	if err != nil {
		return nil, err
	}
	if kind == isolation.VM {
		return rec, e.planMachine(rec)
	}
	return rec, e.planContainer(ctx, rec, joined)
}

// planMachine asks whether a VM of this kind can be, without making anything.
func (e *Engine) planMachine(rec *record) error {
	if err := e.hasMachines(); err != nil {
		return err
	}
	network := rec.networkKind()
	if !fixed(string(network)) { // the start looks for it
		network = isolation.NetworkNone
	}
	p := parts{network: isolation.Network{Mode: network}, parent: e.cfg.CgroupParent}
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeTmpfs {
			p.mounts = append(p.mounts, tmpfsMount(m))
		} else {
			p.mounts = append(p.mounts, bindMount(m, 0, cmp.Or(m.Source, m.Volume)))
		}
	}
	var err error
	if p.devices, err = devicesOf(&container.HostConfig{Resources: container.Resources{Devices: rec.Host.Devices}}); err != nil {
		return err
	}
	spec, err := buildSpec(rec, p)
	if err != nil {
		return err
	}
	if err := machine.Check(spec); err != nil {
		return err
	}
	if len(rec.Config.Volumes) > 0 {
		rec.Warnings = append(rec.Warnings, "the image's volumes lie on the VM's own disk and go with it")
	}
	return nil
}

// hasMachines says why there can be no VM.
func (e *Engine) hasMachines() error {
	switch {
	case e.cfg.Machines != nil:
		return nil
	case e.cfg.NoMachines != nil:
		return fmt.Errorf("cannot create a VM: %w", e.cfg.NoMachines)
	}
	return refusef(errdefs.ErrUnavailable, "cannot create a VM: this engine has no machines")
}

// planContainer decides on the user namespace and checks what only the
// container wall needs. joined says why it must be the host's because of a
// container whose namespaces are entered; "" otherwise.
func (e *Engine) planContainer(ctx context.Context, rec *record, joined string) error {
	if _, err := seccompOf(rec.Host); err != nil {
		return err
	}
	if _, err := devicesOf(rec.Host); err != nil {
		return err
	}
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeBind && !m.MakeSource {
			if _, err := os.Stat(m.Source); err != nil {
				return invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source)
			}
		}
	}
	why := cmp.Or(hostUserNS(rec.Host), joined)
	switch {
	case e.userns == nil:
		rec.UserNS = false
		return nil
	case rec.Host.UsernsMode.IsHost() && e.cfg.UserNS != "strict":
		rec.UserNS = false // asked for by name: no warning
		return nil
	case why == "":
		why = e.unmappable(rec.Mounts)
	}
	rec.UserNS = why == ""
	if rec.UserNS {
		if err := checkIDs(rec, e.ids); err != nil {
			return err
		}
		strange, err := e.strangers(ctx, rec.ImageID.String(), e.ids)
		if strange != "" {
			rec.Warnings = append(rec.Warnings, strange)
		}
		return err
	}
	if e.cfg.UserNS == "strict" {
		return invalid("cannot run in the host's user namespace, which %s needs: the engine runs with userns=strict", why)
	}
	rec.Warnings = append(rec.Warnings, fmt.Sprintf("the container runs in the host's user namespace because of %s: its root is the host's root", why))
	return nil
}

// unmappable names the first mount whose file system cannot be idmapped; ""
// if there is none. A source that does not exist yet will be made in a
// directory that is asked instead.
func (e *Engine) unmappable(plans []MountPlan) string {
	for _, m := range plans {
		if m.Type != mount.TypeBind {
			continue
		}
		f, err := sys.OpenPath(nearest(m.Source))
		if err != nil {
			continue // the start will say so
		}
		err = sys.CanIdmap(f, e.userns, !m.NonRecursive)
		f.Close()
		if err != nil {
			return fmt.Sprintf("the mount of %s (its file system, or one below it, cannot be idmapped)", m.Source)
		}
	}
	return ""
}

// imageFor finds the image of a new container: the variant for the platform that
// was asked for, or what the name stands for.
func (e *Engine) imageFor(ctx context.Context, r CreateRequest) (*image.Image, error) {
	if r.Platform == nil {
		return e.cfg.Images.Get(ctx, r.Config.Image)
	}
	return e.cfg.Images.Select(ctx, r.Config.Image, *r.Platform)
}

// platformWarnings are Docker's about an image of another platform than the
// host's when none was asked for, and the reason why it will not start. A
// container that cannot be started can still be copied from and committed.
func platformWarnings(r CreateRequest, p ocispec.Platform, kind isolation.Kind) []string {
	var out []string
	if r.Platform == nil && !platform.Fits(p) {
		out = append(out, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
			platforms.FormatAll(p), platforms.FormatAll(platform.Detected())))
	}
	switch v := platform.CanRun(p, kind == isolation.VM); v.Answer {
	case platform.No:
		out = append(out, fmt.Sprintf("the container cannot be started: it is for %s: %s", platform.Name(p), v.Why))
	case platform.Unknown:
		out = append(out, fmt.Sprintf("it is not known whether %s runs here: %s", platform.Name(p), v.Why))
	}
	return out
}

// checkPlatform refuses to start what this host cannot run.
func checkPlatform(rec *record) error {
	p := platform.Of(rec.Platform)
	v := platform.CanRun(p, rec.Kind == isolation.VM)
	if v.Answer != platform.No {
		return nil
	}
	return invalid("cannot run image %s: it is for %s and this host is %s: %s; %s", rec.ImageRef, platform.Name(p), platform.Name(platform.Host()), v.Why, v.Mend)
}

// notTheImage makes an invalid request of an object that is not found: clients
// take a 404 of create for a missing image, which they then pull.
func notTheImage(err error) error {
	if errdefs.IsNotFound(err) {
		return invalid("%s", err)
	}
	return err
}

// reserveName takes rec.Name, or gives it a generated one. Until the returned
// function is called, or the container is removed, nobody else gets it.
func (e *Engine) reserveName(rec *record) (release func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if rec.Name == "" {
		rec.Name = generateName(func(n string) bool { _, taken := e.byName[n]; return taken })
	}
	if owner, taken := e.byName[rec.Name]; taken {
		return nil, nameTaken(rec.Name, owner)
	}
	name := rec.Name
	e.byName[name] = rec.ID
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.byName, name)
	}, nil
}

// nameTaken has Docker's words.
func nameTaken(name, owner string) error {
	return conflict("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, owner)
}
