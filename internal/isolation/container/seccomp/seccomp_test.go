package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// dockerCaps are Docker's 14 default capabilities.
const dockerCaps = 0xa80425fb

// call is one system call as a filter sees it.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

// interpret runs a program as the kernel would and says how many instructions that took.
func interpret(t *testing.T, prog []byte, c call) (uint32, int) {
	var data [64]byte
	binary.LittleEndian.PutUint32(data[0:], c.nr)
	binary.LittleEndian.PutUint32(data[4:], c.arch)
	for i, a := range c.args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	var acc uint32
	for pc, steps := 0, 1; ; pc, steps = pc+1, steps+1 {
		if 8*pc >= len(prog) {
			t.Fatalf("ran off the end at %d", pc)
		}
		op, jt, jf := binary.LittleEndian.Uint16(prog[8*pc:]), int(prog[8*pc+2]), int(prog[8*pc+3])
		k := binary.LittleEndian.Uint32(prog[8*pc+4:])
		cond := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch op {
		case 0x20:
			acc = binary.LittleEndian.Uint32(data[k:])
		case 0x54:
			acc &= k
		case 0x05:
			pc += int(k)
		case 0x15:
			cond(acc == k)
		case 0x25:
			cond(acc > k)
		case 0x35:
			cond(acc >= k)
		case 0x06:
			return k, steps
		default:
			t.Fatalf("instruction %#x at %d", op, pc)
		}
	}
}

// naive answers a call by reading the profile, rule after rule.
func naive(p *profiles.Seccomp, caps []string, goarch string, kernel [2]uint64, c call, names map[uint32]map[int]string, newest map[uint32]int) uint32 {
	result := func(a specs.LinuxSeccompAction, ret *uint) uint32 {
		n := uint32(1)
		if ret != nil {
			n = uint32(*ret)
		}
		return map[specs.LinuxSeccompAction]uint32{
			specs.ActAllow: 0x7fff0000, specs.ActErrno: 0x50000 | n, specs.ActKill: 0, specs.ActKillThread: 0, specs.ActKillProcess: 0x80000000,
			specs.ActTrap: 0x30000, specs.ActLog: 0x7ffc0000, specs.ActTrace: 0x7ff00000 | n,
		}[a]
	}
	table, ok := names[c.arch]
	if !ok {
		return 0
	}
	if c.arch == 0xc000003e && c.nr >= 0x40000000 {
		return 0x50000 | 38
	}
	fallback := result(p.DefaultAction, p.DefaultErrnoRet)
	type hit struct {
		action uint32
		args   bool
	}
	var hits []hit
	name, named := table[int(c.nr)]
	for _, s := range p.Syscalls {
		if !named || !slices.Contains(s.Names, name) && s.Name != name {
			continue
		}
		if x := s.Excludes; x != nil {
			out := slices.Contains(x.Arches, goarch)
			for _, n := range x.Caps {
				out = out || slices.Contains(caps, n)
			}
			if x.MinKernel != nil && (kernel[0] > x.MinKernel.Kernel || kernel[0] == x.MinKernel.Kernel && kernel[1] >= x.MinKernel.Major) {
				out = true
			}
			if out {
				continue
			}
		}
		if in := s.Includes; in != nil {
			out := len(in.Arches) > 0 && !slices.Contains(in.Arches, goarch)
			for _, n := range in.Caps {
				out = out || !slices.Contains(caps, n)
			}
			if in.MinKernel != nil && (kernel[0] < in.MinKernel.Kernel || kernel[0] == in.MinKernel.Kernel && kernel[1] < in.MinKernel.Major) {
				out = true
			}
			if out {
				continue
			}
		}
		act := result(s.Action, s.ErrnoRet)
		if act == fallback {
			continue
		}
		all, some := true, false
		count := map[uint]int{}
		for _, a := range s.Args {
			v := c.args[a.Index]
			var ok bool
			switch a.Op {
			case specs.OpEqualTo:
				ok = v == a.Value
			case specs.OpNotEqual:
				ok = v != a.Value
			case specs.OpLessThan:
				ok = v < a.Value
			case specs.OpLessEqual:
				ok = v <= a.Value
			case specs.OpGreaterThan:
				ok = v > a.Value
			case specs.OpGreaterEqual:
				ok = v >= a.Value
			case specs.OpMaskedEqual:
				ok = v&a.Value == a.ValueTwo
			}
			all, some = all && ok, some || ok
			count[a.Index]++
		}
		match := all
		for _, n := range count {
			if n > 1 {
				match = some
			}
		}
		if match {
			hits = append(hits, hit{act, len(s.Args) > 0})
		}
	}
	for _, h := range hits {
		if !h.args {
			return h.action
		}
	}
	if len(hits) > 0 {
		return hits[0].action
	}
	if int(c.nr) > newest[c.arch] && fallback != 0x7fff0000 && fallback != 0x7ffc0000 && (c.arch != 0x40000028 || c.nr < 0xf0000 || c.nr >= 0xf0010) {
		return 0x50000 | 38
	}
	return fallback
}

