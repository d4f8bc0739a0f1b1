package api

import (
	"strings"
	"testing"
	"time"
)

// Row D26 and C: the arguments of ps, read as procps 4 reads them.
func TestFaultD26ArgumentsOfPS(t *testing.T) {
	const full = "UID PID PPID C STIME TTY TIME CMD"
	for args, want := range map[string]string{
		"": full, "-ef": full, "-f": full, "-e -f": full,
		"aux":                                "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"-aux":                               "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"auxww":                              "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"ax":                                 "PID TTY STAT TIME COMMAND",
		"-e":                                 "PID TTY TIME CMD",
		"-A":                                 "PID TTY TIME CMD",
		"-o pid,comm":                        "PID COMMAND",
		"-opid,comm":                         "PID COMMAND",
		"-eo pid,cmd":                        "PID CMD",
		"-o pid -o args":                     "PID COMMAND",
		"--format pid,ppid":                  "PID PPID",
		"--format=pid,uid":                   "PID UID",
		"-o pid,etime,nlwp,ni,stat,rss,vsz":  "PID ELAPSED NLWP NI STAT RSS VSZ",
		"-o pid,user=WHO":                    "PID WHO",
		"-o pid,comm=a,b":                    "PID a,b",
		"o pid,tty,tname,lstart,start,stime": "PID TT TTY STARTED STARTED STIME",
	} {
		columns, err := parsePS(args)
		var titles []string
		for _, c := range columns {
			titles = append(titles, c.title)
		}
		if got := strings.Join(titles, " "); err != nil || got != want {
			t.Errorf("%q: %s %v, want %s", args, got, err, want)
		}
	}
	for args, says := range map[string]string{
		"-o comm":          "Couldn't find PID field in ps output",
		"-o pid=X":         "Couldn't find PID field",
		"-o pid,ppid=PID":  `specifying "ppid=PID" is not allowed`,
		"-o pid,nosuch":    `by column "nosuch"`,
		"-o":               "has to follow -o",
		"-l":               "the forms -ef",
		"-u root":          "the forms -ef",
		"--sort=pid":       "the forms -ef",
		"-e; rm -rf /":     "the forms -ef",
		"--no-headers -ef": "the forms -ef",
	} {
		if _, err := parsePS(args); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", args, err, says)
		}
	}
	for d, want := range map[time.Duration]string{0: "00:00", 61 * time.Second: "01:01", time.Hour: "01:00:00", 49*time.Hour + time.Second: "2-01:00:01"} {
		if got := psElapsed(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
