package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// furnish makes the file system of the container on a thread that ends inside
// its mount namespace. Files that it makes belong to the container's root.
// mapped says when the child has its user namespace, or that there is none.
func (c *instance) furnish(t *sys.Thread, mapped <-chan bool) error {
	s := c.spec
	files, err := c.openRoot() // before the ids change: a writable layer is truly root's
	defer files.close()
	if err != nil {
		return err
	}
	if err := t.FileIDs(c.hostUID(0), c.hostGID(0)); err != nil {
		return err
	}
	dev, err := c.makeDev()
	if err != nil {
		return err
	}
	defer dev.Close()
	if c.null, err = sys.OpenInRoot(dev, "null", syscall.O_RDWR, 0); err != nil {
		return err
	}
	if !<-mapped {
		return errors.New("cannot furnish a container that has no process")
	}
	m := c.made
	var userns *os.File
	if c.shifted() {
		// A joined one is entered by the child later than this; its descriptor is here.
		if j := s.Namespaces.Join["user"]; j != 0 {
			userns, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", j))
		} else {
			userns, err = sys.UserNamespace(c.child.Pid)
		}
		if err != nil {
			return fmt.Errorf("cannot open the user namespace: %w", err)
		}
		defer userns.Close()
	}
	if c.root, err = files.join(userns, s.Root.Volatile); err != nil {
		return err
	}
	sources, err := c.cloneSources(userns)
	defer closeFiles(sources)
	if err != nil {
		return err
	}

	if err := c.child.WaitReport(); err != nil {
		return startError(err)
	}
	if err := t.EnterMounts(c.child.Pidfd); err != nil {
		return err
	}
	if err := t.PivotRoot(c.root); err != nil {
		return err
	}
	sysfs, err := c.attachStandard(dev, m)
	if err != nil {
		return err
	}
	defer sysfs.Close()
	if err := c.attachWanted(sources, m); err != nil {
		return err
	}
	if err := c.protect(dev); err != nil {
		return err
	}
	if len(m.cgroups) > 0 {
		if err := c.child.WaitReport(); err != nil {
			return startError(err)
		}
		if err := c.attachCgroups(sysfs, m.cgroups); err != nil {
			return err
		}
	}
	if cwd := s.Process.Cwd; cwd != "" && cwd != "/" {
		dir, err := sys.OpenTarget(c.root, cwd, true)
		if err != nil {
			return fmt.Errorf("cannot make the working directory: %w", err)
		}
		_ = dir.Close()
	}
	if s.Process.Terminal {
		if err := c.makeConsole(dev); err != nil {
			return err
		}
	}
	if s.Root.Readonly {
		if s.Root.Unstub && len(c.stubs) > 0 {
			// A mount that is not read-only, to take them away by.
			if c.bare, err = sys.CloneTree(c.root, "", false); err != nil {
				return err
			}
		}
		if err := sys.SetMountAttr(c.root, sys.MountReadonly, 0, false); err != nil {
			return err
		}
	}
	return nil
}

// layered are the parts of a file system that is written to: read-only files
// with a writable layer above them, or one tree that is written in place.
type layered struct {
	image  *os.File // detached
	places *os.File // detached, the lowest layer; nil: none
	layer  *os.File // detached, holds "upper" and "work"; nil: image is the tree
}

