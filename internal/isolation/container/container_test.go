package container_test

import (
	"testing"
)

func TestTrue(t *testing.T) {
	root := busybox(t)
	out := shell(t, root, "id; cat /proc/self/uid_map; mount; ls -la / /dev; cat /proc/self/status; ps; hostname; cat /proc/sys/net/ipv4/ping_group_range; ls -l /proc/self/fd; ip addr; ls /sys/fs/cgroup", nil)
	t.Log(out)
}
