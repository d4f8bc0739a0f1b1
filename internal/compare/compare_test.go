package compare

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"proa/internal/client"
)

var update = flag.Bool("update", false, "write the golden files anew")

func f(v float64) *float64 { return &v }

// fixed is a report of runs that never were.
func fixed(emulated bool) *Report {
	const mib = 1 << 20
	run := func(round int, kernel string, first, wall, cpu, memory, disk, written float64, processes float64) Run {
		return Run{
			Round: round, Position: 1 + round%2, Kernel: kernel, FirstOutput: f(first), Start: f(first * 0.9), Wall: f(wall), CPU: f(cpu),
			ShimCPU: f(0.004), Memory: f(memory), ShimMemory: f(4.5 * mib), Disk: f(disk), Written: f(written), Processes: f(processes),
		}
	}
	const host, guest = "6.18.44", "6.1.0-56-cloud-amd64"
	r := &Report{
		Schema: Schema, Image: "docker.io/library/web:latest", Command: []string{"sh", "-c", "echo hi; make -j2"}, Runs: 3,
		Limits: Limits{MemoryBytes: 512 * mib, CPUs: 1.5}, Host: Host{CPUs: 2, MemoryBytes: 24 << 30, Kernel: host, Architecture: "x86_64"},
		VM: VM{Emulated: emulated, QEMU: "7.2.22"},
		Contenders: []Contender{
			{Name: Container, Meaning: "a new container for each run", Runs: []Run{
				run(1, host, 0.0221, 1.204, 1.31, 30.5*mib, 20*mib, 21*mib, 4), run(2, host, 0.0168, 1.190, 1.29, 21*mib, 20*mib, 20.5*mib, 4),
				run(3, host, 0.0172, 1.198, 1.30, 21.2*mib, 20*mib, 20.5*mib, 4),
			}},
			{Name: VMCold, Meaning: "a new VM boots for each run", Runs: []Run{
				run(1, guest, 0.42, 1.71, 2.10, 241*mib, 24.3*mib, 26*mib, 2), run(2, guest, 0.41, 1.66, 2.05, 240*mib, 24.3*mib, 26*mib, 2),
				run(3, guest, 0.44, 1.69, 2.08, 239*mib, 24.3*mib, 26*mib, 2),
			}},
			{Name: VMWarm, Meaning: "executed in a VM that is up", Runs: []Run{
				run(1, guest, 0.0171, 1.51, 1.62, 241*mib, 0, 0, 2), run(2, guest, 0.0170, 1.50, 1.62, 241*mib, 4096, 4096, 2),
				run(3, guest, 0.0172, 1.52, 1.62, 242*mib, 0, 0, 2),
			}},
		},
	}
	return r
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-update writes it anew):\n%s\nwant\n%s", path, got, want)
	}
}

