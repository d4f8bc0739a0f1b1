package engine

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
	"proa/internal/shim"
	"proa/internal/sys"
)

// A container may live in namespaces of another one: its network, its
// processes, its shared memory (--network|pid|ipc container:X). The other one is
// kept by its id and must run at the start; what is joined stays as long as
// somebody is in it. Both have the same user namespace, since rights over a
// network or a process are rights in the user namespace that owns it.

// join is one namespace of another container that is entered.
type join struct {
	ns   string // "net", "pid", "ipc": its name in /proc/PID/ns
	flag string // for messages
	id   string // or whatever a client called the other one, before resolveJoins
}

// joinsOf lists the namespaces that a container takes from others.
func joinsOf(h *container.HostConfig) []join {
	var out []join
	if h.NetworkMode.IsContainer() {
		out = append(out, join{"net", "--network", h.NetworkMode.ConnectedContainer()})
	}
	if h.PidMode.IsContainer() {
		out = append(out, join{"pid", "--pid", h.PidMode.Container()})
	}
	if h.IpcMode.IsContainer() {
		out = append(out, join{"ipc", "--ipc", h.IpcMode.Container()})
	}
	return out
}

// checkJoined has Docker's rules for what cannot be set where the network is
// another container's. c is as the client sent it: an image may expose ports.
func checkJoined(c *container.Config, h *container.HostConfig) error {
	if !h.NetworkMode.IsContainer() {
		return nil
	}
	switch {
	case c.Hostname != "":
		return invalid("conflicting options: hostname and the network mode")
	case len(h.DNS) > 0 || len(h.DNSSearch) > 0 || len(h.DNSOptions) > 0:
		return invalid("conflicting options: dns and the network mode")
	case len(h.ExtraHosts) > 0:
		return invalid("conflicting options: custom host-to-IP mapping and the network mode")
	case len(h.PortBindings) > 0 || h.PublishAllPorts:
		return invalid("conflicting options: port publishing and the container type network mode")
	case len(c.ExposedPorts) > 0:
		return invalid("conflicting options: port exposing and the container type network mode")
	}
	return nil
}

// resolveJoins finds the others that h names, writes their ids into it, and
// refuses those whose namespaces cannot be entered. host says why the container
// has to be in the host's user namespace because another one is; "" otherwise.
func (e *Engine) resolveJoins(c *container.Config, h *container.HostConfig) (host string, err error) {
	joins := joinsOf(h)
	var owner *Container
	for i, j := range joins {
		b, err := e.find(j.id)
		if j.ns == "net" && errdefs.IsNotFound(err) {
			continue // it may be made before the start, as with any other network
		}
		if err != nil {
			return "", notTheImage(err)
		}
		other := b.snap.Load()
		mode := j.flag + " container:" + other.Name
		if other.Kind != isolation.Container {
			return "", invalid("cannot honour %s: it is a VM, whose namespaces belong to a kernel of its own", mode)
		}
		switch {
		case !other.UserNS:
			host = mode + ", which runs there"
		case owner != nil && owner.ID != other.ID:
			return "", invalid("cannot honour %s together with namespaces of %s: each of the two has a user namespace of its own; create both with --userns host", mode, owner.Name)
		default:
			owner = other
		}
		joins[i].id = other.ID
		switch j.ns {
		case "net":
			h.NetworkMode = container.NetworkMode("container:" + other.ID)
			c.Hostname, c.Domainname = other.Config.Hostname, other.Config.Domainname
		case "pid":
			h.PidMode = container.PidMode("container:" + other.ID)
		case "ipc":
			h.IpcMode = container.IpcMode("container:" + other.ID)
		}
	}
	return host, nil
}

// runs reports whether there is a process whose namespaces can be entered.
func (c *Container) runs() bool { return c.State.alive() && c.Pid != 0 }

// joinable refuses, at a start, a container whose namespace cannot be entered now.
func joinable(j join, what string, rec *record, other *Container) error {
	switch m := other.Host.IpcMode; {
	case other.ID == rec.ID:
		return &ownMessage{refusal{errdefs.ErrInvalidArgument, errors.New("cannot join own " + what)}}
	case other.Kind != isolation.Container:
		return invalid("cannot join %s of container %s: it is a VM, whose namespaces belong to a kernel of its own", what, other.Name)
	case !other.runs():
		return conflict("cannot join %s of a non running container: %s", what, other.Name)
	case j.ns == "ipc" && !m.IsShareable() && !m.IsHost():
		return conflict("can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.Name)
	case other.UserNS != rec.UserNS && rec.UserNS:
		return conflict("cannot join %s of container %s: it runs in the host's user namespace and this one was created for another; create it again", what, other.Name)
	}
	return nil
}

// openJoins opens what the container enters and takes the network's files from
// the container that has the network.
func (e *Engine) openJoins(b *box, rec *record, p *parts, files *shim.Files) error {
	for _, j := range joinsOf(rec.Host) {
		what := map[string]string{"net": "network", "pid": "PID", "ipc": "IPC"}[j.ns]
		o, err := e.find(j.id)
		if err != nil {
			return err
		}
		other := o.snap.Load()
		if err := joinable(j, what, rec, other); err != nil {
			return err
		}
		open := func(ns string) error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", other.Pid, ns))
			if err != nil {
				return fmt.Errorf("cannot join %s of container %s: %w", what, other.Name, err)
			}
			if p.join == nil {
				p.join = map[string]isolation.File{}
			}
			p.join[ns] = files.Add(f)
			return nil
		}
		if err := open(j.ns); err != nil {
			return err
		}
		if rec.UserNS && p.join["user"] == 0 {
			if err := open("user"); err != nil {
				return err
			}
			ids, err := idsOf(other.Pid) // which may be an older engine's
			if err != nil {
				return fmt.Errorf("cannot join %s of container %s: %w", what, other.Name, err)
			}
			p.ids = ids
		}
		switch j.ns {
		case "net":
			p.network = isolation.Network{Mode: isolation.NetworkNone, ResolvConf: other.ResolvConfPath, Hosts: other.HostsPath, HostsName: other.HostnamePath}
			b.change(func(_ *record, l *live) {
				l.resolv, l.hosts, l.hostname = other.ResolvConfPath, other.HostsPath, other.HostnamePath
			})
		case "ipc":
			shm, err := sharedMemory(other.Pid)
			if err != nil {
				return fmt.Errorf("cannot join IPC of container %s: %w", other.Name, err)
			}
			p.shm = files.Add(shm)
		}
		// The number of a process that ended may be another's by now.
		if now := o.snap.Load(); !now.runs() || now.Pid != other.Pid {
			return conflict("cannot join %s of a non running container: %s", what, other.Name)
		}
	}
	return nil
}

// sharedMemory makes a detached copy of the mount at /dev/shm of a process. Its
// path is resolved inside, where nothing of it can lead out.
func sharedMemory(pid int) (shm *os.File, err error) {
	p, err := sys.OpenPid(pid)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	err = sys.OnThread(func(t *sys.Thread) error {
		if err := t.EnterMounts(p); err != nil { // its root is the thread's then
			return err
		}
		root, err := sys.OpenPath("/")
		if err != nil {
			return err
		}
		defer root.Close()
		dir, err := sys.OpenInRoot(root, "dev/shm", sys.OnlyPin|syscall.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		shm, err = sys.CloneTree(dir, "", false)
		return err
	})
	return shm, err
}
