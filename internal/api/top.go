package api

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"proa/internal/isolation"
)

// Docker runs the host's ps for top and hands ps_args to it. Nothing is run
// here: the forms and columns of procps' ps(1) that are known stand in tables,
// any other is refused by name.

// psColumn is one column of ps: its title and what it shows of a process.
type psColumn struct {
	title string
	show  func(*isolation.ProcessInfo, *psHost) string
}

// psHost is what columns need besides the process.
type psHost struct {
	now    time.Time
	memory int64 // bytes
}

// psColumns are the format specifiers of ps -o with the titles of procps 4.
var psColumns = map[string]psColumn{
	"pid":  {"PID", func(p *isolation.ProcessInfo, _ *psHost) string { return strconv.Itoa(p.PID) }},
	"ppid": {"PPID", func(p *isolation.ProcessInfo, _ *psHost) string { return strconv.Itoa(p.PPID) }},
	"uid":  {"UID", psUID}, "euid": {"EUID", psUID},
	"user": {"USER", psUser}, "euser": {"EUSER", psUser}, "uname": {"USER", psUser},
	"comm": {"COMMAND", psName}, "ucmd": {"CMD", psName}, "ucomm": {"COMMAND", psName},
	"args": {"COMMAND", psCommand}, "command": {"COMMAND", psCommand}, "cmd": {"CMD", psCommand},
	"tty": {"TT", psTTY}, "tt": {"TT", psTTY}, "tname": {"TTY", psTTY},
	"stat": {"STAT", psState}, "s": {"S", psState}, "state": {"S", psState},
	"time": {"TIME", psTime}, "cputime": {"TIME", psTime},
	"etime": {"ELAPSED", func(p *isolation.ProcessInfo, h *psHost) string { return psElapsed(h.now.Sub(p.Started)) }},
	"etimes": {"ELAPSED", func(p *isolation.ProcessInfo, h *psHost) string {
		return strconv.Itoa(int(h.now.Sub(p.Started).Seconds()))
	}},
	"stime": {"STIME", psStarted},
	"start": {"STARTED", func(p *isolation.ProcessInfo, h *psHost) string { return psSince(p, h, "15:04:05", "Jan 02") }},
	"lstart": {"STARTED", func(p *isolation.ProcessInfo, _ *psHost) string {
		return p.Started.Local().Format("Mon Jan _2 15:04:05 2006")
	}},
	"c":       {"C", func(p *isolation.ProcessInfo, h *psHost) string { return strconv.Itoa(int(psCPU(p, h))) }},
	"pcpu":    {"%CPU", psPercent},
	"%cpu":    {"%CPU", psPercent},
	"pmem":    {"%MEM", psMemory},
	"%mem":    {"%MEM", psMemory},
	"rss":     {"RSS", psResident},
	"rssize":  {"RSS", psResident},
	"rsz":     {"RSZ", psResident},
	"vsz":     {"VSZ", psVirtual},
	"vsize":   {"VSZ", psVirtual},
	"nlwp":    {"NLWP", psThreads},
	"thcount": {"THCNT", psThreads},
	"ni":      {"NI", psNice},
	"nice":    {"NI", psNice},
	"sstart":  {"START", psStarted}, // of the form u
}

// psForms are the sets of columns that ps has names for.
var psForms = map[string]string{
	"f":  "uid,pid,ppid,c,stime,tname,time,cmd",
	"u":  "user,pid,pcpu,pmem,vsz,rss,tname,stat,sstart,time,args",
	"e":  "pid,tname,time,ucmd",
	"ax": "pid,tname,stat,time,args",
}

func psUID(p *isolation.ProcessInfo, _ *psHost) string     { return strconv.Itoa(int(p.UID)) }
func psName(p *isolation.ProcessInfo, _ *psHost) string    { return p.Name }
func psCommand(p *isolation.ProcessInfo, _ *psHost) string { return p.Command }
func psState(p *isolation.ProcessInfo, _ *psHost) string   { return p.State }
func psThreads(p *isolation.ProcessInfo, _ *psHost) string { return strconv.Itoa(p.Threads) }
func psNice(p *isolation.ProcessInfo, _ *psHost) string    { return strconv.Itoa(p.Nice) }

// psUser is the name of root and the number of any other: names are the
// container's own, and nothing of it is read on the host.
func psUser(p *isolation.ProcessInfo, h *psHost) string {
	if p.UID == 0 {
		return "root"
	}
	return psUID(p, h)
}

func psTTY(p *isolation.ProcessInfo, _ *psHost) string {
	if p.TTY == "" {
		return "?"
	}
	return p.TTY
}

