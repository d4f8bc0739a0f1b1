package machine

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestKit(t *testing.T) {
	modules := map[string][]byte{}
	for _, name := range guestModules {
		modules[name+".ko"] = tinyModule("")
	}
	k := &Kernel{Image: filepath.Join(t.TempDir(), "vmlinuz-1"), Modules: modulesDir(t, "", modules), Release: "1"}
	agent := filepath.Join(t.TempDir(), "agent")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(k.Image, string(bzImage(packed(t, tinyKernel(elf.EM_X86_64, 18))["lz4"])))
	dir := filepath.Join(t.TempDir(), "vm")

	if _, err := makeKit(dir, k, agent); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without an agent: %v", err)
	}
	write(agent, "one")
	first, err := makeKit(dir, k, agent)
	if err != nil {
		t.Fatal(err)
	}
	again, err := makeKit(dir, k, agent)
	if err != nil || again.Digest != first.Digest || !first.current() {
		t.Errorf("the same input: %+v %v", again, err)
	}
	if b, err := os.ReadFile(first.Vmlinux); err != nil || string(b) != string(tinyKernel(elf.EM_X86_64, 18)) {
		t.Errorf("the kernel of the kit: %v", err)
	}

	write(agent, "another")
	if first.current() {
		t.Error("a new agent was not seen")
	}
	second, err := makeKit(dir, k, agent)
	if err != nil || second.Digest == first.Digest {
		t.Fatalf("%+v %v", second, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || entries[0].Name() != second.Digest {
		t.Errorf("the room holds %v", entries)
	}
	if err := os.Remove(second.Initramfs); err != nil {
		t.Fatal(err)
	}
	if second.current() {
		t.Error("a kit that is gone was called current")
	}
	if mended, err := makeKit(dir, k, agent); err != nil || !mended.current() {
		t.Errorf("a damaged kit was not mended: %v", err)
	}

	k.Modules = ""
	if _, err := makeKit(dir, k, agent); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "lib/modules/1") {
		t.Errorf("without modules: %v", err)
	}
}
