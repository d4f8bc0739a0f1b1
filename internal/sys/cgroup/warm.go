package cgroup

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"
)

// warmed is when Warm last did something, in nanoseconds since the epoch.
var warmed atomic.Int64

// Warm begins what the kernel waits for when a process is moved into a version
// 1 group. Every move takes cgroup_threadgroup_rwsem for writing, and the first
// one after a while waits for an RCU grace period (5-15 ms seen) before it may;
// moves soon after another do not. Warm moves the caller to the group it is in
// already, which changes nothing, so that the grace period passes beside the
// other work of a start. It is a hint: it waits for the move, so it belongs
// into a goroutine; it fails silently; calls within 2 ms of another are free.
// A version 2 tree needs none of it: processes are cloned into their group.
func Warm() {
	h, err := Detect()
	if err != nil || h.Mode == V2 {
		return
	}
	now := time.Now().UnixNano()
	if last := warmed.Load(); now-last < int64(2*time.Millisecond) || !warmed.CompareAndSwap(last, now) {
		return
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for line := range bytes.Lines(own) {
		// 8:pids:/path
		f := bytes.SplitN(bytes.TrimSpace(line), []byte(":"), 3)
		if len(f) != 3 {
			continue
		}
		mount := h.V1[string(f[1])]
		if mount == "" {
			continue
		}
		procs := filepath.Join(mount, string(f[2]), "cgroup.procs")
		if os.WriteFile(procs, []byte(strconv.Itoa(os.Getpid())), 0) == nil {
			return
		}
	}
}
