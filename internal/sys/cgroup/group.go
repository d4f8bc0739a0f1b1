package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"proa/internal/isolation"
)

// Group is the control group of one instance: one directory in each hierarchy
// that is needed. Its methods may be called from several goroutines, except
// Update, Delete and Close, which want to be alone.
type Group struct {
	host    *Host
	path    string
	dirs    []dir // version 1; none on V2
	unified *dir  // version 2 tree; nil on V1
	kill    bool  // the unified directory has cgroup.kill (5.14)
	freeze  bool  // the unified directory has cgroup.freeze (5.2)
}

// dir is one directory of a group.
type dir struct {
	controllers string // comma separated, for messages
	mount       string
	fd          int
}

// Create makes the group path ("proa/<id>") below each hierarchy that r and
// the counters need, and writes the limits. devices are allowed in addition to
// Docker's default list; with r.Privileged there is no list at all. It returns
// what could not be honoured although nobody asked for it by name, one
// sentence each. A limit in r that the host refuses is an error; then nothing
// is left behind. A group that exists already is errdefs.ErrAlreadyExists.
func Create(path string, r *isolation.Resources, devices ...isolation.Device) (*Group, []string, error) {
	h, err := Detect()
	if err != nil {
		return nil, nil, err
	}
	return h.Create(path, r, devices...)
}

// Open finds an existing group by its path; errdefs.ErrNotFound if there is none.
func Open(path string) (*Group, error) {
	h, err := Detect()
	if err != nil {
		return nil, err
	}
	return h.Open(path)
}

// Create is the function Create for this layout.
func (h *Host) Create(path string, r *isolation.Resources, devices ...isolation.Device) (_ *Group, warnings []string, err error) {
	if path, err = cleanPath(path); err != nil {
		return nil, nil, err
	}
	g := &Group{host: h, path: path}
	defer func() {
		if err != nil {
			_ = g.Delete()
		}
	}()
	if h.Unified != "" {
		if err := g.makeUnified(r); err != nil {
			return nil, nil, err
		}
	}
	for _, c := range g.wanted(r) {
		if err := g.need(c); err != nil {
			return nil, nil, err
		}
	}
	if warnings, err = g.limit(r); err != nil {
		return nil, nil, err
	}
	if !r.Privileged {
		if err := g.allowDevices(devices); err != nil {
			warnings = append(warnings, "devices are not restricted: "+err.Error())
		}
	}
	return g, warnings, nil
}

// Open is the function Open for this layout.
func (h *Host) Open(path string) (*Group, error) {
	path, err := cleanPath(path)
	if err != nil {
		return nil, err
	}
	g := &Group{host: h, path: path}
	if h.Unified != "" {
		if fd, err := openDir(filepath.Join(h.Unified, path)); err == nil {
			g.setUnified(fd)
		}
	}
	for _, c := range v1Controllers {
		mount := h.V1[c]
		if mount == "" || g.dir(c) != nil {
			continue
		}
		if fd, err := openDir(filepath.Join(mount, path)); err == nil {
			g.dirs = append(g.dirs, dir{h.sharing(mount), mount, fd})
		}
	}
	if g.unified == nil && len(g.dirs) == 0 {
		return nil, fmt.Errorf("cannot open control group %q: %w", path, errdefs.ErrNotFound)
	}
	return g, nil
}