// world gives the numbers of all architectures of a host, and the greatest named one in p.
func world(t *testing.T, p *profiles.Seccomp, goarch string, in func(*profiles.Syscall) bool) (names map[uint32]map[int]string, newest map[uint32]int) {
	all, err := tables(goarch)
	if err != nil {
		t.Fatal(err)
	}
	names, newest = map[uint32]map[int]string{}, map[uint32]int{}
	sub := archs(p, all[0].name)
	for i, tab := range all {
		if i > 0 && !slices.Contains(sub, tab.name) {
			continue
		}
		m := map[int]string{}
		for n, nr := range tab.numbers {
			m[nr] = n
			for _, s := range p.Syscalls {
				if in(s) && (s.Name == n || slices.Contains(s.Names, n)) && nr < 0xf0000 {
					newest[tab.audit] = max(newest[tab.audit], nr)
				}
			}
		}
		names[tab.audit] = m
	}
	return names, newest
}

// interesting collects values at the edges of all conditions.
func interesting(p *profiles.Seccomp) []uint64 {
	vals := []uint64{0, 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 63, 1<<64 - 1}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				vals = append(vals, v, v+1, v-1, v|1<<32, v|1<<40, v&-v, v<<32)
			}
		}
	}
	slices.Sort(vals)
	return slices.Compact(vals)
}

func capNames(mask uint64) (out []string) {
	for i, n := range capabilities {
		if mask>>i&1 == 1 {
			out = append(out, n)
		}
	}
	return out
}

// check compares the program with the naive reading for every number and many arguments.
func check(t *testing.T, p *profiles.Seccomp, caps uint64, h host) []byte {
	t.Helper()
	prog, err := compile(p, caps, h)
	if err != nil {
		t.Fatal(err)
	}
	kernel := [2]uint64{uint64(h.kernel[0]), uint64(h.kernel[1])}
	names, newest := world(t, p, h.arch, func(s *profiles.Syscall) bool {
		ok, err := applies(s, caps, h)
		return ok && err == nil
	})
	vals := interesting(p)
	list := capNames(caps)
	with := map[string]bool{}
	for _, s := range p.Syscalls {
		for _, n := range append(s.Names, s.Name) {
			with[n] = with[n] || len(s.Args) > 0
		}
	}
	n := 0
	try := func(c call) {
		n++
		got, _ := interpret(t, prog, c)
		if want := naive(p, list, h.arch, kernel, c, names, newest); got != want {
			t.Fatalf("%s, caps %#x: call %d (%s) of %#x with %#x: %#x, want %#x", h.arch, caps, c.nr, names[c.arch][int(c.nr)], c.arch, c.args, got, want)
		}
	}
	for audit := range names {
		numbers := []uint32{0xf0000, 0xf0001, 0xf0005, 0xf0006, 0xf0007, 0x3fffffff, 0x40000000, 0x40000001, 0x400001ff, 0x7fffffff, 0xffffffff}
		for nr := range uint32(600) {
			numbers = append(numbers, nr)
		}
		for _, nr := range numbers {
			try(call{nr, audit, [6]uint64{}})
			if !with[names[audit][int(nr)]] {
				continue
			}
			for _, v := range vals {
				for pos := range 6 {
					c := call{nr: nr, arch: audit}
					c.args[pos] = v
					try(c)
				}
				for range 20 {
					c := call{nr: nr, arch: audit}
					for pos := range c.args {
						c.args[pos] = vals[rand.IntN(len(vals))]
					}
					try(c)
				}
			}
		}
	}
	for _, foreign := range []uint32{0, 0x40000003 ^ 1, 0x8000001e, 0xffffffff} {
		try(call{1, foreign, [6]uint64{}})
	}
	return prog
}

