package engine

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
	"proa/internal/shim"
	"proa/internal/sys"
)

// parts are what a start opened and found out; buildSpec only puts them together.
type parts struct {
	root     isolation.File    // tree of the image
	places   isolation.File    // the layer below it; 0: none
	upper    string            // directory with upper and work
	dir      string            // the instance's own directory
	logPath  string            // json-file
	parent   string            // cgroup
	hostname string            // of the host, for --network host and --uts host
	mounts   []isolation.Mount // already opened, outer ones first
	devices  []isolation.Device
	network  isolation.Network
	ids      isolation.IDMap // of the user namespace
	seccomp  []byte
	join     map[string]isolation.File // namespaces of other containers
	shm      isolation.File            // /dev/shm of another container
}

// buildSpec turns a record and what a start opened into the driver's spec. It
// touches nothing, so that the same record gives the same spec.
func buildSpec(r *record, p parts) (*isolation.Spec, error) {
	c, h := r.Config, r.Host
	vm := r.Kind == isolation.VM
	sec, err := securityOf(h)
	if err != nil {
		return nil, err
	}
	caps, err := capSet(h.CapAdd, h.CapDrop, h.Privileged)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(h.Ulimits)
	if err != nil {
		return nil, err
	}
	log, err := logOf(r, p.logPath, p.hostname)
	if err != nil {
		return nil, err
	}
	name := c.Hostname
	if h.NetworkMode.IsHost() || h.UTSMode.IsHost() {
		if name == "" || name == short(r.ID) {
			name = p.hostname
		}
	}
	s := &isolation.Spec{
		ID: r.ID, Kind: r.Kind, Hostname: name, Domain: c.Domainname,
		Process: isolation.Process{
			Args:            slices.Concat(c.Entrypoint, c.Cmd),
			Env:             environ(c, name),
			Cwd:             cwd(c.WorkingDir),
			Terminal:        c.Tty,
			Rows:            uint16(h.ConsoleSize[0]),
			Cols:            uint16(h.ConsoleSize[1]),
			Stdin:           c.OpenStdin,
			User:            c.User,
			Groups:          h.GroupAdd,
			Capabilities:    caps,
			NoNewPrivileges: sec.noNewPrivileges,
			Seccomp:         p.seccomp,
			Rlimits:         limits,
			OOMScoreAdj:     h.OomScoreAdj,
			Umask:           h.Umask,
		},
		Init:      h.Init != nil && *h.Init && !h.PidMode.IsContainer(), // as Docker: somebody else is process 1 there
		Root:      isolation.Root{Image: p.root, Places: p.places, Upper: p.upper, Readonly: h.ReadonlyRootfs, Volatile: h.AutoRemove},
		Mounts:    p.mounts,
		Devices:   p.devices,
		Resources: resourcesOf(h, p.parent),
		Network:   p.network,
		Sysctls:   sysctls(r, p.ids),
		Dir:       p.dir,
		Log:       log,

		MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths,
	}
	for _, m := range shm(r, p.shm) {
		s.Mounts = isolation.InsertMount(s.Mounts, m, func(m isolation.Mount) string { return m.Target })
	}
	s.Network.FixedFiles = s.Network.FixedFiles || h.ReadonlyRootfs // /etc/hosts and its like, as Docker does
	if vm {
		return s, nil
	}
	s.Namespaces = isolation.Namespaces{
		User: r.UserNS, UIDs: p.ids, GIDs: p.ids,
		PID: !h.PidMode.IsHost(), IPC: !h.IpcMode.IsHost(), UTS: !h.UTSMode.IsHost(), Net: !h.NetworkMode.IsHost(),
		Cgroup: !h.CgroupnsMode.IsHost(), Join: p.join,
	}
	for i := range s.Mounts {
		m := &s.Mounts[i]
		// Shared memory of another container has the owners that it has there.
		m.Idmap = r.UserNS && m.Type == isolation.MountBind && (p.shm == 0 || m.Source != p.shm)
	}
	return s, nil
}

func cwd(dir string) string {
	if dir == "" {
		return "/"
	}
	return path.Clean(dir)
}

// shm is /dev/shm, unless the user mounts something there, the host's is
// shared, or there shall be none. other is that of another container.
func shm(r *record, other isolation.File) []isolation.Mount {
	for _, m := range r.Mounts {
		if m.Target == "/dev/shm" {
			return nil
		}
	}
	if r.Host.IpcMode.IsHost() || r.Host.IpcMode.IsNone() {
		return nil
	}
	if r.Host.IpcMode.IsContainer() {
		if other == 0 {
			return nil // nothing is entered: an exec, or a look at the files
		}
		return []isolation.Mount{{Type: isolation.MountBind, Source: other, Origin: "/dev/shm of another container", Target: "/dev/shm", NonRecursive: true, Detached: true}}
	}
	return []isolation.Mount{{Type: isolation.MountTmpfs, Origin: "shm", Target: "/dev/shm", Size: r.Host.ShmSize, Mode: 0o1777, Options: "nosuid,nodev,noexec"}}
}

