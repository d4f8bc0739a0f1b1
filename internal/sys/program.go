package sys

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Program is what a new process does between clone(2) and execve(2): a list
// of system calls, written by the parent into memory that both share, and
// carried out in the child by a small loop that allocates nothing, takes no
// lock and calls nothing of Go's runtime (see interpret). There is no second
// program, no libc and no re-exec of the engine on the way to the user's
// process; that is what makes a start cheap.
//
// The memory is shared, so calls can be added after the child has been cloned,
// as long as it stands at an Await that comes before them, and the parent reads
// results (such as descriptor numbers) with Value.
//
//	parent                               child
//	  | Program.Call ... Await ...         |
//	  | Clone -----------------------------> first calls
//	  | work: id maps, mounts, cgroup      | Await blocks
//	  | more calls, Child.Continue ------->| next calls
//	  |<------------------------- Report --|
//	  | Child.WaitExec <--- end of pipe ---| execve
//
// A Program belongs to one goroutine at a time.
type Program struct {
	mem   []byte
	head  *programHead
	ops   []op
	used  int
	steps []string
	err   error // the first thing that did not fit

	opened []opened // descriptors that the child opens while it shares our table

	refork        int    // index of an opFork that is still to come; -1: none
	await, report [2]int // pipes, read end first; -1 when closed

	// pidfd is where the kernel puts the child's descriptor. It lies in the heap:
	// a variable of Clone's would move with its stack while Clone waits.
	pidfd int32
}

// opened is a descriptor that a call opens and another one, if any, closes.
type opened struct {
	open, close Result // close is -1 if the descriptor is for the parent
	taken       bool
}

// Result names the result of an earlier call of the same program.
type Result int

// Arg is one argument of a call: a number, an address in the program's memory,
// or the result of an earlier call.
type Arg struct {
	value uint64
	ref   bool
}

// Int is an argument that is known when the program is written.
func Int[T ~int | ~int32 | ~int64 | ~uint | ~uint16 | ~uint32 | ~uint64 | ~uintptr](n T) Arg {
	return Arg{value: uint64(n)}
}

// FD is the number of an open file as an argument. The file has to stay open
// until the child has used it.
func FD(f *os.File) Arg { return Int(RawFD(f)) }

// Of is the result of an earlier call as an argument.
func Of(r Result) Arg { return Arg{value: uint64(r), ref: true} }

