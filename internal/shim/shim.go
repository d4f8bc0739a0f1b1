// Package shim is the engine's side of the shims: it starts one for each
// instance, talks to it, finds it again after the engine was restarted, and
// tells how an instance ended even if its shim was killed. Package shim/server
// is the process itself, package shim/wire what the two say to each other.
//
// It never touches an instance: everything goes through the shim, except
// Sweep, which removes what a killed shim could not.
//
// A shim's directory, <Starter.Dir>/<id>, holds its socket (sock), its exit
// record (exit.json, written before anybody is told of the exit) and what it
// said when it crashed (shim.log). The shim's descriptors at its start:
//
//	0, 1   /dev/null        2   shim.log
//	3      the listening socket
//	4      the spec, JSON in a sealed memory file
//	5...   files of the spec: isolation.File values are these numbers (Files)
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"proa/internal/isolation"
	"proa/internal/shim/wire"
	"proa/internal/sys"
	"proa/internal/sys/cgroup"
)

// Files are open files to hand over with a spec, in order of their numbers.
type Files []*os.File

// firstFile is the number of Files[0] in the shim.
const firstFile = 5

// NewFiles starts an empty list.
func NewFiles() Files { return nil }

// Add puts f on the list and returns its number in the shim; 0 for nil. The
// file must stay open until Start has returned, and remains the caller's.
func (l *Files) Add(f *os.File) isolation.File {
	if f == nil {
		return 0
	}
	*l = append(*l, f)
	return isolation.File(firstFile + len(*l) - 1)
}

// Number is the number in the shim of a file that was added.
func (l Files) Number(f *os.File) isolation.File {
	for i, have := range l {
		if have == f {
			return isolation.File(firstFile + i)
		}
	}
	return 0
}

// Phase is where an instance is in its life: "creating", "created",
// "starting", "running", "paused", "exited", "failed".
type Phase = wire.Phase

// Streams says which ends of a process are wanted.
type Streams = wire.Streams

// Starter starts and finds shims below one directory.
type Starter struct {
	Binary string // proa-shim
	Dir    string // <exec-root>/shim
}

// Shim is one running shim, seen from the engine. It is safe for concurrent use.
type Shim struct {
	id     string
	dir    string
	pid    int
	pidfd  *os.File
	gone   chan struct{} // closed when the shim has ended (and is reaped)
	closed sync.Once
}

// Start forks a shim for spec. The shim lives in a session of its own and
// begins to create the instance at once; Create tells how that went. A shim
// that runs under this id is errdefs.ErrAlreadyExists; the exit record of an
// earlier one is removed.
func (s *Starter) Start(ctx context.Context, spec *isolation.Spec, files []*os.File) (_ *Shim, err error) {
	if err := checkID(spec.ID); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.Dir, spec.ID)
	if err := s.makeDir(dir); err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the spec of %q: %w", spec.ID, err)
	}
	specFile, err := sys.MemFile("spec", text)
	if err != nil {
		return nil, err
	}
	defer specFile.Close()
	listener, err := sys.ListenUnix(filepath.Join(dir, "sock"))
	if err != nil {
		return nil, err
	}
	defer listener.Close() // or a connection to a dead shim would wait in our backlog
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the null device: %w", err)
	}
	defer null.Close()
	crash, err := os.OpenFile(filepath.Join(dir, "shim.log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot make the shim's log: %w", err)
	}
	defer crash.Close()
	fds := []uintptr{null.Fd(), null.Fd(), crash.Fd(), listener.Fd(), specFile.Fd()}
	for _, f := range files {
		fds = append(fds, f.Fd())
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	pidfd := -1
	pid, err := syscall.ForkExec(s.Binary, []string{"proa-shim", dir}, &syscall.ProcAttr{
		Dir:   "/",
		Files: fds,
		// The server switches the collector on when the start is over.
		Env: []string{"GOGC=off", "GOMAXPROCS=2", "GOTRACEBACK=all", "PATH=" + os.Getenv("PATH")},
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot start shim %q: %w", s.Binary, err)
	}
	sh, err := watch(spec.ID, dir, pid, pidfd, true)
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		return nil, err
	}
	return sh, nil
}

// makeDir makes the shim's directory, or empties that of an earlier shim.
func (s *Starter) makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.MkdirAll(s.Dir, 0o700); err == nil {
			err = os.Mkdir(dir, 0o700)
		}
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot make a directory for the shim: %w", err)
	}
	if f, err := sys.DialUnix(filepath.Join(dir, "sock")); err == nil {
		f.Close()
		return fmt.Errorf("cannot start shim %q: one is running already: %w", filepath.Base(dir), errdefs.ErrAlreadyExists)
	}
	if err := os.Remove(filepath.Join(dir, "exit.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot remove an old exit record: %w", err)
	}
	return nil
}