// sysctls adds to the wanted ones what lets a container without capabilities
// open ports below 1024 and ping, as Docker does.
func sysctls(r *record, ids isolation.IDMap) map[string]string {
	out := map[string]string{}
	if !r.Host.NetworkMode.IsHost() && !r.Host.NetworkMode.IsContainer() && !r.Host.Privileged {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
		if r.UserNS { // the kernel wants ids that the namespace maps
			out["net.ipv4.ping_group_range"] = fmt.Sprintf("0 %d", lastGroup(ids))
		}
	}
	for k, v := range r.Host.Sysctls {
		out[k] = v
	}
	return out
}

// lastGroup is the group up to which a range from 0 on can reach: the kernel
// compares both ends, and who is between them, by their numbers on the host, and
// takes no number above 2^31-1.
func lastGroup(ids isolation.IDMap) uint32 {
	var last, host uint32
	for _, r := range ids {
		if r.Inside < mostIDs && r.Host >= host {
			last, host = r.Inside+(r.Size-1), r.Host
		}
	}
	return last
}

// hostUserNS says why a container must run in the host's user namespace by its
// configuration alone; "" if it need not.
func hostUserNS(h *container.HostConfig) string {
	switch {
	case h.UsernsMode.IsHost():
		return "--userns host"
	case h.Privileged:
		return "--privileged"
	case h.NetworkMode.IsHost():
		return "--network host"
	case h.PidMode.IsHost():
		return "--pid host"
	case h.IpcMode.IsHost():
		return "--ipc host"
	case h.UTSMode.IsHost():
		return "--uts host"
	}
	return ""
}

// devicesOf finds the nodes of --device, and with --privileged every node of
// the host's /dev that is not the driver's own business.
func devicesOf(h *container.HostConfig) ([]isolation.Device, error) {
	var out []isolation.Device
	if h.Privileged {
		all, err := sys.Devices("/dev")
		if err != nil {
			return nil, err
		}
		for _, d := range all {
			out = append(out, isolation.Device{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: d.Mode, Allow: "rwm"})
		}
	}
	for _, m := range h.Devices {
		allow := m.CgroupPermissions
		if allow == "" {
			allow = "rwm"
		}
		if strings.Trim(allow, "rwm") != "" {
			return nil, invalid("invalid device mode: %s", allow)
		}
		inside := m.PathInContainer
		if inside == "" {
			inside = m.PathOnHost
		}
		if !path.IsAbs(m.PathOnHost) || !path.IsAbs(inside) {
			return nil, invalid("invalid device path %q: it must be absolute", m.PathOnHost)
		}
		found, err := sys.Devices(m.PathOnHost)
		if err != nil {
			return nil, invalid("error gathering device information while adding custom device %q: %v", m.PathOnHost, err)
		}
		if len(found) == 0 {
			return nil, invalid("error gathering device information while adding custom device %q: not a device node", m.PathOnHost)
		}
		for _, d := range found {
			target := path.Join(inside, strings.TrimPrefix(d.Path, path.Clean(m.PathOnHost)))
			out = slices.DeleteFunc(out, func(o isolation.Device) bool { return o.Path == target })
			out = append(out, isolation.Device{Path: target, Type: d.Type, Major: d.Major, Minor: d.Minor, Mode: d.Mode, Allow: allow})
		}
	}
	return out, nil
}

// nextFile is the number that the next added file will have.
func nextFile(f *shim.Files) isolation.File {
	n := f.Add(os.Stdin)
	*f = (*f)[:len(*f)-1]
	return n
}

// tmpfsMount turns a plan into the driver's mount.
func tmpfsMount(p MountPlan) isolation.Mount {
	return isolation.Mount{Type: isolation.MountTmpfs, Target: p.Target, Readonly: p.Readonly, Size: p.Size, Mode: p.Mode, Options: p.Options, Propagation: string(p.Propagation)}
}

// bindMount turns a plan with its opened source into the driver's mount.
func bindMount(p MountPlan, source isolation.File, origin string) isolation.Mount {
	return isolation.Mount{
		Type: isolation.MountBind, Source: source, Origin: origin, Target: p.Target, Readonly: p.Readonly,
		ReadonlyTop: p.ReadonlyTop, NonRecursive: p.NonRecursive, Propagation: string(p.Propagation),
	}
}