// cleanPath keeps a group path below its hierarchies.
func cleanPath(p string) (string, error) {
	c := path.Clean("/" + p)[1:]
	if c == "" || strings.ContainsAny(c, "\x00\n") {
		return "", fmt.Errorf("cannot use %q as the path of a control group: %w", p, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// Wanted lists the version 1 controllers that a group with these limits gets a
// directory for; none on V2. In the hierarchies of the others its processes
// stay where they were, so whoever shows hierarchies inside shows these only.
// Each costs a directory to make, join and remove, so the others stay away:
// Update brings them when they are asked for.
func (h *Host) Wanted(r *isolation.Resources) []string {
	if h.Mode == V2 {
		return nil
	}
	want := []string{"memory", "pids", "blkio"}
	if !r.Privileged {
		want = append(want, "devices")
	}
	cpu := r.CPUQuota != 0 || r.CPUPeriod != 0 || r.CPUShares != 0
	cpuset := r.CpusetCpus != "" || r.CpusetMems != ""
	switch {
	case cpu || cpuset || r.MemoryBytes > 0:
		// Programs that look for their limits, the JVM first, believe none unless
		// they find all of memory, cpu, cpuacct and cpuset.
		want = append(want, "cpu", "cpuset", "cpuacct")
	case h.Unified == "":
		want = append(want, "cpuacct") // the version 2 tree counts CPU time without any controller
	}
	return slices.DeleteFunc(want, func(c string) bool { return h.V1[c] == "" })
}

// wanted is Wanted and what this group needs in place of cgroup.freeze.
func (g *Group) wanted(r *isolation.Resources) []string {
	want := g.host.Wanted(r)
	if g.host.Mode != V2 && !g.freeze {
		want = append(want, "freezer")
	}
	return want
}

// need makes the directory of a version 1 controller unless the host lacks the
// controller or the group has it.
func (g *Group) need(controller string) error {
	mount := g.host.V1[controller]
	if mount == "" || g.dir(controller) != nil {
		return nil
	}
	fd, err := makeDir(mount, g.path)
	if err != nil {
		return err
	}
	g.dirs = append(g.dirs, dir{g.host.sharing(mount), mount, fd})
	if controller == "cpuset" || strings.Contains(g.host.sharing(mount), "cpuset") {
		return g.inheritCpuset(mount)
	}
	return nil
}

// makeUnified makes the directory in the version 2 tree and, on V2, hands the
// controllers down to it.
func (g *Group) makeUnified(r *isolation.Resources) error {
	fd, err := makeDir(g.host.Unified, g.path)
	if err != nil {
		return err
	}
	g.setUnified(fd)
	if g.host.Mode == V2 {
		return g.delegate()
	}
	return nil
}

func (g *Group) setUnified(fd int) {
	g.unified = &dir{"unified", g.host.Unified, fd}
	g.freeze = unix.Faccessat(fd, "cgroup.freeze", unix.W_OK, 0) == nil
	g.kill = unix.Faccessat(fd, "cgroup.kill", unix.W_OK, 0) == nil
}

// delegate enables, from the root of the version 2 tree down to the group's
// parent, the controllers that a group uses. A controller that the host lacks
// is left out; what needs it will say so.
func (g *Group) delegate() error {
	var enable []byte
	for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		if g.host.Controllers[c] {
			enable = append(append(enable, " +"...), c...)
		}
	}
	if len(enable) == 0 {
		return nil
	}
	at := g.host.Unified
	for _, elem := range strings.Split(g.path, "/") {
		p := filepath.Join(at, "cgroup.subtree_control")
		if err := writePath(p, enable[1:]); err != nil {
			return fmt.Errorf("cannot hand controllers down from %q: %w (a cgroup that holds processes cannot have limited children; choose another parent)", at, err)
		}
		at = filepath.Join(at, elem)
	}
	return nil
}

// Path is the group's path below each hierarchy.
func (g *Group) Path() string { return g.path }

// Mode is the layout that the group lives in.
func (g *Group) Mode() Mode { return g.host.Mode }

// FD is the directory in the version 2 tree, for CLONE_INTO_CGROUP (5.7); -1
// if there is none. It stays the group's. On Hybrid a child that was cloned
// into it still has to be added to the other hierarchies with Add.
func (g *Group) FD() int {
	if g.unified == nil {
		return -1
	}
	return g.unified.fd
}

// Add moves a process, with all its threads, into the group. It is not needed
// for one that was cloned into FD on V2.
func (g *Group) Add(pid int) error { return g.add(pid, true) }

// AddCloned is Add for a process that was cloned into FD: it leaves out the
// version 2 tree.
func (g *Group) AddCloned(pid int) error { return g.add(pid, g.unified == nil) }

func (g *Group) add(pid int, unified bool) error {
	var buf [20]byte
	b := strconv.AppendInt(buf[:0], int64(pid), 10)
	if unified && g.unified != nil {
		if err := g.unified.write("cgroup.procs", b); err != nil {
			return fmt.Errorf("cannot put process %d into %s of control group %q: %w", pid, "unified", g.path, err)
		}
	}
	for i := range g.dirs {
		if err := g.dirs[i].write("cgroup.procs", b); err != nil {
			return fmt.Errorf("cannot put process %d into %s of control group %q: %w", pid, g.dirs[i].controllers, g.path, err)
		}
	}
	return nil
}

// Procs lists the processes of the group itself and of all groups below it.
func (g *Group) Procs() ([]int, error) {
	d := g.any()
	if d == nil {
		return nil, nil
	}
	var pids []int
	err := walk(d.fd, ".", func(rel string) error {
		b, err := d.read(path.Join(rel, "cgroup.procs"))
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
				return nil // removed meanwhile, or a threaded group whose processes its parent lists
			}
			return err
		}
		for line := range bytes.Lines(b) {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(line))); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes of control group %q: %w", g.path, err)
	}
	return pids, nil
}

