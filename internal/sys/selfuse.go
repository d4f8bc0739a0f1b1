package sys

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// StoredBytes is how much a process, with all children that it has waited for
// and theirs, sent towards storage: pages dirtied in files and direct writes
// (write_bytes of proc_pid_io(5)). It counts also what is written back later
// or never. pid 0 is the caller.
func StoredBytes(pid int) (uint64, error) {
	return procNumber(pid, "io", "write_bytes:", 1)
}

// MemoryPeak is the most memory in bytes that a process had resident so far
// (VmHWM), program text that it shares with others included. pid 0 is the caller.
//
// It is not ru_maxrss, which a program inherits from the one that executed it.
func MemoryPeak(pid int) (uint64, error) {
	return procNumber(pid, "status", "VmHWM:", 1024)
}

// procNumber reads the number behind key in a file of /proc/PID.
func procNumber(pid int, file, key string, unit uint64) (uint64, error) {
	who := "self"
	if pid != 0 {
		who = strconv.Itoa(pid)
	}
	path := "/proc/" + who + "/" + file
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("cannot read what process %s uses: %w", who, err)
	}
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte(key))
		if !ok {
			continue
		}
		f := bytes.Fields(rest)
		if len(f) == 0 {
			break
		}
		n, err := strconv.ParseUint(string(f[0]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cannot read %s of %s: %w", key, path, err)
		}
		return n * unit, nil
	}
	return 0, fmt.Errorf("cannot read %s of %s: %w", key, path, os.ErrNotExist)
}

// CPUTime is how long this process has run on a CPU.
func CPUTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("cannot read the CPU time of this process: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
