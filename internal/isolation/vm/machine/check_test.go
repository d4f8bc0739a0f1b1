package machine

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
)

func TestCheckNamesTheFlag(t *testing.T) {
	good := func() *isolation.Spec {
		return &isolation.Spec{
			Kind: isolation.VM, Network: isolation.Network{Mode: isolation.NetworkBridge},
			Mounts:    []isolation.Mount{{Type: isolation.MountTmpfs, Target: "/tmp"}},
			Resources: isolation.Resources{MemoryBytes: 256 << 20, Pids: 4096},
		}
	}
	if err := Check(good()); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		kind func(error) bool
		with func(*isolation.Spec)
	}{
		{"-v/--volume", errdefs.IsNotImplemented, func(s *isolation.Spec) { s.Mounts[0].Type = isolation.MountBind }},
		{"--device", errdefs.IsNotImplemented, func(s *isolation.Spec) { s.Devices = []isolation.Device{{Path: "/dev/fuse"}} }},
		{"--network host", errdefs.IsInvalidArgument, func(s *isolation.Spec) { s.Network.Mode = isolation.NetworkHost }},
		{"--network container:", errdefs.IsNotImplemented, func(s *isolation.Spec) { s.Namespaces.Join = map[string]isolation.File{"net": 9} }},
		{"--pid container:", errdefs.IsInvalidArgument, func(s *isolation.Spec) { s.Namespaces.Join = map[string]isolation.File{"pid": 9} }},
		{"--memory", errdefs.IsInvalidArgument, func(s *isolation.Spec) { s.Resources.MemoryBytes = 64 << 20 }},
		{"--sysctl", errdefs.IsInvalidArgument, func(s *isolation.Spec) { s.Sysctls = map[string]string{"../x": "1"} }},
		{"isolation \"container\"", errdefs.IsInvalidArgument, func(s *isolation.Spec) { s.Kind = isolation.Container }},
	} {
		s := good()
		test.with(s)
		if err := Check(s); err == nil || !test.kind(err) || !strings.Contains(err.Error(), test.name) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	for flag, modes := range map[string][]string{"pid": {"host", "container:x"}, "ipc": {"host"}, "uts": {"host"}, "cgroupns": {"host"}} {
		for _, mode := range modes {
			if err := CheckNamespace(flag, mode); err == nil || !strings.Contains(err.Error(), "--"+flag+" "+mode) {
				t.Errorf("%s=%s: %v", flag, mode, err)
			}
		}
		if err := CheckNamespace(flag, ""); err != nil {
			t.Error(err)
		}
	}
}

func TestGuestSize(t *testing.T) {
	for _, test := range []struct {
		quota, period int64
		want          int
	}{{0, 0, runtime.NumCPU()}, {50000, 100000, 1}, {100000, 100000, 1}, {1 << 40, 1, runtime.NumCPU()}} {
		if got := guestCPUs(&isolation.Resources{CPUQuota: test.quota, CPUPeriod: test.period}); got != test.want {
			t.Errorf("quota %d of %d gives %d processors, not %d", test.quota, test.period, got, test.want)
		}
	}
	if m, err := guestMemory(&isolation.Resources{}); err != nil || m != DefaultMemory {
		t.Errorf("%d %v", m, err)
	}
}

func TestNoQEMU(t *testing.T) {
	f, err := Open(Config{Dir: t.TempDir(), Agent: "/no/agent", UID: 1, GID: 1, QEMU: "no-such-qemu", KernelDirs: []string{"/no/kernel"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Ready(context.Background()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("%v", err)
	}
	script := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho QEMU emulator version 4.2.1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.cfg.QEMU = script
	if _, err := f.Ready(context.Background()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "4.2.1") {
		t.Errorf("%v", err)
	}
	f.cfg.QEMU = ""
	if _, err := f.Ready(context.Background()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "guest-kernel /no/kernel") {
		t.Errorf("%v", err)
	}
}

// The probe's child is this test program itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "kvm-probe" {
		os.Exit(ProbeChild(os.Stdout))
	}
	os.Exit(m.Run())
}

func TestProbe(t *testing.T) {
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Skip(err)
	}
	begin := time.Now()
	usable, why := probe(context.Background(), []string{"/proc/self/exe", "kvm-probe"})
	t.Logf("usable %v: %s (%v)", usable, why, time.Since(begin))
	if why == "" || strings.Contains(why, "probe failed") {
		t.Errorf("the probe gave no answer: %q", why)
	}
	// What the child says is what counts, and silence counts as no.
	for script, want := range map[string]bool{"echo yes": true, "echo yes; exit 1": false, "echo no such instruction; exit 1": false, "exit 0": false} {
		if usable, why := probe(context.Background(), []string{"sh", "-c", script}); usable != want || why == "" {
			t.Errorf("%s: %v %q", script, usable, why)
		}
	}
	var out bytes.Buffer
	ProbeChild(&out)
	if strings.Count(out.String(), "\n") != 1 {
		t.Errorf("the child says %q", out.String())
	}
}

func TestVerdictIsKept(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	counter := filepath.Join(t.TempDir(), "asked")
	f := &Factory{
		cfg:  Config{Dir: t.TempDir(), Probe: []string{"sh", "-c", "echo x >>" + counter + "; echo yes"}},
		host: &host{version: "7.2"}, kit: &kit{Digest: "d"},
	}
	if _, err := os.Stat(kvmDevice); err != nil {
		t.Skip(err)
	}
	for range 2 {
		v, err := f.judgeKVM(context.Background())
		if err != nil || !v.Usable {
			t.Fatalf("%+v %v", v, err)
		}
	}
	if b, _ := os.ReadFile(counter); string(b) != "x\n" {
		t.Errorf("the probe was asked %d times", len(b)/2)
	}
	f.kit.Digest = "another guest kernel"
	if _, err := f.judgeKVM(context.Background()); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(counter); string(b) != "x\nx\n" {
		t.Error("a verdict of another guest kernel was taken")
	}
	f.cfg.BootID = "another boot"
	if _, err := f.judgeKVM(context.Background()); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(counter); string(b) != "x\nx\nx\n" {
		t.Error("a verdict of another boot was taken")
	}
	if err := f.Distrust("it hung"); err != nil {
		t.Fatal(err)
	}
	if v, err := f.judgeKVM(context.Background()); err != nil || v.Usable || !strings.Contains(v.Why, "it hung") {
		t.Errorf("%+v %v", v, err)
	}
}
