package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Unix stream sockets without package net: a program that stays resident once
// per container should not carry a resolver. Files made here are non-blocking
// and join the runtime's poller, so deadlines and Close work on them.

// ListenUnix binds a listening unix socket (mode 0600) at path, whose length
// does not matter: the address goes through /proc/self/fd. What lay there
// before is removed.
func ListenUnix(path string) (*os.File, error) {
	dir, name, err := socketDir(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	if err := unix.Unlinkat(dir, name, 0); err != nil && err != unix.ENOENT {
		return nil, fmt.Errorf("cannot remove old socket %q: %w", path, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a unix socket: %w", err)
	}
	_ = unix.Fchmod(fd, 0o600) // becomes the mode of the bound file, less the umask
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: viaFD(dir, name)}); err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot listen on %q: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// DialUnix connects to the unix socket at path. ECONNREFUSED means that nobody
// listens any more.
func DialUnix(path string) (*os.File, error) {
	dir, name, err := socketDir(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot make a unix socket: %w", err)
	}
	// Connected while blocking: a non-blocking connect to a full backlog is
	// EAGAIN and cannot be polled for. The kernel bounds the wait.
	tv := unix.Timeval{Sec: 5}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	for {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: viaFD(dir, name)}); err != unix.EINTR {
			break
		}
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot connect to %q: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// socketDir opens the directory of a socket.
func socketDir(path string) (int, string, error) {
	dir, name := filepath.Split(path)
	fd, err := unix.Open(filepath.Clean(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", fmt.Errorf("cannot open directory of socket %q: %w", path, err)
	}
	return fd, name, nil
}

func viaFD(dir int, name string) string { return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name }

// AcceptUnix waits for the next connection of a listening socket.
func AcceptUnix(listener *os.File) (*os.File, error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var aerr error
	err = raw.Read(func(l uintptr) bool {
		for {
			fd, _, aerr = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if aerr != unix.EINTR && aerr != unix.ECONNABORTED {
				return aerr != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, aerr); err != nil {
		return nil, fmt.Errorf("cannot accept a connection: %w", err)
	}
	return os.NewFile(uintptr(fd), "connection"), nil
}

// PeerUID is the user at the other end of a unix socket when it connected.
func PeerUID(conn *os.File) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, cerr); err != nil {
		return 0, fmt.Errorf("cannot ask who is connected: %w", err)
	}
	return cred.Uid, nil
}

// Nonblocking wraps an inherited descriptor so that it joins the poller, and
// keeps it from programs that are executed.
func Nonblocking(fd int, name string) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("cannot use descriptor %d (%s): %w", fd, name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// CloseOnExecFrom keeps every descriptor from first on from programs that are
// executed later.
func CloseOnExecFrom(first int) error {
	err := unix.CloseRange(uint(first), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC) // Linux 5.11
	if err == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("cannot list open descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// MemFile makes a sealed file in memory that holds b, read from its start.
func MemFile(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot fill file %q in memory: %w", name, err)
	}
	_, _ = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	return f, nil
}