func TestTable(t *testing.T) {
	for name, edit := range map[string]func(*Report){
		"hardware": func(*Report) {},
		"emulated": func(r *Report) { r.VM.Emulated = true },
		// Nothing is printed, one CPU for all, a command too long for a line.
		"silent": func(r *Report) {
			r.Command = []string{"sh", "-c", strings.Repeat("true 'it is';  \n", 20)}
			r.Host.CPUs, r.Limits.CPUs = 1, 0
			for i := range r.Contenders {
				for j := range r.Contenders[i].Runs {
					r.Contenders[i].Runs[j].FirstOutput = nil
				}
			}
		},
		// It fails, behind the VM wall for want of memory; no VM can stay up.
		"failed": func(r *Report) {
			for i := range r.Contenders[0].Runs {
				r.Contenders[0].Runs[i].ExitCode = 3
			}
			r.Contenders[0].Runs[2].LastWords = "make: *** No rule to make target 'x'."
			r.Contenders[1].Runs[1].ExitCode, r.Contenders[1].Runs[1].OOMKilled = 137, true
			r.Contenders[2].Runs, r.Contenders[2].Skipped = nil, "the image has no program that waits"
		},
		// A third engine, of which less is known.
		"against": func(r *Report) {
			r.Contenders = append(r.Contenders, Contender{Name: "docker 28.2.2", Engine: "unix:///run/docker.sock", Runs: []Run{
				{Round: 1, Position: 3, Kernel: "6.18.44", FirstOutput: f(0.35), Start: f(0.34), Wall: f(1.2)},
				{Round: 2, Position: 1, Kernel: "6.18.44", FirstOutput: f(0.37), Start: f(0.36), Wall: f(1.21), CPU: f(0.9)},
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := fixed(false)
			edit(r)
			r.finish()
			var b bytes.Buffer
			if err := r.Table(&b); err != nil {
				t.Fatal(err)
			}
			for _, line := range strings.Split(b.String(), "\n") {
				if n := utf8.RuneCountInString(line); n > width {
					t.Errorf("a line of %d columns: %s", n, line)
				}
			}
			golden(t, name+".txt", b.Bytes())
		})
	}
}

func TestJSON(t *testing.T) {
	r := fixed(true)
	r.Contenders[2].Runs[0].FirstOutput = nil
	r.finish()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", append(b, '\n'))
	// Whoever reads it gets what was written.
	var back Report
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.MarshalIndent(back, "", "  ")
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("a reader's copy differs: %v\n%s", err, again)
	}
}

func TestSpread(t *testing.T) {
	if _, ok := spread(nil); ok {
		t.Error("a spread of nothing")
	}
	for _, c := range []struct {
		in   []float64
		want Spread
	}{
		{[]float64{7}, Spread{7, 7, 7, 1}},
		{[]float64{9, 1}, Spread{5, 1, 9, 2}},
		{[]float64{3, 100, 1}, Spread{3, 1, 100, 3}},
		{[]float64{4, 1, 3, 2}, Spread{2.5, 1, 4, 4}},
	} {
		if got, ok := spread(c.in); !ok || got != c.want {
			t.Errorf("%v: %+v, want %+v", c.in, got, c.want)
		}
	}
}

func TestSentence(t *testing.T) {
	type medians struct{ first, start, wall, cpu, memory float64 }
	const mib = 1 << 20
	base := medians{0.1, 0.09, 1, 1, 20 * mib}
	for _, c := range []struct {
		name     string
		vm, warm medians
		emulated bool
		code     int
		want     string
	}{
		{"equal", medians{0.104, 0.09, 1.04, 0.97, 20.5 * mib}, medians{}, false, 0, "Behind the VM wall this starts as fast (104 ms), runs as long, takes as much CPU and as much memory."},
		{"slower", medians{1.31, 1, 1.4, 1.4, 250 * mib}, medians{0.13, 0.1, 1, 1, 250 * mib}, false, 0, "Behind the VM wall this starts 13x slower (1.31 s instead of 100 ms), runs 1.4x as long, takes 1.4x the CPU and 230 MiB more memory; in a VM that is up already it starts 1.3x slower (130 ms instead of 100 ms)."},
		{"faster", medians{0.05, 1, 0.8, 0.05, 10 * mib}, medians{0.1, 0.1, 1, 1, 250 * mib}, false, 0, "Behind the VM wall this starts 2.0x faster (50.0 ms instead of 100 ms), runs 0.80x as long, takes 0.050x the CPU and 10.0 MiB less memory; in a VM that is up already it starts as fast (100 ms)."},
		{"emulated", medians{12, 1, 10, 12, 250 * mib}, medians{}, true, 0, "Behind the VM wall this starts 120x slower (12.0 s instead of 100 ms), runs 10x as long, takes 12x the CPU and 230 MiB more memory. The VM was emulated: its times and its CPU are no measure of VMs on hardware."},
		{"prints nothing", medians{0, 0.9, 1, 1, 20 * mib}, medians{}, false, 0, "Behind the VM wall this starts 10x slower (900 ms instead of 90.0 ms), runs as long, takes as much CPU and as much memory."},
		{"no peak of memory", medians{0.1, 0.1, 2, 1, 0}, medians{}, false, 0, "Behind the VM wall this starts as fast (100 ms), runs 2.0x as long and takes as much CPU."},
		{"failed", medians{0.1, 0.1, 1, 1, 0}, medians{}, false, 2, "Behind the VM wall this starts as fast (100 ms), runs as long and takes as much CPU. The command failed, so this may be the cost of failing."},
	} {
		t.Run(c.name, func(t *testing.T) {
			make := func(name string, m medians) Contender {
				if m == (medians{}) {
					return Contender{Name: name}
				}
				run := Run{ExitCode: c.code}
				for _, v := range []struct {
					to **float64
					v  float64
				}{{&run.FirstOutput, m.first}, {&run.Start, m.start}, {&run.Wall, m.wall}, {&run.CPU, m.cpu}, {&run.Memory, m.memory}} {
					if v.v != 0 {
						*v.to = &v.v
					}
				}
				return Contender{Name: name, Runs: []Run{run}}
			}
			r := &Report{VM: VM{Emulated: c.emulated}, Contenders: []Contender{make(Container, base), make(VMCold, c.vm), make(VMWarm, c.warm)}}
			r.finish()
			if r.Sentence != c.want {
				t.Errorf("got  %s\nwant %s", r.Sentence, c.want)
			}
		})
	}
	r := &Report{}
	if r.finish(); r.Sentence != "" {
		t.Errorf("of nothing: %q", r.Sentence)
	}
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		u    unit
		v    float64
		want string
	}{
		{inSeconds, 0, "0.00 ms"},
		{inSeconds, 0.0004567, "0.46 ms"},
		{inSeconds, 0.0123456, "12.3 ms"},
		{inSeconds, 0.99949, "999 ms"},
		{inSeconds, 0.9996, "1.00 s"},
		{inSeconds, 12.34, "12.3 s"},
		{inSeconds, 1234, "1234 s"},
		{inBytes, 0, "0 B"},
		{inBytes, -4096, "-4.00 KiB"},
		{inBytes, 999, "999 B"},
		{inBytes, 20 << 20, "20.0 MiB"},
		{inBytes, 1 << 30, "1.00 GiB"},
		{plain, 4, "4"},
	} {
		if got := c.u.text(c.v); got != c.want {
			t.Errorf("%v: %q, want %q", c.v, got, c.want)
		}
	}
	if m, b := inSeconds.spread(Spread{0.0999, 0.0981, 1.2, 3}); m != "99.9 ms" || b != "98.1..1200" {
		t.Errorf("%q %q", m, b)
	}
	if _, b := inBytes.spread(Spread{5, 5, 5, 3}); b != "" {
		t.Errorf("a range of one value: %q", b)
	}
}

func TestDoctorsWords(t *testing.T) {
	var v VM
	v.fill([]client.Check{
		{Name: "QEMU", State: "yes", Detail: "/usr/bin/qemu-system-x86_64 7.2.22"},
		{Name: "KVM", State: "no", Detail: "/dev/kvm is not there; VMs are emulated, which is slow"},
	})
	if v.QEMU != "7.2.22" || v.Why != "/dev/kvm is not there" {
		t.Errorf("%+v", v)
	}
}

// What was printed is kept by its end, and only its first byte has a time.
func TestOutput(t *testing.T) {
	o := &output{}
	for range 100 {
		if n, err := o.Write([]byte(strings.Repeat("x", 99) + "\n")); n != 100 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := o.Write([]byte("at\tlast\x1b[0m\r\n")); err != nil {
		t.Fatal(err)
	}
	if got := o.last(); got != "at last [0m" {
		t.Errorf("%q", got)
	}
	if len(o.tail) > keep {
		t.Errorf("%d bytes are kept", len(o.tail))
	}
	if o.since(o.first) == nil || (&output{}).since(o.first) != nil {
		t.Error("first output")
	}
}
