package cgroup

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"proa/internal/isolation"
	"proa/internal/sys"
)

// Stats reads the counters of the group. A counter whose controller the host
// lacks stays zero, and so do the network figures. Without a limit of its own
// MemoryLimit is the host's memory and PidsLimit is zero, as docker shows them.
func (g *Group) Stats() (isolation.Stats, error) {
	s := isolation.Stats{Read: time.Now()}
	if g.any() == nil {
		return s, fmt.Errorf("cannot read counters of control group %q: it was deleted", g.path)
	}
	g.cpuStats(&s)
	if g.host.Mode == V2 {
		g.statsV2(&s)
	} else {
		g.statsV1(&s)
	}
	if host := hostMemory(); s.MemoryLimit == 0 || s.MemoryLimit > host {
		s.MemoryLimit = host
	}
	if s.PidsLimit == ^uint64(0) {
		s.PidsLimit = 0
	}
	s.OOMKills, _ = g.OOMKills()
	return s, nil
}

// Usage reads what the group has taken since it was made: CPU time, peak of
// memory, block input and output, and the processes that are in it with what
// they wrote. It reads little, because it stands between an exit and its
// report; the rest of isolation.Usage is not the group's to know.
func (g *Group) Usage() (isolation.Usage, error) {
	var u isolation.Usage
	if g.any() == nil {
		return u, fmt.Errorf("cannot read the use of control group %q: it was deleted", g.path)
	}
	var s isolation.Stats
	g.cpuStats(&s)
	u.CPUNanos, u.CPUUser, u.CPUSystem = s.CPUNanos, s.CPUUser, s.CPUSystem
	if d := g.dir("memory"); d != nil {
		if g.host.Mode == V2 {
			u.MemoryPeak = d.number("memory.peak") // Linux 5.19
		} else {
			u.MemoryPeak = d.number("memory.max_usage_in_bytes")
		}
	}
	u.ReadBytes, u.WriteBytes, u.BlockCounted = g.blockBytes()
	pids, err := g.Procs()
	if err != nil {
		return u, err
	}
	u.Processes = len(pids)
	for _, pid := range pids {
		if n, err := sys.StoredBytes(pid); err == nil { // else it has just ended
			u.StoredBytes += n
		}
	}
	return u, nil
}

// blockBytes are the bytes that block devices were asked for in the group's
// name, if anybody counts them.
func (g *Group) blockBytes() (read, write uint64, counted bool) {
	if g.host.Mode == V2 {
		b, err := g.unified.read("io.stat")
		if err != nil {
			return 0, 0, false
		}
		// "8:0 rbytes=4096 wbytes=0 rios=1 ..."
		for _, f := range strings.Fields(string(b)) {
			if v, ok := strings.CutPrefix(f, "rbytes="); ok {
				read += number(v)
			} else if v, ok := strings.CutPrefix(f, "wbytes="); ok {
				write += number(v)
			}
		}
		return read, write, true
	}
	d := g.dir("blkio")
	if d == nil {
		return 0, 0, false
	}
	b, err := d.read("blkio.throttle.io_service_bytes")
	if err != nil {
		return 0, 0, false
	}
	// "8:0 Read 4096"; without a device nothing was counted, for whatever reason
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		counted = true
		switch f[1] {
		case "Read":
			read += number(f[2])
		case "Write":
			write += number(f[2])
		}
	}
	return read, write, counted
}

// OOMKills counts the processes of the group that the kernel killed for want of memory.
func (g *Group) OOMKills() (uint64, error) {
	file := "memory.oom_control" // oom_kill since Linux 4.13
	if g.host.Mode == V2 {
		file = "memory.events"
	}
	d := g.dir("memory")
	if d == nil {
		return 0, nil
	}
	b, err := d.read(file)
	if err != nil {
		if missing(err) {
			return 0, nil
		}
		return 0, fmt.Errorf("cannot read OOM kills of control group %q: %w", g.path, err)
	}
	n, _ := field(b, "oom_kill")
	return n, nil
}

// cpuStats prefers the version 2 tree: it counts without any controller, and
// user and system time in microseconds where cpuacct has ticks.
func (g *Group) cpuStats(s *isolation.Stats) {
	if g.unified != nil {
		if b, err := g.unified.read("cpu.stat"); err == nil {
			s.CPUNanos, s.CPUUser, s.CPUSystem = micros(b, "usage_usec"), micros(b, "user_usec"), micros(b, "system_usec")
			s.Periods, _ = field(b, "nr_periods")
			s.Throttled, _ = field(b, "nr_throttled")
			s.ThrottledNs = micros(b, "throttled_usec")
		}
	} else if d := g.dir("cpuacct"); d != nil {
		s.CPUNanos = d.number("cpuacct.usage")
		s.CPUUser, s.CPUSystem = d.number("cpuacct.usage_user"), d.number("cpuacct.usage_sys")
	}
	if d := g.dir("cpuacct"); d != nil && g.host.Mode != V2 {
		if b, err := d.read("cpuacct.usage_percpu"); err == nil {
			for _, f := range strings.Fields(string(b)) {
				s.PerCPU = append(s.PerCPU, number(f))
			}
		}
	}
	if d := g.dir("cpu"); d != nil && g.host.Mode != V2 {
		if b, err := d.read("cpu.stat"); err == nil {
			s.Periods, _ = field(b, "nr_periods")
			s.Throttled, _ = field(b, "nr_throttled")
			s.ThrottledNs, _ = field(b, "throttled_time")
		}
	}
}

func (g *Group) statsV1(s *isolation.Stats) {
	if d := g.dir("memory"); d != nil {
		s.MemoryBytes = d.number("memory.usage_in_bytes")
		s.MemoryMax = d.number("memory.max_usage_in_bytes")
		s.MemoryLimit = d.number("memory.limit_in_bytes")
		if b, err := d.read("memory.stat"); err == nil {
			s.MemoryCache, _ = field(b, "total_inactive_file")
		}
	}
	if d := g.dir("pids"); d != nil {
		s.Pids, s.PidsLimit = d.number("pids.current"), d.number("pids.max")
	}
	s.ReadBytes, s.WriteBytes, _ = g.blockBytes()
}

func (g *Group) statsV2(s *isolation.Stats) {
	d := g.unified
	s.MemoryBytes = d.number("memory.current")
	s.MemoryMax = d.number("memory.peak") // Linux 5.19
	s.MemoryLimit = d.number("memory.max")
	if b, err := d.read("memory.stat"); err == nil {
		s.MemoryCache, _ = field(b, "inactive_file")
	}
	s.Pids, s.PidsLimit = d.number("pids.current"), d.number("pids.max")
	s.ReadBytes, s.WriteBytes, _ = g.blockBytes()
}

// number reads a file that holds one number; 0 if it cannot be read.
func (d *dir) number(file string) uint64 {
	b, err := d.read(file)
	if err != nil {
		return 0
	}
	return number(string(b))
}

// micros reads a field in microseconds as nanoseconds.
func micros(b []byte, key string) uint64 {
	n, _ := field(b, key)
	return n * 1000
}

// hostMemory is the memory of the host in bytes.
func hostMemory() uint64 {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return uint64(si.Totalram) * uint64(si.Unit)
}
