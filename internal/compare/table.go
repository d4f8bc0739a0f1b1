package compare

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// width is how many columns a terminal is taken to have.
const width = 100

// unit is how a figure is written.
type unit int

const (
	plain unit = iota
	inSeconds
	inBytes
)

// scale picks a unit in which v reads well: its name and how much it is.
func (u unit) scale(v float64) (string, float64) {
	v = math.Abs(v)
	switch u {
	case inSeconds:
		if v < 0.9995 {
			return "ms", 1e-3
		}
		return "s", 1
	case inBytes:
		for i, name := range []string{"GiB", "MiB", "KiB"} {
			if size := math.Pow(1024, float64(3-i)); v >= 0.9995*size {
				return name, size
			}
		}
		return "B", 1
	}
	return "", 1
}

// digits writes v with three digits that count, whole bytes and counts apart.
func digits(v float64, whole bool) string {
	switch a := math.Abs(v); {
	case whole || a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// text is one value with its unit.
func (u unit) text(v float64) string {
	name, size := u.scale(v)
	return strings.TrimRight(digits(v/size, size == 1 && u != inSeconds)+" "+name, " ")
}

// spread is a median and, where there is one, the range in the same unit.
func (u unit) spread(s Spread) (median, bounds string) {
	median = u.text(s.Median)
	if s.Runs < 2 || s.Min == s.Max {
		return median, ""
	}
	_, size := u.scale(s.Median)
	whole := size == 1 && u != inSeconds
	return median, digits(s.Min/size, whole) + ".." + digits(s.Max/size, whole)
}

// title is a contender's name in the table.
func title(name string) string {
	switch name {
	case VMCold:
		return "VM, cold"
	case VMWarm:
		return "VM, warm"
	}
	return name
}

// Table writes the report for people: what it ran on, one table, what the
// figures mean, one sentence.
func (r *Report) Table(w io.Writer) error {
	var b strings.Builder
	wrap(&b, r.headline())
	b.WriteString(r.workload() + "\n")
	b.WriteByte('\n')
	ranges := r.rows(&b)
	b.WriteByte('\n')
	for _, n := range r.notes(ranges) {
		wrap(&b, n)
	}
	if r.Sentence != "" {
		b.WriteByte('\n')
		wrap(&b, r.Sentence)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// headline says first what everything else depends on.
func (r *Report) headline() string {
	vm := "The VM ran on hardware: QEMU " + r.VM.QEMU + ", kvm."
	if r.VM.Emulated {
		vm = "The VM was emulated: QEMU " + r.VM.QEMU + ", tcg, no KVM."
	}
	return fmt.Sprintf("%s Host: %s, Linux %s, %s.", vm, count(r.Host.CPUs, "CPU"), r.Host.Kernel, r.Host.Architecture)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (r *Report) workload() string {
	cpus := "all CPUs"
	if r.Limits.CPUs > 0 {
		cpus = strconv.FormatFloat(r.Limits.CPUs, 'f', -1, 64) + " CPUs"
		if r.Limits.CPUs == 1 {
			cpus = "1 CPU"
		}
	}
	each := fmt.Sprintf("%s each with %s of memory and %s: ", count(r.Runs, "run"), inBytes.text(float64(r.Limits.MemoryBytes)), cpus)
	return shorten(each+r.Image+" "+quote(r.Command), width)
}

// quote writes a command as a shell would take it.
func quote(argv []string) string {
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = a
		if a == "" || strings.ContainsFunc(a, func(c rune) bool { return !strings.ContainsRune("%+,-./:=@_", c) && !isWord(c) }) {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.Join(out, " "))
}

func isWord(c rune) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

func shorten(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-3]) + "..."
}

// cell is what one line says of one contender: a figure with its range, or a text.
type cell struct{ value, bounds, text string }

// line is one line of the table.
type line struct {
	title string
	cells []cell
}

// rows writes the table. Where it is wider than a terminal, ranges are left
// out, and it says so.
func (r *Report) rows(b *strings.Builder) (ranges bool) {
	lines := r.lines()
	text := layout(lines, true)
	ranges = !slices.ContainsFunc(text, func(l string) bool { return utf8.RuneCountInString(l) > width })
	if !ranges {
		text = layout(lines, false)
	}
	for _, l := range text {
		b.WriteString(l + "\n")
	}
	return ranges
}

// layout aligns values to the right and ranges and texts to the left, each
// contender in a column of its own.
func layout(lines []line, ranges bool) []string {
	out := make([]string, len(lines))
	add := func(column []string) {
		wide := 0
		for _, s := range column {
			wide = max(wide, utf8.RuneCountInString(s))
		}
		for i, s := range column {
			out[i] += s + strings.Repeat(" ", wide-utf8.RuneCountInString(s)+3)
		}
	}
	column := make([]string, len(lines))
	for i, l := range lines {
		column[i] = l.title
	}
	add(column)
	for at := range lines[0].cells {
		wide := 0
		for _, l := range lines {
			wide = max(wide, utf8.RuneCountInString(l.cells[at].value))
		}
		for i, l := range lines {
			c := l.cells[at]
			column[i] = c.text
			if c.value != "" {
				column[i] = strings.Repeat(" ", wide-utf8.RuneCountInString(c.value)) + c.value
			}
			if ranges && c.bounds != "" {
				column[i] += "  " + c.bounds
			}
		}
		add(column)
	}
	for i := range out {
		out[i] = strings.TrimRight(out[i], " ")
	}
	return out
}

// lines are the table's contents.
func (r *Report) lines() []line {
	make := func(title string, each func(*Contender) cell) line {
		l := line{title: title}
		for i := range r.Contenders {
			l.cells = append(l.cells, each(&r.Contenders[i]))
		}
		return l
	}
	out := []line{make("", func(c *Contender) cell { return cell{text: title(c.Name)} })}
	for _, f := range figures {
		if f.title == "" || f.name == "startSeconds" && r.prints() {
			continue
		}
		out = append(out, make(f.title, func(c *Contender) cell {
			s, ok := c.Summary[f.name]
			if !ok {
				return cell{value: "-"}
			}
			value, bounds := f.unit.spread(s)
			return cell{value: value, bounds: bounds}
		}))
	}
	out = append(out, make("kernel inside", func(c *Contender) cell { return cell{text: c.kernel()} }))
	for i := range r.Contenders {
		if failed(&r.Contenders[i]) {
			return append(out, make("exit code", func(c *Contender) cell { return cell{text: c.codes()} }))
		}
	}
	return out
}

// prints says whether every contender that ran has first output, so that the
// start need not be shown.
func (r *Report) prints() bool {
	for i := range r.Contenders {
		c := &r.Contenders[i]
		if _, ok := c.Summary["firstOutputSeconds"]; !ok && len(c.Runs) > 0 {
			return false
		}
	}
	return true
}

// kernel is the release inside, of the first run: it does not change.
func (c *Contender) kernel() string {
	if len(c.Runs) == 0 {
		return "-"
	}
	return c.Runs[0].Kernel
}

// codes are the different exit codes, in order of appearance.
func (c *Contender) codes() string {
	var out []string
	seen := map[int]bool{}
	for _, r := range c.Runs {
		if !seen[r.ExitCode] {
			seen[r.ExitCode] = true
			out = append(out, strconv.Itoa(r.ExitCode))
		}
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ", ")
}

// notes say what the figures mean, and what went wrong.
func (r *Report) notes(ranges bool) []string {
	shown := "Medians (ranges: --format json)."
	if ranges {
		shown = "Medians and ranges."
	}
	out := []string{
		shown + " Cold: a new VM boots for each run. Warm: the command is executed in a VM that is up. First output counts from the start request. CPU and memory are those of the control group (of a VM the VMM with its guest; with the page cache that it was first to fill) and of its shim.",
	}
	for _, c := range r.Contenders {
		if c.Skipped != "" {
			out = append(out, title(c.Name)+" was not measured: "+c.Skipped+".")
		}
		bad := 0
		var last Run
		for _, run := range c.Runs {
			if run.ExitCode != 0 {
				bad++
				last = run
			}
		}
		if bad == 0 {
			continue
		}
		text := fmt.Sprintf("%s: the command ended with code %d in %d of %s", title(c.Name), last.ExitCode, bad, count(len(c.Runs), "run"))
		if last.OOMKilled {
			text += ", killed because it needed more memory than the limit"
		}
		if last.LastWords != "" {
			text += "; it said last: " + last.LastWords
		}
		out = append(out, text)
	}
	return out
}

// wrap writes a text in lines of at most width columns.
func wrap(b *strings.Builder, text string) {
	at := 0
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteByte('\n')
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	b.WriteByte('\n')
}
