package agent

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"proa/internal/isolation"
	"proa/internal/isolation/vm/wire"
	"proa/internal/sys"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every architecture that Go knows.
const tick = time.Second / 100

// maxListed bounds a list of processes; vm/wire expects no more.
const maxListed = 4096

// stats reads the kernel's counters.
func (a *Agent) stats() (*wire.GuestStats, error) {
	s := &wire.GuestStats{Uptime: sys.SinceBoot(), OOMKills: a.oomKills()}
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	eachLine(mem, func(f []string) {
		if len(f) < 2 {
			return
		}
		v, _ := strconv.ParseUint(f[1], 10, 64)
		v <<= 10 // "kB" are KiB
		switch f[0] {
		case "MemTotal:":
			s.MemoryTotal = v
		case "MemFree:":
			s.MemoryFree = v
		case "MemAvailable:":
			s.MemoryAvailable = v
		case "Cached:":
			s.MemoryCached = v
		case "Inactive(file):":
			s.InactiveFile = v
		}
	})
	cpu, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	eachLine(cpu, func(f []string) {
		if f[0] != "cpu" || len(f) < 8 {
			return
		}
		at := func(i int) time.Duration {
			v, _ := strconv.ParseInt(f[i], 10, 64)
			return time.Duration(v) * tick
		}
		s.CPUUser = at(1) + at(2)           // user, nice
		s.CPUSystem = at(3) + at(6) + at(7) // system, irq, softirq
	})
	if disks, err := os.ReadFile("/proc/diskstats"); err == nil {
		eachLine(disks, func(f []string) {
			// Whole disks only: vda, not vda1 (a digit at the end), nor loops.
			if len(f) < 10 || !strings.HasPrefix(f[2], "vd") && !strings.HasPrefix(f[2], "sd") || f[2][len(f[2])-1] <= '9' {
				return
			}
			r, _ := strconv.ParseUint(f[5], 10, 64)
			w, _ := strconv.ParseUint(f[9], 10, 64)
			s.DiskRead += r * 512 // sectors, whatever the disk's block size
			s.DiskWritten += w * 512
		})
	}
	if s.Pids, err = countTasks(); err != nil {
		return nil, err
	}
	return s, nil
}

// countTasks counts the tasks that are the user's.
func countTasks() (n uint64, err error) {
	pids, err := list()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if st, ok := readStat(pid); ok && !st.kernel() && pid != 1 {
			n += st.threads
		}
	}
	return n, nil
}

// eachLine calls f with the fields of every line that has any.
func eachLine(b []byte, f func(fields []string)) {
	for line := range bytes.Lines(b) {
		if fields := strings.Fields(string(line)); len(fields) > 0 {
			f(fields)
		}
	}
}

// oomKills counts from the start of the guest; before its set-up there is nothing to kill.
func (a *Agent) oomKills() uint64 {
	a.mu.Lock()
	r := a.room
	a.mu.Unlock()
	if r == nil {
		return 0
	}
	return r.group.oomKills()
}

// list gives the pids of all processes.
func list() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// stat is what /proc/PID/stat says.
type stat struct {
	comm, state    string
	nice           int
	vsize, rss     uint64 // bytes
	pid, ppid, tty int
	cpu            time.Duration
	threads, start uint64 // start in ticks since boot
}

// kernel says whether it is a thread of the kernel: kthreadd and its children.
func (s *stat) kernel() bool { return s.pid == 2 && s.ppid == 0 || s.ppid == 2 }

// readStat is false for a process that has gone.
func readStat(pid int) (s stat, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return s, false
	}
	// The name may hold spaces and parentheses; the last one ends it.
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return s, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 22 {
		return s, false
	}
	num := func(i int) int { v, _ := strconv.Atoi(f[i]); return v }
	return stat{
		comm: string(b[open+1 : end]), state: f[0], nice: num(16), vsize: uint64(num(20)), rss: uint64(num(21) * os.Getpagesize()), pid: pid, ppid: num(1), tty: num(4),
		cpu:     time.Duration(num(11)+num(12)) * tick,
		threads: uint64(num(17)), start: uint64(num(19)),
	}, true
}

// processes lists all but the kernel's threads and the agent.
func processes() ([]isolation.ProcessInfo, error) {
	pids, err := list()
	if err != nil {
		return nil, err
	}
	boot := time.Now().Add(-sys.SinceBoot())
	out := []isolation.ProcessInfo{}
	size := 0
	for _, pid := range pids {
		st, ok := readStat(pid)
		if !ok || st.kernel() || pid == 1 {
			continue
		}
		p := isolation.ProcessInfo{
			PID: pid, PPID: st.ppid, CPU: st.cpu, TTY: ttyName(st.tty),
			Started: boot.Add(time.Duration(st.start) * tick).Truncate(tick), Command: command(pid, st.comm),
			Name: strings.ToValidUTF8(st.comm, "?"), State: st.state, Nice: st.nice, Threads: int(st.threads), Virtual: st.vsize, Resident: st.rss,
		}
		var fi syscall.Stat_t
		if err := syscall.Stat("/proc/"+strconv.Itoa(pid), &fi); err != nil {
			continue
		}
		p.UID = fi.Uid
		if size += 320 + 2*len(p.Command); len(out) == maxListed || size > wire.MaxReply {
			break
		}
		out = append(out, p)
	}
	return out, nil
}

// command is the command line, shortened; the name in brackets where there is none.
func command(pid int, comm string) string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		return "[" + comm + "]"
	}
	if len(b) > 1024 {
		b = b[:1024]
	}
	return strings.ToValidUTF8(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})), "?")
}

// ttyName names the terminal of a device number, "?" for none.
func ttyName(dev int) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.Itoa((major-136)<<20|minor)
	default:
		return "tty" + strconv.Itoa(minor)
	}
}
