package compare

import (
	"slices"
	"strings"
	"time"

	"proa/internal/client"
)

// Schema is the version of a Report as JSON. Fields may be added under the same
// number; none changes its meaning.
const Schema = 1

// Report is what a comparison found. As JSON it is what --format json prints;
// docs/compare.md describes it.
type Report struct {
	Schema     int         `json:"schema"`
	Image      string      `json:"image"`
	Command    []string    `json:"command"` // the image's entrypoint included
	Runs       int         `json:"runs"`
	Limits     Limits      `json:"limits"`
	Host       Host        `json:"host"`
	VM         VM          `json:"vm"`
	Contenders []Contender `json:"contenders"` // container, vm-cold, vm-warm, then other engines
	Sentence   string      `json:"sentence"`
}

// Limits are those that every contender had.
type Limits struct {
	MemoryBytes int64   `json:"memoryBytes"`
	CPUs        float64 `json:"cpus"` // 0: all of the host
}

// Host is where the engine runs.
type Host struct {
	CPUs         int    `json:"cpus"`
	MemoryBytes  int64  `json:"memoryBytes"`
	Kernel       string `json:"kernel"`
	Architecture string `json:"architecture"`
}

// VM says what the VMs ran on.
type VM struct {
	Emulated    bool   `json:"emulated"`    // as the runs were
	Accelerator string `json:"accelerator"` // kvm or tcg
	QEMU        string `json:"qemu"`        // version
	Why         string `json:"why"`         // why there is no KVM
}

// fill takes from doctor's checks what they say of VMs.
func (v *VM) fill(checks []client.Check) {
	for _, c := range checks {
		switch c.Name {
		case "QEMU":
			v.QEMU = c.Detail[strings.LastIndexByte(c.Detail, ' ')+1:]
		case "KVM":
			if c.State != "yes" {
				v.Why, _, _ = strings.Cut(c.Detail, "; ")
			}
		}
	}
}

// Contender is one way to run the command, with all its runs.
type Contender struct {
	Name    string `json:"name"`
	Engine  string `json:"engine,omitempty"` // address of another engine
	Meaning string `json:"meaning"`
	Skipped string `json:"skipped,omitempty"` // why there are no runs
	Runs    []Run  `json:"runs"`
	// Summary holds a spread for each figure that was measured in at least one
	// run, by the figure's name in Run.
	Summary map[string]Spread `json:"summary"`
}

// Run is one run and what it cost. A figure that was not measured is null.
type Run struct {
	Round     int    `json:"round"`
	Position  int    `json:"position"` // 1: it was first in its round
	ExitCode  int    `json:"exitCode"`
	OOMKilled bool   `json:"oomKilled,omitempty"`
	LastWords string `json:"lastWords,omitempty"` // last line of output of a command that failed
	Kernel    string `json:"kernel"`              // release as seen inside

	FirstOutput  *float64 `json:"firstOutputSeconds"` // from the start request to the command's first byte; null: it printed nothing
	Start        *float64 `json:"startSeconds"`       // from the start request to the answer that the command runs
	Wall         *float64 `json:"wallSeconds"`        // from the command's execution to its end
	CPU          *float64 `json:"cpuSeconds"`         // of the control group and the shim
	ShimCPU      *float64 `json:"cpuShimSeconds"`     // of it the shim
	Memory       *float64 `json:"memoryPeakBytes"`    // of the control group and the shim, each at its peak
	ShimMemory   *float64 `json:"memoryShimBytes"`    // of it the shim
	Disk         *float64 `json:"diskBytes"`          // blocks of the writable layer or VM disk and of the log
	Written      *float64 `json:"writtenBytes"`       // sent towards storage by its processes and its shim
	BlockWritten *float64 `json:"blockWrittenBytes"`  // as the block controller counts them, where it counts
	Processes    *float64 `json:"processes"`          // of the host, most seen at one time, the shim included

	emulated bool
}

// Spread is what several runs came to.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Runs   int     `json:"runs"` // that have the figure
}

// spread sorts out values; false if there are none.
func spread(values []float64) (Spread, bool) {
	n := len(values)
	if n == 0 {
		return Spread{}, false
	}
	v := slices.Sorted(slices.Values(values))
	return Spread{Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1], Runs: n}, true
}