func (l layered) close() {
	for _, f := range []*os.File{l.image, l.places, l.layer} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// openRoot opens the parts of the root.
func (c *instance) openRoot() (l layered, err error) {
	r := &c.spec.Root
	if r.Tree != 0 {
		l.image, err = sys.Dup(int(r.Tree), "root")
		return l, err
	}
	if l.image, err = sys.Dup(int(r.Image), "image"); err != nil {
		return l, err
	}
	if r.Places != 0 {
		if l.places, err = sys.Dup(int(r.Places), "places"); err != nil {
			return l, err
		}
	}
	l.layer, err = sys.WritableLayer(r.Upper, l.image)
	return l, err
}

// join makes one detached mount of the parts. With a user namespace all are
// shifted first, and the overlay works with the ids of the thread; shifting the
// overlay itself is not possible (kernel: EINVAL).
func (l layered) join(userns *os.File, volatile bool) (*os.File, error) {
	attr := 0
	if userns != nil {
		for _, f := range []*os.File{l.image, l.places, l.layer} {
			if f == nil {
				continue
			}
			if err := sys.Idmap(f, userns, false); err != nil {
				return nil, err
			}
		}
		// The mount belongs to the engine's user namespace, so device nodes of
		// an image would work.
		attr = sys.MountNodev
	}
	if l.layer != nil {
		lowers := []*os.File{l.image}
		if l.places != nil {
			lowers = append(lowers, l.places)
		}
		return sys.Overlay(lowers, l.layer, attr, volatile)
	}
	tree, err := sys.Dup(sys.RawFD(l.image), "root")
	if err == nil && attr != 0 {
		err = sys.SetMountAttr(tree, uint64(attr), 0, false)
	}
	if err == nil {
		err = sys.SetPropagation(tree, "private")
	}
	if err != nil && tree != nil {
		_ = tree.Close()
	}
	return tree, err
}

// makeDev makes the container's /dev in the engine's user namespace, where
// device nodes work, with the container's root as the owner. So nothing of the
// host's /dev is mounted, and a node is what it seems to be (CVE-2025-31133).
func (c *instance) makeDev() (dev *os.File, err error) {
	dev, err = sys.NewFS("tmpfs", sys.MountNosuid, sys.FSConfig{Key: "source", Value: "tmpfs"},
		sys.FSConfig{Key: "mode", Value: "755"}, sys.FSConfig{Key: "size", Value: "65536k"},
		sys.FSConfig{Key: "uid", Value: fmt.Sprint(c.hostUID(0))}, sys.FSConfig{Key: "gid", Value: fmt.Sprint(c.hostGID(0))})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = dev.Close()
		}
	}()
	for _, n := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		if err := sys.MakeNode(dev, n.name, false, n.major, n.minor, 0o666); err != nil {
			return nil, err
		}
	}
	for _, l := range [][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
		{"ptmx", "pts/ptmx"}, {"core", "/proc/kcore"},
	} {
		if err := sys.MakeLink(dev, l[0], l[1]); err != nil {
			return nil, err
		}
	}
	for _, d := range []struct {
		name string
		mode uint32
	}{{"pts", 0o755}, {"mqueue", 0o755}, {"shm", 0o1777}} {
		if err := sys.MakeDir(dev, d.name, d.mode); err != nil {
			return nil, err
		}
	}
	for _, d := range c.spec.Devices {
		rel, ok := strings.CutPrefix(path.Clean(d.Path), "/dev/")
		if !ok {
			return nil, fmt.Errorf("cannot make the device %q: only below /dev: %w", d.Path, errdefs.ErrInvalidArgument)
		}
		at, name := dev, rel
		if i := strings.LastIndexByte(rel, '/'); i >= 0 {
			if at, err = sys.OpenTarget(dev, rel[:i], true); err != nil {
				return nil, err
			}
			name = rel[i+1:]
		}
		err := sys.MakeNode(at, name, d.Type == "b", d.Major, d.Minor, d.Mode)
		if at != dev {
			_ = at.Close()
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	return dev, nil
}

// source is what a bind mount attaches, ready and detached.
type source struct {
	mount *os.File
	dir   bool
}

func closeFiles(list []source) {
	for _, s := range list {
		if s.mount != nil {
			_ = s.mount.Close()
		}
	}
}

// cloneSources clones what binds name, shifted and read-only as wanted. The
// result has the indexes of c.binds.
func (c *instance) cloneSources(userns *os.File) (out []source, err error) {
	for i := range c.binds {
		b := &c.binds[i]
		if b.Type != isolation.MountBind {
			out = append(out, source{})
			continue
		}
		mount, err := cloneSource(&b.Mount)
		if err != nil {
			return out, fmt.Errorf("cannot mount %q: %w", b.Origin, err)
		}
		dir, err := sys.IsDir(mount)
		out = append(out, source{mount, dir})
		if err != nil {
			return out, err
		}
		if userns != nil && b.Idmap {
			err := sys.Idmap(mount, userns, !b.NonRecursive)
			if b.index < 0 && errors.Is(err, syscall.EINVAL) {
				// A file of the engine's on a tmpfs before Linux 6.3. Nobody else
				// owns it, so it can simply be given to the container's root.
				err = sys.Chown(mount, c.hostUID(0), c.hostGID(0))
			}
			if err != nil {
				return out, fmt.Errorf("cannot shift the owners of %q: %w", b.Origin, err)
			}
		}
		if b.Readonly {
			if err := sys.SetMountAttr(mount, sys.MountReadonly, 0, !b.NonRecursive && !b.ReadonlyTop); err != nil {
				return out, err
			}
		}
		how := b.Propagation
		if how == "" {
			how = "rprivate"
		}
		if err := sys.SetPropagation(mount, how); err != nil {
			return out, fmt.Errorf("cannot mount %q: %w", b.Origin, err)
		}
	}
	return out, nil
}

func cloneSource(b *isolation.Mount) (*os.File, error) {
	if b.Source == 0 {
		return sys.CloneTree(nil, b.Origin, !b.NonRecursive)
	}
	f, err := sys.Dup(int(b.Source), b.Origin)
	if err != nil {
		return nil, err
	}
	if b.Detached {
		return f, nil
	}
	defer f.Close()
	return sys.CloneTree(f, "", !b.NonRecursive)
}

// bind is one mount to attach below the root.
type bind struct {
	isolation.Mount
	index int // in Spec.Mounts; -1: a file or directory that every container has
}

// wanted are the mounts of the spec, and among them the network's files and
// /dev/shm unless the user mounts something there: behind what would hide them.
func wanted(s *isolation.Spec) []bind {
	var out []bind
	for i, m := range s.Mounts {
		out = append(out, bind{m, i})
	}
	add := func(m isolation.Mount) {
		out = isolation.InsertMount(out, bind{m, -1}, func(b bind) string { return b.Target })
	}
	has := func(target string) bool {
		return slices.ContainsFunc(s.Mounts, func(m isolation.Mount) bool { return path.Clean(m.Target) == target })
	}
	shifted := s.Namespaces.User || s.Namespaces.Join["user"] != 0
	for _, f := range []struct{ target, origin string }{
		{"/etc/resolv.conf", s.Network.ResolvConf}, {"/etc/hosts", s.Network.Hosts}, {"/etc/hostname", s.Network.HostsName},
	} {
		if f.origin != "" && !has(f.target) {
			add(isolation.Mount{Type: isolation.MountBind, Origin: f.origin, Target: f.target, Idmap: shifted, NonRecursive: true, Readonly: s.Network.FixedFiles})
		}
	}
	if !s.Namespaces.IPC && s.Namespaces.Join["ipc"] == 0 && !has("/dev/shm") {
		add(isolation.Mount{Type: isolation.MountBind, Origin: "/dev/shm", Target: "/dev/shm", NonRecursive: true})
	}
	return out
}

// attachStandard attaches /proc, /sys and /dev. They must be plain directories
// of the root (CVE-2019-19921). It returns the root of /sys.
func (c *instance) attachStandard(dev *os.File, m made) (sysfs *os.File, err error) {
	if c.proc, err = c.program.Take(m.proc, "proc"); err != nil {
		return nil, err
	}
	if c.pts, err = c.program.Take(m.devpts, "devpts"); err != nil {
		return nil, err
	}
	mqueue, err := c.program.Take(m.mqueue, "mqueue")
	if err != nil {
		return nil, err
	}
	defer mqueue.Close()
	if sysfs, err = c.program.Take(m.sysfs, "sysfs"); err != nil {
		return nil, err
	}
	for _, a := range []struct {
		parent *os.File
		name   string
		mount  *os.File
	}{
		{c.root, "proc", c.proc}, {c.root, "sys", sysfs}, {c.root, "dev", dev},
		{dev, "pts", c.pts}, {dev, "mqueue", mqueue},
	} {
		at, err := sys.OpenPlainDir(a.parent, a.name)
		if err == nil {
			err = sys.AttachAt(a.mount, at)
			_ = at.Close()
		}
		if err != nil {
			_ = sysfs.Close()
			return nil, err
		}
	}
	return sysfs, nil
}

// procTargets are the only files of /proc that may be mounted over, as in runc:
// harmless ones that lxcfs and the like replace.
var procTargets = map[string]bool{
	"/proc/cpuinfo": true, "/proc/diskstats": true, "/proc/meminfo": true, "/proc/stat": true, "/proc/swaps": true,
	"/proc/uptime": true, "/proc/loadavg": true, "/proc/slabinfo": true, "/proc/net/dev": true,
	"/proc/sys/kernel/ns_last_pid": true, "/proc/sys/crypto/fips_enabled": true,
}

// attachWanted attaches binds and tmpfs in their order. Each target is resolved
// inside, after the mounts before it, and attached by descriptor (CVE-2021-30465).
func (c *instance) attachWanted(sources []source, m made) error {
	for i := range c.binds {
		b := &c.binds[i]
		src := sources[i]
		if b.Type == isolation.MountTmpfs {
			mount, err := c.program.Take(m.tmpfs[b.index], "tmpfs")
			if err != nil {
				return err
			}
			src = source{mount, true}
			sources[i] = src // closed by the caller
		}
		at, stubs, err := sys.MakeTarget(c.root, b.Target, src.dir)
		c.stubs = append(c.stubs, stubs...)
		if err != nil {
			return fmt.Errorf("cannot mount %q: %w", b.Origin, err)
		}
		if b.Type == isolation.MountTmpfs && b.Mode == 0 && len(stubs) == 0 {
			if err := sys.CopyMode(at, src.mount); err != nil {
				return fmt.Errorf("cannot give the tmpfs at %q the mode of its directory: %w", b.Target, err)
			}
		}
		err = c.attachOne(&b.Mount, src, at)
		_ = at.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *instance) attachOne(b *isolation.Mount, src source, at *os.File) error {
	inProc, err := sys.IsProc(at)
	if err != nil {
		return err
	}
	if inProc && !procTargets[path.Clean(b.Target)] {
		return fmt.Errorf("cannot mount %q at %q: it lies in /proc: %w", b.Origin, b.Target, errdefs.ErrInvalidArgument)
	}
	dir, err := sys.IsDir(at)
	if err != nil {
		return err
	}
	if dir != src.dir {
		return fmt.Errorf("cannot mount %q at %q: one is a directory and the other is not: %w", b.Origin, b.Target, errdefs.ErrInvalidArgument)
	}
	if err := sys.AttachAt(src.mount, at); err != nil {
		return fmt.Errorf("cannot mount %q at %q: %w", b.Origin, b.Target, err)
	}
	if b.Type == isolation.MountTmpfs && b.Propagation != "" {
		return sys.SetPropagation(src.mount, b.Propagation)
	}
	return nil
}

// protect masks and write-protects paths of the kernel's file systems. What
// hides a path is attached by descriptor and is ours: a node of the new /dev or
// an empty tmpfs, never something that the image brought (CVE-2025-31133).
func (c *instance) protect(dev *os.File) error {
	var empty *os.File
	defer func() {
		if empty != nil {
			_ = empty.Close()
		}
	}()
	for _, p := range c.spec.MaskedPaths {
		at, err := c.openExisting(p)
		if at == nil {
			if err != nil {
				return err
			}
			continue
		}
		dir, err := sys.IsDir(at)
		var cover *os.File
		switch {
		case err != nil:
		case !dir:
			cover, err = sys.CloneTree(dev, "null", false)
		case empty == nil:
			empty, err = sys.NewFS("tmpfs", sys.MountReadonly|sys.MountNosuid|sys.MountNodev|sys.MountNoexec, sys.FSConfig{Key: "size", Value: "0"}, sys.FSConfig{Key: "nr_inodes", Value: "1"})
			if err == nil {
				err = sys.AttachAt(empty, at)
			}
		default:
			cover, err = sys.CloneTree(empty, "", false)
		}
		if err == nil && cover != nil {
			err = sys.AttachAt(cover, at)
			_ = cover.Close()
		}
		_ = at.Close()
		if err != nil {
			return fmt.Errorf("cannot mask %q: %w", p, err)
		}
	}
	for _, p := range c.spec.ReadonlyPaths {
		at, err := c.openExisting(p)
		if at == nil {
			if err != nil {
				return err
			}
			continue
		}
		clone, err := sys.CloneTree(at, "", true)
		if err == nil {
			if err = sys.SetMountAttr(clone, sys.MountReadonly, 0, true); err == nil {
				err = sys.AttachAt(clone, at)
			}
			_ = clone.Close()
		}
		_ = at.Close()
		if err != nil {
			return fmt.Errorf("cannot make %q read-only: %w", p, err)
		}
	}
	return nil
}

// openExisting opens a path to protect; nil if there is none. What is called a
// path of /proc has to lie in a procfs (CVE-2025-52881).
func (c *instance) openExisting(p string) (*os.File, error) {
	f, err := sys.OpenPathInRoot(c.root, p)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EACCES) {
			return nil, nil
		}
		return nil, fmt.Errorf("cannot open %q to protect it: %w", p, err)
	}
	if strings.HasPrefix(path.Clean(p), "/proc/") {
		if ok, err := sys.IsProc(f); err != nil || !ok && !procTargets[path.Clean(p)] {
			_ = f.Close()
			return nil, errors.Join(fmt.Errorf("cannot protect %q: it does not lie in /proc", p), err)
		}
	}
	return f, nil
}

// makeConsole makes the terminal of the main process and puts it at
// /dev/console. Both ends come from descriptors of the new devpts (CVE-2025-52565).
func (c *instance) makeConsole(dev *os.File) (err error) {
	if c.master, c.terminal, err = sys.OpenPTYIn(c.pts); err != nil {
		return err
	}
	if err := sys.MakeFile(dev, "console", 0o620); err != nil {
		return err
	}
	at, err := sys.OpenTarget(dev, "console", false)
	if err != nil {
		return err
	}
	defer at.Close()
	clone, err := sys.CloneTree(c.terminal, "", false)
	if err != nil {
		return err
	}
	defer clone.Close()
	return sys.AttachAt(clone, at)
}
