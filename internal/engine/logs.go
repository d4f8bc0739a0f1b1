package engine

import (
	"context"
	"iter"

	"github.com/containerd/errdefs"

	"proa/internal/logs"
)

// LogLine is one record of a log; Text ends with its line end if it had one.
type LogLine = logs.Line

// Logs reads a container's log. The iteration ends at the log's end, or with
// Follow when the container's output has ended or ctx ends.
func (e *Engine) Logs(ctx context.Context, ref string, o LogsOptions) (iter.Seq2[LogLine, error], error) {
	b, err := e.find(ref)
	if err != nil {
		return nil, err
	}
	if !o.Stdout && !o.Stderr {
		return nil, invalid("Bad parameters: you must choose at least one stream")
	}
	if b.snap.Load().Host.LogConfig.Type == "none" {
		return nil, refusef(errdefs.ErrNotImplemented, "configured logging driver does not support reading")
	}
	var done <-chan struct{}
	b.read(func(_ *record, l *live) {
		if l.run != nil {
			done = l.run.done
		}
	})
	return logs.Read(ctx, e.logPath(b.id), logs.ReadOptions{
		Tail: o.Tail, Since: o.Since, Until: o.Until, Stdout: o.Stdout, Stderr: o.Stderr,
		Follow: o.Follow && done != nil, Done: done,
	}), nil
}
