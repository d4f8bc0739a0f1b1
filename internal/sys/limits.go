package sys

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetLimit sets one resource limit of another process. Where raising the hard
// limit is refused (no CAP_SYS_RESOURCE) the limit becomes what is allowed and
// lowered is true.
func SetLimit(pid, resource int, soft, hard uint64) (lowered bool, err error) {
	err = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: soft, Max: hard}, nil)
	if err == unix.EPERM {
		var old unix.Rlimit
		if err = unix.Prlimit(pid, resource, nil, &old); err == nil {
			lowered = true
			err = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: min(soft, old.Max), Max: min(hard, old.Max)}, nil)
		}
	}
	if err != nil {
		return false, fmt.Errorf("cannot set resource limit %d: %w", resource, err)
	}
	return lowered, nil
}

// SetOOMScore sets how willingly the kernel kills a process, -1000 to 1000.
// Lowering it below what it was needs CAP_SYS_RESOURCE: EACCES or EPERM.
func SetOOMScore(pid, score int) error {
	if err := writeProc(pid, "oom_score_adj", strconv.Itoa(score)); err != nil {
		return fmt.Errorf("cannot set the OOM score of process %d to %d: %w", pid, score, err)
	}
	return nil
}

// MapIDs gives the user namespace of a process, which has none yet, its maps.
func MapIDs(pid int, uids, gids []syscall.SysProcIDMap) error {
	text := func(ids []syscall.SysProcIDMap) string {
		var b strings.Builder
		for _, m := range ids {
			fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
		}
		return b.String()
	}
	err := writeProc(pid, "uid_map", text(uids))
	if err == nil {
		err = writeProc(pid, "gid_map", text(gids))
	}
	if err != nil {
		return fmt.Errorf("cannot map ids of process %d: %w", pid, err)
	}
	return nil
}

func writeProc(pid int, name, value string) error {
	path := "/proc/" + strconv.Itoa(pid) + "/" + name
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		_ = unix.Close(fd)
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// Pipe makes a pipe. ours is for the poller and may be read or written as a
// file; theirs is a plain blocking end to hand to a process. With write, ours is
// the end that is written.
func Pipe(write bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	if write {
		p[0], p[1] = p[1], p[0]
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// Chown changes the owner of an open file, O_PATH, a pipe or a terminal included.
func Chown(f *os.File, uid, gid uint32) error {
	if err := unix.Fchownat(RawFD(f), "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil && err != syscall.EROFS {
		return fmt.Errorf("cannot change the owner of %s: %w", f.Name(), err)
	}
	return nil
}

// ChownUser changes the user who owns an open file and leaves the group.
func ChownUser(f *os.File, uid uint32) error {
	if err := unix.Fchown(RawFD(f), int(uid), -1); err != nil {
		return fmt.Errorf("cannot change the owner of %s: %w", f.Name(), err)
	}
	return nil
}