// Kill sends SIGKILL to every process of the group and of groups below it,
// those that are just being forked included. It does not wait for them. The
// shim itself must not be in the group.
func (g *Group) Kill() error {
	if g.kill {
		if err := g.unified.write("cgroup.kill", []byte("1")); err != nil {
			return fmt.Errorf("cannot kill control group %q: %w", g.path, err)
		}
		return nil
	}
	// Without cgroup.kill a fork bomb can outrun the list, so it is frozen
	// while it is read; a frozen process of version 1 dies once it is thawed.
	frozen := g.Freeze() == nil
	for range 100 {
		pids, err := g.Procs()
		if err != nil || len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if frozen {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if frozen {
		return g.Thaw()
	}
	return nil
}

// Freeze stops every process of the group until Thaw. It returns once they stand still.
func (g *Group) Freeze() error {
	if g.freeze {
		if err := g.unified.write("cgroup.freeze", []byte("1")); err != nil {
			return fmt.Errorf("cannot freeze control group %q: %w", g.path, err)
		}
		return g.await(g.unified, "cgroup.events", "frozen 1")
	}
	d := g.dir("freezer")
	if d == nil {
		return fmt.Errorf("cannot freeze control group %q: the host has neither a freezer nor cgroup.freeze (Linux 5.2): %w", g.path, errdefs.ErrNotImplemented)
	}
	if err := d.write("freezer.state", []byte("FROZEN")); err != nil {
		return fmt.Errorf("cannot freeze control group %q: %w", g.path, err)
	}
	return g.await(d, "freezer.state", "FROZEN")
}

// Thaw continues what Freeze stopped.
func (g *Group) Thaw() error {
	d, file, value := g.unified, "cgroup.freeze", "0"
	if !g.freeze {
		if d, file, value = g.dir("freezer"), "freezer.state", "THAWED"; d == nil {
			return fmt.Errorf("cannot thaw control group %q: the host has neither a freezer nor cgroup.freeze (Linux 5.2): %w", g.path, errdefs.ErrNotImplemented)
		}
	}
	if err := d.write(file, []byte(value)); err != nil {
		return fmt.Errorf("cannot thaw control group %q: %w", g.path, err)
	}
	return nil
}

// await reads a small file until one of its lines is want, two seconds at most:
// a process in an uninterruptible sleep cannot be frozen before it returns.
func (g *Group) await(d *dir, file, want string) error {
	for wait := 50 * time.Microsecond; ; wait *= 2 {
		b, err := d.read(file)
		if err != nil {
			return fmt.Errorf("cannot read %s of control group %q: %w", file, g.path, err)
		}
		for line := range bytes.Lines(b) {
			if string(bytes.TrimSpace(line)) == want {
				return nil
			}
		}
		if wait > time.Second {
			return fmt.Errorf("cannot freeze control group %q: a process of it does not stop (uninterruptible sleep): %w", g.path, errdefs.ErrUnavailable)
		}
		time.Sleep(wait)
	}
}

// Delete removes the group, groups that were made below it, and its parents as
// long as they are empty. Processes must be gone or dying: Delete waits up to
// two seconds for the last ones to leave. A group that is gone is no error; it
// can be called twice.
func (g *Group) Delete() error {
	var first error
	all := g.dirs
	if g.unified != nil {
		all = append(all[:len(all):len(all)], *g.unified)
	}
	for _, d := range all {
		if err := g.remove(d); err != nil && first == nil {
			first = err
		}
	}
	if first == nil {
		g.Close()
	}
	return first
}

// Sweep kills every process of the group at path and removes the group. None
// there is no error. The caller must not be in it.
func Sweep(path string) error {
	g, err := Open(path)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer g.Close()
	if err := g.Kill(); err != nil {
		return err
	}
	return g.Delete()
}

// remove takes one directory of the group away.
func (g *Group) remove(d dir) error {
	full := filepath.Join(d.mount, g.path)
	for wait := 100 * time.Microsecond; ; wait *= 2 {
		err := unix.Rmdir(full)
		if err == nil || err == unix.ENOENT {
			break
		}
		if err != unix.EBUSY && err != unix.ENOTEMPTY || wait > time.Second {
			return fmt.Errorf("cannot remove control group %q: %w", full, err)
		}
		if wait > 400*time.Microsecond { // not the usual dying process: perhaps groups below
			removeBelow(d.fd, full)
		}
		time.Sleep(wait)
	}
	for p := path.Dir(g.path); p != "."; p = path.Dir(p) {
		if unix.Rmdir(filepath.Join(d.mount, p)) != nil {
			break // somebody else is in there
		}
	}
	return nil
}

// removeBelow removes all groups below a directory, deepest first.
func removeBelow(fd int, full string) {
	var below []string
	_ = walk(fd, ".", func(rel string) error {
		below = append(below, rel)
		return nil
	})
	for i := len(below) - 1; i > 0; i-- {
		_ = unix.Rmdir(filepath.Join(full, below[i]))
	}
}

// Close gives the open directories back and leaves the group as it is.
func (g *Group) Close() {
	for _, d := range g.dirs {
		_ = unix.Close(d.fd)
	}
	if g.unified != nil {
		_ = unix.Close(g.unified.fd)
	}
	g.dirs, g.unified, g.kill, g.freeze = nil, nil, false, false
}

// dir finds the directory of a version 1 controller; on V2 the one directory.
func (g *Group) dir(controller string) *dir {
	if g.host.Mode == V2 {
		return g.unified
	}
	mount := g.host.V1[controller]
	if mount == "" {
		return nil
	}
	for i := range g.dirs {
		if g.dirs[i].mount == mount {
			return &g.dirs[i]
		}
	}
	return nil
}

// any is a directory that holds all processes of the group.
func (g *Group) any() *dir {
	if g.unified != nil {
		return g.unified
	}
	if len(g.dirs) > 0 {
		return &g.dirs[0]
	}
	return nil
}

// sharing names the controllers of one version 1 mount.
func (h *Host) sharing(mount string) string {
	var names []string
	for _, c := range v1Controllers {
		if h.V1[c] == mount {
			names = append(names, c)
		}
	}
	return strings.Join(names, ",")
}
