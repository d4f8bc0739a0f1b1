package proatest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// addNetns makes a named network namespace that forwards IPv4 where the test's
// own does. A new namespace inherits that from the host's first one, as
// net.core.devconf_inherit_init_net says; scripts/test-hosts runs the tests in a
// namespace that stands for the host.
func addNetns(name string) error {
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return fmt.Errorf("ip netns add: %w\n%s", err, out)
	}
	const forward = "/proc/sys/net/ipv4/ip_forward"
	host, err := os.ReadFile(forward)
	if err != nil || strings.TrimSpace(string(host)) != "1" {
		return err
	}
	if out, err := exec.Command("nsenter", "--net=/run/netns/"+name, "sh", "-c", "echo 1 >"+forward).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot let %s forward: %w\n%s", name, err, out)
	}
	return nil
}
