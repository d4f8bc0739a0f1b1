package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"proa/internal/isolation/vm/wire"
)

// The tests run the agent as process 1 of new namespaces on the host's kernel,
// over a socket pair, on a real EROFS image and a real ext4 disk. What is left
// for a real VM: the boot before Serve and the power-off.

const guestEnv = "PROA_AGENT_TEST_GUEST"

func TestMain(m *testing.M) {
	if os.Getenv(guestEnv) != "" {
		guest()
	}
	os.Exit(m.Run())
}

const (
	testMAC  = "02:42:0a:63:00:02"
	testRoot = "/tmp" // covered by a tmpfs inside the namespaces; becomes the initramfs's root
)

// guest is process 1 of the namespaces: it makes what an initramfs would be and serves.
func guest() {
	die := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
			os.Exit(1)
		}
	}
	if out, err := exec.Command("ip", "link", "add", "card0", "address", testMAC, "type", "veth", "peer", "name", "card1").CombinedOutput(); err != nil {
		die(fmt.Errorf("%w: %s", err, out))
	}
	die(syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	root := testRoot
	die(syscall.Mount("tmpfs", root, "tmpfs", 0, ""))
	for _, d := range []string{"proc", "sys", "dev"} {
		die(os.Mkdir(filepath.Join(root, d), 0o755))
	}
	die(syscall.Mount("proc", root+"/proc", "proc", 0, ""))
	die(syscall.Mount("/dev", root+"/dev", "", syscall.MS_BIND, "")) // the loop devices
	die(syscall.Chroot(root))
	die(os.Chdir("/"))
	conn := os.NewFile(3, "socket")
	a := New(conn, Options{KillAll: true, Warn: func(s string) { fmt.Fprintln(os.Stderr, "guest:", s) }})
	_ = a.Serve()
	os.Exit(0)
}

// disks are an image with busybox and an empty writable disk, as block devices.
type disks struct {
	image, rw string
	rwFile    string
}

func makeDisks(t *testing.T) *disks {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: loop devices and namespaces")
	}
	for _, tool := range []string{"mkfs.erofs", "mkfs.ext4", "losetup", "busybox", "ip"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: apt-get install erofs-utils e2fsprogs busybox-static iproute2", tool)
		}
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "etc", "root", "tmp", "home/app", "proc", "sys", "dev", "locked"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, _ := exec.LookPath("busybox")
	sh(t, "cp", busybox, root+"/bin/busybox")
	for _, name := range []string{"sh", "cat", "echo", "id", "sleep", "true", "false", "ls", "stty", "seq", "head", "ps", "kill", "dd", "wc", "tty", "readlink", "hostname", "ip", "env", "pwd", "mount", "touch", "stat", "md5sum", "nproc", "grep"} {
		if err := os.Symlink("busybox", root+"/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\napp:x:1000:\nstaff:x:50:app\n", 0o644)
	write("etc/hosts", "the image's\n", 0o644)
	write("etc/noexec", "#!/bin/sh\n", 0o644)
	write("bin/badformat", "no program\n", 0o755)
	write("bin/badinterp", "#!/no/such/shell\n", 0o755)
	if err := os.Symlink("../run/missing/resolv.conf", root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	// What the agent must neither open nor follow when it writes its files.
	if err := syscall.Mkfifo(root+"/etc/hostname", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o751); err != nil {
		t.Fatal(err)
	}
	d := &disks{rwFile: filepath.Join(dir, "rw.ext4")}
	image := filepath.Join(dir, "image.erofs")
	sh(t, "mkfs.erofs", "-x-1", image, root)
	if err := os.WriteFile(d.rwFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.rwFile, 64<<20); err != nil {
		t.Fatal(err)
	}
	sh(t, "mkfs.ext4", "-q", "-J", "size=4", d.rwFile)
	d.image, d.rw = loop(t, image), loop(t, d.rwFile)
	return d
}

func loop(t *testing.T, file string) string {
	dev := strings.TrimSpace(sh(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() { sh(t, "losetup", "-d", dev) })
	return dev
}

func sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// boot starts an agent in namespaces of its own and greets it.
func boot(t *testing.T) *wire.Client {
	t.Helper()
	c, _ := bootOnce(t)
	return c
}

// bootOnce is boot, and how to end that guest before the test ends.
func bootOnce(t *testing.T) (*wire.Client, func()) {
	t.Helper()
	sock, stop := bootSocket(t)
	c := wire.NewClient(sock)
	t.Cleanup(func() { c.Close() })
	w, err := c.Hello(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if w.Kernel == "" || w.Version != wire.Version {
		t.Fatalf("welcome: %+v", w)
	}
	return c, func() { c.Close(); stop() }
}

// bootSocket starts an agent and returns the host's end of its byte stream.
func bootSocket(t *testing.T) (sock *os.File, stop func()) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guestEnv+"=1")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	stop = sync.OnceFunc(func() {
		ours.Close()
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Errorf("the agent ended: %v", err) // a crash, a data race (66), or it did not see that we hung up
		}
		late.Stop()
	})
	t.Cleanup(stop)
	return ours, stop
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
