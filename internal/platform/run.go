package platform

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"proa/internal/sys"
)

// Answer is one of three: a host can, cannot, or could not be asked.
type Answer int

// The answers.
const (
	Unknown Answer = iota
	Yes
	No
)

// Verdict says whether this host can run a platform; Why is the reason of an
// answer that is not Yes, and Mend the way out.
type Verdict struct {
	Answer Answer
	Why    string
	Mend   string
}

// CanRun decides whether this host can run images of p in a container or,
// with vm, in a virtual machine: by the processor itself, by the kernel's
// 32-bit mode, or by an interpreter that is registered with binfmt_misc.
func CanRun(p ocispec.Platform, vm bool) Verdict {
	p, host := Of(p), Host()
	switch {
	case p.OS != host.OS:
		return no("this host runs "+host.OS, "use an image for "+Name(host))
	case p.Architecture == "amd64" && host.Architecture == "amd64":
		return amd64(p, vm)
	case p.Architecture == host.Architecture:
		if Fits(p) {
			return Verdict{Answer: Yes}
		}
		return unknown(fmt.Sprintf("the level of this processor is not known to reach %s", Name(p)))
	case p.Architecture == "386" && host.Architecture == "amd64" && vm:
		return unknown("the guest's kernel may lack IA32_EMULATION")
	case p.Architecture == "386" && host.Architecture == "amd64":
		if v := runs32(); v.Answer != No {
			return v
		}
	case vm:
		return no("a VM has this host's processor", "run it as a container with an interpreter in binfmt_misc, or use an image for "+Name(host))
	}
	return binfmt("/proc/sys/fs/binfmt_misc", p.Architecture)
}

func no(why, mend string) Verdict { return Verdict{No, why, mend} }

func unknown(why string) Verdict { return Verdict{Answer: Unknown, Why: why} }

// amd64 compares levels of x86-64. A VM that is emulated has the level of the
// emulator, which is at least 2.
func amd64(p ocispec.Platform, vm bool) Verdict {
	want := 1
	if p.Variant != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(p.Variant, "v"))
		if err != nil {
			return unknown(fmt.Sprintf("the level %q of amd64 is not known", p.Variant))
		}
		want = n
	}
	switch have := Level(); {
	case want <= min(have, 2) || want <= have && !vm:
		return Verdict{Answer: Yes}
	case vm:
		return unknown("the VM's processor may lack the instructions of " + p.Variant)
	default:
		return no(fmt.Sprintf("this processor has the instructions of v%d", have), "use an image for "+Name(Host()))
	}
}

func variant(level int) string { return "v" + strconv.Itoa(level) }

