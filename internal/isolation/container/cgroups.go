package container

import (
	"fmt"
	"os"

	"proa/internal/isolation"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// madeCgroup is one hierarchy as the container sees it, with its own group as
// the root.
type madeCgroup struct {
	name  string // below /sys/fs/cgroup; "" is that directory itself
	mount sys.Result
}

// shownV1 are the version 1 hierarchies that programs look into to find out
// their limits (the JVM, Go's automaxprocs); others are not shown. Each costs
// about 40 microseconds of a start. One in which the container has no group of
// its own is never shown: its namespace begins at the root there, and it would
// see the groups of the whole host.
var shownV1 = []string{"memory", "cpu", "cpuacct", "cpuset", "pids"}

// buildCgroups adds the mounts of the control group namespace: the version 2
// tree, or on a host without one those of version 1 that r gives it a group in.
func buildCgroups(p *sys.Program, r *isolation.Resources) []madeCgroup {
	h, err := cgroup.Detect()
	if err != nil {
		return nil // Create fails with the reason
	}
	const attr = sys.MountNosuid | sys.MountNodev | sys.MountNoexec | sys.MountReadonly
	if h.Mode == cgroup.V2 {
		return []madeCgroup{{"", p.NewFS("cgroup2", attr)}}
	}
	var out []madeCgroup
	own := map[string]bool{} // by mount point: several controllers may share a hierarchy
	for _, name := range h.Wanted(r) {
		own[h.V1[name]] = true
	}
	for _, name := range shownV1 {
		if h.V1[name] != "" && own[h.V1[name]] {
			out = append(out, madeCgroup{name, p.NewFS("cgroup", attr, sys.FSConfig{Key: name, Flag: true})})
		}
	}
	return out
}

// attachCgroups puts them below /sys/fs/cgroup, read-only.
func (c *instance) attachCgroups(sysfs *os.File, list []madeCgroup) error {
	if len(list) == 0 {
		return nil
	}
	at, err := sys.OpenPathInRoot(sysfs, "fs/cgroup")
	if err != nil {
		return fmt.Errorf("cannot open /sys/fs/cgroup inside: %w", err)
	}
	defer at.Close()
	base := at
	if list[0].name != "" {
		if base, err = sys.NewFS("tmpfs", sys.MountNosuid|sys.MountNodev|sys.MountNoexec, sys.FSConfig{Key: "mode", Value: "755"}, sys.FSConfig{Key: "size", Value: "4k"}); err != nil {
			return err
		}
		defer base.Close()
		if err := sys.AttachAt(base, at); err != nil {
			return err
		}
	}
	for _, g := range list {
		mount, err := c.program.Take(g.mount, "control group file system "+g.name)
		if err != nil {
			return err
		}
		err = c.attachCgroup(base, g.name, mount)
		_ = mount.Close()
		if err != nil {
			return err
		}
	}
	if base != at {
		return sys.SetMountAttr(base, sys.MountReadonly, 0, false)
	}
	return nil
}

func (c *instance) attachCgroup(base *os.File, name string, mount *os.File) error {
	if name == "" {
		return sys.AttachAt(mount, base)
	}
	at, err := sys.OpenPlainDir(base, name)
	if err != nil {
		return err
	}
	defer at.Close()
	return sys.AttachAt(mount, at)
}
