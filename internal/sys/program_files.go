package sys

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// DetachFilesAs is DetachFiles for a program that expects more than three
// descriptors: files[i] becomes i in the child, the end of the report pipe gets
// the number behind them, and nothing else is left.
// The caller closes what is returned after Child.WaitExec.
func (p *Program) DetachFilesAs(files []*os.File) (held []*os.File, err error) {
	// The child shares the parent's descriptors until it leaves them, so the
	// parent moves the files out of the way of the numbers that they will get.
	defer func() {
		if err != nil {
			for _, f := range held {
				f.Close()
			}
		}
	}()
	n := len(files)
	numbers := make([]Arg, n)
	for i, f := range files {
		fd, err := unix.FcntlInt(uintptr(RawFD(f)), unix.F_DUPFD_CLOEXEC, n+1)
		if err != nil {
			return held, fmt.Errorf("cannot copy the descriptor of %q: %w", f.Name(), err)
		}
		held = append(held, os.NewFile(uintptr(fd), f.Name()))
		numbers[i] = Int(fd)
	}
	p.Unshare("leave the parent's descriptors", unix.CLONE_FILES)
	p.Report()
	report := p.Call("move the report pipe", unix.SYS_FCNTL, Int(p.report[1]), Int(unix.F_DUPFD_CLOEXEC), Int(n+1))
	for i := range files {
		p.Call("set a descriptor", unix.SYS_DUP3, numbers[i], Int(i), Int(0))
	}
	p.Call("set the report pipe", unix.SYS_DUP3, Of(report), Int(n), Int(unix.O_CLOEXEC))
	p.Call("close other descriptors", unix.SYS_CLOSE_RANGE, Int(n+1), Int(uint32(0xffffffff)), Int(0))
	return held, nil
}

// SocketPair is a pair of connected unix stream sockets. ours joins the
// runtime's poller; theirs blocks and is meant for a child.
func SocketPair(name string) (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a pair of sockets: %w", err)
	}
	if err := syscall.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return nil, nil, fmt.Errorf("cannot use a socket: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), name), os.NewFile(uintptr(pair[1]), name), nil
}
