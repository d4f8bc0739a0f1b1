package engine

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"proa/internal/event"
	"proa/internal/isolation"
	"proa/internal/shim"
)

// Docker's defaults and bounds for health checks.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthLogEntries    = 5
	healthOutputBytes   = 4096
)

// healthCommand is what a check runs; nil for none.
func healthCommand(c *container.Config) []string {
	h := c.Healthcheck
	if h == nil || len(h.Test) < 2 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		shell := c.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), h.Test[1])
	}
	return nil // NONE
}

// watchHealth checks a container at intervals as long as its run lasts.
func (e *Engine) watchHealth(b *box, r *run) {
	c := b.snap.Load()
	cmd := healthCommand(c.Config)
	if cmd == nil {
		return
	}
	b.change(func(rec *record, _ *live) { rec.Health = startingHealth(rec.Health) })
	e.work.Go(func() {
		ctx, cancel := context.WithCancel(e.life)
		defer cancel()
		go func() { // a check under way ends with the run
			select {
			case <-r.done:
				cancel()
			case <-ctx.Done():
			}
		}()
		for ctx.Err() == nil {
			c := b.snap.Load()
			t := time.NewTimer(healthPause(c.Config.Healthcheck, c.Health, e.cfg.Now().Sub(c.StartedAt)))
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return
			}
			e.checkHealth(ctx, b, cmd)
		}
	})
}

// startingHealth is the health of a new run: the results of earlier runs stay
// (moby daemon/health.go, initHealthMonitor).
func startingHealth(old *container.Health) *container.Health {
	n := &container.Health{Status: container.Starting}
	if old != nil {
		n.Log = old.Log
	}
	return n
}

// healthPause is how long to wait before the next check of a container that
// started so long ago. The start interval counts until the first success, and
// ends with the start period however long it is.
func healthPause(h *container.HealthConfig, now *container.Health, since time.Duration) time.Duration {
	if left := h.StartPeriod - since; left > 0 && now != nil && now.Status == container.Starting {
		return min(orDefault(h.StartInterval, healthStartInterval), left)
	}
	return orDefault(h.Interval, healthInterval)
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// checkHealth runs one check and records its result. A check that a pause or
// the end of the run meets has none.
func (e *Engine) checkHealth(ctx context.Context, b *box, cmd []string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	b.change(func(_ *record, l *live) { l.endCheck = cancel })
	defer b.change(func(_ *record, l *live) { l.endCheck = nil })
	if b.snap.Load().State != Running {
		return
	}
	h := b.snap.Load().Config.Healthcheck
	res := &container.HealthcheckResult{Start: e.cfg.Now()}
	limit := orDefault(h.Timeout, healthTimeout)
	res.ExitCode, res.Output = e.runCheck(ctx, b, cmd, limit)
	res.End = e.cfg.Now()
	if ctx.Err() != nil {
		return
	}
	before := container.Starting
	c := b.change(func(r *record, _ *live) {
		if r.Health != nil {
			before = r.Health.Status
		}
		r.Health = nextHealth(r.Health, res, h, r.StartedAt)
	})
	if c.Health.Status != before {
		e.emitDetail(c, event.ContainerHealthStatus, string(c.Health.Status))
	}
}

// nextHealth adds a result. Failures within the start period do not count.
func nextHealth(old *container.Health, res *container.HealthcheckResult, h *container.HealthConfig, started time.Time) *container.Health {
	n := container.Health{Status: container.Starting}
	if old != nil {
		n = *old
	}
	n.Log = append(slices.Clone(n.Log), res)
	if len(n.Log) > healthLogEntries {
		n.Log = n.Log[len(n.Log)-healthLogEntries:]
	}
	if res.ExitCode == 0 {
		n.Status, n.FailingStreak = container.Healthy, 0
		return &n
	}
	if n.Status == container.Starting && res.Start.Sub(started) < h.StartPeriod {
		return &n
	}
	retries := h.Retries
	if retries == 0 {
		retries = healthRetries
	}
	if n.FailingStreak++; n.FailingStreak >= retries {
		n.Status = container.Unhealthy
	}
	return &n
}

// runCheck executes the command inside and gives its exit code and the first
// bytes of its output. One that takes too long is killed.
func (e *Engine) runCheck(ctx context.Context, b *box, cmd []string, limit time.Duration) (int, string) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sh, err := b.shim()
	if err != nil {
		return -1, err.Error()
	}
	p, err := e.execProcess(b, container.ExecCreateRequest{Cmd: cmd}, ExecStartOptions{})
	if err != nil {
		return -1, err.Error()
	}
	id := newID()
	c := b.snap.Load()
	e.emitDetail(c, event.ContainerExecCreate, commandLine(cmd), id)
	e.emitDetail(c, event.ContainerExecStart, commandLine(cmd), id)
	code := 137 // killed by its limit, or with the container
	defer func() { e.emit(c, event.ContainerExecDie, id, strconv.Itoa(code)) }()
	st, err := sh.Exec(ctx, id, p, shim.Streams{Stdout: true, Stderr: true})
	if err != nil {
		var s *isolation.StartError
		if errors.As(err, &s) && s.Kind == isolation.StartNotFound {
			code = 127
			return code, err.Error()
		}
		return -1, err.Error()
	}
	defer st.Close()
	stop := context.AfterFunc(ctx, func() { st.Close() })
	out := &capped{}
	err = st.Copy(out, out)
	if !stop() || err != nil {
		kill, done := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
		defer done()
		_ = sh.ExecSignal(kill, id, 9) // it may have ended just now
		said := "Health check exceeded timeout (" + limit.String() + ")"
		if text := out.String(); text != "" {
			said += ": " + text
		}
		return -1, said
	}
	exit, _ := st.Exit()
	code = exit.Code
	return code, out.String()
}

// capped keeps the first bytes that are written to it, and three dots for the rest.
type capped struct {
	mu  sync.Mutex
	buf bytes.Buffer
	cut bool
}

func (c *capped) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(len(p), healthOutputBytes-c.buf.Len())
	c.cut = c.cut || n < len(p)
	c.buf.Write(p[:n])
	return len(p), nil
}

func (c *capped) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return c.buf.String() + "..."
	}
	return c.buf.String()
}
