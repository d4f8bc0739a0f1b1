package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"proa/test/proatest"
)

// dockerd is the distribution's engine in network and mount namespaces of its
// own, with its own data root: its rules touch nothing of the host.
type dockerd struct {
	dir, cli string
}

func (d *dockerd) docker(args ...string) error {
	return command(d.cli, append([]string{"-H", "unix://" + filepath.Join(d.dir, "docker.sock")}, args...)...)()
}

// startDocker starts dockerd with the busybox image loaded, or returns nil and
// says why it is not among the contenders.
func startDocker(b *testing.B) *dockerd {
	b.Helper()
	if !have("dockerd") {
		fmt.Println("docker is not among the contenders: no dockerd here (apt-get install docker.io)")
		return nil
	}
	dir, err := os.MkdirTemp("", "proa-bench-docker-")
	if err != nil {
		b.Fatal(err)
	}
	d := &dockerd{dir: dir, cli: proatest.DockerCLI(b)}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	line := fmt.Sprintf(`ip link set lo up; mount -t tmpfs none /run; mkdir -p /run/lock; umount /sys/fs/cgroup/unified 2>/dev/null
exec dockerd --data-root %[1]s/data --exec-root /run/docker -H unix://%[1]s/docker.sock --pidfile %[1]s/pid --iptables=true`, dir)
	cmd := exec.Command("unshare", "-m", "-n", "sh", "-c", line)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
		_ = os.RemoveAll(dir)
		// The groups that dockerd made for its containers are its own, and empty.
		for _, pattern := range []string{"/sys/fs/cgroup/docker", "/sys/fs/cgroup/*/docker"} {
			groups, _ := filepath.Glob(pattern)
			for _, g := range groups {
				_ = os.Remove(g)
			}
		}
	})
	for end := time.Now().Add(30 * time.Second); d.docker("version") != nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			fmt.Printf("docker is not among the contenders: dockerd does not come up:\n%s\n", text)
			return nil
		}
	}
	tar := filepath.Join(dir, "root.tar")
	if err := os.WriteFile(tar, proatest.Tar(b, proatest.BusyboxRoot(b)...), 0o600); err != nil {
		b.Fatal(err)
	}
	if err := d.docker("import", tar, "bb"); err != nil {
		b.Fatal(err)
	}
	return d
}
