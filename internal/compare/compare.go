// Package compare races one image behind both walls, or another engine that
// speaks Docker's API, and reports what each cost. It owns the order of the
// runs, the figures, and the words and the table that tell them. It talks to
// the API and to nothing else: every figure comes from the engine that ran the
// command, or from this process's own clock.
//
//	round 1     container    vm (cold)    other engine
//	round 2     other engine vm (cold)    container          each run: create, attach, start, end,
//	...                                                      usage, remove; nothing runs beside it
//	then        one VM boots, the command is executed in it once a round (warm)
package compare

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"proa/internal/client"
)

// Label is on every container that a comparison makes; its value is the same
// for all of one comparison.
const Label = "proa.compare"

// The contenders' names. Another engine is named by its address.
const (
	Container = "container"
	VMCold    = "vm-cold"
	VMWarm    = "vm-warm"
)

// cleanUpLimit is how long the removal of a container may take, one that is
// just being started included: an emulated VM boots to its end first.
const cleanUpLimit = 2 * time.Minute

// Options say what is compared.
type Options struct {
	Image   string
	Command []string // empty: the image's own
	Runs    int      // of each contender
	Memory  int64    // bytes, of each
	CPUs    float64  // of each; 0: all of the host
	Against []*client.Client
	// Progress is told before each run: how many are done, of how many, and
	// what comes. nil: nobody.
	Progress func(done, total int, next string)
}

// settle stands before each run, so that nobody pays for what the run before
// left to be done: writing back, dying namespaces, a guest's own housekeeping.
const settle = 250 * time.Millisecond

// race is one comparison under way.
type race struct {
	Options
	engine *client.Client
	mark   string
	count  int // containers made so far
	done   int
	total  int
	argv   []string // what the image and the command come to
}

// lane is where one contender runs.
type lane struct {
	name      string
	client    *client.Client
	isolation container.Isolation // "": whatever the engine does
	proa      bool                // it tells usage
	kernel    string              // of its host; what is not Proa cannot say what is seen inside
	entry     *Contender
}

// Race runs the comparison. Containers are removed whatever happens, also when
// ctx ends. An image that the engine lacks, and a command that cannot be
// started, are the engine's *client.APIError.
func Race(ctx context.Context, engine *client.Client, o Options) (*Report, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	r := &race{Options: o, engine: engine, mark: hex.EncodeToString(b[:])}
	rep := &Report{Schema: Schema, Image: o.Image, Runs: o.Runs, Limits: Limits{MemoryBytes: o.Memory, CPUs: o.CPUs}}
	if err := r.surroundings(ctx, rep); err != nil {
		return nil, err
	}
	rep.Contenders = make([]Contender, 2, 3+len(o.Against))
	lanes := []*lane{
		{name: Container, client: engine, isolation: "container", proa: true},
		{name: VMCold, client: engine, isolation: "vm", proa: true},
	}
	for _, c := range o.Against {
		l, err := other(ctx, c)
		if err != nil {
			return nil, err
		}
		lanes = append(lanes, l)
		rep.Contenders = append(rep.Contenders, Contender{Engine: c.Host()})
	}
	for i, l := range lanes {
		l.entry = &rep.Contenders[i]
		l.entry.Name, l.entry.Meaning = l.name, meaning(l)
	}
	r.total = o.Runs * (len(lanes) + 1)
	for round := range o.Runs {
		order := slices.Clone(lanes)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for at, l := range order {
			r.progress(fmt.Sprintf("run %d of %d: %s", round+1, o.Runs, l.title()))
			run, err := r.cold(ctx, l)
			if err != nil {
				return nil, r.failed(ctx, err, "run %d of %d, %s", round+1, o.Runs, l.title())
			}
			run.Round, run.Position = round+1, at+1
			l.entry.Runs = append(l.entry.Runs, run)
			if l.name == VMCold {
				rep.VM.Emulated = run.emulated
			}
		}
	}
	warm, err := r.warm(ctx)
	if err != nil {
		return nil, r.failed(ctx, err, "the runs in a VM that is up")
	}
	rep.Contenders = slices.Insert(rep.Contenders, 2, warm)
	rep.Command = r.argv
	rep.finish()
	return rep, nil
}

// failed names the run that an error belongs to, and prefers the reason why it
// was given up.
func (r *race) failed(ctx context.Context, err error, format string, args ...any) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("cannot compare: "+format+": %w", append(args, err)...)
}

func (r *race) progress(next string) {
	r.say(next)
	r.done++
	time.Sleep(settle)
}

func (l *lane) title() string { return title(l.name) }

// surroundings asks the engine where it runs.
func (r *race) surroundings(ctx context.Context, rep *Report) error {
	info, err := r.engine.Info(ctx)
	if err != nil {
		return err
	}
	rep.Host = Host{CPUs: info.NCPU, MemoryBytes: info.MemTotal, Kernel: info.KernelVersion, Architecture: info.Architecture}
	checks, err := r.engine.Doctor(ctx)
	if err != nil {
		return fmt.Errorf("cannot compare: the engine at %s is not Proa, or too old to run VMs: %w", r.engine.Host(), err)
	}
	rep.VM.fill(checks)
	return nil
}