func TestDefaultIsDockersList(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		for _, caps := range []uint64{0, dockerCaps, dockerCaps | 1<<21, 1<<41 - 1, 1 << 39, 1 << 2} {
			for _, kernel := range [][2]int{{6, 18}, {4, 7}} {
				prog := check(t, profiles.DefaultProfile(), caps, host{arch, kernel})
				if caps == dockerCaps && kernel[0] == 6 {
					ps, err := policies(profiles.DefaultProfile(), caps, host{arch, kernel})
					if err != nil {
						t.Fatal(err)
					}
					for _, p := range ps {
						t.Logf("%s: %d ranges for %#x", arch, len(p.spans()), p.audit)
					}
					steps, worst := 0, 0
					for nr := range uint32(470) {
						audit := uint32(0xc000003e)
						if arch == "arm64" {
							audit = 0xc00000b7
						}
						_, n := interpret(t, prog, call{nr: nr, arch: audit})
						steps, worst = steps+n, max(worst, n)
					}
					t.Logf("%s: %d instructions, %d at most for a call, %.1f on average", arch, len(prog)/8, worst, float64(steps)/470)
				}
			}
		}
	}
}

// The selection of rules agrees with that of moby's own code on this host.
func TestSelectionIsMobys(t *testing.T) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("no table for " + runtime.GOARCH)
	}
	h, err := thisHost()
	if err != nil {
		t.Fatal(err)
	}
	for _, caps := range []uint64{0, dockerCaps, 1<<41 - 1, 1 << 21, 1 << 19} {
		theirs, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capNames(caps)}}})
		if err != nil {
			t.Fatal(err)
		}
		var mine []specs.LinuxSyscall
		for _, s := range profiles.DefaultProfile().Syscalls {
			if ok, err := applies(s, caps, h); err != nil {
				t.Fatal(err)
			} else if ok {
				mine = append(mine, s.LinuxSyscall)
			}
		}
		a, err := json.Marshal(mine)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(theirs.Syscalls)
		if err != nil {
			t.Fatal(err)
		}
		if string(a) != string(b) {
			t.Fatalf("caps %#x: other rules than moby's", caps)
		}
	}
}

