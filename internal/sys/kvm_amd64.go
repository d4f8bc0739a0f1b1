package sys

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Request numbers and structures of linux/kvm.h for x86-64.
const (
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
)

type kvmSegment struct {
	base                                       uint64
	limit                                      uint32
	selector                                   uint16
	typ, present, dpl, db, s, l, g, avl, un, _ uint8
}

type kvmTable struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

type kvmSregs struct {
	cs, ds, es, fs, gs, ss, tr, ldt kvmSegment
	gdt, idt                        kvmTable
	cr0, cr2, cr3, cr4, cr8         uint64
	efer, apicBase                  uint64
	interrupts                      [4]uint64
}

type kvmRegs struct {
	rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11, r12, r13, r14, r15   uint64
	rip, rflags                            uint64
}

type kvmMemory struct {
	slot, flags            uint32
	guest, size, userspace uint64
}

// KVMRun is how one run of a virtual CPU ended.
type KVMRun struct {
	Exit uint32        // KVM_EXIT_ number: 2 port I/O, 17 internal error
	Took time.Duration // of KVM_RUN
}

// KVMExitIO is the exit of a guest that wrote to a port.
const KVMExitIO = 2

// RunKVM runs code, at most 4096 bytes, on a fresh virtual CPU in 64-bit mode
// with paging, until KVM returns to us. rsp points to 16-byte aligned memory.
// It may block for ever on a host whose KVM does not work: call it where it can
// be killed.
func RunKVM(code []byte) (KVMRun, error) {
	runtime.LockOSThread() // a virtual CPU belongs to the thread that made it
	defer runtime.UnlockOSThread()
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return KVMRun{}, err
	}
	defer kvm.Close()
	vm, err := kvmCall(kvm.Fd(), kvmCreateVM, nil)
	if err != nil {
		return KVMRun{}, fmt.Errorf("cannot create a VM: %w", err)
	}
	defer unix.Close(int(vm))

	const size = 2 << 20
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return KVMRun{}, fmt.Errorf("cannot get memory for a VM: %w", err)
	}
	defer unix.Munmap(memory)
	// One 2 MiB page, mapped one to one: PML4 at 0x1000, PDPT, PD.
	binary.LittleEndian.PutUint64(memory[0x1000:], 0x2003)
	binary.LittleEndian.PutUint64(memory[0x2000:], 0x3003)
	binary.LittleEndian.PutUint64(memory[0x3000:], 0x83)
	copy(memory[0x8000:0x9000], code)
	region := kvmMemory{size: size, userspace: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := kvmCall(vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return KVMRun{}, fmt.Errorf("cannot give memory to a VM: %w", err)
	}

	cpu, err := kvmCall(vm, kvmCreateVCPU, nil)
	if err != nil {
		return KVMRun{}, fmt.Errorf("cannot create a virtual CPU: %w", err)
	}
	defer unix.Close(int(cpu))
	shared, err := kvmCall(kvm.Fd(), kvmGetVCPUMmapSize, nil)
	if err != nil {
		return KVMRun{}, fmt.Errorf("cannot size a virtual CPU: %w", err)
	}
	state, err := unix.Mmap(int(cpu), 0, int(shared), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return KVMRun{}, fmt.Errorf("cannot map a virtual CPU: %w", err)
	}
	defer unix.Munmap(state)

	var s kvmSregs
	if _, err := kvmCall(cpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return KVMRun{}, fmt.Errorf("cannot read a virtual CPU: %w", err)
	}
	// Long mode: PAE and OSFXSR, protection and paging, LME and LMA.
	s.cr3, s.cr4, s.cr0, s.efer = 0x1000, 0x220, 0x80050033, 0x500
	flat := kvmSegment{limit: 0xffffffff, selector: 8, typ: 11, present: 1, s: 1, l: 1, g: 1}
	s.cs = flat
	flat.l, flat.db, flat.typ, flat.selector = 0, 1, 3, 16
	s.ds, s.es, s.fs, s.gs, s.ss = flat, flat, flat, flat, flat
	if _, err := kvmCall(cpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return KVMRun{}, fmt.Errorf("cannot set up a virtual CPU: %w", err)
	}
	r := kvmRegs{rip: 0x8000, rsp: 0xa000, rflags: 2}
	if _, err := kvmCall(cpu, kvmSetRegs, unsafe.Pointer(&r)); err != nil {
		return KVMRun{}, fmt.Errorf("cannot set up a virtual CPU: %w", err)
	}
	begin := time.Now()
	for {
		_, err := kvmCall(cpu, kvmRun, nil)
		if err == syscall.EINTR {
			continue
		}
		took := time.Since(begin)
		if err != nil {
			return KVMRun{}, fmt.Errorf("cannot run a virtual CPU: %w", err)
		}
		return KVMRun{Exit: binary.LittleEndian.Uint32(state[8:]), Took: took}, nil
	}
}

func kvmCall(fd, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}