// checkID keeps ids that become path elements harmless.
func checkID(id string) error {
	if id == "" || id[0] == '.' || strings.ContainsAny(id, "/\x00") || len(id) > 128 {
		return fmt.Errorf("cannot use %q as the id of a shim: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// watch makes a Shim of a process whose end it notices and, if it is our child, reaps.
func watch(id, dir string, pid, pidfd int, child bool) (*Shim, error) {
	var f *os.File
	var err error
	if pidfd >= 0 {
		f, err = sys.PidFile(pidfd)
	} else {
		f, err = sys.OpenPid(pid)
	}
	if err != nil {
		return nil, err
	}
	sh := &Shim{id: id, dir: dir, pid: pid, pidfd: f, gone: make(chan struct{})}
	go func() {
		if sys.PidfdWait(f) != nil {
			return // Close was called
		}
		if child {
			for {
				if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
					break
				}
			}
		}
		close(sh.gone)
	}()
	return sh, nil
}

// Find finds the shim of id that an earlier engine started. If none runs it is
// errdefs.ErrNotFound: then Exit tells whether there is a record, and without
// one the shim was killed (Killed) and Sweep removes what it left.
func (s *Starter) Find(ctx context.Context, id string) (*Shim, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	dir := filepath.Join(s.Dir, id)
	sh := &Shim{id: id, dir: dir}
	conn, err := sh.dial(ctx)
	if err != nil {
		if errors.Is(err, errdefs.ErrUnavailable) {
			return nil, fmt.Errorf("cannot find shim %q: it does not run: %w", id, errdefs.ErrNotFound)
		}
		return nil, err
	}
	defer conn.Close()
	stop := interruptible(ctx, conn)
	defer stop()
	hello, err := ask(conn, &wire.Request{Op: wire.Hello})
	if err != nil {
		return nil, fmt.Errorf("cannot find shim %q: %w", id, cause(ctx, err))
	}
	found, err := watch(id, dir, hello.Shim, -1, false)
	if err != nil {
		return nil, fmt.Errorf("cannot find shim %q: %w", id, err)
	}
	// It answers once more, so the process that was opened by its number is it.
	if _, err := ask(conn, &wire.Request{Op: wire.Hello}); err != nil {
		found.Close()
		return nil, fmt.Errorf("cannot find shim %q: it ended meanwhile: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

// List gives the ids that have a directory: shims that run, and ended ones
// that were not forgotten.
func (s *Starter) List() ([]string, error) {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot list shims: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// Exit reads the exit record of id; errdefs.ErrNotFound if there is none (yet).
func (s *Starter) Exit(id string) (isolation.Exit, error) {
	if err := checkID(id); err != nil {
		return isolation.Exit{}, err
	}
	return readExit(filepath.Join(s.Dir, id))
}

func readExit(dir string) (isolation.Exit, error) {
	var e isolation.Exit
	b, err := os.ReadFile(filepath.Join(dir, "exit.json"))
	if errors.Is(err, os.ErrNotExist) {
		return e, fmt.Errorf("cannot read the exit of %q: no record: %w", filepath.Base(dir), errdefs.ErrNotFound)
	}
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		return e, fmt.Errorf("cannot read the exit of %q: %w", filepath.Base(dir), err)
	}
	return e, nil
}

// Killed is the exit of an instance whose shim ended without a record.
func Killed() isolation.Exit {
	return isolation.Exit{Code: 128 + int(syscall.SIGKILL), Signal: int(syscall.SIGKILL), At: time.Now(), Error: "shim was killed"}
}

// Forget removes the directory of a shim that has ended. It is for after the
// exit was taken into the engine's books. Nothing there is no error.
func (s *Starter) Forget(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(s.Dir, id)); err != nil {
		return fmt.Errorf("cannot forget shim %q: %w", id, err)
	}
	return nil
}

// Sweep kills and removes what a killed shim left of an instance in the host:
// the processes of its control group (cgroupParent/id) and the group. The
// first process dies with the shim anyhow, by its parent death signal; in the
// host's PID namespace its children would not. Nothing there is no error.
func (s *Starter) Sweep(cgroupParent, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	return cgroup.Sweep(filepath.Join("/", cgroupParent, id))
}
