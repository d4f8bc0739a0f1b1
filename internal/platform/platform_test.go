package platform

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func parse(t *testing.T, s string) ocispec.Platform {
	t.Helper()
	p, err := platforms.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestFaultC13Spellings follows containerd/platforms.Normalize.
func TestFaultC13Spellings(t *testing.T) {
	for _, c := range []struct {
		os, arch, variant, want string
	}{
		{"linux", "x86_64", "", "linux/amd64"}, {"", "amd64", "", "linux/amd64"}, {"linux", "aarch64", "", "linux/arm64"}, {"linux", "i386", "", "linux/386"},
		{"linux", "arm", "", "linux/arm/v7"}, {"linux", "armhf", "", "linux/arm/v7"}, {"linux", "armel", "", "linux/arm/v6"}, {"linux", "arm64", "v8", "linux/arm64"},
		{"", "", "", "linux/" + runtime.GOARCH}, {"windows", "amd64", "", "windows/amd64"}, {"linux", "amd64", "v1", "linux/amd64"}, {"linux", "amd64", "v3", "linux/amd64/v3"},
	} {
		if got := Name(Of(ocispec.Platform{OS: c.os, Architecture: c.arch, Variant: c.variant})); got != c.want {
			t.Errorf("%q/%q/%q is %s, want %s", c.os, c.arch, c.variant, got, c.want)
		}
	}
}

// TestFaultB3Levels follows the psABI's levels of x86-64.
func TestFaultB3Levels(t *testing.T) {
	const v2 = "pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
	const v3 = v2 + " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
	for flags, want := range map[string]int{"fpu": 1, v2: 2, v2 + " avx avx2": 2, v3: 3, v3 + " avx512f avx512bw avx512cd avx512dq avx512vl": 4} {
		if got := levelOf("processor\t: 0\nflags\t\t: fpu " + flags + "\nbugs\t:\n"); got != want {
			t.Errorf("level of %q is %d, want %d", flags, got, want)
		}
	}
}

// TestFaultB3PlainFirst: of an index's entries the plain one is taken, then the highest level that fits.
func TestFaultB3PlainFirst(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs amd64")
	}
	for _, c := range []struct {
		have []string
		want int
	}{
		{[]string{"linux/amd64/v2", "linux/amd64"}, 1}, {[]string{"linux/386", "linux/arm64", "linux/amd64"}, 2}, {[]string{"linux/arm64", "linux/386"}, 1},
		{[]string{"linux/arm64", "linux/riscv64"}, 0}, {nil, -1},
	} {
		var list []ocispec.Platform
		for _, p := range c.have {
			list = append(list, parse(t, p))
		}
		if got := Best(list); got != c.want {
			t.Errorf("best of %v is %d, want %d", c.have, got, c.want)
		}
	}
}

// TestFaultB4Binfmt reads entries as Linux prints them.
func TestFaultB4Binfmt(t *testing.T) {

	at := func(status string, flags ...string) string {
		dir := t.TempDir()
		if status != "" {
			if err := os.WriteFile(filepath.Join(dir, "status"), []byte(status+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range flags {
			entry := "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: " + f +
				"\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
			if err := os.WriteFile(filepath.Join(dir, "qemu-aarch64"), []byte(entry), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	for _, c := range []struct {
		name, dir, arch string
		want            Answer
	}{
		{"fixed", at("enabled", "OCF"), "arm64", Yes}, {"in the image", at("enabled", "OC"), "arm64", Unknown}, {"another architecture", at("enabled", "F"), "riscv64", No},
		{"none", at("enabled"), "arm64", No}, {"disabled", at("disabled", "F"), "arm64", No}, {"not mounted", at(""), "arm64", No}, {"unheard of", at("enabled", "F"), "vax", No},
	} {
		if v := binfmt(c.dir, c.arch); v.Answer != c.want || v.Answer != Yes && v.Why == "" {
			t.Errorf("%s: %+v, want %d", c.name, v, c.want)
		}
	}
}

func TestFaultB4CanRun(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("needs amd64")
	}
	for p, want := range map[string][2]Answer{
		"linux/amd64": {Yes, Yes}, "linux/amd64/v1": {Yes, Yes}, "linux/amd64/v9": {No, Unknown}, "windows/amd64": {No, No}, "linux/arm64": {-1, No}, "linux/386": {-1, Unknown},
	} {
		for i, vm := range []bool{false, true} {
			v := CanRun(parse(t, p), vm)
			if want[i] >= 0 && v.Answer != want[i] || v.Answer == No && v.Mend == "" {
				t.Errorf("%s, vm %v: %+v, want %d", p, vm, v, want[i])
			}
		}
	}
	t.Logf("level %d, 386: %+v", Level(), runs32())
}
