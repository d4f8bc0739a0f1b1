package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"proa/internal/event"
	"proa/internal/isolation"
	"proa/internal/isolation/userdb"
	"proa/internal/isolation/vm/machine"
	"proa/internal/rootfs"
	"proa/internal/shim"
	"proa/internal/sys"
)

// stubs are what the container driver makes in a root to mount on, besides the
// targets of the user's own mounts. Docker shows those and not these.
var stubs = []string{"/proc", "/sys", "/dev", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}

// Files carries out one operation on a container's files, with in and out as
// its streams, which may be nil. It is possible in every state but while the
// container is removed. Errors are those of rootfs.Tree.Serve.
//
// Where the files are read:
//
//	container, running   by a thread in a mount namespace of its own, to which the container's mounts are copied
//	container, stopped   the same, with the image, the writable layer, volumes and binds mounted by the engine
//	VM, running          by the agent in the guest
//	VM, stopped          by the agent of a guest that is booted for it, without network and without the user's process
//
// So nothing that a container mounted or unmounted counts on the host, nothing
// of it is executed there, and no file system that a guest wrote is mounted.
func (e *Engine) Files(ctx context.Context, ref string, r *rootfs.Request, in io.Reader, out io.Writer) error {
	b, err := e.find(ref)
	if err != nil {
		return err
	}
	c := b.snap.Load()
	if r.Op == rootfs.OpPut && c.Kind == isolation.VM { // nothing but tmpfs is mounted there
		if err := mayPut(c, r.Path); err != nil {
			return err
		}
	}
	if r.Op == rootfs.OpGet && c.Kind == isolation.VM {
		err = guestTar(ctx, r.Path, out, func(out io.Writer) error { return e.files(ctx, b, r, in, out) })
	} else {
		err = e.files(ctx, b, r, in, out)
	}
	if row := fileEvents[r.Op]; row != nil && err == nil {
		e.emit(b.snap.Load(), row)
	}
	switch {
	case errdefs.IsNotFound(err) && !b.isGone() && r.Path != "":
		return refusef(errdefs.ErrNotFound, "Could not find the file %s in container %s", r.Path, strings.TrimPrefix(ref, "/"))
	case err != nil && r.Op == rootfs.OpPut && errdefs.IsInvalidArgument(err):
		return invalid("cannot copy into container %s: %w", short(b.id), err)
	}
	return err
}

// fileEvents are the events of requests about files.
var fileEvents = map[rootfs.Op]*event.Row{
	rootfs.OpGet: event.ContainerArchivePath, rootfs.OpPut: event.ContainerExtractToDir, rootfs.OpExport: event.ContainerExport,
}

// mayPut refuses, in Docker's words, what a container may not be given. The
// target has no symbolic links any more: it lies in the innermost mount above it.
func mayPut(c *Container, target string) error {
	target = path.Join("/", target)
	var in *container.MountPoint
	for i, m := range c.Mounts {
		above := target == m.Destination || strings.HasPrefix(target, m.Destination+"/")
		if m.Type != mount.TypeTmpfs && above && (in == nil || len(m.Destination) > len(in.Destination)) {
			in = &c.Mounts[i]
		}
	}
	switch {
	case in != nil && !in.RW:
		return invalid("mounted volume is marked read-only")
	case in == nil && c.Host.ReadonlyRootfs:
		return invalid("container rootfs is marked read-only")
	}
	return nil
}

// servePut carries out a request in a view of the container's mounts. A
// directory is written to only if the mount that it resolves to may be.
func servePut(ctx context.Context, c *Container, t *rootfs.Tree, r *rootfs.Request, in io.Reader, out io.Writer) error {
	if r.Op == rootfs.OpPut {
		if _, err := t.Stat(r.Path + "/."); err == nil { // what is no directory has an error of its own
			if err := mayPut(c, t.Resolve(r.Path)); err != nil {
				return err
			}
		}
	}
	return t.Serve(ctx, r, in, out)
}

