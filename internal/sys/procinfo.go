package sys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessInfo is what /proc says of one process.
type ProcessInfo struct {
	PID, PPID int
	UID       uint32 // as the reader's user namespace has it
	Started   time.Time
	CPU       time.Duration
	TTY       string // "pts/0", or "?"
	Name      string // of the executable, at most 15 bytes
	State     string // one letter of proc(5)
	Nice      int
	Threads   int
	Virtual   uint64 // bytes
	Resident  uint64 // bytes
	Command   string // command line, or the name in brackets where there is none
}

// signed reads a number that may be negative.
func signed(s string) int64 { n, _ := strconv.ParseInt(s, 10, 64); return n }

// ticks is USER_HZ, which Linux has fixed at 100 for /proc on all architectures
// that Go runs on.
const ticks = 100

// ReadProcess reads about one process; os.ErrNotExist if there is none.
func ReadProcess(pid int) (ProcessInfo, error) {
	p := ProcessInfo{PID: pid, TTY: "?"}
	dir := "/proc/" + strconv.Itoa(pid)
	fail := func(err error) (ProcessInfo, error) {
		if errors.Is(err, syscall.ESRCH) {
			err = os.ErrNotExist
		}
		return p, fmt.Errorf("cannot read about process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return fail(err)
	}
	// "pid (name) state ppid ...", where a name can hold spaces and parentheses.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return fail(errors.New("stat is malformed"))
	}
	name := string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 22 {
		return fail(errors.New("stat is malformed"))
	}
	num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i-3], 10, 64); return n } // i as in proc(5)
	p.PPID, p.Name, p.State = int(num(4)), strings.ToValidUTF8(name, "?"), f[0]
	p.Nice, p.Threads, p.Virtual, p.Resident = int(signed(f[19-3])), int(num(20)), num(23), num(24)*uint64(os.Getpagesize())
	if tty := num(7); tty != 0 {
		major, minor := unix.Major(tty), unix.Minor(tty)
		switch {
		case major >= 136 && major <= 143:
			p.TTY = "pts/" + strconv.Itoa(int(major-136)*256+int(minor))
		case major == 4:
			p.TTY = "tty" + strconv.Itoa(int(minor))
		}
	}
	p.CPU = time.Duration(num(14)+num(15)) * time.Second / ticks
	var boot, wall unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return fail(err)
	}
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &wall); err != nil {
		return fail(err)
	}
	p.Started = time.Unix(0, wall.Nano()-boot.Nano()+int64(num(22))*int64(time.Second)/ticks)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return fail(err)
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			if w := strings.Fields(ids); len(w) > 1 {
				n, _ := strconv.ParseUint(w[1], 10, 32) // effective
				p.UID = uint32(n)
			}
		}
	}
	cmd, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return fail(err)
	}
	p.Command = strings.ReplaceAll(strings.TrimRight(string(cmd), "\x00"), "\x00", " ")
	if p.Command == "" {
		p.Command = "[" + name + "]"
	}
	return p, nil
}
