package compare

import (
	"fmt"
	"math"
	"strings"
)

// same is how far two medians may lie apart and still be called the same.
const same = 0.05

// sentence says in words what the wall costs on this workload.
func (r *Report) sentence() string {
	c, vm := r.contender(Container), r.contender(VMCold)
	if c == nil || vm == nil {
		return ""
	}
	var parts []string
	add := func(s string) {
		if s != "" {
			parts = append(parts, s)
		}
	}
	from, to, ok := starts(c, vm)
	if ok {
		add(startWords(from, to))
	}
	if a, b, ok := both(c, vm, "wallSeconds"); ok {
		add(times(a, b, "runs as long", "runs %s as long"))
	}
	if a, b, ok := both(c, vm, "cpuSeconds"); ok {
		add(times(a, b, "takes as much CPU", "takes %s the CPU"))
	}
	if a, b, ok := both(c, vm, "memoryPeakBytes"); ok {
		add(memoryWords(a, b))
	}
	if len(parts) == 0 {
		return ""
	}
	out := "Behind the VM wall this " + list(parts)
	if warm := r.contender(VMWarm); warm != nil {
		if from, to, ok := starts(c, warm); ok {
			out += "; in a VM that is up already it " + startWords(from, to)
		}
	}
	out += "."
	if r.VM.Emulated {
		out += " The VM was emulated: its times and its CPU are no measure of VMs on hardware."
	}
	if failed(c) || failed(vm) {
		out += " The command failed, so this may be the cost of failing."
	}
	return out
}

// starts are the medians of two contenders until something is seen of the
// command: its first output, or its start where it prints nothing.
func starts(a, b *Contender) (float64, float64, bool) {
	if from, to, ok := both(a, b, "firstOutputSeconds"); ok {
		return from, to, true
	}
	return both(a, b, "startSeconds")
}

func both(a, b *Contender, figure string) (float64, float64, bool) {
	x, ok1 := a.Summary[figure]
	y, ok2 := b.Summary[figure]
	return x.Median, y.Median, ok1 && ok2
}

// startWords compares two times until the start.
func startWords(from, to float64) string {
	switch ratio := to / from; {
	case equal(from, to):
		return fmt.Sprintf("starts as fast (%s)", inSeconds.text(to))
	case ratio > 1:
		return fmt.Sprintf("starts %sx slower (%s instead of %s)", factor(ratio), inSeconds.text(to), inSeconds.text(from))
	default:
		return fmt.Sprintf("starts %sx faster (%s instead of %s)", factor(1/ratio), inSeconds.text(to), inSeconds.text(from))
	}
}

// times is unchanged, or changed with a factor such as "1.4x".
func times(from, to float64, unchanged, changed string) string {
	if equal(from, to) {
		return unchanged
	}
	if from <= 0 {
		return ""
	}
	return fmt.Sprintf(changed, factor(to/from)+"x")
}

func memoryWords(from, to float64) string {
	switch {
	case equal(from, to):
		return "takes as much memory"
	case to > from:
		return fmt.Sprintf("takes %s more memory", inBytes.text(to-from))
	default:
		return fmt.Sprintf("takes %s less memory", inBytes.text(from-to))
	}
}

func equal(a, b float64) bool { return math.Abs(a-b) <= same*max(math.Abs(a), math.Abs(b)) }

// factor has two digits, as many as medians of a few runs are worth.
func factor(f float64) string {
	switch {
	case f >= 9.95:
		return fmt.Sprintf("%.0f", f)
	case f < 0.0995:
		return fmt.Sprintf("%.3f", f)
	case f < 0.995:
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.1f", f)
}

// list joins with commas and a last "and". Neighbours that share a verb say it once.
func list(parts []string) string {
	out := append([]string(nil), parts...)
	for i := len(out) - 1; i > 0; i-- {
		verb, rest, _ := strings.Cut(out[i], " ")
		if before, _, _ := strings.Cut(out[i-1], " "); before == verb {
			out[i] = rest
		}
	}
	if len(out) == 1 {
		return out[0]
	}
	return strings.Join(out[:len(out)-1], ", ") + " and " + out[len(out)-1]
}

// failed says whether a contender's command ended with a code.
func failed(c *Contender) bool {
	for _, r := range c.Runs {
		if r.ExitCode != 0 {
			return true
		}
	}
	return false
}

func lastLine(b []byte) string {
	s := strings.TrimRight(string(b), "\r\n")
	s = s[strings.LastIndexByte(s, '\n')+1:]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, s)
}