// levels are the flags in /proc/cpuinfo of each level of x86-64 above the
// first (psABI for AMD64, section 3.1.1).
var levels = [][]string{
	{"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
	{"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
	{"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}

// Level is the level of an amd64 processor, 1 to 4.
var Level = sync.OnceValue(func() int {
	raw, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 1
	}
	return levelOf(string(raw))
})

func levelOf(cpuinfo string) int {
	_, rest, _ := strings.Cut(cpuinfo, "\nflags")
	line, _, _ := strings.Cut(rest, "\n")
	have := map[string]bool{}
	for _, f := range strings.Fields(line) {
		have[f] = true
	}
	for i, flags := range levels {
		for _, f := range flags {
			if !have[f] {
				return i + 1
			}
		}
	}
	return len(levels) + 1
}

// exit32 is a 32-bit program for i386 that ends with 0 (int 0x80, exit).
var exit32 = func() []byte {
	const base, head = 0x10000, 52 + 32
	code := []byte{0x31, 0xdb, 0x31, 0xc0, 0x40, 0xcd, 0x80} // xor ebx,ebx; xor eax,eax; inc eax; int 0x80
	b := append([]byte("\x7fELF\x01\x01\x01"), make([]byte, 9)...)
	le := binary.LittleEndian
	for _, v := range []uint16{2, 3} { // ET_EXEC, EM_386
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint32{1, base + head, 52, 0, 0} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{52, 32, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	size := uint32(head + len(code))
	for _, v := range []uint32{1, 0, base, base, size, size, 5, 0x1000} { // PT_LOAD, r-x
		b = le.AppendUint32(b, v)
	}
	return append(b, code...)
}()

// runs32 tries whether the kernel runs 32-bit programs: IA32_EMULATION can be
// left out of it or switched off when it boots.
var runs32 = sync.OnceValue(func() Verdict {
	f, err := sys.MemFile("exit32", exit32)
	if err != nil {
		return unknown("a 32-bit program could not be tried: " + err.Error())
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	switch err := cmd.Run(); {
	case err == nil:
		return Verdict{Answer: Yes}
	case errors.Is(err, syscall.ENOEXEC):
		return no("its kernel runs no 32-bit programs (IA32_EMULATION)", "boot with ia32_emulation=on")
	default:
		return unknown("a 32-bit program could not be tried: " + err.Error())
	}
})

// machines are ELF's numbers and shapes of the architectures of Go.
var machines = map[string]struct {
	bits  byte // 1: 32, 2: 64
	order byte // 1: little, 2: big
	id    uint16
}{
	"386": {1, 1, 3}, "amd64": {2, 1, 62}, "arm": {1, 1, 40}, "arm64": {2, 1, 183}, "loong64": {2, 1, 258}, "mips": {1, 2, 8}, "mipsle": {1, 1, 8},
	"mips64": {2, 2, 8}, "mips64le": {2, 1, 8}, "ppc64": {2, 2, 21}, "ppc64le": {2, 1, 21}, "riscv64": {2, 1, 243}, "s390x": {2, 2, 22},
}

// elfHead is the beginning of a program of an architecture; nil: not known.
func elfHead(arch string) []byte {
	m, ok := machines[arch]
	if !ok {
		return nil
	}
	b := append([]byte{0x7f, 'E', 'L', 'F', m.bits, m.order, 1}, make([]byte, 9)...)
	var order binary.AppendByteOrder = binary.LittleEndian
	if m.order == 2 {
		order = binary.BigEndian
	}
	return order.AppendUint32(order.AppendUint16(order.AppendUint16(b, 2), m.id), 1)
}

// binfmt looks for an interpreter of an architecture in the kernel's list below
// dir. One with flag F was opened when it was registered, so it is there in
// every root; another one has to lie in the image.
func binfmt(dir, arch string) Verdict {
	host := Name(Host())
	mend := fmt.Sprintf("register an interpreter with flag F (qemu-user-static, tonistiigi/binfmt), or use an image for %s", host)
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return no("binfmt_misc has no interpreter for "+arch+" (it is not mounted)", mend)
	case err != nil:
		return unknown("binfmt_misc cannot be read: " + err.Error())
	case strings.TrimSpace(string(status)) != "enabled":
		return no("binfmt_misc is disabled", mend)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return unknown("binfmt_misc cannot be read: " + err.Error())
	}
	head, found := elfHead(arch), no("binfmt_misc has no interpreter for "+arch, mend)
	for _, e := range entries {
		if e.Name() == "status" || e.Name() == "register" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // removed since
		}
		fixed, interpreter, ok := entryRuns(string(raw), head)
		switch {
		case ok && fixed:
			return Verdict{Answer: Yes}
		case ok:
			found = unknown(fmt.Sprintf("the interpreter %s of binfmt_misc has no flag F, so it has to be in the image", interpreter))
		}
	}
	return found
}

// entryRuns reads an entry of binfmt_misc (Documentation/admin-guide/binfmt-misc.rst
// of Linux) and matches it with the beginning of a program.
func entryRuns(entry string, head []byte) (fixed bool, interpreter string, ok bool) {
	var magic, mask []byte
	offset, enabled := 0, false
	for line := range strings.Lines(entry) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			enabled = true
		case "interpreter":
			interpreter = value
		case "flags:":
			fixed = strings.Contains(value, "F")
		case "offset":
			offset, _ = strconv.Atoi(value)
		case "magic":
			magic, _ = hex.DecodeString(value)
		case "mask":
			mask, _ = hex.DecodeString(value)
		}
	}
	if !enabled || len(magic) == 0 || offset < 0 || offset+len(magic) > len(head) {
		return false, "", false
	}
	for i, m := range magic {
		k := byte(0xff)
		if i < len(mask) {
			k = mask[i]
		}
		if head[offset+i]&k != m&k {
			return false, "", false
		}
	}
	return fixed, interpreter, true
}
