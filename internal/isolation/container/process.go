package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// defaultPath is where programs are looked for if the environment does not say.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// finish writes the last part of a program: from the descriptors to the exec.
func (c *instance) finish(p *sys.Program, s *isolation.Process, user who, io *streams, reaper bool) {
	p.Settle(sys.FD(io.theirs[0]), sys.FD(io.theirs[1]), sys.FD(io.theirs[2]), reaper, s.Terminal, s.Umask)
	cwd := s.Cwd
	if cwd == "" {
		cwd = "/"
	}
	p.Chdir(cwd)
	for _, l := range c.inherit(s).Rlimits {
		if l.Type == syscall.RLIMIT_NOFILE {
			p.Limit(l.Type, l.Soft, l.Hard, false) // refused: limits has warned
		}
	}
	p.Become(sys.Credentials{
		UID: user.uid, GID: user.gid, Groups: user.groups, Capabilities: s.Capabilities & c.grantable(),
		NoNewPrivileges: s.NoNewPrivileges, Seccomp: s.Seccomp,
	})
	p.DieWithParent()
	env, search := s.Env, defaultPath
	// An empty HOME is filled in as well, as by runc.
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") && kv != "HOME=" }) {
		env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return kv == "HOME=" })
		env = append(env, "HOME="+user.home)
	}
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	p.Exec(s.Args, env, search)
}

// grantable are the capabilities that the child can have: all in a user
// namespace, those of the engine otherwise.
func (c *instance) grantable() uint64 {
	const known = 1<<41 - 1
	if c.shifted() {
		return known
	}
	have, err := sys.Capabilities()
	if err != nil {
		return known // and the kernel says what is wrong
	}
	return have & known
}

// startError turns what a program reports into the contract's error; nil stays nil.
func startError(err error) error {
	var pe *sys.ProgramError
	if !errors.As(err, &pe) {
		return err
	}
	why := pe.Errno.Error()
	if pe.Errno == 0 {
		why = "the process was killed"
	}
	return &isolation.StartError{Kind: isolation.StartFailed, Step: pe.Step, Why: why}
}

// processError is startError for the steps that depend on the user's process.
func processError(err error, p *isolation.Process) error {
	var pe *sys.ProgramError
	if !errors.As(err, &pe) {
		return &isolation.StartError{Kind: isolation.StartFailed, Step: fmt.Sprintf("start %q", p.Args[0]), Why: err.Error()}
	}
	e := startError(err).(*isolation.StartError)
	switch {
	case strings.HasPrefix(pe.Step, "exec "):
		e.Kind = isolation.StartNotAllowed
		switch pe.Errno {
		case syscall.ENOENT, syscall.ENOTDIR:
			e.Kind = isolation.StartNotFound
			if !strings.Contains(p.Args[0], "/") {
				e.Why = "executable file not found in $PATH"
			}
		case syscall.ENOMEM, syscall.EAGAIN, syscall.E2BIG, 0:
			e.Kind = isolation.StartFailed
		}
	case strings.Contains(pe.Step, "working directory"):
		e.Kind = isolation.StartNotFound
		if pe.Errno != syscall.ENOENT {
			e.Kind = isolation.StartNotAllowed
		}
	}
	return e
}

// process is one running process of a container.
type process struct {
	instance *instance
	child    *sys.Child
	io       *streams
	main     bool

	ended chan struct{} // closed once exit and err are set
	exit  isolation.Exit
	err   error
}

// begin waits for the end in the background; the process is reaped in any case.
func (p *process) begin() {
	p.io.begin()
	go func() {
		code, sig, err := sys.PidfdReap(p.child.Pidfd)
		p.exit = isolation.Exit{Code: code, Signal: int(sig), At: time.Now().UTC()}
		p.err = err
		c := p.instance
		if p.main {
			if kills, err := c.group.OOMKills(); err == nil && kills > 0 {
				p.exit.OOMKilled = true
			}
			if !c.spec.Namespaces.PID || c.spec.Namespaces.Join["pid"] != 0 {
				// No namespace dies with it: what it left behind does.
				_ = c.group.Kill()
			}
		}
		c.mu.Lock()
		delete(c.procs, p)
		c.mu.Unlock()
		close(p.ended)
	}()
}

// Pid is the host's number of the process.
func (p *process) Pid() int { return p.child.Pid }

// Signal sends a signal.
func (p *process) Signal(_ context.Context, sig int) error {
	err := sys.PidfdSignal(p.child.Pidfd, syscall.Signal(sig))
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EBADF) || p.hasEnded() {
		return fmt.Errorf("cannot send signal %d: the process has ended: %w", sig, errdefs.ErrNotFound)
	}
	if errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("cannot send signal %d: there is none: %w", sig, errdefs.ErrInvalidArgument)
	}
	return err
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Resize sets the size of the terminal.
func (p *process) Resize(_ context.Context, rows, cols uint16) error {
	if p.io.master == nil {
		return fmt.Errorf("cannot resize: the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	if p.hasEnded() {
		return fmt.Errorf("cannot resize: the process has ended: %w", errdefs.ErrNotFound)
	}
	return sys.SetWinsize(p.io.master, rows, cols)
}

// Wait waits for the end and for the output.
func (p *process) Wait(ctx context.Context) (isolation.Exit, error) {
	select {
	case <-p.ended:
	case <-ctx.Done():
		return isolation.Exit{}, ctx.Err()
	}
	if err := p.io.drain(ctx, p.main); err != nil {
		return isolation.Exit{}, err
	}
	if !p.main {
		_ = p.child.Pidfd.Close()
	}
	return p.exit, p.err
}