func TestCustomProfiles(t *testing.T) {
	h := host{"amd64", [2]int{6, 18}}
	for name, text := range map[string]string{
		"deny list":    `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13},{"name":"ptrace","action":"SCMP_ACT_KILL_PROCESS"}]}`,
		"actions":      `{"defaultAction":"SCMP_ACT_LOG","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["read"],"action":"SCMP_ACT_TRACE","errnoRet":7},{"names":["write"],"action":"SCMP_ACT_TRAP"},{"names":["open"],"action":"SCMP_ACT_KILL"},{"names":["close"],"action":"SCMP_ACT_KILL_THREAD"},{"names":["stat"],"action":"SCMP_ACT_ALLOW"}]}`,
		"operators":    `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":5,"op":"SCMP_CMP_GT"},{"index":1,"value":4294967301,"op":"SCMP_CMP_LE"},{"index":5,"value":0,"op":"SCMP_CMP_NE"}]},{"names":["write"],"action":"SCMP_ACT_ALLOW","args":[{"index":2,"value":18446744069414584320,"valueTwo":4294967296,"op":"SCMP_CMP_MASKED_EQ"},{"index":3,"value":18446744073709551615,"op":"SCMP_CMP_GE"}]},{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{"index":0,"value":18446744069414584321,"op":"SCMP_CMP_LT"}]}]}`,
		"alternatives": `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]},{"names":["ioctl"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":9,"op":"SCMP_CMP_EQ"}]},{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},{"names":["socket"],"action":"SCMP_ACT_LOG"}]}`,
		"impossible":   `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["ioctl"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":1,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]},{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":0,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}`,
		"nothing":      `{"defaultAction":"SCMP_ACT_KILL"}`,
	} {
		t.Run(name, func(t *testing.T) {
			var p profiles.Seccomp
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				t.Fatal(err)
			}
			check(t, &p, 0, h)
		})
	}
	// So many conditions that jumps do not reach.
	var b strings.Builder
	b.WriteString(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["write"],"action":"SCMP_ACT_ALLOW"}`)
	for i := range 180 {
		fmt.Fprintf(&b, `,{"names":["ioctl","read","keyctl"],"action":"SCMP_ACT_%s","args":[{"index":%d,"value":%d,"op":"SCMP_CMP_EQ"}]}`, []string{"ALLOW", "LOG"}[i%2], i%6, i*3+1)
	}
	b.WriteString("]}")
	var p profiles.Seccomp
	if err := json.Unmarshal([]byte(b.String()), &p); err != nil {
		t.Fatal(err)
	}
	check(t, &p, 0, h)
}

func TestRefused(t *testing.T) {
	for text, kind := range map[string]func(error) bool{
		`{`:                                   errdefs.IsInvalidArgument,
		`{}`:                                  errdefs.IsInvalidArgument,
		`{"defaultAction":"SCMP_ACT_NOTIFY"}`: errdefs.IsNotImplemented,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`: errdefs.IsNotImplemented,
		`{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}`:                        errdefs.IsNotImplemented,
		`{"defaultAction":"x"}`: errdefs.IsInvalidArgument,
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}`:                                                                         errdefs.IsInvalidArgument,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`: errdefs.IsInvalidArgument,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":0,"op":"x"}]}]}`:           errdefs.IsInvalidArgument,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","includes":{"caps":["CAP_X"]}}]}`:           errdefs.IsInvalidArgument,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null,{"names":["read"],"name":"x","action":"SCMP_ACT_LOG"}]}`:                         errdefs.IsInvalidArgument,
	} {
		if _, err := Compile([]byte(text), 0); !kind(err) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestMain(m *testing.M) {
	if os.Getenv("SECCOMP_TEST_CHILD") != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

// child installs the default program in itself and tries what it does.
func child() int {
	runtime.LockOSThread()
	prog, err := Default(dockerCaps)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fprog := struct {
		n      uint16
		filter *byte
	}{uint16(len(prog) / 8), &prog[0]}
	syscall.RawSyscall6(syscall.SYS_PRCTL, 38, 1, 0, 0, 0, 0) // PR_SET_NO_NEW_PRIVS
	start := time.Now()
	_, _, errno := syscall.RawSyscall(sysSeccomp, 1, 1<<2, uintptr(unsafe.Pointer(&fprog))) // SECCOMP_SET_MODE_FILTER, SPEC_ALLOW
	took := time.Since(start)
	if errno != 0 {
		fmt.Println("install:", errno)
		return 1
	}
	try := func(what string, want syscall.Errno, nr, a, b, c uintptr) {
		if _, _, e := syscall.RawSyscall(nr, a, b, c); e != want {
			fmt.Printf("%s: %v, want %v\n", what, e, want)
		}
	}
	try("unshare", syscall.EPERM, syscall.SYS_UNSHARE, 0x10000000, 0, 0)
	try("mount", syscall.EPERM, syscall.SYS_MOUNT, 0, 0, 0)
	try("clone3", syscall.ENOSYS, 435, 0, 0, 0)
	try("io_uring_setup", syscall.EPERM, 425, 0, 0, 0)
	try("a call of the future", syscall.ENOSYS, 999, 0, 0, 0)
	try("socket AF_ALG", syscall.EPERM, syscall.SYS_SOCKET, 38, 5, 0)
	try("socket AF_VSOCK", syscall.EPERM, syscall.SYS_SOCKET, 40, 1, 0)
	try("socket AF_UNIX", 0, syscall.SYS_SOCKET, 1, 1, 0)
	try("personality of linux32", 0, syscall.SYS_PERSONALITY, 8, 0, 0)
	try("personality 0", 0, syscall.SYS_PERSONALITY, 0, 0, 0)
	try("personality ADDR_NO_RANDOMIZE", syscall.EPERM, syscall.SYS_PERSONALITY, 0x40000, 0, 0)
	try("keyctl", syscall.EPERM, sysKeyctl, 0, 0, 0)
	try("getpid", 0, syscall.SYS_GETPID, 0, 0, 0)
	fmt.Printf("%d instructions installed in %v\n", len(prog)/8, took)
	return 0
}

func TestInstalled(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "SECCOMP_TEST_CHILD=1")
	out, err := cmd.CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil || len(lines) != 1 || !strings.Contains(lines[0], "installed") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(lines[0])
}

func BenchmarkCompile(b *testing.B) {
	h := host{"amd64", [2]int{6, 18}}
	for b.Loop() {
		if _, err := compile(profiles.DefaultProfile(), dockerCaps, h); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":5,"op":"SCMP_CMP_GT"}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		prog, err := Compile(text, dockerCaps)
		if err != nil {
			return
		}
		for nr := range uint32(500) {
			interpret(t, prog, call{nr: nr, arch: 0xc000003e})
		}
	})
}
