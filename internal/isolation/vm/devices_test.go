package vm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"proa/internal/image/flat"
	"proa/internal/isolation"
	"proa/internal/isolation/vm/machine"
	"proa/internal/sys"
)

// layered is an image of n flat layers: a root with busybox, then one file
// each, as the engine's image store makes it for both walls.
func layered(t *testing.T, n int) machine.Disk {
	t.Helper()
	dir := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: apt-get install busybox-static", err)
	}
	var layers []*flat.Layer
	var d machine.Disk
	for i := range n {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		add := func(h tar.Header, data []byte) {
			h.Size = int64(len(data))
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			for _, name := range []string{"bin/", "proc/", "sys/", "dev/", "etc/", "tmp/", "layers/"} {
				add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, nil)
			}
			add(tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
			for _, applet := range []string{"sh", "cat", "ls", "wc"} {
				add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox"}, nil)
			}
		}
		add(tar.Header{Name: fmt.Sprintf("layers/%03d", i), Mode: 0o644}, fmt.Appendf(nil, "layer %d\n", i))
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		l, err := flat.Write(context.Background(), &b, dir, flat.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
		d.Data = append(d.Data, l.Data())
	}
	d.Index = filepath.Join(dir, "index")
	if err := flat.Merge(layers, d.Index); err != nil {
		t.Fatal(err)
	}
	return d
}

// The number of layers is not bounded by device slots, and a second disk
// begins where one has no partitions left.
func TestManyLayers(t *testing.T) {
	for _, n := range []int{1, 60, 300} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			if n > 100 && testing.Short() {
				t.Skip("short")
			}
			l := newLab(t, agentProgram)
			l.image = layered(t, n)
			exit, out := l.mustRun(l.spec("/bin/sh", "-c", fmt.Sprintf("ls /layers | wc -l; cat /layers/000 /layers/%03d", n-1)))
			want := fmt.Sprintf("%d\nlayer 0\nlayer %d\n", n, n-1)
			if exit.Code != 0 || out != want {
				t.Errorf("%+v %q, not %q", exit, out, want)
			}
		})
	}
}

// A card on a tap: addresses, route, MTU and a connection.
func TestNetwork(t *testing.T) {
	l := newLab(t, agentProgram)
	runtime.LockOSThread() // never unlocked: the thread keeps the namespace and ends with the test
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	tap, err := sys.NewTap("tap0")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"addr add 10.99.0.1/24 dev tap0", "link set tap0 up"} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", args, err, out)
		}
	}
	server, err := net.Listen("tcp", "10.99.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "hello from", c.LocalAddr(), "to", c.RemoteAddr().(*net.TCPAddr).IP)
			c.Close()
		}
	}()
	dir := t.TempDir()
	for name, text := range map[string]string{"resolv.conf": "nameserver 10.99.0.1\n", "hosts": "10.99.0.1 gateway\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := syscall.Dup(int(tap.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	tap.Close()
	spec := l.spec("/bin/sh", "-c", fmt.Sprintf("ip -4 addr show eth0; ip route; cat /etc/resolv.conf; nc gateway %d </dev/null", server.Addr().(*net.TCPAddr).Port))
	spec.Network = isolation.Network{
		Mode:       isolation.NetworkBridge,
		NICs:       []isolation.NIC{{Name: "eth0", MAC: "02:42:0a:63:00:02", MTU: 1400, Address: []string{"10.99.0.2/24"}, Gateway: []string{"10.99.0.1"}, Tap: isolation.File(fd)}},
		ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts"),
	}
	exit, out := l.mustRun(spec)
	for _, want := range []string{"10.99.0.2/24", "mtu 1400", "default via 10.99.0.1", "nameserver 10.99.0.1", "hello from 10.99.0.1:", "to 10.99.0.2"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing (exit %+v) in\n%s", want, exit, out)
		}
	}
}

// --read-only, --tmpfs, user, groups, limits and kernel parameters reach the guest.
func TestKnobs(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/sh", "-c", "id; pwd; echo $WORD; touch /new 2>&1; touch /scratch/new && echo wrote; ulimit -n; cat /proc/sys/net/ipv4/ip_forward; grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status")
	spec.Root.Readonly = true
	spec.Mounts = []isolation.Mount{{Type: isolation.MountTmpfs, Target: "/scratch", Size: 1 << 20, Mode: 0o1777}}
	spec.Process.User, spec.Process.Groups, spec.Process.Cwd = "app", []string{"2000"}, "/tmp"
	spec.Process.Env = append(spec.Process.Env, "WORD=word")
	spec.Process.NoNewPrivileges = true
	spec.Process.Rlimits = []isolation.Rlimit{{Type: 7, Soft: 333, Hard: 444}}
	spec.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	exit, out := l.mustRun(spec)
	for _, want := range []string{"uid=1000(app) gid=1000(app) groups=1000(app),2000", "/tmp\n", "word\n", "Read-only file system", "wrote\n", "333\n", "\n1\n", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing (exit %+v) in\n%s", want, exit, out)
		}
	}
}

// A guest that uses all of its memory stays within the allowance of its VMM,
// and one that starts too many processes is stopped by its own kernel.
func TestLimits(t *testing.T) {
	l := newLab(t, agentProgram)
	spec := l.spec("/bin/sh", "-c", "dd if=/dev/zero of=/scratch/a bs=1M count=200 2>&1; cat /proc/loadavg; echo full; i=0; while [ $i -lt 500 ]; do sleep 1000 & i=$((i+1)); done")
	spec.Mounts = []isolation.Mount{{Type: isolation.MountTmpfs, Target: "/scratch", Size: 200 << 20}}
	spec.Resources.MemoryBytes, spec.Resources.Pids = 320<<20, 100
	i, r, out := l.start(spec)
	out.waitFor(t, "full\n")
	s, err := i.Stats(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a full guest of 320 MiB takes %d MiB, %d at most, of %d; tasks: %s", s.MemoryBytes>>20, s.MemoryMax>>20, s.MemoryLimit>>20, out)
	exit, err := r.Wait(context.Background())
	if err != nil || exit.Code == 0 || exit.Error != "" || exit.OOMKilled || !strings.Contains(out.String(), "fork") {
		t.Errorf("%+v %v %q", exit, err, out)
	}
}
