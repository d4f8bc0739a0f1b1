package engine

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
)

// One container in another's network, processes and shared memory, in its user
// namespace, with its name and its files; exec goes to the same place.
func TestJoin(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	owner := w.create("echo theirs > /dev/shm/note; sleep 100", func(r *CreateRequest) {
		r.Name, r.Host.NetworkMode, r.Host.IpcMode = "owner", "bridge", "shareable"
	})
	w.start(owner)
	w.eventually("the owner has written", func() bool { return w.exec(owner, "cat /dev/shm/note") == "theirs\n" })
	theirs := w.exec(owner, "for n in net pid ipc user; do readlink /proc/self/ns/$n; done; hostname; cat /etc/hosts; ip -o -4 addr show eth0")

	guest := w.create("cat /dev/shm/note; echo ours > /dev/shm/reply; exec sleep 100", func(r *CreateRequest) {
		r.Host.NetworkMode, r.Host.PidMode, r.Host.IpcMode = "container:owner", "container:"+container.PidMode(owner[:12]), container.IpcMode("container:"+owner)
	})
	c := w.get(guest)
	if want := "container:" + owner; string(c.Host.NetworkMode) != want || string(c.Host.PidMode) != want || string(c.Host.IpcMode) != want {
		t.Errorf("modes %s, %s, %s: a name can change, an id cannot", c.Host.NetworkMode, c.Host.PidMode, c.Host.IpcMode)
	}
	w.start(guest)
	w.eventually("shared memory goes both ways", func() bool {
		return w.logs(guest) == "theirs\n" && w.exec(owner, "cat /dev/shm/reply") == "ours\n"
	})
	ours := w.exec(guest, "for n in net pid ipc user; do readlink /proc/self/ns/$n; done; hostname; cat /etc/hosts; ip -o -4 addr show eth0")
	if ours != theirs {
		t.Errorf("inside the joined one:\n%s\ninside the other:\n%s", ours, theirs)
	}
	if out := w.exec(owner, "ps"); strings.Count(out, "sleep 100") < 2 {
		t.Errorf("the owner does not see the other's process:\n%s", out)
	}
	if c := w.get(guest); c.HostsPath != w.get(owner).HostsPath || len(c.Endpoint) != 0 || !c.UserNS {
		t.Errorf("hosts file %s, endpoints %v, user namespace %v", c.HostsPath, c.Endpoint, c.UserNS)
	}
	// The end of the joined one, which is no process 1, leaves the owner alone;
	// all that it started ends with it.
	if err := w.Kill(ctx, guest, ""); err != nil {
		t.Fatal(err)
	}
	w.wait(guest, "not-running")
	if out := w.exec(owner, "ps"); strings.Count(out, "sleep 100") != 1 || w.get(owner).State != Running {
		t.Errorf("after the end of the joined one:\n%s", out)
	}
	// It can start again, also when a new engine does it, and not without the owner.
	w.reopen()
	w.start(guest)
	if err := w.Kill(ctx, owner, ""); err != nil {
		t.Fatal(err)
	}
	w.wait(guest, "not-running") // process 1 of its PID namespace is gone
	if err := w.Start(ctx, guest); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "cannot join network of a non running container: owner") {
		t.Errorf("start without the owner: %v", err)
	}
	if err := w.Remove(ctx, owner, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Start(ctx, guest); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "No such container: "+owner) {
		t.Errorf("start with the owner removed: %v", err)
	}
}

// The joined one is in the host's user namespace where the other one is.
func TestJoinOfTheHostsUserNamespace(t *testing.T) {
	w := newWorld(t)
	owner := w.create("sleep 100", func(r *CreateRequest) { r.Name, r.Host.UsernsMode = "owner", "host" })
	w.start(owner)
	guest := w.create("sleep 100", func(r *CreateRequest) { r.Host.NetworkMode = "container:owner" })
	w.start(guest)
	if c := w.get(guest); c.UserNS || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "--network container:owner") {
		t.Errorf("user namespace %v, warnings %q", c.UserNS, c.Warnings)
	}
	const links = "readlink /proc/self/ns/net; readlink /proc/self/ns/user"
	if a, b := w.exec(owner, links), w.exec(guest, links); a != b {
		t.Errorf("%s\n%s", a, b)
	}
}

func TestJoinRefused(t *testing.T) {
	w := newWorld(t)
	open, other := w.create("true", func(r *CreateRequest) { r.Host.IpcMode = "shareable" }), w.create("true")
	port, _ := dockernet.PortFrom(80, dockernet.TCP)
	for why, edit := range map[string]func(*CreateRequest){
		"No such container: nobody": func(r *CreateRequest) { r.Host.PidMode = "container:nobody" },
		"invalid PID mode":          func(r *CreateRequest) { r.Host.PidMode = "container:" },
		"a user namespace of its own": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Host.IpcMode = container.NetworkMode("container:"+other), container.IpcMode("container:"+open)
		},
		"hostname and the network mode": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Config.Hostname = container.NetworkMode("container:"+other), "x"
		},
		"port publishing": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Host.PublishAllPorts = container.NetworkMode("container:"+other), true
		},
		"port exposing": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Config.ExposedPorts = container.NetworkMode("container:"+other), dockernet.PortSet{port: {}}
		},
		"custom host-to-IP mapping": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Host.ExtraHosts = container.NetworkMode("container:"+other), []string{"a:1.2.3.4"}
		},
		"dns and the network mode": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Host.DNSSearch = container.NetworkMode("container:"+other), []string{"a"}
		},
		"of another container: set it th": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Host.Sysctls = container.NetworkMode("container:"+other), map[string]string{"net.ipv4.ip_forward": "1"}
		},
		"a network stack of its own": func(r *CreateRequest) {
			r.Host.NetworkMode, r.Host.Isolation = container.NetworkMode("container:"+other), "vm"
		},
		"cannot use --pid container": func(r *CreateRequest) { r.Host.PidMode, r.Host.Isolation = container.PidMode("container:"+other), "vm" },
	} {
		r := CreateRequest{Config: &container.Config{Image: "box", Cmd: []string{"true"}}, Host: &container.HostConfig{NetworkMode: "none"}}
		edit(&r)
		if _, err := w.Create(context.Background(), r); err == nil || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v", why, err)
		}
	}
	guest := w.create("true", func(r *CreateRequest) { r.Host.NetworkMode = container.NetworkMode("container:" + other) })
	if err := w.Start(context.Background(), guest); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "non running container") {
		t.Errorf("start while the other one does not run: %v", err)
	}
}