// figure is one thing that is measured.
type figure struct {
	name  string // in JSON
	title string // in the table; "" leaves it out
	unit  unit
	of    func(*Run) *float64
}

// figures are all of them, in the table's order.
var figures = []figure{
	{"firstOutputSeconds", "first output", inSeconds, func(r *Run) *float64 { return r.FirstOutput }},
	{"startSeconds", "start", inSeconds, func(r *Run) *float64 { return r.Start }},
	{"wallSeconds", "command ran", inSeconds, func(r *Run) *float64 { return r.Wall }},
	{"cpuSeconds", "host CPU", inSeconds, func(r *Run) *float64 { return r.CPU }},
	{"cpuShimSeconds", "", inSeconds, func(r *Run) *float64 { return r.ShimCPU }},
	{"memoryPeakBytes", "peak memory", inBytes, func(r *Run) *float64 { return r.Memory }},
	{"memoryShimBytes", "", inBytes, func(r *Run) *float64 { return r.ShimMemory }},
	{"diskBytes", "disk added", inBytes, func(r *Run) *float64 { return r.Disk }},
	{"writtenBytes", "bytes written", inBytes, func(r *Run) *float64 { return r.Written }},
	{"blockWrittenBytes", "", inBytes, func(r *Run) *float64 { return r.BlockWritten }},
	{"processes", "host processes", plain, func(r *Run) *float64 { return r.Processes }},
}

// fill takes a reading, of a VM that is up less an earlier one. Peaks are since
// the VM's start.
func (r *Run) fill(u, before *client.Usage) {
	var b client.Usage
	if before != nil {
		b = *before
	}
	r.Kernel, r.emulated = u.Kernel, u.Emulated
	r.CPU = seconds(time.Duration(u.CPU.Total + u.CPU.Shim - b.CPU.Total - b.CPU.Shim))
	r.ShimCPU = seconds(time.Duration(u.CPU.Shim - b.CPU.Shim))
	if u.Memory.Peak > 0 {
		r.Memory = number(u.Memory.Peak + u.Memory.ShimPeak)
	}
	r.ShimMemory = number(u.Memory.ShimPeak)
	r.Disk = number(u.Disk.Used - b.Disk.Used)
	r.Written = number(u.IO.Stored - b.IO.Stored)
	if n := u.IO.BlockWrites; n != nil {
		w := *n
		if m := b.IO.BlockWrites; m != nil {
			w -= *m
		}
		r.BlockWritten = number(w)
	}
}

// finish works out what follows from the runs.
func (r *Report) finish() {
	for i := range r.Contenders {
		c := &r.Contenders[i]
		if c.Runs == nil {
			c.Runs = []Run{}
		}
		c.Summary = map[string]Spread{}
		for _, f := range figures {
			var values []float64
			for j := range c.Runs {
				if v := f.of(&c.Runs[j]); v != nil {
					values = append(values, *v)
				}
			}
			if s, ok := spread(values); ok {
				c.Summary[f.name] = s
			}
		}
	}
	r.VM.Accelerator = "kvm"
	if r.VM.Emulated {
		r.VM.Accelerator = "tcg"
	}
	r.Sentence = r.sentence()
}

// contender finds one by its name; nil if it is not there or did not run.
func (r *Report) contender(name string) *Contender {
	for i := range r.Contenders {
		if c := &r.Contenders[i]; c.Name == name && len(c.Runs) > 0 {
			return c
		}
	}
	return nil
}

// meaning says what one run of a contender is.
func meaning(l *lane) string {
	switch l.name {
	case Container:
		return "a new container for each run"
	case VMCold:
		return "a new VM boots for each run"
	case VMWarm:
		return "the command is executed in one VM that is up; its peak memory is the VM's since its boot"
	}
	if l.proa {
		return "a new container of another engine for each run"
	}
	return "a new container of another engine for each run; CPU, memory and written bytes are its last stats before the end, which may lack some"
}

func seconds(d time.Duration) *float64 { s := d.Seconds(); return &s }

func number[T int | int64 | uint64](n T) *float64 { f := float64(n); return &f }
