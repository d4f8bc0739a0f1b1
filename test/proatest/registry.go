package proatest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Netns makes a network namespace with nothing but a loopback, for servers and
// clients of a test that has no engine.
func Netns(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	name := fmt.Sprintf("proa-%d-%d", os.Getpid(), seq.Add(1))
	if err := addNetns(name); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "-n", name, "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip link set lo up: %v\n%s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return name
}

// In runs a command in a network namespace with an empty configuration for
// docker's and its kin's clients.
func In(t testing.TB, netns, name string, args ...string) Result {
	t.Helper()
	return run([]string{"DOCKER_CONFIG=" + t.TempDir(), "DOCKER_HOST="}, "", "nsenter", append([]string{"--net=/run/netns/" + netns, name}, args...)...)
}

// MustIn is In that fails the test on any exit code but 0.
func MustIn(t testing.TB, netns, name string, args ...string) string {
	t.Helper()
	r := In(t, netns, name, args...)
	if r.Code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", filepath.Base(name), strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Out()
}

// Box serves the registry in the box over root at addr in a network namespace.
func Box(t testing.TB, netns, addr, root string, args ...string) {
	t.Helper()
	serve(t, netns, addr, filepath.Join(Bin(t), "proa-registry"), append([]string{"serve", "--addr", addr, "--root", root}, args...)...)
}

// Distribution serves distribution's registry over root at addr in a network
// namespace. Several may serve the same root as long as one of them is written to.
func Distribution(t testing.TB, netns, addr, root string) {
	t.Helper()
	DistributionWith(t, netns, addr, root, "", "")
}

// DistributionWith is Distribution with more in its configuration: http goes
// into that section ("tls: {...}"), rest behind all sections.
func DistributionWith(t testing.TB, netns, addr, root, http, rest string) {
	t.Helper()
	if http != "" {
		http = ", " + http
	}
	config := filepath.Join(t.TempDir(), "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q%s}\n%s\n", root, addr, http, rest)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, netns, addr, Tool(t, "registry"), "serve", config)
}

// serve runs a server until the test ends and waits until it answers.
func serve(t testing.TB, netns, addr, name string, args ...string) {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + netns, name}, args...)...)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none") // distribution's sends traces to nobody here
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dead := make(chan struct{})
	go func() { _ = cmd.Wait(); close(dead) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-dead
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(name), log.String())
		}
	})
	for end := time.Now().Add(30 * time.Second); In(t, netns, "curl", "-s", "-k", "http://"+addr+"/v2/").Code != 0; time.Sleep(20 * time.Millisecond) {
		select {
		case <-dead:
			t.Fatalf("%s ended at its start:\n%s", name, log.String())
		default:
		}
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			<-dead
			t.Fatalf("%s does not come up:\n%s", name, log.String())
		}
	}
}
