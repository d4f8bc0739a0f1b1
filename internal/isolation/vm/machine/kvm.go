package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/sys"
)

const kvmDevice = "/dev/kvm"

// Verdict says whether guests run under KVM here.
type Verdict struct {
	Usable bool      `json:"usable"`
	Why    string    `json:"why"` // one clause, for doctor and for the note that a machine is emulated
	At     time.Time `json:"at"`
	// Key is what the verdict holds for: this boot of the host, its kernel,
	// this QEMU, this guest kernel.
	Key string `json:"key"`
}

// probeLimit is how long the probe's child may take. A KVM that works needs
// milliseconds; one that does not may block for ever.
const probeLimit = 5 * time.Second

// slowLoop is the most that 10,000 turns of a loop may take: microseconds on
// hardware, 39 ms where each instruction is emulated. Between them lies room
// for a busy host.
const slowLoop = 5 * time.Millisecond

// judgeKVM answers from the cache or asks the probe.
func (f *Factory) judgeKVM(ctx context.Context) (*Verdict, error) {
	switch f.cfg.Accelerator {
	case "kvm":
		return &Verdict{Usable: true, Why: "forced by the configuration", At: time.Now()}, nil
	case "tcg":
		return &Verdict{Why: "emulation is forced by the configuration", At: time.Now()}, nil
	}
	key, err := f.verdictKey()
	if err != nil {
		return nil, err
	}
	var v Verdict
	cached, err := os.ReadFile(f.verdictPath())
	if err == nil && json.Unmarshal(cached, &v) == nil && v.Key == key {
		return &v, nil
	}
	v = Verdict{At: time.Now(), Key: key}
	v.Usable, v.Why = probe(ctx, f.cfg.Probe)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return &v, f.saveVerdict(&v)
}

// Distrust records that a guest did not come up under KVM although the probe
// had nothing against it, so that machines are emulated until the host's or
// the guest's kernel, QEMU or the boot changes. The engine calls it after a
// first real start that failed, and prepares the machine again.
func (f *Factory) Distrust(why string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.host == nil || f.kit == nil {
		return fmt.Errorf("cannot distrust KVM: %w: nothing was prepared yet", errdefs.ErrFailedPrecondition)
	}
	key, err := f.verdictKey()
	if err != nil {
		return err
	}
	v := &Verdict{Why: "a guest did not come up under it: " + why, At: time.Now(), Key: key}
	f.kvm = v
	return f.saveVerdict(v)
}

func (f *Factory) verdictPath() string { return filepath.Join(f.cfg.Dir, "kvm.json") }

func (f *Factory) verdictKey() (string, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", fmt.Errorf("cannot read the kernel's release: %w", err)
	}
	return strings.Join([]string{f.cfg.BootID, strings.TrimSpace(string(kernel)), f.host.version, f.kit.Digest}, " "), nil
}

func (f *Factory) saveVerdict(v *Verdict) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode the KVM verdict: %w", err)
	}
	if err := os.MkdirAll(f.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("cannot keep the KVM verdict: %w", err)
	}
	work := fmt.Sprintf("%s.%d", f.verdictPath(), os.Getpid())
	if err := os.WriteFile(work, b, 0o600); err != nil {
		return fmt.Errorf("cannot keep the KVM verdict: %w", err)
	}
	if err := os.Rename(work, f.verdictPath()); err != nil {
		return fmt.Errorf("cannot keep the KVM verdict: %w", err)
	}
	return nil
}

// probe runs the command in a child and reads its answer: "yes", or why not.
func probe(ctx context.Context, command []string) (usable bool, why string) {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, kvmDevice + " does not exist (no virtualization in this processor's or hypervisor's settings, or no kvm module)"
	case err != nil:
		return false, fmt.Sprintf("%s cannot be opened: %v", kvmDevice, err)
	}
	f.Close()
	if len(command) == 0 {
		return false, "KVM was not probed"
	}
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	// A child that hangs in the kernel is not waited for.
	cmd.WaitDelay = 100 * time.Millisecond
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.Output()
	answer := strings.TrimSpace(string(out))
	switch {
	case ctx.Err() != nil:
		return false, fmt.Sprintf("%s exists, but a virtual CPU did not come back within %v", kvmDevice, probeLimit)
	case answer == "yes" && err == nil:
		return true, "a virtual CPU runs at full speed"
	case answer != "":
		return false, kvmDevice + " exists, but " + answer
	default:
		return false, fmt.Sprintf("%s exists, but the probe failed: %v", kvmDevice, err)
	}
}

// ProbeChild is the probe's child: it prints "yes" or why KVM cannot run
// guests, and returns the exit code. It may hang or be killed by what KVM does,
// so it runs in a process of its own with a deadline.
//
// One privileged or I/O instruction says nothing: there are paravirtual KVMs
// that interpret a guest's kernel code instruction by instruction, know only
// the common ones, and run no distribution's kernel. They give themselves away
// by an atomic instruction and by the time that a plain loop takes.
func ProbeChild(stdout io.Writer) int {
	out := []byte{0xb0, 0x42, 0xe6, 0xe9, 0xf4}              // mov al, 0x42; out 0xe9, al; hlt
	exchange := []byte{0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x24}   // lock cmpxchg16b [rsp]
	loop := []byte{0xb9, 0, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc} // mov ecx, n; 1: dec ecx; jnz 1b
	binary.LittleEndian.PutUint32(loop[1:], 10_000)
	say := func(format string, a ...any) int {
		fmt.Fprintf(stdout, format+"\n", a...)
		return 1
	}
	for _, test := range []struct {
		what string
		code []byte
		most time.Duration
	}{
		{"an output instruction", out, time.Second},
		{"lock cmpxchg16b", append(bytes.Clone(exchange), out...), time.Second},
		{"a loop of 10,000 turns", append(bytes.Clone(loop), out...), slowLoop},
	} {
		var run sys.KVMRun
		for try := range 3 { // the best of three, since the host may be busy
			r, err := sys.RunKVM(test.code)
			if err != nil {
				return say("%s failed: %v", test.what, err)
			}
			if r.Exit != sys.KVMExitIO {
				return say("%s ended a virtual CPU with exit reason %d", test.what, r.Exit)
			}
			if try == 0 || r.Took < run.Took {
				run = r
			}
		}
		if run.Took > test.most {
			return say("%s took %v instead of microseconds: guest code is interpreted", test.what, run.Took.Round(time.Microsecond))
		}
	}
	fmt.Fprintln(stdout, "yes")
	return 0
}
