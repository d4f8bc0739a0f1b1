package cgroup

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"proa/internal/isolation"
)

// rule allows access to a range of device nodes.
type rule struct {
	kind         byte  // 'c' or 'b'
	major, minor int64 // -1: every
	access       string
}

// standard is Docker's list together with runc's: nodes may be made of
// anything (what they lead to stays closed), and the harmless ones, terminals
// among them, may be used.
var standard = []rule{
	{'c', -1, -1, "m"},
	{'b', -1, -1, "m"},
	{'c', 1, 3, "rwm"},    // null
	{'c', 1, 5, "rwm"},    // zero
	{'c', 1, 7, "rwm"},    // full
	{'c', 1, 8, "rwm"},    // random
	{'c', 1, 9, "rwm"},    // urandom
	{'c', 5, 0, "rwm"},    // tty
	{'c', 5, 1, "rwm"},    // console
	{'c', 5, 2, "rwm"},    // ptmx
	{'c', 136, -1, "rwm"}, // pts/*
}

// allowDevices closes every device but the standard ones and extra.
func (g *Group) allowDevices(extra []isolation.Device) error {
	rules := standard[:len(standard):len(standard)]
	for _, d := range extra {
		if d.Type != "c" && d.Type != "b" || strings.Trim(d.Allow, "rwm") != "" || d.Allow == "" {
			return fmt.Errorf("cannot allow device %q: type %q with access %q is not known", d.Path, d.Type, d.Allow)
		}
		rules = append(rules, rule{d.Type[0], int64(d.Major), int64(d.Minor), d.Allow})
	}
	if g.host.Mode == V2 {
		return g.attachDeviceProgram(deviceProgram(rules))
	}
	d := g.dir("devices")
	if d == nil {
		return fmt.Errorf("this host has no devices controller")
	}
	if err := d.write("devices.deny", []byte("a")); err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, "devices.allow", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, r := range rules { // one write(2) each: the kernel reads one rule from a write
		if err := writeFD(fd, "devices.allow", []byte(r.String())); err != nil {
			return err
		}
	}
	return nil
}

// String spells the rule as devices.allow wants it.
func (r rule) String() string {
	star := func(n int64) string {
		if n < 0 {
			return "*"
		}
		return decimal(n)
	}
	return string(r.kind) + " " + star(r.major) + ":" + star(r.minor) + " " + r.access
}

// Encoding of eBPF (linux/bpf.h, linux/bpf_common.h): op, dst|src<<4, offset, immediate.
type insn struct {
	op       byte
	dst, src byte
	off      int16
	imm      int32
}

// The few operations that the device program consists of.
const (
	ldxW   = 0x61 // dst = *(u32 *)(src + off)
	mov64K = 0xb7 // dst = imm
	mov32X = 0xbc // dst = (u32)src
	and32K = 0x54 // dst &= imm
	rsh32K = 0x74 // dst >>= imm
	jneK   = 0x55 // if dst != imm skip off
	exit   = 0x95
	devB   = 1 // BPF_DEVCG_DEV_BLOCK
	devC   = 2 // BPF_DEVCG_DEV_CHAR
)

// deviceProgram compiles rules into a BPF_PROG_TYPE_CGROUP_DEVICE program. Its
// context is struct bpf_cgroup_dev_ctx: access_type (access<<16 | type), major,
// minor. The result is 1 (allowed) or 0. Access bits: mknod 1, read 2, write 4.
func deviceProgram(rules []rule) []byte {
	prog := []insn{
		{op: ldxW, dst: 2, src: 1, off: 0}, // r2 = type
		{op: mov32X, dst: 3, src: 2},       // r3 = access
		{op: and32K, dst: 2, imm: 0xffff},  //
		{op: rsh32K, dst: 3, imm: 16},      //
		{op: ldxW, dst: 4, src: 1, off: 4}, // r4 = major
		{op: ldxW, dst: 5, src: 1, off: 8}, // r5 = minor
		{op: mov64K, dst: 0, imm: 1},       // the answer if a rule matches
	}
	for _, r := range rules {
		kind := int32(devC)
		if r.kind == 'b' {
			kind = devB
		}
		var bits int32
		for i, c := range "mrw" {
			if strings.ContainsRune(r.access, c) {
				bits |= 1 << i
			}
		}
		block := []insn{{op: jneK, dst: 2, imm: kind}}
		if bits != 7 { // every bit asked for must be allowed by this one rule
			block = append(block,
				insn{op: mov32X, dst: 6, src: 3},
				insn{op: and32K, dst: 6, imm: ^bits & 7},
				insn{op: jneK, dst: 6, imm: 0})
		}
		if r.major >= 0 {
			block = append(block, insn{op: jneK, dst: 4, imm: int32(r.major)})
		}
		if r.minor >= 0 {
			block = append(block, insn{op: jneK, dst: 5, imm: int32(r.minor)})
		}
		block = append(block, insn{op: exit})
		for i := range block {
			if block[i].op == jneK {
				block[i].off = int16(len(block) - 1 - i)
			}
		}
		prog = append(prog, block...)
	}
	prog = append(prog, insn{op: mov64K, dst: 0, imm: 0}, insn{op: exit})
	out := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		out = append(out, i.op, i.dst|i.src<<4)
		out = binary.NativeEndian.AppendUint16(out, uint16(i.off))
		out = binary.NativeEndian.AppendUint32(out, uint32(i.imm))
	}
	return out
}

// attachDeviceProgram loads a program and attaches it to the group's directory
// in the version 2 tree (Linux 4.15). The kernel drops it with the directory.
func (g *Group) attachDeviceProgram(code []byte) error {
	licence := []byte("Apache\x00")
	load := struct { // union bpf_attr, BPF_PROG_LOAD; pointers are 64 bits on every machine that Proa runs on
		progType, insnCount uint32
		insns, licence      unsafe.Pointer
		logLevel, logSize   uint32
		logBuf              unsafe.Pointer
		kernVersion, flags  uint32
	}{
		progType:  unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCount: uint32(len(code) / 8),
		insns:     unsafe.Pointer(&code[0]),
		licence:   unsafe.Pointer(&licence[0]),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	if errno != 0 {
		return fmt.Errorf("cannot load the device program: %w", errno)
	}
	defer unix.Close(int(fd))
	attach := struct{ target, prog, attachType, flags uint32 }{
		target:     uint32(g.unified.fd),
		prog:       uint32(fd),
		attachType: unix.BPF_CGROUP_DEVICE,
		flags:      unix.BPF_F_ALLOW_MULTI,
	}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fmt.Errorf("cannot attach the device program to control group %q: %w", g.path, errno)
	}
	return nil
}
