package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// group is the cgroup (version 2) of the user's processes. The agent stays
// outside, so that it neither counts towards their limits nor suffers from
// them. A nil group, where the kernel has no version 2, limits nothing.
type group struct {
	path string
	dir  *os.File // what a new process is born into
}

// newGroup mounts the hierarchy at root and makes the group below it.
func newGroup(root string) (_ *group, err error) {
	if err := mount("cgroup2", 0, root, sys.FSConfig{Key: "source", Value: "cgroup"}); err != nil && !errors.Is(err, syscall.EBUSY) {
		return nil, err
	}
	for _, controller := range []string{"+pids", "+memory"} {
		// One that is not there is missed where it is needed: by limit, by oomKills.
		_ = os.WriteFile(root+"/cgroup.subtree_control", []byte(controller), 0)
	}
	g := &group{path: root + "/user"}
	if err := os.Mkdir(g.path, 0o755); err != nil && !errors.Is(err, syscall.EEXIST) {
		return nil, err
	}
	if g.dir, err = os.Open(g.path); err != nil {
		return nil, err
	}
	g.leaveRoom()
	return g, nil
}

// leaveRoom limits the memory of the processes together to a little less than
// what the guest can give. Want of memory is then the group's, which the kernel
// answers by a kill at once. A guest that is short of it as a whole looks for
// pages to free on all its processors, without reading or writing anything, for
// seconds or for more than ten minutes, until somebody else's allocation fails
// and its OOM killer acts (seen with Linux 6.1 and 128 MiB without swap).
func (g *group) leaveRoom() {
	total, ok := field("/proc/meminfo", "MemTotal:")
	available, ok2 := field("/proc/meminfo", "MemAvailable:") // Linux 3.14
	if !ok || !ok2 {
		return
	}
	// For the agent, the network's buffers and the kernel; the estimate of what
	// is available is some MiB too high as well.
	spare := min(10<<10+total/64, 64<<10)
	if available > 2*spare {
		// Without the controller the guest as a whole is the limit.
		_ = os.WriteFile(g.path+"/memory.max", strconv.AppendUint(nil, (available-spare)<<10, 10), 0) // meminfo's kB are KiB
	}
}

// limit sets what the processes together may have.
func (g *group) limit(l wire.Limits) error {
	if g == nil {
		if l.Pids > 0 {
			return errors.New("cannot limit processes: the guest's kernel has no cgroup version 2")
		}
		return nil
	}
	value := "max"
	if l.Pids > 0 {
		value = strconv.FormatInt(l.Pids, 10)
	}
	if err := os.WriteFile(g.path+"/pids.max", []byte(value), 0); err != nil && (l.Pids > 0 || !errors.Is(err, syscall.ENOENT)) {
		return fmt.Errorf("cannot limit processes: %w", err)
	}
	return nil
}

// oomKills is how many processes of the group the kernel has killed for want of
// memory; without the controller, how many of the guest.
func (g *group) oomKills() uint64 {
	if g != nil {
		if n, ok := field(g.path+"/memory.events", "oom_kill "); ok {
			return n
		}
	}
	n, _ := field("/proc/vmstat", "oom_kill ") // Linux 4.13
	return n
}

// field is the number behind name at the start of a line of a file.
func field(path, name string) (uint64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			word, _, _ := bytes.Cut(bytes.TrimSpace(rest), []byte(" ")) // a unit may follow
			n, err := strconv.ParseUint(string(word), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// hold stops the user's processes until the returned function is called. One
// that hangs in the kernel is not waited for longer than a second.
func (g *group) hold() (thaw func()) {
	if g == nil || os.WriteFile(g.path+"/cgroup.freeze", []byte("1"), 0) != nil {
		return func() {}
	}
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		if frozen, ok := field(g.path+"/cgroup.events", "frozen "); ok && frozen == 1 {
			break
		}
		time.Sleep(wait)
	}
	return func() { _ = os.WriteFile(g.path+"/cgroup.freeze", []byte("0"), 0) } // the group is there as long as we are
}