func (e *Engine) files(ctx context.Context, b *box, r *rootfs.Request, in io.Reader, out io.Writer) error {
	for {
		c := b.snap.Load()
		if c.State.alive() {
			sh, err := b.shim()
			if err != nil {
				continue // it has ended just now
			}
			if c.Kind == isolation.VM {
				return sh.Files(ctx, r, in, out)
			}
			return e.liveFiles(ctx, b, sh, r, in, out)
		}
		// It must not be started or removed meanwhile.
		if err := b.lock(ctx); err != nil {
			return err
		}
		c = b.snap.Load()
		switch {
		case b.isGone():
			b.unlock()
			return noSuch(b.id)
		case c.State.alive():
			b.unlock()
			continue
		case c.State == Removing || c.State == Dead:
			b.unlock()
			return conflict("container %s is %s", short(b.id), c.State)
		}
		defer b.unlock()
		if c.Kind == isolation.VM {
			return e.servedFiles(ctx, b, r, in, out)
		}
		return e.restingFiles(ctx, b, r, in, out)
	}
}

// tree is what the files of a container are apart from its root.
func (e *Engine) tree(rec *record, lower *os.File) (*rootfs.Tree, error) {
	t := &rootfs.Tree{Lower: lower, Exclude: stubs}
	var err error
	t.Upper, err = sys.OpenPath(filepath.Join(e.upperDir(rec.ID), "upper"))
	t.User = func(name string) (uid, gid uint32, err error) {
		uid, gid, _, _, err = userdb.Lookup(t.Root, name, nil)
		return uid, gid, err
	}
	return t, err
}

// liveFiles serves a running container.
func (e *Engine) liveFiles(ctx context.Context, b *box, sh *shim.Shim, r *rootfs.Request, in io.Reader, out io.Writer) error {
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })
	image, err := e.cfg.Images.Mount(ctx, rec.ImageID.String())
	if err != nil {
		return err
	}
	defer image.Close()
	t, err := e.tree(&rec, image.Tree)
	if err != nil {
		return err
	}
	defer t.Upper.Close()
	if r.Op == rootfs.OpChanges || r.Op == rootfs.OpLayer {
		return t.Serve(ctx, r, in, out)
	}
	if rec.UserNS {
		// The map that it was started with, which may be an older engine's.
		if t.IDs, err = idsOf(rec.Pid); err != nil {
			return fmt.Errorf("cannot read the files of container %s: %w", short(b.id), err)
		}
	}
	pidfd, err := sys.OpenPid(rec.Pid)
	if err != nil {
		return fmt.Errorf("cannot open container %s: %w", short(b.id), err)
	}
	defer pidfd.Close()
	// The shim answers, so the process that was opened by its number is it.
	if _, pid, err := sh.State(ctx); err != nil || pid != rec.Pid {
		return errors.Join(conflict("container %s has ended meanwhile", short(b.id)), err)
	}
	root, err := sys.CloneRootOf(pidfd, r.Op != rootfs.OpExport)
	if err != nil {
		return err
	}
	defer root.Close()
	if r.Op == rootfs.OpExport {
		t.Bare = root
		return t.Serve(ctx, r, in, out)
	}
	return e.inView(root, t, func() error {
		// Kernel file systems are no files of the container's; the root has
		// empty directories there, as Docker shows.
		for _, dir := range []string{"proc", "sys", "dev"} {
			if err := sys.Detach(filepath.Join(e.viewDir(), dir)); err != nil {
				return err
			}
		}
		return nil
	}, func() error { return servePut(ctx, b.snap.Load(), t, r, in, out) })
}

// idsOf reads the map of the user namespace that a process is in.
func idsOf(pid int) (isolation.IDMap, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	if err != nil {
		return nil, err
	}
	return isolation.ParseIDMap(string(text))
}

// viewDir is where each view is mounted, in a namespace of its own; in the
// engine's it is always empty.
func (e *Engine) viewDir() string { return filepath.Join(e.cfg.ExecRoot, "view") }

