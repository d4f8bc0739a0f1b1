package machine

import (
	"os"
	"strings"
	"testing"
)

// The whole command line, with everything that a machine can have.
func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		golden string
		c      command
	}{
		{"emulated.golden", command{
			Name: "proa-0123456789ab", Emulated: true, TSC: 2_400_000, SteadyTSC: true, CPUs: 2, MemoryMiB: 512,
			Vmlinux: "/k/vmlinux", Initramfs: "/k/initramfs",
			Images: []int{7}, Sets: []int{3, 4, 5, 6, 7, 8}, Writable: 8,
			NICs: []commandNIC{{Tap: 9, MAC: "02:42:ac:11:00:02"}}, Channel: 10,
		}},
		{"kvm.golden", command{
			Name: "proa-0123456789ab", CPUs: 1, MemoryMiB: 128, Vmlinux: "/k/vmlinux", Initramfs: "/k/initramfs",
			Images: []int{5, 9}, Sets: []int{3, 4, 5, 6, 7, 8, 9, 10}, Writable: 10, Channel: 11,
		}},
	} {
		var b strings.Builder
		for _, a := range test.c.args() {
			if strings.HasPrefix(a, "-") && b.Len() > 0 {
				b.WriteString("\n")
			} else if b.Len() > 0 {
				b.WriteString(" ")
			}
			b.WriteString(a)
		}
		b.WriteString("\n")
		golden(t, test.golden, b.String())
	}
}

// golden compares with a file; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s", name, got)
	}
}