// other makes a lane of another engine.
func other(ctx context.Context, c *client.Client) (*lane, error) {
	v, err := c.Version(ctx)
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	// "Docker Engine - Community", "Proa"; Debian's dockerd has no platform and
	// calls its first component "Engine", podman its own "Podman Engine".
	name := v.Platform.Name
	if name == "" && len(v.Components) > 0 {
		name = strings.TrimSpace(strings.TrimSuffix(v.Components[0].Name, "Engine"))
	}
	if name == "" {
		name = "docker"
	}
	name, _, _ = strings.Cut(strings.ToLower(name), " ")
	return &lane{name: shorten(name+" "+v.Version, 22), client: c, proa: v.Platform.Name == "Proa", kernel: info.KernelVersion}, nil
}

// config is what a contender's container is made of.
func (r *race) config(l *lane) (*container.Config, *container.HostConfig) {
	cfg := &container.Config{Image: r.Image, Cmd: r.Command, AttachStdout: true, AttachStderr: true, Labels: map[string]string{Label: r.mark}}
	host := &container.HostConfig{Isolation: l.isolation, Resources: container.Resources{Memory: r.Memory, NanoCPUs: int64(r.CPUs * 1e9)}}
	return cfg, host
}

// create makes a container; drop removes it, whatever became of it and of ctx.
func (r *race) create(ctx context.Context, l *lane, edit func(*container.Config)) (id string, drop func() error, err error) {
	r.count++
	name := fmt.Sprintf("compare-%s-%d", r.mark, r.count)
	cfg, host := r.config(l)
	if edit != nil {
		edit(cfg)
	}
	drop = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpLimit)
		defer cancel()
		if err := l.client.ContainerRemove(ctx, name, true, true); err != nil && !client.IsNotFound(err) {
			return fmt.Errorf("cannot remove container %s: %w", name, err)
		}
		return nil
	}
	made, err := l.client.ContainerCreate(ctx, name, "", cfg, host, nil)
	if err != nil {
		if ctx.Err() != nil { // it may have come into being all the same
			err = errors.Join(err, drop())
		}
		return "", nil, err
	}
	return made.ID, drop, nil
}

// cold runs the command once in a container or VM of its own.
func (r *race) cold(ctx context.Context, l *lane) (run Run, err error) {
	id, drop, err := r.create(ctx, l, nil)
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, drop()) }()
	if r.argv == nil {
		made, err := l.client.ContainerInspect(ctx, id)
		if err != nil {
			return run, err
		}
		r.argv = append([]string{made.Path}, made.Args...)
	}
	conn, err := l.client.ContainerAttach(ctx, id, false, true, true, false)
	if err != nil {
		return run, err
	}
	defer conn.Close()
	wait, err := l.client.ContainerWait(ctx, id, container.WaitConditionNextExit)
	if err != nil {
		return run, err
	}
	out := listen(ctx, conn)
	begin := time.Now()
	if err := l.client.ContainerStart(ctx, id); err != nil {
		return run, err
	}
	run.Start = seconds(time.Since(begin))
	seen := l.watch(ctx, id)
	err = out.wait()
	ended, waitErr := wait()
	last := seen.stop()
	if err = errors.Join(err, waitErr); err != nil {
		return run, err
	}
	if ended.Error != nil && ended.Error.Message != "" {
		return run, errors.New(ended.Error.Message)
	}
	run.ExitCode = int(ended.StatusCode)
	run.FirstOutput = out.since(begin)
	if l.proa {
		err = r.bill(ctx, l, id, &run, last)
	} else {
		err = r.guess(ctx, l, id, &run, last)
	}
	if err == nil && run.ExitCode != 0 {
		var c container.InspectResponse
		c, err = l.client.ContainerInspect(ctx, id)
		run.OOMKilled = err == nil && c.State != nil && c.State.OOMKilled
		run.LastWords = out.last()
	}
	return run, err
}

// bill takes the engine's last reading of a run.
func (r *race) bill(ctx context.Context, l *lane, id string, run *Run, seen *sightings) error {
	u, err := l.client.ContainerUsage(ctx, id)
	if err != nil {
		return err
	}
	run.fill(&u, nil)
	run.Wall = seconds(u.FinishedAt.Sub(u.StartedAt))
	// What ended before it could be counted was its main process and its shim.
	run.Processes = number(max(2, seen.processes))
	return nil
}

// guess makes a run of what another engine says while and after it runs.
func (r *race) guess(ctx context.Context, l *lane, id string, run *Run, seen *sightings) error {
	var c container.InspectResponse
	if err := l.client.Do(ctx, http.MethodGet, "/containers/"+id+"/json", url.Values{"size": {"1"}}, nil, &c); err != nil {
		return err
	}
	if c.SizeRw != nil {
		run.Disk = number(*c.SizeRw)
	}
	if c.State != nil {
		from, err1 := time.Parse(time.RFC3339Nano, c.State.StartedAt)
		to, err2 := time.Parse(time.RFC3339Nano, c.State.FinishedAt)
		if err1 == nil && err2 == nil && to.After(from) {
			run.Wall = seconds(to.Sub(from))
		}
	}
	run.Kernel = l.kernel
	if s := seen.stats; s != nil {
		run.CPU = seconds(time.Duration(s.CPUStats.CPUUsage.TotalUsage))
		run.Memory = number(max(seen.memory, s.MemoryStats.MaxUsage))
		var written uint64
		for _, e := range s.BlkioStats.IoServiceBytesRecursive {
			if e.Op == "write" || e.Op == "Write" {
				written += e.Value
			}
		}
		run.BlockWritten = number(written)
	}
	if seen.processes > 0 {
		run.Processes = number(seen.processes)
	}
	return nil
}

