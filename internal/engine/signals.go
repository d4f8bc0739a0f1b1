package engine

import (
	"strconv"
	"strings"
)

// signals are Linux's on amd64 and arm64, without SIG.
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7, "FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12,
	"PIPE": 13, "ALRM": 14, "TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20, "TTIN": 21, "TTOU": 22, "URG": 23,
	"XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27, "WINCH": 28, "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
}

// parseSignal reads "TERM", "SIGTERM", "15", "RTMIN+3", "RTMAX-1".
func parseSignal(s string) (int, error) {
	bad := invalid("invalid signal: %s", s)
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, bad
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	// glibc and musl keep 32 and 33 for themselves: RTMIN is 34 to every program.
	const rtmin, rtmax = 34, 64
	var base, sign int
	switch {
	case strings.HasPrefix(name, "RTMIN"):
		base, sign = rtmin, 1
	case strings.HasPrefix(name, "RTMAX"):
		base, sign = rtmax, -1
	default:
		return 0, bad
	}
	rest := name[len("RTMIN"):]
	if rest == "" {
		return base, nil
	}
	n, err := strconv.Atoi(rest[1:])
	if err != nil || n < 0 || (rest[0] == '+') != (sign == 1) || (rest[0] != '+' && rest[0] != '-') || base+sign*n < rtmin || base+sign*n > rtmax {
		return 0, bad
	}
	return base + sign*n, nil
}