// inView attaches root in a mount namespace that only this call has, lets
// furnish add to it, and calls do with it as t.Root, on a thread that makes
// files as the container's root.
func (e *Engine) inView(root *os.File, t *rootfs.Tree, furnish, do func() error) error {
	return sys.OnThread(func(th *sys.Thread) error {
		if err := th.OwnMounts(); err != nil {
			return err
		}
		if err := sys.SetPropagation(root, "rprivate"); err != nil {
			return err
		}
		if err := sys.Attach(root, e.viewDir()); err != nil {
			return err
		}
		if err := th.FileIDs(t.IDs.Root(), t.IDs.Root()); err != nil {
			return err
		}
		if t.Root == nil {
			f, err := sys.OpenPath(e.viewDir())
			if err != nil {
				return err
			}
			defer f.Close()
			t.Root = f
		}
		if err := furnish(); err != nil {
			return err
		}
		return do()
	})
}

// restingFiles serves a container that does not run. The caller holds op.
func (e *Engine) restingFiles(ctx context.Context, b *box, r *rootfs.Request, in io.Reader, out io.Writer) error {
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })
	if err := os.MkdirAll(e.upperDir(b.id), 0o700); err != nil {
		return fmt.Errorf("cannot make the writable layer: %w", err)
	}
	image, err := e.cfg.Images.Mount(ctx, rec.ImageID.String())
	if err != nil {
		return err
	}
	defer image.Close()
	layer, err := sys.WritableLayer(e.upperDir(b.id), image.Tree)
	if err != nil {
		return err
	}
	defer layer.Close()
	t, err := e.tree(&rec, image.Tree)
	if err != nil {
		return err
	}
	defer t.Upper.Close()
	if r.Op == rootfs.OpChanges || r.Op == rootfs.OpLayer {
		return t.Serve(ctx, r, in, out)
	}
	lower, err := sys.CloneTree(image.Tree, "", false) // an overlay may take it
	if err != nil {
		return err
	}
	defer lower.Close()
	places, err := sys.CloneTree(e.places, "", false)
	if err != nil {
		return err
	}
	defer places.Close()
	root, err := sys.Overlay([]*os.File{lower, places}, layer, sys.MountNodev, false)
	if err != nil {
		return err
	}
	defer root.Close()
	if r.Op == rootfs.OpExport {
		t.Bare = root
		return t.Serve(ctx, r, in, out)
	}
	return e.inView(root, t, func() error {
		if err := makeWorkdir(t.Root, rec.Config.WorkingDir); err != nil {
			return err
		}
		if err := e.attachPlans(ctx, &rec, t.Root); err != nil {
			return err
		}
		if err := e.attachNetworkFiles(&rec, t.Root); err != nil || !rec.Host.ReadonlyRootfs {
			return err
		}
		// A link in a volume may change between a look and a write, so the
		// kernel refuses as well.
		return sys.SetMountAttr(t.Root, sys.MountReadonly, 0, false)
	}, func() error { return servePut(ctx, b.snap.Load(), t, r, in, out) })
}

// makeWorkdir makes the working directory of a container that was not started
// yet, as Docker has it from create on. One that cannot be made fails the start
// and not a look at the files.
func makeWorkdir(root *os.File, dir string) error {
	if dir == "" || dir == "/" {
		return nil
	}
	f, err := sys.OpenTarget(root, path.Join("/", dir), true)
	if err != nil {
		return nil //nolint:nilerr // the start says so
	}
	return f.Close()
}

// networkFiles are the files of the network room as they were when the latest
// run ended, by the place that they have inside.
var networkFiles = map[string]string{"/etc/resolv.conf": "resolv.conf", "/etc/hosts": "hosts", "/etc/hostname": "hostname"}

// maxNetworkFile bounds what is kept of a file that a container may have written.
const maxNetworkFile = 256 << 10

