package container

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// made are the mounts that the child makes, since they belong to its
// namespaces, as results of its program.
type made struct {
	proc, sysfs, devpts, mqueue sys.Result
	tmpfs                       map[int]sys.Result // by index of Spec.Mounts
	cgroups                     []madeCgroup
	sysctls                     map[string]sys.Result
}

// programSize is the room that the strings of a process need in a program.
func programSize(p *isolation.Process) int {
	n := 32<<10 + len(p.Seccomp) + len(p.User) + 2*len(p.Cwd)
	for _, s := range p.Args {
		n += len(s) + 32
	}
	path := 0
	for _, s := range p.Env {
		n += len(s) + 32
		if strings.HasPrefix(s, "PATH=") {
			path = len(s)
		}
	}
	if len(p.Args) > 0 {
		n += 2*path + (strings.Count(p.Args[0], "")+32)*(path/2+4) // candidates of the search
	}
	return n
}

// build writes the part of the program that makes namespaces and what can only
// be made from inside them.
func (c *instance) build(p *sys.Program) made {
	s, ns := c.spec, &c.spec.Namespaces
	m := made{tmpfs: map[int]sys.Result{}, sysctls: map[string]sys.Result{}}
	p.NotDumpable()
	p.DieWithParent()
	p.Await() // id maps
	if c.shifted() {
		if ns.Join["user"] != 0 {
			p.Setns("enter the other container's user namespace", sys.Int(int(ns.Join["user"])), syscall.CLONE_NEWUSER)
		}
		p.SetIDs(0, 0, nil)
	}
	for _, j := range []struct {
		name string
		flag uintptr
	}{{"net", syscall.CLONE_NEWNET}, {"ipc", syscall.CLONE_NEWIPC}} {
		if f := ns.Join[j.name]; f != 0 {
			p.Setns("enter the other container's "+j.name+" namespace", sys.Int(int(f)), j.flag)
		}
	}
	// Made here and not by the clone, since it takes longer than all that the
	// parent does meanwhile; the network namespace most of it.
	p.Unshare("make namespaces", c.newNamespaces()&^(syscall.CLONE_NEWPID|syscall.CLONE_NEWUSER))
	if c.reforks() {
		p.Refork("make a PID namespace", syscall.CLONE_NEWPID)
	}
	// Both are undone by a change of ids.
	p.NotDumpable()
	p.DieWithParent()

	const plain = sys.MountNosuid | sys.MountNodev | sys.MountNoexec
	m.proc = p.NewFS("proc", plain)
	sysAttr := plain | sys.MountReadonly
	if s.Resources.Privileged {
		sysAttr = plain
	}
	m.sysfs = p.NewFS("sysfs", sysAttr)
	m.devpts = p.NewFS("devpts", sys.MountNosuid|sys.MountNoexec,
		sys.FSConfig{Key: "newinstance", Flag: true}, sys.FSConfig{Key: "ptmxmode", Value: "0666"}, sys.FSConfig{Key: "mode", Value: "0620"}, sys.FSConfig{Key: "gid", Value: "5"})
	m.mqueue = p.NewFS("mqueue", plain)
	for i := range s.Mounts {
		if s.Mounts[i].Type == isolation.MountTmpfs {
			attr, params := tmpfsParams(&s.Mounts[i])
			m.tmpfs[i] = p.NewFS("tmpfs", attr, params...)
		}
	}
	if ns.UTS {
		p.Hostname(s.Hostname, s.Domain)
	}
	if ns.Net && ns.Join["net"] == 0 {
		p.LoopbackUp()
	}
	keys := make([]string, 0, len(s.Sysctls))
	for k := range s.Sysctls {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		path := "sys/" + sysctlPath(k)
		m.sysctls[k] = p.WriteBelow(fmt.Sprintf("set sysctl %q to %q", k, s.Sysctls[k]), sys.Of(m.proc), path, s.Sysctls[k], true)
	}
	p.Report()
	p.Await() // control group
	if ns.Cgroup {
		p.Unshare("make a control group namespace", cloneNewCgroup)
		m.cgroups = buildCgroups(p, &s.Resources)
		p.Report()
	}
	p.Await() // Start
	return m
}

// reforks says whether the first child only goes ahead to enter the joined user
// namespace: a PID namespace that belongs to it needs one more clone.
func (c *instance) reforks() bool {
	ns := &c.spec.Namespaces
	return ns.Join["user"] != 0 && ns.PID && ns.Join["pid"] == 0
}

const cloneNewCgroup = 0x02000000 // CLONE_NEWCGROUP, linux/sched.h

// newNamespaces are the CLONE_NEW flags of what is made and not joined.
func (c *instance) newNamespaces() uintptr {
	ns := &c.spec.Namespaces
	flags := uintptr(syscall.CLONE_NEWNS)
	for _, n := range []struct {
		on   bool
		name string
		flag uintptr
	}{
		{ns.PID, "pid", syscall.CLONE_NEWPID}, {ns.IPC, "ipc", syscall.CLONE_NEWIPC}, {ns.UTS, "uts", syscall.CLONE_NEWUTS},
		{ns.Net, "net", syscall.CLONE_NEWNET}, {ns.User, "user", syscall.CLONE_NEWUSER},
	} {
		if n.on && ns.Join[n.name] == 0 {
			flags |= n.flag
		}
	}
	return flags
}

func (c *instance) cloneOptions() (o sys.CloneOptions, err error) {
	ns := &c.spec.Namespaces
	if ns.Join["user"] == 0 {
		o.Flags = uint64(c.newNamespaces() & (syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID))
	}
	if f := ns.Join["pid"]; f != 0 {
		// A second descriptor, so that closing it leaves the spec's alone.
		fd, err := syscall.Open("/proc/self/fd/"+strconv.Itoa(int(f)), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return o, fmt.Errorf("cannot open the PID namespace to join: %w", err)
		}
		o.PIDNamespace = os.NewFile(uintptr(fd), "pid namespace")
	}
	return o, nil
}

// mapIDs gives a new user namespace its maps and lets the child go on.
func (c *instance) mapIDs() error {
	ns := &c.spec.Namespaces
	if ns.User && ns.Join["user"] == 0 {
		if err := sys.MapIDs(c.child.Pid, ns.UIDs.Kernel(), ns.GIDs.Kernel()); err != nil {
			return err
		}
	}
	return c.child.Continue()
}

// sysctlPath turns "net.ipv4.ip_forward" into a path; a name with slashes is
// one already, in which a dot belongs to a name, as sysctl(8) has it.
func sysctlPath(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return strings.ReplaceAll(name, ".", "/")
}

// tmpfsParams turns a mount into what fsopen takes.
func tmpfsParams(m *isolation.Mount) (attr int, params []sys.FSConfig) {
	attr, set := sys.TmpfsOptions(m.Options)
	mode := m.Mode
	if mode == 0 {
		mode = 0o1777
	}
	set["mode"] = strconv.FormatUint(uint64(mode), 8)
	if m.Origin != "" {
		set["source"] = m.Origin
	}
	if m.Size > 0 {
		set["size"] = strconv.FormatInt(m.Size, 10)
	}
	for _, k := range sortedKeys(set) {
		params = append(params, sys.FSConfig{Key: k, Value: set[k], Flag: set[k] == ""})
	}
	if m.Readonly {
		attr |= sys.MountReadonly
	}
	return attr, params
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