// idlers are programs that wait for ever, one of which most images have.
var idlers = [][]string{{"sleep", "2147483647"}, {"tail", "-f", "/dev/null"}, {"cat"}, {"sh", "-c", "read x"}}

// warm boots one VM and executes the command in it, once for each round.
func (r *race) warm(ctx context.Context) (Contender, error) {
	l := &lane{name: VMWarm, client: r.engine, isolation: "vm", proa: true}
	out := Contender{Name: VMWarm, Meaning: meaning(l)}
	for _, idle := range idlers {
		id, drop, err := r.create(ctx, l, func(c *container.Config) {
			c.Entrypoint, c.Cmd = idle[:1], idle[1:]
			c.OpenStdin = true // nobody closes it, so what reads it waits
		})
		if err != nil {
			return out, err
		}
		r.say("a VM that stays up boots")
		err = r.engine.ContainerStart(ctx, id)
		var api *client.APIError
		if errors.As(err, &api) && (api.ExitCode == 127 || api.ExitCode == 126) {
			if err := drop(); err != nil {
				return out, err
			}
			continue
		}
		for round := 0; err == nil && round < r.Runs; round++ {
			r.progress(fmt.Sprintf("run %d of %d: %s", round+1, r.Runs, title(VMWarm)))
			var run Run
			if run, err = r.exec(ctx, id); err == nil {
				run.Round, run.Position = round+1, 1
				out.Runs = append(out.Runs, run)
			}
		}
		return out, errors.Join(err, drop())
	}
	out.Skipped = "the image has no program that waits (sleep, tail, cat or sh), so no VM of it can stay up"
	return out, nil
}

// say shows what goes on between two runs.
func (r *race) say(what string) {
	if r.Progress != nil {
		r.Progress(r.done, r.total, what)
	}
}

// exec executes the command once in a VM that is up.
func (r *race) exec(ctx context.Context, id string) (run Run, err error) {
	before, err := r.engine.ContainerUsage(ctx, id)
	if err != nil {
		return run, err
	}
	exec, err := r.engine.ExecCreate(ctx, id, container.ExecCreateRequest{Cmd: r.argv, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return run, err
	}
	begin := time.Now()
	conn, err := r.engine.ExecStart(ctx, exec, container.ExecStartRequest{})
	if err != nil {
		return run, err
	}
	defer conn.Close()
	started := time.Now()
	out := listen(ctx, conn)
	if err := out.wait(); err != nil {
		return run, err
	}
	run.Wall = seconds(time.Since(started))
	after, err := r.engine.ContainerUsage(ctx, id)
	if err != nil {
		return run, err
	}
	end, err := r.engine.ExecInspect(ctx, exec)
	if err != nil {
		return run, err
	}
	if end.ExitCode == nil {
		return run, errors.New("its output has ended, but the command has not")
	}
	if run.ExitCode = *end.ExitCode; run.ExitCode != 0 {
		run.LastWords = out.last()
	}
	run.Start, run.FirstOutput = seconds(started.Sub(begin)), out.since(begin)
	run.fill(&after, &before)
	run.Processes = number(after.Processes)
	return run, nil
}

// output notes when the first byte of a stream came and keeps its end.
type output struct {
	mu    sync.Mutex
	first time.Time
	tail  []byte
	done  chan error
}

// keep is how much of a command's output is kept, in bytes.
const keep = 512

// listen reads a stream to its end.
func listen(ctx context.Context, conn *client.Conn) *output {
	o := &output{done: make(chan error, 1)}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer stop()
		// Without a terminal the stream has frames, also where an engine before
		// API 1.42 does not say so.
		o.done <- client.Demux(conn, o, o)
	}()
	return o
}

func (o *output) Write(p []byte) (int, error) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first.IsZero() {
		o.first = now
	}
	o.tail = append(o.tail, p[max(0, len(p)-keep):]...)
	if len(o.tail) > keep {
		o.tail = append(o.tail[:0], o.tail[len(o.tail)-keep:]...)
	}
	return len(p), nil
}

// wait returns at the end of the stream.
func (o *output) wait() error {
	if err := <-o.done; err != nil {
		return fmt.Errorf("the connection to the engine broke: %w", err)
	}
	return nil
}

// since is the time from begin to the first byte; nil if none came.
func (o *output) since(begin time.Time) *float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first.IsZero() {
		return nil
	}
	return seconds(o.first.Sub(begin))
}

// last is the last line of the output.
func (o *output) last() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return lastLine(o.tail)
}