func psTime(p *isolation.ProcessInfo, _ *psHost) string {
	d := int(p.CPU.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", d/3600, d/60%60, d%60)
}

func psResident(p *isolation.ProcessInfo, _ *psHost) string {
	return strconv.FormatUint(p.Resident>>10, 10)
}

func psVirtual(p *isolation.ProcessInfo, _ *psHost) string {
	return strconv.FormatUint(p.Virtual>>10, 10)
}

// psCPU is the share of one CPU since the start, in percent.
func psCPU(p *isolation.ProcessInfo, h *psHost) float64 {
	age := h.now.Sub(p.Started)
	if age <= 0 {
		return 0
	}
	return float64(p.CPU) * 100 / float64(age)
}

func psPercent(p *isolation.ProcessInfo, h *psHost) string {
	return strconv.FormatFloat(psCPU(p, h), 'f', 1, 64)
}

func psMemory(p *isolation.ProcessInfo, h *psHost) string {
	if h.memory <= 0 {
		return "0.0"
	}
	return strconv.FormatFloat(float64(p.Resident)*100/float64(h.memory), 'f', 1, 64)
}

func psStarted(p *isolation.ProcessInfo, h *psHost) string { return psSince(p, h, "15:04", "Jan02") }

// psSince is when it was started, by the day after more than one.
func psSince(p *isolation.ProcessInfo, h *psHost, today, before string) string {
	if h.now.Sub(p.Started) > 24*time.Hour {
		today = before
	}
	return p.Started.Local().Format(today)
}

// psElapsed is [[dd-]hh:]mm:ss.
func psElapsed(d time.Duration) string {
	s := max(0, int(d.Seconds()))
	out := fmt.Sprintf("%02d:%02d", s/60%60, s%60)
	if s >= 3600 {
		out = fmt.Sprintf("%02d:%s", s/3600%24, out)
	}
	if s >= 86400 {
		out = fmt.Sprintf("%d-%s", s/86400, out)
	}
	return out
}

// parsePS reads ps_args into columns. As with Docker, one of them has to be
// titled PID, and none but pid may be.
func parsePS(args string) ([]psColumn, error) {
	form, list, err := psArgs(strings.Fields(args))
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		list = []string{psForms[form]}
	}
	var out []psColumn
	for _, l := range list {
		for l != "" {
			word, rest, _ := strings.Cut(l, ",")
			key, title, titled := strings.Cut(word, "=")
			if titled { // the title is all that follows, commas included
				_, title, _ = strings.Cut(l, "=")
				rest = ""
			}
			column, ok := psColumns[key]
			if !ok {
				return nil, bad("cannot list processes by column %q: known are %s", key, strings.Join(slices.Sorted(maps.Keys(psColumns)), ", "))
			}
			if titled {
				if key != "pid" && strings.HasPrefix(title, "PID") {
					return nil, bad("specifying \"%s=%s\" is not allowed", key, title)
				}
				column.title = title
			}
			out, l = append(out, column), rest
		}
	}
	if !slices.ContainsFunc(out, func(c psColumn) bool { return c.title == "PID" }) {
		return nil, bad("Couldn't find PID field in ps output")
	}
	return out, nil
}

// psArgs finds the form, or the lists of -o. Which processes are wanted
// (-e, -A, a, x) changes no line: they are the container's.
func psArgs(args []string) (form string, lists []string, err error) {
	var unix, bsd string // letters of -ef and of aux
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if v, ok := strings.CutPrefix(arg, "--format"); ok {
			arg = "-o" + strings.TrimPrefix(v, "=")
		}
		letters, dash := strings.CutPrefix(arg, "-")
		letters, list, isList := strings.Cut(letters, "o")
		if isList && list == "" && i+1 < len(args) {
			i++
			list = args[i]
		}
		if isList && list == "" {
			return "", nil, bad("cannot read the arguments of ps: a list of columns has to follow -o")
		}
		if isList {
			lists = append(lists, list)
		}
		known := "auxw"
		if dash && letters != "aux" { // which ps reads like aux
			known = "eAfaw"
			unix += letters
		} else {
			bsd += letters
		}
		if strings.Trim(letters, known) != "" {
			return "", nil, bad("cannot list processes with %q: the forms -ef, -e, aux, ax and -o COLUMN,... are known", args[i])
		}
	}
	switch {
	case strings.Contains(unix, "f") || len(args) == 0:
		return "f", lists, nil
	case strings.Contains(bsd, "u"):
		return "u", lists, nil
	case strings.ContainsAny(bsd, "ax"):
		return "ax", lists, nil
	}
	return "e", lists, nil
}

func (s *Server) containerTop(c *call) error {
	columns, err := parsePS(c.query("ps_args"))
	if err != nil {
		return err
	}
	procs, err := s.Engine.Top(c.Context(), c.PathValue("id"))
	if err != nil {
		return err
	}
	host := &psHost{now: time.Now(), memory: s.Host.MemTotal}
	out := container.TopResponse{Processes: [][]string{}}
	for _, column := range columns {
		out.Titles = append(out.Titles, column.title)
	}
	for i := range procs {
		var line []string
		for _, column := range columns {
			line = append(line, column.show(&procs[i], host))
		}
		out.Processes = append(out.Processes, line)
	}
	return c.reply(http.StatusOK, out)
}