// keepNetworkFiles keeps the network's files of a run that ended for readers
// of the stopped container. The room removes its own.
func (e *Engine) keepNetworkFiles(b *box) {
	var from map[string]string
	b.read(func(r *record, l *live) {
		if !r.Host.AutoRemove {
			from = map[string]string{l.resolv: "resolv.conf", l.hosts: "hosts", l.hostname: "hostname"}
		}
	})
	for from, name := range from {
		if from == "" {
			continue
		}
		if err := keepFile(from, filepath.Join(e.dir(b.id), name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			e.cfg.Log.Warn("cannot keep a network file of a container", "id", short(b.id), "err", err)
		}
	}
}

func keepFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxNetworkFile))
	if err != nil {
		return err
	}
	if err := os.WriteFile(to, text, 0o644); err != nil {
		return err
	}
	return os.Chmod(to, 0o644) // whatever the umask
}

// attachNetworkFiles shows the kept files of a container that does not run
// where it had them.
func (e *Engine) attachNetworkFiles(rec *record, root *os.File) error {
	for target, name := range networkFiles {
		if slices.ContainsFunc(rec.Mounts, func(m MountPlan) bool { return m.Target == target }) {
			continue
		}
		f, err := sys.OpenPath(filepath.Join(e.dir(rec.ID), name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = attachPlan(MountPlan{Target: target, Readonly: rec.Host.ReadonlyRootfs}, f, root)
		}
		if err != nil {
			return fmt.Errorf("cannot mount %q: %w", target, err)
		}
	}
	return nil
}

// attachPlans mounts the volumes and binds of a container that does not run
// where it would see them. A bind whose source is gone is left out.
func (e *Engine) attachPlans(ctx context.Context, rec *record, root *os.File) error {
	for _, m := range rec.Mounts {
		var f *os.File
		var err error
		switch m.Type {
		case mount.TypeVolume:
			f, _, err = e.openVolume(ctx, m)
		case mount.TypeBind:
			f, err = sys.OpenPath(m.Source)
		default:
			continue
		}
		if errors.Is(err, os.ErrNotExist) || errdefs.IsNotFound(err) {
			continue
		}
		if err == nil {
			err = attachPlan(m, f, root)
		}
		if err != nil {
			return fmt.Errorf("cannot mount what the container has at %q: %w", m.Target, err)
		}
	}
	return nil
}

func attachPlan(m MountPlan, f, root *os.File) error {
	defer f.Close()
	clone, err := sys.CloneTree(f, "", !m.NonRecursive)
	if err != nil {
		return err
	}
	defer clone.Close()
	if err := sys.SetPropagation(clone, "rprivate"); err != nil {
		return err
	}
	if m.Readonly {
		if err := sys.SetMountAttr(clone, sys.MountReadonly, 0, !m.ReadonlyTop); err != nil {
			return err
		}
	}
	dir, err := sys.IsDir(clone)
	if err != nil {
		return err
	}
	at, err := sys.OpenTarget(root, m.Target, dir)
	if err != nil {
		return err
	}
	defer at.Close()
	return sys.AttachAt(clone, at)
}

// service is a guest that was booted on the disk of a VM that does not run, to
// read and write its files: `docker cp` asks twice, and a boot takes time. It
// belongs to who holds op of the VM.
type service struct {
	sh     *shim.Shim
	parent string      // of its control group
	idle   func() bool // stops the timer that ends it; nil while it is used
}

// serviceIdle is how long a service waits for another question.
const serviceIdle = 3 * time.Second

// servedFiles serves a VM that does not run. The caller holds op.
func (e *Engine) servedFiles(ctx context.Context, b *box, r *rootfs.Request, in io.Reader, out io.Writer) error {
	s, err := e.serve(ctx, b)
	if err != nil {
		return err
	}
	err = s.sh.Files(ctx, r, in, out)
	if errdefs.IsUnavailable(err) { // the guest is gone; the next one boots anew
		e.endService(b)
		return err
	}
	if s.idle == nil {
		s.idle = e.cfg.After(serviceIdle, func() { e.idleService(b, s) })
	}
	return err
}

// serve gives the service of a VM, booting it if there is none.
func (e *Engine) serve(ctx context.Context, b *box) (*service, error) {
	var s *service
	b.read(func(_ *record, l *live) { s = l.service })
	if s != nil {
		if s.idle != nil {
			s.idle()
			s.idle = nil
		}
		return s, nil
	}
	if err := e.life.Err(); err != nil {
		return nil, refusef(errdefs.ErrUnavailable, "cannot boot a VM to read its files: the engine is stopping")
	}
	s, err := e.bootService(ctx, b)
	if e.distrusts("service", err) {
		s, err = e.bootService(ctx, b)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot boot the VM to reach its files: %w", err)
	}
	b.change(func(_ *record, l *live) { l.service = s })
	return s, nil
}

// bootService boots a guest on a VM's disk: no network, no process.
func (e *Engine) bootService(ctx context.Context, b *box) (_ *service, err error) {
	if e.cfg.Machines == nil {
		return nil, e.cfg.NoMachines
	}
	var back undo
	defer func() {
		if err != nil {
			back.run()
		}
	}()
	var rec record
	b.read(func(r *record, _ *live) { rec = *r })
	if err := e.makeDirs(&rec); err != nil {
		return nil, err
	}
	p := parts{dir: e.runDir(b.id), parent: e.cfg.CgroupParent, hostname: e.host, ids: e.ids}
	back.add(func() { os.RemoveAll(p.dir) })
	p.network = isolation.Network{Mode: isolation.NetworkNone}
	for name, to := range map[string]*string{"resolv.conf": &p.network.ResolvConf, "hosts": &p.network.Hosts, "hostname": &p.network.HostsName} {
		if kept := filepath.Join(e.dir(b.id), name); exists(kept) {
			*to = kept
		}
	}
	spec, err := buildSpec(&rec, p)
	if err != nil {
		return nil, err
	}
	spec.Hold = true
	spec.Log = isolation.Log{Driver: "none"}
	spec.Mounts, spec.Sysctls, spec.Root.Readonly = nil, nil, false
	files := shim.NewFiles()
	defer func() { closeAll(files) }()
	disk, err := e.cfg.Images.Disk(ctx, rec.ImageID.String())
	if err != nil {
		return nil, err
	}
	m, err := e.cfg.Machines.Prepare(ctx, spec, machine.Disk{Index: disk.Index, Data: disk.Data}, machine.Options{Dir: e.dir(b.id), FirstFile: nextFile(&files)})
	if err != nil {
		return nil, err
	}
	for _, f := range m.Files {
		files.Add(f)
	}
	sh, err := e.cfg.Shims.Start(ctx, spec, files)
	if err != nil {
		return nil, err
	}
	back.add(func() { e.destroy(b.id, spec.Resources.CgroupParent, sh) })
	step("files: shim runs")
	if _, err := sh.Create(ctx); err != nil {
		if !spec.Machine.Emulated {
			err = &hardwareError{err}
		}
		return nil, err
	}
	return &service{sh: sh, parent: spec.Resources.CgroupParent}, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// idleService ends a service that was not used since its timer was set.
func (e *Engine) idleService(b *box, s *service) {
	if b.lock(e.life) != nil {
		return // Close ends it
	}
	defer b.unlock()
	var now *service
	b.read(func(_ *record, l *live) { now = l.service })
	if now == s && s.idle != nil {
		e.endService(b)
	}
}

// endService ends the service of a VM, if there is one. The caller holds op, or
// the engine is stopping.
// What was written is on the disk already: the agent syncs before it answers.
func (e *Engine) endService(b *box) {
	var s *service
	b.change(func(_ *record, l *live) { s, l.service = l.service, nil })
	if s == nil {
		return
	}
	if s.idle != nil {
		s.idle()
	}
	e.destroy(b.id, s.parent, s.sh)
}