// RawFD is the descriptor number of f. Unlike f.Fd it leaves the file's
// blocking mode alone.
func RawFD(f *os.File) int {
	fd := -1
	if c, err := f.SyscallConn(); err == nil {
		_ = c.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

type programHead struct {
	count  uint64 // calls written so far
	at     uint64 // index of the call that the child is at
	failed uint64 // 1 once the child gave up at call at
	errno  uint64
	kept   uint64 // errno of the last attempt (opAttempt) that counts
	await  uint64 // descriptor that Await reads
	report uint64 // descriptor that Report writes
	byte   uint64
	status uint64 // scratch for wait4 of the reaper
	sigs   uint64 // signal set of the reaper
	forked uint64 // pid of opFork's clone
	argv   uint64 // where the command line that /proc shows lies, and how long it is
	argvN  uint64
	name   [16]byte // of the reaper
}

type op struct {
	args   [6]uint64
	result int64
	nr     uint64
	refs   uint32 // bit i: args[i] is the index of an earlier call
	ignore uint32 // this errno is no failure
	kind   uint32
	_      uint32
}

// Kinds of op. All but the first few are ordinary calls with another meaning
// of their result.
const (
	opCall    = iota
	opTry     // no error is a failure
	opAttempt // an error is kept for opGiveUp; used for the candidates of an execve
	opGiveUp  // fails with the kept errno
	opAwait   // read one byte; the end of the pipe means that the parent is gone
	opReport  // write one byte
	opFork    // clone; the parent of the clone exits, the clone goes on
	opInit    // clone; the parent of the clone stays and reaps, the clone goes on
	opGuard   // ELOOP is a failure, no other error is
	opRetry   // a call that is repeated on EINTR
)

const (
	programOps  = 768
	programHigh = 64 << 10 // room for strings beyond what the caller asks for
)

// ProgramError says which call of a program failed in the child.
type ProgramError struct {
	Step  string
	Errno syscall.Errno // 0: the child ended without an error of its own, by a signal
}

// Error gives the step and the kernel's reason.
func (e *ProgramError) Error() string {
	if e.Errno == 0 {
		return "cannot " + e.Step + ": the process was killed"
	}
	return "cannot " + e.Step + ": " + e.Errno.Error()
}

// Unwrap returns the errno.
func (e *ProgramError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// NewProgram makes an empty program with room for size bytes of strings
// (arguments, environment, filters) besides some of its own.
func NewProgram(size int) (*Program, error) {
	fixed := int(unsafe.Sizeof(programHead{})) + programOps*int(unsafe.Sizeof(op{}))
	total := (fixed + programHigh + size + 4095) &^ 4095
	mem, err := unix.Mmap(-1, 0, total, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("cannot map %d bytes for a start program: %w", total, err)
	}
	p := &Program{mem: mem, used: fixed, refork: -1}
	p.await, p.report = [2]int{-1, -1}, [2]int{-1, -1}
	for _, pipe := range []*[2]int{&p.await, &p.report} {
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			p.Close()
			return nil, fmt.Errorf("cannot make a pipe: %w", err)
		}
	}
	p.head = (*programHead)(unsafe.Pointer(&mem[0]))
	p.ops = unsafe.Slice((*op)(unsafe.Pointer(&mem[unsafe.Sizeof(programHead{})])), programOps)
	p.head.sigs = ^uint64(0)
	p.head.await, p.head.report = uint64(p.await[0]), uint64(p.report[1])
	return p, nil
}

// Close gives the memory and the pipes back; a child that stands at an Await
// ends by it. It must not be called before the child has executed or ended,
// since the parent could not tell why it failed.
func (p *Program) Close() {
	for _, fd := range []*int{&p.await[0], &p.await[1], &p.report[0], &p.report[1]} {
		closeOnce(fd)
	}
	for _, o := range p.opened {
		if fd := p.ops[o.open].result; p.past(o.open) && fd >= 0 && !o.taken && (o.close < 0 || !p.past(o.close)) {
			_ = unix.Close(int(fd)) // what a child that failed left in our table
		}
	}
	p.opened = nil
	if p.mem != nil {
		_ = unix.Munmap(p.mem)
		p.mem, p.head, p.ops = nil, nil, nil
	}
}

// Bytes puts b into the program's memory and returns its address. An empty b
// has an address as well.
func (p *Program) Bytes(b []byte) Arg {
	n := (len(b) + 8) &^ 7
	if p.used+n > len(p.mem) {
		p.fail(fmt.Errorf("cannot put %d bytes into a start program: it is full", len(b)))
		return Arg{}
	}
	at := p.used
	p.used += n
	copy(p.mem[at:], b)
	return Int(uintptr(unsafe.Pointer(&p.mem[at])))
}

// String puts a NUL-terminated string into the program's memory. A string with
// a NUL in it makes the program fail before anything is cloned.
func (p *Program) String(s string) Arg {
	for i := range len(s) {
		if s[i] == 0 {
			p.fail(fmt.Errorf("cannot use %q: it contains a NUL", s))
			return Arg{}
		}
	}
	return p.Bytes(append([]byte(s), 0))
}

// Words puts 64-bit words into the program's memory: a structure that the
// kernel reads.
func (p *Program) Words(w ...Arg) Arg {
	b := make([]byte, 8*len(w))
	for i, a := range w {
		*(*uint64)(unsafe.Pointer(&b[8*i])) = a.value
	}
	return p.Bytes(b)
}

// Strings puts a NULL-terminated list of strings, as execve takes it, into the
// program's memory.
func (p *Program) Strings(list []string) Arg {
	w := make([]Arg, 0, len(list)+1)
	for _, s := range list {
		w = append(w, p.String(s))
	}
	return p.Words(append(w, Arg{})...)
}

func (p *Program) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// Err says whether everything has fitted so far.
func (p *Program) Err() error { return p.err }

func (p *Program) add(kind uint32, ignore syscall.Errno, step string, nr uintptr, args []Arg) Result {
	i := len(p.steps)
	if i >= len(p.ops) {
		p.fail(fmt.Errorf("cannot add %q to a start program: it has %d calls already", step, i))
		return 0
	}
	o := &p.ops[i]
	*o = op{nr: uint64(nr), kind: kind, ignore: uint32(ignore)}
	for k, a := range args {
		o.args[k] = a.value
		if a.ref {
			o.refs |= 1 << k
		}
	}
	p.steps = append(p.steps, step)
	p.head.count = uint64(i + 1)
	return Result(i)
}

// Call adds a system call. step is what it is for, as it will stand behind
// "cannot" in the error. A failure ends the child.
func (p *Program) Call(step string, nr uintptr, args ...Arg) Result {
	return p.add(opCall, 0, step, nr, args)
}

// CallUnless is Call, except that the error ignore is no failure.
func (p *Program) CallUnless(ignore syscall.Errno, step string, nr uintptr, args ...Arg) Result {
	return p.add(opCall, ignore, step, nr, args)
}

// Try adds a system call that may fail; Value tells how it went. A later call
// that uses its failed result as a descriptor fails with EBADF.
func (p *Program) Try(step string, nr uintptr, args ...Arg) Result {
	return p.add(opTry, 0, step, nr, args)
}

// Await adds a stop: the child goes on at the parent's next Continue, and ends
// silently if the parent is gone.
func (p *Program) Await() { p.add(opAwait, 0, "wait for the parent", unix.SYS_READ, nil) }

// Report adds a sign to the parent, for which Child.WaitReport waits. The
// child ends if the parent is gone.
func (p *Program) Report() { p.add(opReport, 0, "report to the parent", unix.SYS_WRITE, nil) }

// Refork adds a clone after which only the clone goes on and the process that
// made it exits. Flags is a set of CLONE_NEW flags. The clone is a child of the
// program's parent and takes the place of the first one in Child, for which the
// parent calls WaitRefork; a Report is part of this step. There can be one of
// these in a program.
func (p *Program) Refork(step string, flags uintptr) {
	r := p.add(opFork, 0, step, unix.SYS_CLONE, []Arg{Int(flags | unix.CLONE_PARENT | unix.CLONE_FILES)})
	p.refork = int(r)
	p.Report()
}

// Reaper adds a clone after which the clone goes on, and the process that made
// it closes everything, stays as a reaper of orphans and a forwarder of signals
// and exits as the clone does: an init for a PID namespace. name, of up to 15
// bytes, is what process lists show of it. It is a copy of the calling program,
// which NotDumpable (see Clone) keeps from being read or followed.
func (p *Program) Reaper(name string) {
	copy(p.head.name[:15], name)
	p.head.argv, p.head.argvN = commandLine()
	p.add(opInit, 0, "start the init process", unix.SYS_CLONE, []Arg{Int(int(unix.SIGCHLD))})
}

// commandLine finds where the kernel takes the process's command line from:
// fields 48 and 49 of proc(5)'s stat. 0 where it does not say.
func commandLine() (start, size uint64) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 47 {
		return 0, 0
	}
	start, _ = strconv.ParseUint(f[48-3], 10, 64)
	end, _ := strconv.ParseUint(f[49-3], 10, 64)
	if start == 0 || end <= start {
		return 0, 0
	}
	return start, end - start
}

// past says whether the child has come past a call.
func (p *Program) past(r Result) bool { return uint64(r) < p.head.at }

// Take is the descriptor that a NewFS made, as a file of the parent's.
func (p *Program) Take(r Result, name string) (*os.File, error) {
	fd, err := p.Value(r)
	if err != nil {
		return nil, fmt.Errorf("cannot use the new %s: %w", name, err)
	}
	for i := range p.opened {
		if p.opened[i].open == r {
			p.opened[i].taken = true
		}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Value is the result of a call that the child has come past; err is its errno.
func (p *Program) Value(r Result) (int, error) {
	n := p.ops[r].result
	if n < 0 {
		return -1, syscall.Errno(-n)
	}
	return int(n), nil
}
