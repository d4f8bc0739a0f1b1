package machine

import (
	"fmt"
	"strconv"
	"strings"

	"proa/internal/isolation/vm/wire"
)

// firstFD is the number in QEMU's process of the first descriptor of
// isolation.Machine.Files. 0 is /dev/null; 1 and 2 go to the console's record.
const firstFD = 3

// command is everything that a command line depends on.
type command struct {
	Name      string // of the machine, for ps
	Emulated  bool
	TSC       uint64 // kHz of the host's time stamp counter; emulation only
	SteadyTSC bool   // it is a clock; emulation only
	CPUs      int
	MemoryMiB int64
	Vmlinux   string
	Initramfs string
	Images    []int // descriptors of VMDK texts, read-only
	Sets      []int // all descriptors that QEMU opens as /dev/fdset/N, where N is the descriptor
	Writable  int   // descriptor of the writable disk
	NICs      []commandNIC
	Channel   int // descriptor of the agent's socket
}

type commandNIC struct {
	Tap int
	MAC string
}

// translationBuffer bounds what emulation keeps of translated code, in MiB. The
// default is an eighth of the host's memory up to 1 GiB; a boot needs 40.
const translationBuffer = 128

// overheadMiB is what QEMU itself may take besides the guest's memory, above all
// the kernel image that it keeps for a reset, and translated code.
func overheadMiB(emulated bool) int64 {
	if emulated {
		return 128 + translationBuffer
	}
	return 128
}

// args writes QEMU's command line, without the program's name.
func (c *command) args() []string {
	var a []string
	add := func(args ...string) { a = append(a, args...) }

	accel := "kvm"
	cpu := "host"
	if c.Emulated {
		accel = fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationBuffer)
		cpu = "max"
	}
	add("-name", c.Name,
		// The clocks and controllers of a PC stay: without acpi there is no
		// power-off, without rtc the kernel waits a second for one, and without
		// pit and pic an emulated boot hangs now and then.
		"-machine", "microvm,acpi=on,rtc=on,pit=on,pic=on,isa-serial=on",
		"-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(c.CPUs), "-m", fmt.Sprintf("%dM", c.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-monitor", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// Linux drives modern virtio devices only by the modern transport.
		"-global", "virtio-mmio.force-legacy=false",
		"-kernel", c.Vmlinux, "-initrd", c.Initramfs, "-append", c.kernelArgs(),
		// What the firmware, the kernel and QEMU itself say.
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")

	for _, fd := range c.Sets {
		add("-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd))
	}
	// The agent's channel comes first, since the guest's agent waits for it;
	// the guest names disks in the order in which they stand here.
	add("-device", "virtio-serial-device,max_ports=2",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d", c.Channel),
		"-device", "virtserialport,chardev=agent,name="+wire.PortName)
	for i, fd := range c.Images {
		add("-blockdev", fmt.Sprintf("driver=file,node-name=image%d-text,filename=/dev/fdset/%d,read-only=on,auto-read-only=off,locking=off", i, fd),
			"-blockdev", fmt.Sprintf("driver=vmdk,node-name=image%d,file=image%d-text,read-only=on", i, i),
			"-device", fmt.Sprintf("virtio-blk-device,drive=image%d", i))
	}
	add("-blockdev", fmt.Sprintf("driver=file,node-name=writable,filename=/dev/fdset/%d,discard=unmap,detect-zeroes=unmap", c.Writable),
		"-device", "virtio-blk-device,drive=writable")
	for i, nic := range c.NICs {
		add("-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, nic.Tap),
			"-device", fmt.Sprintf("virtio-net-device,netdev=net%d,mac=%s", i, nic.MAC))
	}
	add("-object", "rng-builtin,id=random", "-device", "virtio-rng-device,rng=random")
	return a
}

// kernelArgs is the guest kernel's command line.
func (c *command) kernelArgs() string {
	args := []string{
		"console=ttyS0", "quiet", // what is printed none the less is worth reading
		"panic=-1",          // reboot at once, which with -no-reboot ends QEMU
		"cryptomgr.notests", // 200 ms of self-tests under emulation
		"random.trust_cpu=on",
	}
	if c.Emulated {
		args = append(args,
			// The guest reads the host's counter. Calibrating it against an
			// emulated timer hangs when the host is busy.
			fmt.Sprintf("tsc_early_khz=%d", c.TSC), "no_timer_check",
			// An emulated CPU does not speculate.
			"mitigations=off")
		if c.SteadyTSC {
			// All emulated processors read the host's counter, but the guest would
			// have it only of an Intel CPU or a single one. What is left is counting
			// ticks: time in steps of 4 ms that falls behind with each tick lost
			// (4 % on a busy host), no sleep that ends between two of them, and 250
			// ticks a second on every idle processor.
			args = append(args, "tsc=reliable")
		}
	}
	return strings.Join(args, " ")
}
